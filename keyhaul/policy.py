"""What an SAE may ask for, and what its keys' paths must promise: limits of requests, labels of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from msgspec import UNSET

from keyhaul.errors import ConfigError, Malformed, NoSuchTarget, Refused
from keyhaul.messages.etsi014 import (
    LABELS,
    MANDATORY_UNSUPPORTED,
    SCHEME,
    SIZE_NOT_OCTETS,
    TRUST,
    Extensions,
    KeyIds,
    KeyRequest,
    Order,
    Standing,
    Status,
)

MAX_SAE_ID = 64  # bytes of UTF-8; ETSI GS QKD 020 carries no longer ones
MAX_BITS = 8 * 1024 * 1024  # of one request, all keys together: 128 keys of 65,536 bits


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of 014 clause 6.1. Sizes in bits; raises ConfigError if they contradict each other.

    `max_bits` bounds number × size of one request, so that answers and the messages sideways fit their
    body limits. `allow_self` lets an SAE name itself as slave (test clients do).
    """

    key_size: int = 256
    min_key_size: int = 8
    max_key_size: int = 65_536
    max_key_per_request: int = 128
    max_key_count: int = 100_000
    max_sae_id_count: int = 8
    max_bits: int = MAX_BITS
    allow_self: bool = True

    def __post_init__(self) -> None:
        for name in ("key_size", "min_key_size", "max_key_size"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise ConfigError(f"{name} is {getattr(self, name)}", "give a positive multiple of 8 bits")
        for name, least in (("max_key_per_request", 1), ("max_key_count", 1), ("max_sae_id_count", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}", f"give at least {least}")
        if not self.min_key_size <= self.key_size <= self.max_key_size <= self.max_bits:
            raise ConfigError(
                "min_key_size, key_size, max_key_size and max_bits are out of order",
                "each must be at least as large as the one before",
            )

    def check(self, master: str, slave: str, request: KeyRequest) -> Order:
        """The order in a request of `master` for `slave`.

        Raises Refused with the standard's wording where it has one (size, unknown mandatory extension),
        Malformed for what contradicts the status or itself, NoSuchTarget for ids nobody can have.
        """
        size = self.key_size if request.size is UNSET else request.size
        self._check_amount(request.number, size)
        options, mandatory = _options(request.mandatory, request.optional)
        return Order(
            master, self._targets(master, slave, request.additional), request.number, size, options, mandatory
        )

    def check_ids(self, asked: KeyIds) -> KeyIds:
        """The ids of one dec_keys call, at most as many as one enc_keys call gives. Raises Malformed."""
        if len(asked.ids) > self.max_key_per_request:
            raise Malformed(
                f"{len(asked.ids)} key_IDs in one request",
                f"ask for at most {self.max_key_per_request} at a time",
            )
        return asked

    def status(self, master: str, slave: str, standing: Standing) -> Status:
        """The Status of a pair: these limits, and where the pair stands."""
        return Status(
            source_kme=standing.source_kme,
            target_kme=standing.target_kme,
            master_sae=master,
            slave_sae=slave,
            key_size=self.key_size,
            stored_key_count=standing.stored_key_count,
            max_key_count=standing.max_key_count,
            max_key_per_request=self.max_key_per_request,
            max_key_size=self.max_key_size,
            min_key_size=self.min_key_size,
            max_sae_id_count=self.max_sae_id_count,
        )

    def _check_amount(self, number: int, size: int) -> None:
        if size % 8:
            raise Refused(SIZE_NOT_OCTETS, f"ask for {max(size - size % 8 + 8, self.min_key_size)} bits")
        if not self.min_key_size <= size <= self.max_key_size:
            raise Malformed(
                "size is out of bounds", f"ask for {self.min_key_size} to {self.max_key_size} bits per key"
            )
        if not 1 <= number <= self.max_key_per_request:
            raise Malformed("number is out of bounds", f"ask for 1 to {self.max_key_per_request} keys")
        if number * size > self.max_bits:
            raise Malformed(
                f"{number} keys of {size} bits are too much for one request",
                f"ask for at most {self.max_bits} bits at a time",
            )

    def _targets(self, master: str, slave: str, additional: Sequence[str]) -> tuple[str, ...]:
        if len(additional) > self.max_sae_id_count:
            raise Malformed(
                f"{len(additional)} additional slave SAEs", f"name at most {self.max_sae_id_count}"
            )
        if slave == master and not self.allow_self:
            raise Malformed("master and slave are the same SAE", "name another SAE as slave")
        if master in additional:
            raise Malformed("the master is among its own additional slaves", "leave its SAE ID out")
        targets = (slave, *additional)
        if len(set(targets)) != len(targets):
            raise Malformed("a slave SAE is named twice", "name every SAE once, in the path or in the list")
        for target in targets:
            check_sae(target)
        return targets


@dataclass(frozen=True, slots=True)
class Rule:
    """Labels that keys of some SAEs need. `master` and `slave` may hold `*`, `?` and `[…]`."""

    master: str
    slave: str
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """The labels demanded per pair of SAEs, whatever a request says. Every rule that fits counts."""

    rules: tuple[Rule, ...] = ()

    def demanded(self, master: str, slaves: Sequence[str]) -> frozenset[str]:
        """What the path of a key must carry that goes from a master to some slaves."""
        fitting = (
            rule.labels
            for rule in self.rules
            if fnmatchcase(master, rule.master) and any(fnmatchcase(slave, rule.slave) for slave in slaves)
        )
        return frozenset().union(*fitting)


NO_POLICY = PathPolicy()

LABELS_KNOWN = ("relay-blind", "its-wire", "pq", "qkd")
"""What a path may promise; see `keyhaul.promise`."""


def check_sae(sae: str) -> str:
    """An SAE id that somebody could have; raises Malformed for an empty one, NoSuchTarget for others."""
    if not sae:
        raise Malformed("an SAE ID is empty", "name the SAE as its certificate does")
    if len(sae.encode()) > MAX_SAE_ID:
        raise NoSuchTarget(
            f"an SAE ID is longer than {MAX_SAE_ID} bytes", "name the SAE as its certificate does"
        )
    if not sae.isprintable():
        raise NoSuchTarget("an SAE ID has control characters", "name the SAE as its certificate does")
    return sae


def _options(mandatory: Extensions, optional: Extensions) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The extensions we understand, and the names of those that must be met."""
    if not mandatory and not optional:
        return _NO_OPTIONS
    demanded, wished = _flat(mandatory), _flat(optional)
    if unknown := sorted(demanded.keys() - _UNDERSTOOD.keys()):
        raise Refused(
            MANDATORY_UNSUPPORTED,
            f"use only {', '.join(_UNDERSTOOD)}, or move the others to extension_optional",
            extension_mandatory_unsupported=f"not supported: {_shown(unknown)}",
        )
    if both := sorted(demanded.keys() & wished.keys()):
        raise Malformed(f"extension {_shown(both)} is both mandatory and optional", "give it once")
    given = {name: value for name, value in (demanded | wished).items() if name in _UNDERSTOOD}
    return {name: _UNDERSTOOD[name](name, value) for name, value in given.items()}, frozenset(demanded)


_NO_OPTIONS: tuple[Mapping[str, Any], frozenset[str]] = (MappingProxyType({}), frozenset())


def _flat(extensions: Extensions) -> dict[str, Any]:
    """014 has an array of objects of name-value pairs; how the pairs are spread over them means nothing."""
    flat: dict[str, Any] = {}
    for extension in extensions:
        for name, value in extension.items():
            if name in flat:
                raise Malformed(f"extension {_shown([name])} is given more than once", "give each once")
            flat[name] = value
    return flat


def _shown(names: Sequence[str]) -> str:
    """Foreign names in an error: a few, and not all of a long one."""
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(ascii(name[:64])[1:-1] for name in names[:8]) + more


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"extension {name} is not true or false", "send a JSON boolean")
    return value


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Malformed(f"extension {name} is not a word", "send a string that is not empty")
    return value


def _words(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise Malformed(f"extension {name} is not a list of words", "send an array of strings")
    return tuple(value)


_UNDERSTOOD: dict[str, Callable[[str, object], Any]] = {TRUST: _flag, SCHEME: _word, LABELS: _words}
