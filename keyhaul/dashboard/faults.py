"""What is wrong, in words, with the next step: read off the statuses of nodes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

DAYS_TO_RENEW = 30
HOURS_TO_EXHAUSTION = 24.0
SKEW, MUCH_SKEW = 5.0, 60.0  # seconds; descriptors tolerate 300
_RANK = {"error": 0, "warning": 1, "notice": 2}

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """`where` is a node, or the two of a link; `next_step` tells an operator what to do first.

    `short` says it in a word or two, as on the map; two ends that say the same of one link are one fault.
    A notice is no fault of today: it names what a node was set up with, and may concern many nodes.
    """

    severity: Literal["error", "warning", "notice"]
    where: tuple[str, ...]
    short: str
    what: str
    next_step: str

    def plain(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "where": list(self.where),
            "short": self.short,
            "what": self.what,
            "next_step": self.next_step,
        }


def faults(statuses: Iterable[Status]) -> list[Fault]:
    """All faults, errors first; a link that both its ends complain of is named once, a notice too.

    What only follows from a node that does not answer, such as messages that wait for it, is not named.
    """
    statuses = list(statuses)
    gone = {str(status["name"]) for status in statuses if "unreachable" in status}
    found: dict[tuple[str, frozenset[str]], Fault] = {}
    for fault in _views(statuses):
        found[fault.what, frozenset()] = fault
    for status in statuses:
        for fault in _of(status, gone):
            where = frozenset[str]() if fault.severity == "notice" else frozenset(fault.where)
            key = (fault.short if len(fault.where) == 2 else fault.what, where)
            if key in found and fault.severity == "notice":
                fault = replace(fault, where=(*found[key].where, *fault.where))
                del found[key]
            elif key in found and _RANK[fault.severity] < _RANK[found[key].severity]:
                del found[key]
            found.setdefault(key, fault)
    return sorted(found.values(), key=lambda fault: (_RANK[fault.severity], fault.where, fault.what))


def _of(status: Status, gone: set[str]) -> Iterator[Fault]:
    name = str(status["name"])
    if "unreachable" in status:
        yield Fault(
            "error",
            (name,),
            "no answer",
            f"the node does not answer: {status['unreachable']}",
            f"see whether it runs (`systemctl status keyhaul@{name}`) and what the end of its log says "
            f"(`journalctl -u keyhaul@{name}`)",
        )
        return
    for look in _LOOKS:
        yield from look(name, status)
    for link in status.get("links", ()):
        if link["peer"] not in gone:
            yield from _link(name, link, status.get("silent", {}))
    for peer, seconds in status.get("skew", {}).items():
        if abs(seconds) > SKEW and peer not in gone:
            ahead = "ahead of" if seconds > 0 else "behind"
            yield Fault(
                "error" if abs(seconds) > MUCH_SKEW else "warning",
                (name, peer),
                "clocks differ",
                f"the clock of {peer} is {_seconds(abs(seconds))} {ahead} that of {name}; beyond 5 min nodes "
                "stop believing each other",
                "see which of the two is wrong (`chronyc tracking` on both) and start NTP there",
            )


def _views(statuses: Iterable[Status]) -> Iterator[Fault]:
    """Nodes whose configurations draw another network than most do."""
    nodes: dict[str, list[str]] = {}
    for status in statuses:
        if "network" in status:
            nodes.setdefault(status["network"], []).append(str(status["name"]))
    most, *others = sorted(nodes.values(), key=len, reverse=True) or [[]]
    if others:
        yield Fault(
            "notice",
            tuple(name for names in others for name in names),
            "another network",
            f"configured with another network than {', '.join(most[:3])}; the map shows all that any has",
            "compare [network] in their configurations; what was changed takes a `keyhaul reload`",
        )


def _link(name: str, link: Status, silent: Mapping[str, str]) -> Iterator[Fault]:
    """What is wrong with a link, seen from one end: the cause where it is known, else what follows."""
    peer = str(link["peer"])
    where = (name, peer)
    if peer in silent:
        cause = f" ({silent[peer]})" if silent[peer] else ""
        yield Fault(
            "error",
            where,
            "no answer",
            f"{peer} does not answer {name}: messages wait and are sent again{cause}",
            _ask(name, peer),
        )
        return
    device = link.get("device") or {}
    why, step = _supply(name, peer, link, device)
    if link.get("unopened"):
        yield Fault(
            "error",
            where,
            "bits differ",
            f"{peer} could not open {link['unopened']} messages of {name} in the last 2 min, so keys over "
            "this link fail: the two devices hand out different bits, or messages are changed on the way",
            f"compare the alarms of both devices and pair them anew; until then take the link out of the "
            f"configurations (`keyhaul reload`). {name} burns the bits it doubts; no wrong key is delivered",
        )
    elif link["level_bits"] == 0:
        because = f": {why}" if why else ""
        yield Fault(
            "error",
            where,
            "no key bits",
            f"the quantum link has no key bits ready, so keys over it wait or fail with 503{because}",
            step,
        )
    elif why:
        left = link.get("hours_left")
        last = "" if left is None else f"; the last are gone in {_span(left)} at this rate"
        missing = "one-time keys" if link["level_bits"] is None else "key bits"
        yield Fault("warning", where, "no refill", f"no new {missing} come: {why}{last}", step)
    elif link.get("hours_left") is not None and link["hours_left"] < HOURS_TO_EXHAUSTION:
        yield Fault(
            "warning",
            where,
            "running empty",
            "more key bits are used than the device makes: "
            f"its store is empty in {_span(link['hours_left'])} at this rate",
            'ask for fewer keys, add a device, or set the link\'s `mode` to "expanded", which uses least',
        )


def _supply(name: str, peer: str, link: Status, device: Status) -> tuple[str, str]:
    """Why no key bits come, or nothing, and what to do."""
    looks = "whether its link has light, its classical channel is up, its error rate (QBER) low"
    step = f"look at the device at {name}: {looks}"
    if trouble := str(device.get("trouble") or ""):
        doctor = f"`keyhaul doctor --config FILE` on {name} tries it step by step"
        return f"the device at {name} cannot be used: {trouble}", f"see whether the device runs; {doctor}"
    if device.get("stored_bits") == 0:
        return f"the device at {name} stores no key", step
    if trouble := str(link.get("trouble") or ""):
        return trouble, _ask(name, peer) if peer in trouble or link["level_bits"] is None else step
    if link["level_bits"] == 0 and link.get("offered_keys"):
        return (
            f"the device at {peer} does not have the {link['offered_keys']} keys yet that the one at {name} "
            "handed out: it lags, or lost them",
            f"look at the device at {peer}: whether the classical channel between the two devices is up",
        )
    return "", step


def _ask(name: str, peer: str) -> str:
    test = f"`keyhaul federation test {peer} --config FILE` on {name}"
    return f"see whether {peer} runs; {test} finds the step that fails"


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours > 1 / 60 else "a minute"


def _seconds(number: float) -> str:
    return f"{number:.0f} s" if number < 120 else f"{number / 60:.0f} min"


def _life(name: str, status: Status) -> Iterator[Fault]:
    if status.get("draining"):
        yield Fault(
            "warning",
            (name,),
            "stopping",
            "the node is stopping: it finishes what is under way and takes nothing new",
            f"wait, or start it again (`systemctl start keyhaul@{name}`)",
        )
    if (workers := status.get("workers")) is not None and not workers["running"]:
        yield Fault(
            "error",
            (name,),
            "no workers",
            "no worker of the SAE port runs, so applications get no answer",
            f"the end of the log says why they end (`journalctl -u keyhaul@{name}`)",
        )


def _store(name: str, status: Status) -> Iterator[Fault]:
    store = status.get("store", {})
    if store.get("broken"):
        yield Fault(
            "error",
            (name,),
            "disk full",
            "the store cannot save, so the node takes and gives no key: its disk is full, or fails",
            f"make room where {store['file']} is (`df -h`), and look for disk errors (`dmesg`); "
            "the node goes on by itself",
        )
    if store.get("warnings"):
        yield Fault(
            "notice",
            (name,),
            "root secret",
            f"the root secret, kept by {store['kind']}, grade {store['grade']}, comes with a warning",
            "read it with `keyhaul status`; a TPM or a token keeps the secret off the disk",
        )


def _audit(name: str, status: Status) -> Iterator[Fault]:
    audit = status.get("audit") or {}
    if audit.get("trouble"):
        needed = audit.get("required")
        yield Fault(
            "error" if needed else "warning",
            (name,),
            "no audit log",
            f"the audit log cannot be written ({audit['trouble']})"
            + (", and without it no key is given" if needed else ""),
            "make room on its disk (`df -h`), or correct `file` under [audit]",
        )


def _entropy(name: str, status: Status) -> Iterator[Fault]:
    for source in status.get("entropy", {}).get("sources", ()):
        if source["state"] in ("failed", "unreachable"):
            yield Fault(
                "error" if source["state"] == "failed" else "warning",
                (name,),
                "entropy",
                f"entropy source {source['name']} is {source['state']}: {source['last_cause']}",
                "mend the source, or replace it with `POST /admin/v1/entropy`; see docs/entropy.md",
            )


def _certificates(name: str, status: Status) -> Iterator[Fault]:
    for certificate in status.get("certificates", ()):
        days = certificate["days_left"]
        if days < DAYS_TO_RENEW:
            yield Fault(
                "error" if days < 1 else "warning",
                (name,),
                "certificate",
                f"the certificate of the {certificate['port']} port {_ends(days)}"
                + (": whoever connects there is turned away by its own TLS" if days < 0 else ""),
                f"issue {certificate['file']} anew (docs/howto/rotate-certificates.md), "
                "then `keyhaul reload`",
            )


def _ends(days: float) -> str:
    if days < 0:
        return "has expired"
    return f"expires in {days:.0f} days" if days >= 2 else f"expires in {days * 24:.0f} h"


_LOOKS: tuple[Callable[[str, Status], Iterator[Fault]], ...] = (
    _life,
    _store,
    _audit,
    _entropy,
    _certificates,
)
