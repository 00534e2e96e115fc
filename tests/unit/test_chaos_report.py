"""What a chaos run owes: bounds of recovery, and the share of those whom a greedy one does not concern."""

from __future__ import annotations

import pytest

from keyhaul.testbed.chaos.people import Tally
from keyhaul.testbed.chaos.report import Outcome, Row, row
from keyhaul.testbed.history import Event
from keyhaul.testbed.invariants import Limits


def phase(
    recovery: float | None = 1.0, bound: float | None = 30.0, floor: float = 0.0, refused: int = 0
) -> Row:
    elsewhere = Tally(served=200 - refused, refused=refused)
    return row("a fault", 8.0, Tally(served=3), elsewhere, recovery, bound, floor, "")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (phase(), ""),
        (phase(recovery=30.5), "after 30.5 s; 30 s are allowed"),
        (phase(recovery=None), "not at all"),
        (phase(recovery=None, bound=None), ""),
        (phase(floor=0.99, refused=2), ""),
        (phase(floor=0.99, refused=3), "98.5% served elsewhere; 99% are owed"),
        (phase(refused=100), ""),
    ],
)
def test_a_bound_that_was_not_kept_is_told_and_breaks_the_run(found: Row, says: str) -> None:
    outcome = Outcome(rows=[found])
    assert says in "".join(outcome.missed)
    assert outcome.held == (not says)
    assert bool(outcome.document("here")["bounds_missed"]) == bool(says)


def test_a_fault_that_uses_something_up_may_allow_more_time_than_the_bound() -> None:
    def refused(after: float) -> bool:
        events = [
            Event(at=0.0, who="world", verb="healed", value=60.0),
            Event(at=after, who="m", verb="asked", request=1),
            Event(at=after, who="m", verb="refused", request=1, status=503),
        ]
        outcome = Outcome()
        outcome.reckon(events, 0, Limits(recovery=30.0))
        return [violation.number for violation in outcome.violations] == [12]

    assert not refused(after=89.0)
    assert refused(after=90.0)
