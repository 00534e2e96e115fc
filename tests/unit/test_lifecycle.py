"""The lifecycle table, step by step: what may follow what, what is wiped, what is told."""

from __future__ import annotations

import itertools
from uuid import UUID

import pytest

from keyhaul import lifecycle
from keyhaul.errors import IllegalStep
from keyhaul.keys import Event, Ref, Row, Secret, State

S = State

# Written out again on purpose: a change of NEXT must be meant twice.
LEGAL = {
    S.MINTED: {S.SENDING, S.DELIVERABLE, S.FAILED, S.VOIDED, S.EXPIRED},
    S.ACCEPTED: {S.SENDING, S.DELIVERABLE, S.FAILED, S.VOIDED, S.EXPIRED},
    S.SENDING: {S.SENT, S.RELAYED, S.DELIVERABLE, S.FAILED, S.VOIDED, S.EXPIRED},
    S.SENT: {S.RELAYED, S.DELIVERABLE, S.FAILED, S.VOIDED, S.EXPIRED},
    S.RELAYED: {S.VOIDED, S.EXPIRED},
    S.DELIVERABLE: {S.DELIVERABLE, S.TAKEN, S.FAILED, S.VOIDED, S.EXPIRED},
    S.TAKEN: set(),
    S.FAILED: {S.VOIDED},
    S.VOIDED: set(),
    S.EXPIRED: set(),
}
KEEPS_SECRET = {S.MINTED, S.ACCEPTED, S.SENDING, S.SENT, S.DELIVERABLE}


def row_in(state: State) -> Row:
    return Row(
        ref=Ref(UUID(int=7), "vigo"),
        state=state,
        initiator="sae-a",
        targets=("sae-b",),
        size=256,
        created=1.0,
        deadline=2.0,
        expires=3.0,
        waiting=frozenset({"sae-b"}),
        secret=Secret(bytes(range(32))),
        history=(Event(state, 1.0),),
    )


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_a_step_is_taken_or_changes_nothing(old: State, new: State) -> None:
    row = row_in(old)
    held = row.secret
    assert held is not None
    assert lifecycle.may(row, new) == (new in LEGAL[old])
    if new in LEGAL[old]:
        lifecycle.step(row, new, 9.0)
        assert row.state is new
        assert row.history == (Event(old, 1.0), Event(new, 9.0))
        assert (row.secret is held and held.reveal() == bytes(range(32))) == (new in KEEPS_SECRET)
        assert (len(held) == 0) == (new not in KEEPS_SECRET), "a finished row leaves no bits behind"
        assert (row.waiting == frozenset({"sae-b"})) == (new in KEEPS_SECRET)
    else:
        with pytest.raises(IllegalStep):
            lifecycle.step(row, new, 9.0)
        assert row.state is old
        assert row.history == (Event(old, 1.0),)
        assert row.secret is held
        assert held.reveal() == bytes(range(32))
        assert row.waiting == frozenset({"sae-b"})


def test_every_state_is_first_final_or_on_the_way() -> None:
    assert set(lifecycle.NEXT) == set(State)
    assert lifecycle.FIRST | lifecycle.UNFINISHED | lifecycle.FINAL | {S.DELIVERABLE} == set(State)
    assert set(State) - lifecycle.FINAL == KEEPS_SECRET


def test_no_step_leads_back_to_life() -> None:
    """From a final state only final states can be reached: a tombstone never delivers a key."""
    for state in lifecycle.FINAL:
        assert lifecycle.NEXT[state] <= lifecycle.FINAL
    for state in State:
        assert not lifecycle.NEXT[state] & lifecycle.FIRST


def test_a_row_without_secret_steps_as_well() -> None:
    row = row_in(S.SENT)
    row.secret = None
    lifecycle.step(row, S.RELAYED, 5.0)
    assert row.secret is None


@pytest.mark.parametrize(
    ("legs", "all_there"),
    [([], True), ([S.RELAYED], True), ([S.RELAYED, S.SENT], False), ([S.FAILED], False), ([S.VOIDED], False)],
)
def test_reached_means_every_leg(legs: list[State], all_there: bool) -> None:
    assert lifecycle.reached(legs) is all_there
