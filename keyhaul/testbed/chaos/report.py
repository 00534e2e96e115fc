"""What a chaos run has to say: a row a phase, the kills, the keys, and the promises that were broken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from keyhaul import __version__
from keyhaul.testbed.benchmarks.report import machine
from keyhaul.testbed.chaos.people import Tally
from keyhaul.testbed.history import Event
from keyhaul.testbed.invariants import Limits, Violation, check, seen


@dataclass(slots=True)
class Row:
    """One phase of the report. Shares are of requests for keys; `None` where nobody asked.

    `bound`: seconds in which all pairs have to be served again; `floor`: share owed to those elsewhere.
    """

    phase: str
    seconds: float
    asked: int = 0
    served: int = 0
    deferred: int = 0
    unanswered: int = 0
    share: float | None = None
    share_untouched: float | None = None
    recovery: float | None = None
    bound: float | None = None
    floor: float = 0.0
    note: str = ""

    @property
    def missed(self) -> list[str]:
        """What was promised for this phase and not kept."""
        found = []
        if self.bound is not None and (self.recovery is None or self.recovery > self.bound):
            after = "not at all" if self.recovery is None else f"after {self.recovery:.1f} s"
            found.append(f"{self.phase}: all pairs were served again {after}; {self.bound:.0f} s are allowed")
        if self.share_untouched is not None and self.share_untouched < self.floor:
            found.append(
                f"{self.phase}: {self.share_untouched:.1%} served elsewhere; {self.floor:.0%} are owed"
            )
        return found


@dataclass(slots=True)
class Outcome:
    """All of one run. `network`: namespaces or proxies; `interrupted`: somebody ended it before its end."""

    network: str = ""
    interrupted: bool = False
    rows: list[Row] = field(default_factory=list)
    kills: int = 0
    restarts: list[float] = field(default_factory=list)
    keys_got: int = 0
    keys_fetched: int = 0
    never_fetched: int = 0
    pried: int = 0
    """Times a stranger asked for a key that is for others."""
    looked_for: int = 0
    found: int = 0
    """Keys looked for in files and errors, and those that were there."""
    violations: list[Violation] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)
    promises: list[int] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every promise was kept, and, in a run to its end, every key could be fetched."""
        return not (self.violations or self.missed) and (self.interrupted or not self.never_fetched)

    @property
    def missed(self) -> list[str]:
        """Bounds of phases that were not kept."""
        return [text for row in self.rows for text in row.missed]

    def reckon(self, events: Iterable[Event], left: int, limits: Limits) -> None:
        """Hold the history against the promises; `left` keys were not to be had."""
        events = list(events)
        self.violations = check(events, limits)
        self.stories = [violation.story(events) for violation in self.violations]
        self.promises = seen(events)
        self.keys_got = sum(event.verb == "got" for event in events)
        self.keys_fetched = sum(event.verb == "fetched" for event in events)
        self.never_fetched = left
        named = {event.key_id: (event.who, *event.to) for event in events if event.verb == "got"}
        self.pried = sum(
            event.verb == "fetching" and event.who not in named.get(event.key_id, (event.who,))
            for event in events
        )

    def document(self, command: str) -> dict[str, Any]:
        """What `--json` writes."""
        restarts = sorted(self.restarts)
        return {
            "command": command,
            "keyhaul": __version__,
            "machine": machine(),
            "network": self.network,
            "interrupted": self.interrupted,
            "phases": [asdict(row) for row in self.rows],
            "kills": self.kills,
            "restart_seconds_median": restarts[len(restarts) // 2] if restarts else None,
            "keys_acknowledged": self.keys_got,
            "keys_fetched": self.keys_fetched,
            "keys_left_unfetched": self.never_fetched,
            "asked_by_strangers": self.pried,
            "keys_looked_for": self.looked_for,
            "keys_found_in_the_clear": self.found,
            "promises_looked_at": self.promises,
            "violations": [asdict(violation) for violation in self.violations],
            "bounds_missed": self.missed,
        }


def row(
    phase: str,
    seconds: float,
    total: Tally,
    spared: Tally,
    recovery: float | None,
    bound: float | None,
    floor: float,
    note: str,
) -> Row:
    """A phase as the report shows it; `spared` are the requests of pairs that the fault did not touch."""
    return Row(
        phase,
        round(seconds, 1),
        total.asked,
        total.served,
        total.refused,
        total.unanswered,
        _share(total),
        _share(spared),
        None if recovery is None else round(recovery, 2),
        bound,
        floor,
        note,
    )


def _share(tally: Tally) -> float | None:
    return round(tally.served / tally.asked, 4) if tally.asked else None
