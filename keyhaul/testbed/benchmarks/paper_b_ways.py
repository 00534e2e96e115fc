"""One message over a path, profile by profile: the five steps of paper B §6 timed, payload and link bits.

`XOR` is scheme `trusted`; `paper`, `lean`, `dense` are the profiles of homomorphic relays, `masked` and
`masked, epoch` the two forms of that scheme. `re-randomised` is `blind-fresh`, whose relays
each add an encryption of zero that was made ahead. `dense mod q` is the hop of `dense` as published (unpack,
add q/2, pack), which `dense` itself replaces by an XOR; it has no other step. Link keys are ready made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

import numpy as np

from keyhaul import kem
from keyhaul.errors import Unsupported
from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair, Payload, Scheme
from keyhaul.openfhe import OpenFhe, Timed
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import COEFFICIENTS, DENSE, Bfv
from keyhaul.schemes.blind import Blind
from keyhaul.schemes.fresh import Fresh, Notes
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.lean import Lean
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.seal_whole import SealWhole
from keyhaul.schemes.trusted import Trusted
from keyhaul.schemes.zeros import Zeros

INITIAL, UNDO, REDO, HOP, FINAL = "initial XOR", "undo XOR", "redo XOR", "hop", "final undo XOR"
STEPS = (INITIAL, UNDO, REDO, HOP, FINAL)
XOR, PAPER, LEAN, DENSE_, MODULO = "XOR", "paper", "lean", "dense", "dense mod q"
FRESH, MASKED, EPOCH = "re-randomised", "masked", "masked, epoch"
PROFILES = (XOR, PAPER, LEAN, DENSE_, FRESH, MODULO, MASKED, EPOCH)

ROUTE = ("zone-1", "zone-2", "zone-3", "zone-4", "zone-5")
PAIR = Pair(b"pair id of 16 B.", Secret(bytes(range(32))))


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """Keys of one request: how many, of how many bits."""

    number: int
    size: int

    def __str__(self) -> str:
        return f"{self.number} key{'s' if self.number > 1 else ''} of {self.size} bits"


@dataclass(slots=True)
class Found:
    """What was measured of one profile in one case. Seconds per message, bytes of its payload and pad.

    `details` are the paper profile's own steps, seconds per key.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)
    payload: list[int] = field(default_factory=list)
    pad: int = 0
    details: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def note(self, step: str, seconds: float, processor: float) -> None:
        self.seconds.setdefault(step, []).append(seconds)
        self.processor.setdefault(step, []).append(processor)


class Way(Protocol):
    """A profile that can be measured."""

    def measure(self, case: Case, found: Found, rounds: int) -> None:
        """Add `rounds` samples of each step; raises RuntimeError if keys do not arrive as they were sent."""


class Pairs(Protocol):
    """Pair secrets at both ends."""

    def outgoing(self) -> Pair: ...
    def incoming(self, head: bytes) -> Pair: ...


class Agreed:
    """A pair secret that both ends hold already."""

    def outgoing(self) -> Pair:
        return PAIR

    def incoming(self, head: bytes) -> Pair:
        return PAIR


