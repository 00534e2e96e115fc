"""The life of a key as a table: which state may follow which, and one function that takes the step.

One table serves all roles (design §4). A row starts `minted` (origin) or `accepted` (relay and
destination); these two exist between the decision and the first save, which already holds the intent:

    origin       minted   -> sending -> sent -> deliverable -> taken
    relay        accepted -> sending -> sent -> relayed
    destination  accepted -> deliverable -> taken

`deliverable` means: every node that must hold the key holds it, and an SAE of this node may fetch it.
`relayed` is the same event at a node that owes nothing to an SAE. An acknowledgement may overtake the
answer to the message it acknowledges, hence `sending -> relayed`. docs/lifecycle.svg is drawn from NEXT.
"""

from __future__ import annotations

from collections.abc import Iterable

from keyhaul.errors import IllegalStep
from keyhaul.keys import Event, Row, State

_ENDED = frozenset({State.FAILED, State.VOIDED, State.EXPIRED})

NEXT: dict[State, frozenset[State]] = {
    State.MINTED: frozenset({State.SENDING, State.DELIVERABLE}) | _ENDED,
    State.ACCEPTED: frozenset({State.SENDING, State.DELIVERABLE}) | _ENDED,
    State.SENDING: frozenset({State.SENT, State.RELAYED, State.DELIVERABLE}) | _ENDED,
    State.SENT: frozenset({State.RELAYED, State.DELIVERABLE}) | _ENDED,
    State.RELAYED: frozenset({State.VOIDED, State.EXPIRED}),
    State.DELIVERABLE: frozenset({State.DELIVERABLE, State.TAKEN}) | _ENDED,
    State.TAKEN: frozenset(),
    State.FAILED: frozenset({State.VOIDED}),
    State.VOIDED: frozenset(),
    State.EXPIRED: frozenset(),
}

FIRST = frozenset({State.MINTED, State.ACCEPTED})
UNFINISHED = frozenset({State.SENDING, State.SENT})
FINAL = frozenset({State.RELAYED, State.TAKEN, State.FAILED, State.VOIDED, State.EXPIRED})
"""States of tombstones: the row stays, without a secret, so that late messages find their answer."""


def step(row: Row, state: State, now: float) -> None:
    """Move a draft to `state` at Unix time `now`, wiping its secret where none may stay.

    Raises IllegalStep and changes nothing if the table has no such step.
    """
    if state not in NEXT[row.state]:
        raise IllegalStep(f"a key cannot go from {row.state} to {state}")
    row.state = state
    row.history = (*row.history, Event(state, now))
    if state in FINAL and row.secret is not None:
        row.secret.wipe()
        row.secret = None
    if state in FINAL:
        row.waiting = frozenset()


def given(row: Row, sae: str, now: float) -> None:
    """Note on a draft that one SAE, or MASTER, got its copy at Unix time `now`."""
    row.waiting -= {sae}
    if not row.waiting:
        step(row, State.TAKEN, now)


def may(row: Row, state: State) -> bool:
    """Whether the table allows the step."""
    return state in NEXT[row.state]


def recallable(row: Row) -> bool:
    """Whether a void that names no key ids (020 §2.6: all keys of these SAEs) may concern the row.

    Relayed keys of a foreign key manager, which are the ones with a callback, lie further on.
    """
    return row.state not in FINAL or (row.state is State.RELAYED and row.callback is not None)


def voided_everywhere(row: Row) -> bool:
    """Whether the nodes further on said that they voided the row too: until then an SAE may have the key."""
    return row.state is State.VOIDED and all(row.legs.get(leg) is State.VOIDED for leg in row.peers)


def reached(legs: Iterable[State]) -> bool:
    """Whether every onward leg was confirmed by its destination."""
    return all(state is State.RELAYED for state in legs)
