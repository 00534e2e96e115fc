"""What is wrong, in words, with the next step: read off the statuses of nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

DAYS_TO_RENEW = 30
HOURS_TO_EXHAUSTION = 24.0
_RANK = {"error": 0, "warning": 1, "notice": 2}

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """`where` is a node, or the two of a link; `next_step` tells an operator what to do first.

    A notice is no fault of today: it names what a node was set up with, and may concern many nodes.
    """

    severity: Literal["error", "warning", "notice"]
    where: tuple[str, ...]
    what: str
    next_step: str

    def plain(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "where": list(self.where),
            "what": self.what,
            "next_step": self.next_step,
        }


def faults(statuses: Iterable[Status]) -> list[Fault]:
    """All faults, errors first; a link that both its ends complain of is named once, a notice too."""
    found: dict[tuple[str, frozenset[str]], Fault] = {}
    for status in statuses:
        for fault in _of(status):
            where = frozenset[str]() if fault.severity == "notice" else frozenset(fault.where)
            key = (fault.what.partition(":")[0], where)
            if key in found and fault.severity == "notice":
                fault = replace(fault, where=(*found[key].where, *fault.where))
                del found[key]
            found.setdefault(key, fault)
    return sorted(found.values(), key=lambda fault: (_RANK[fault.severity], fault.where, fault.what))


def _of(status: Status) -> Iterator[Fault]:
    name = str(status["name"])
    if "unreachable" in status:
        yield Fault(
            "error",
            (name,),
            f"the node does not answer: {status['unreachable']}",
            "see whether it runs (systemctl status keyhaul) and what the end of its log says",
        )
        return
    yield from _links(name, status)
    yield from _store(name, status)
    yield from _entropy(name, status)
    yield from _certificates(name, status)


def _links(name: str, status: Status) -> Iterator[Fault]:
    silent = set(status.get("silent", ()))
    for link in status.get("links", ()):
        peer = str(link["peer"])
        if peer in silent:
            yield Fault(
                "error",
                (name, peer),
                f"{peer} does not answer {name}: messages wait and are sent again",
                f"see whether {peer} runs; test from {name} with `keyhaul federation test {peer}`",
            )
        elif link["level_bits"] == 0:
            reason = f": {link['trouble']}" if link.get("trouble") else ""
            yield Fault(
                "error",
                (name, peer),
                f"the quantum link has no key bits ready, so keys over it wait or fail with 503{reason}",
                f"look at the device at {name}: is its link up, does its status show stored keys?",
            )
        elif link.get("hours_left") is not None and link["hours_left"] < HOURS_TO_EXHAUSTION:
            yield Fault(
                "warning",
                (name, peer),
                f"no new key bits come, the last are gone in {_span(link['hours_left'])} at this rate: "
                f"{link.get('trouble')}",
                f"look at the device at {name}: is its link up, does its status show stored keys?",
            )


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _store(name: str, status: Status) -> Iterator[Fault]:
    store = status.get("store", {})
    if store.get("warnings"):
        yield Fault(
            "notice",
            (name,),
            f"the root secret, kept by {store['kind']}, grade {store['grade']}, comes with a warning",
            "read it with `keyhaul status`; a TPM or a token keeps the secret off the disk",
        )


def _entropy(name: str, status: Status) -> Iterator[Fault]:
    for source in status.get("entropy", {}).get("sources", ()):
        if source["state"] in ("failed", "unreachable"):
            yield Fault(
                "error" if source["state"] == "failed" else "warning",
                (name,),
                f"entropy source {source['name']} is {source['state']}: {source['last_cause']}",
                "mend the source, or replace it with `POST /admin/v1/entropy`; see docs/entropy.md",
            )


def _certificates(name: str, status: Status) -> Iterator[Fault]:
    for certificate in status.get("certificates", ()):
        days = certificate["days_left"]
        if days < DAYS_TO_RENEW:
            ended = "has expired" if days < 0 else f"expires in {days:.0f} days"
            yield Fault(
                "error" if days < 1 else "warning",
                (name,),
                f"the certificate of the {certificate['port']} port {ended}",
                f"renew {certificate['file']} and let the node read it again",
            )