class SchemeWay:
    """Any scheme in this process, through the interface the relay uses."""

    def __init__(self, scheme: Scheme, pairs: Pairs) -> None:
        self._scheme = scheme
        self._pairs = pairs

    def measure(self, case: Case, found: Found, rounds: int) -> None:
        scheme = self._scheme
        keys = [Secret(os.urandom(case.size // 8)) for _ in range(case.number)]
        context = context_of(scheme.name, case)
        sent = scheme.originate(keys, context, self._pairs.outgoing())
        found.pad = scheme.pad_bytes(sent)
        one, other = os.urandom(found.pad), os.urandom(found.pad)
        under, after = scheme.transit(sent, None, one), scheme.transit(sent, None, other)
        after = self._further(after, other, context)
        found.payload += [len(each.head) + len(each.body) for each in (under, after)]

        def initial() -> Payload:
            return scheme.transit(scheme.originate(keys, context, self._pairs.outgoing()), None, one)

        def opened(arrived: Payload, pad: bytes) -> list[Secret]:
            bare = scheme.transit(arrived, pad, None)
            return scheme.deliver(bare, context, self._pairs.incoming(bare.head))

        steps: Mapping[str, Callable[[], object]] = {
            INITIAL: initial,
            UNDO: lambda: scheme.transit(under, one, None),
            REDO: lambda: scheme.transit(sent, None, other),
            HOP: lambda: self._hop(under, one, other, context),
            FINAL: lambda: opened(after, other),
        }
        check(opened(initial(), one), keys)
        check(opened(self._hop(under, one, other, context), other), keys)
        for step, call in steps.items():
            timed(call, found, step, rounds)

    def _hop(self, payload: Payload, one: bytes, other: bytes, context: Context) -> Payload:
        return self._scheme.transit(payload, one, other)

    def _further(self, payload: Payload, pad: bytes, context: Context) -> Payload:
        """As it arrives over all relays of the route, all under the same pad."""
        for _ in context.route[1:-1]:
            payload = self._hop(payload, pad, pad, context)
        return payload


class FreshWay(SchemeWay):
    """Relays that re-randomise, with zeros that are ready; payloads on the first and the last link."""

    def __init__(self, fresh: Fresh) -> None:
        super().__init__(fresh, Agreed())
        self._fresh = fresh

    def _hop(self, payload: Payload, one: bytes, other: bytes, context: Context) -> Payload:
        bare = self._fresh.transit(payload, one, None)
        return self._fresh.transit(self._fresh.renew(bare, context), None, other)


class SameZeros(Zeros):
    """Always the same few: what is measured is using them. Nowhere else may that be."""

    def __init__(self, bfv: Bfv) -> None:
        super().__init__(bfv)
        self._made: dict[int, tuple[dense.Polynomial, dense.Polynomial]] = {}

    def take(self, public: bytes, number: int) -> tuple[dense.Polynomial, dense.Polynomial]:
        if number not in self._made:
            self._made[number] = super().take(public, number)
        return self._made[number]


def fresh_of(bfv: Bfv, ring: KeyRing) -> Fresh:
    """Origin, relays and destination in one, with a KEM key for the notes."""
    key = kem.PrivateKey(kem.DEFAULT, kem.generate(kem.DEFAULT))
    notes = Notes(lambda _, said: kem.seal(key.public, said), key.unseal, kem.SEAL_OVERHEAD)
    fresh = Fresh(bfv, lambda _: ring.announced(0.0), ring.own, notes)
    fresh.zeros = SameZeros(bfv)
    return fresh


class PaperWay:
    """The paper's configuration: one ciphertext a key, times as the worker took them, without the pipe."""

    def __init__(self, fhe: OpenFhe) -> None:
        self._fhe = fhe
        self._public, self._secret = fhe.generate()

    def measure(self, case: Case, found: Found, rounds: int) -> None:
        width = case.size // 8
        found.pad = width * case.number
        for _ in range(rounds):
            answers = [self._one(width, case.number == 1) for _ in range(case.number)]
            found.payload.append(sum(len(each[HOP].value) for each in answers))
            for step in answers[0]:
                found.note(
                    step,
                    sum(each[step].seconds for each in answers),
                    sum(each[step].processor for each in answers),
                )
            for each in answers:
                for step in (INITIAL, HOP, FINAL):
                    details = found.details.setdefault(step, {})
                    for name, seconds in each[step].steps:
                        details.setdefault(name, []).append(seconds)

    def _one(self, width: int, apart: bool) -> dict[str, Timed]:
        """One key on its way; `apart`: undo and redo also for themselves."""
        key, one, other = (os.urandom(width) for _ in range(3))
        fhe, public = self._fhe, self._public
        first = fhe.originate(public, key, one)
        hop = fhe.relay(public, first.value, one, other)
        last = fhe.deliver(public, self._secret, hop.value, width, other)
        check([Secret(last.value)], [Secret(key)])
        steps = {INITIAL: first, HOP: hop, FINAL: last}
        if apart:
            steps[UNDO] = fhe.relay(public, first.value, one)
            steps[REDO] = fhe.relay(public, steps[UNDO].value, b"", other)
        return steps


class ModuloWay:
    """The published hop in dense form, without a library: unpack, add q/2, pack."""

    def measure(self, case: Case, found: Found, rounds: int) -> None:
        bits = case.number * case.size
        found.pad = bits // 8
        pads = os.urandom(bits // 8)
        first = dense.pack(np.frombuffer(os.urandom(4 * bits), np.uint32) % np.uint32(DENSE.q), DENSE)
        ciphertexts = -(-bits // COEFFICIENTS)
        found.payload.append(len(first) + ciphertexts * DENSE.polynomial_bytes)

        def hop() -> bytes:
            return dense.pack(
                dense.add_plain(dense.unpack(first, bits, DENSE), dense.bits_of(pads), DENSE), DENSE
            )

        timed(hop, found, HOP, rounds)


def ways(pairs: Pairs) -> tuple[dict[str, Way], dict[str, str]]:
    """The profiles that can run here, and why others cannot; `pairs` makes a pair secret a message."""
    found: dict[str, Way] = {XOR: SchemeWay(Trusted(), Agreed())}
    missing: dict[str, str] = {}
    try:
        found[PAPER] = PaperWay(OpenFhe())
    except Unsupported as reason:
        missing[PAPER] = str(reason)
    try:
        bfv = SealWhole()
    except Unsupported as reason:
        missing |= dict.fromkeys((LEAN, DENSE_, FRESH), str(reason))
    else:
        ring = KeyRing(bfv)
        ring.activate(ring.prepare(0.0))
        found[LEAN] = SchemeWay(Lean(bfv, lambda _: ring.announced(0.0), ring.own), Agreed())
        found[DENSE_] = SchemeWay(Blind(bfv, lambda _: ring.announced(0.0), ring.own), Agreed())
        found[FRESH] = FreshWay(fresh_of(bfv, ring))
    found[MODULO] = ModuloWay()
    found[MASKED] = SchemeWay(Masked(once=True), pairs)
    found[EPOCH] = SchemeWay(Masked(), Agreed())
    return found, missing


def context_of(scheme: str, case: Case) -> Context:
    """What the origin vouches for on the four links of testbed `tecnalia`."""
    ids = tuple(UUID(int=at) for at in range(case.number))
    trust = (("relays", "computational"), ("wire", "information-theoretic"))
    return Context(
        scheme, ROUTE[0], ROUTE[-1], "sae-zone-1", ("sae-zone-5",), ids, case.size, 0, ROUTE, trust
    )


def timed(call: Callable[[], object], found: Found, step: str, rounds: int) -> None:
    """Wall time of each of `rounds` calls; processor time of all of them, evenly."""
    call()
    seconds = []
    used = time.process_time()
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    used = (time.process_time() - used) / rounds
    for each in seconds:
        found.note(step, each, used)


def check(arrived: list[Secret], sent: list[Secret]) -> None:
    if len(arrived) != len(sent) or not all(a.same_as(b) for a, b in zip(arrived, sent, strict=True)):
        raise RuntimeError("keys did not arrive as they were sent")
