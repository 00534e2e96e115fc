"""Rows, refs and messages to try a ledger with: different in what a test names, otherwise always the same."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from keyhaul.keys import Event, Message, Ref, Row, Secret, State
from keyhaul.ports import Ledger


def sample_ref(number: int, leg: str = "vigo") -> Ref:
    """The ref with this number."""
    return Ref(UUID(int=number), leg)


def sample_row(ref: Ref, state: State = State.SENDING, **changes: object) -> Row:
    """A row in which every field differs from its default; final states come without a secret."""
    row = Row(
        ref=ref,
        state=state,
        initiator="sae-a",
        targets=("sae-b", "sae-c"),
        size=256,
        created=1_000.25,
        deadline=1_010.5,
        expires=1_100.75,
        upstream="derio",
        callback="https://derio.example/ack",
        waiting=frozenset({"sae-c"}),
        legs={"leioa": State.SENT, "derio": State.RELAYED},
        peers={"leioa": "bilbao", "derio": "derio"},
        scheme="trusted",
        path=("vigo", "=", "leioa"),
        trust={"wire": "its", "relays": "none"},
        secret=Secret(ref.key_id.bytes * 2),
        history=(Event(State.MINTED, 1_000.25), Event(state, 1_000.5)),
        proofs={"leioa": b"proof of 16 byte"},
        took=b"digest of what came",
        passed={"leioa": b"digest of what went"},
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def sample_message(number: int, body: bytes = b"\x00\xffbody") -> Message:
    """The message with this number."""
    refs = (sample_ref(number), sample_ref(number, "derio"))
    return Message(UUID(int=number), "bilbao", "ext_keys", body, True, refs, 1_000.5, 1_030.0, "https://b")


def shown(row: Row | None) -> object:
    """A row as a value that can be compared, its secret as bytes."""
    if row is None:
        return None
    return replace(row, secret=None), None if row.secret is None else row.secret.reveal()


async def add(ledger: Ledger, *rows: Row) -> None:
    """Create rows in one edit."""
    async with ledger.edit(*(row.ref for row in rows)) as change:
        for row in rows:
            change.rows[row.ref] = row


def herd_of(number: int, count: int = 5, **changes: object) -> list[Row]:
    """Rows of one batch: they differ in nothing but id and the values of secret and proofs."""
    rows = [sample_row(sample_ref(256 * number + at), **changes) for at in range(count)]  # type: ignore[arg-type]
    for at, row in enumerate(rows):
        row.proofs = {"leioa": bytes([at]) * 16, "derio": bytes([at + 1]) * 16}
        if "secret" not in changes:
            row.secret = Secret(bytes([at]) * 32)
    return rows
