"""Tables of the durable ledger, and rows and messages as records of these tables.

A record's `data` is msgpack and is all a value is made from; the other columns repeat what queries
look for, so that none of them reads more rows than it returns. Secrets stay outside `data`, sealed,
with `data` in their associated data.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from keyhaul.keys import Event, Message, Ref, Row, Secret, State
from keyhaul.lifecycle import FINAL, UNFINISHED, recallable

SCHEMA_VERSION = 2


def phase(row: Row) -> int:
    """Column `phase`: 0 new, 1 unfinished, 2 deliverable, 3 final but recallable, 4 final."""
    if row.state in FINAL:
        return 3 if recallable(row) else 4
    return 2 if row.state is State.DELIVERABLE else 1 if row.state in UNFINISHED else 0


BLOCKS = (
    """CREATE TABLE blocks (
        name BLOB NOT NULL CHECK (length(name) = 15), leg TEXT NOT NULL, version INTEGER NOT NULL,
        phase INTEGER NOT NULL, initiator TEXT NOT NULL, first_target TEXT NOT NULL,
        deadline REAL NOT NULL, expires REAL NOT NULL, data BLOB NOT NULL, members BLOB NOT NULL,
        marks BLOB NOT NULL, live INTEGER NOT NULL CHECK (live >= 0), width INTEGER NOT NULL,
        slots BLOB NOT NULL, PRIMARY KEY (name, leg)) WITHOUT ROWID""",
    "CREATE INDEX blocks_by_pair ON blocks (phase, initiator, first_target) WHERE phase < 4",
    "CREATE INDEX blocks_expiring ON blocks (expires) WHERE phase < 3",
    "CREATE INDEX blocks_waiting ON blocks (deadline) WHERE phase = 1",
    "CREATE INDEX blocks_ended ON blocks (expires) WHERE phase >= 3",
)
"""Rows that stand alike (see `blocks`), with the columns of rows. New in schema 2."""

# `first_target` is the smallest target's name: rows whose targets all lie in a set have their first
# one there, so an index on it answers `between` although targets are a set themselves.
SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE rows (
        key_id BLOB NOT NULL CHECK (length(key_id) = 16), leg TEXT NOT NULL, version INTEGER NOT NULL,
        phase INTEGER NOT NULL, initiator TEXT NOT NULL, first_target TEXT NOT NULL,
        deadline REAL NOT NULL, expires REAL NOT NULL, data BLOB NOT NULL, secret BLOB,
        PRIMARY KEY (key_id, leg)) WITHOUT ROWID""",
    "CREATE INDEX rows_by_pair ON rows (phase, initiator, first_target) WHERE phase < 4",
    "CREATE INDEX rows_expiring ON rows (expires) WHERE phase < 3",
    "CREATE INDEX rows_waiting ON rows (deadline) WHERE phase = 1",
    "CREATE INDEX rows_ended ON rows (expires) WHERE phase >= 3",
    """CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, data BLOB NOT NULL, body BLOB NOT NULL)""",
    """CREATE TABLE items (
        space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (space, name)) WITHOUT ROWID""",
    *BLOCKS,
)


class _RowData(msgspec.Struct, array_like=True, frozen=True):
    state: State
    initiator: str
    targets: tuple[str, ...]
    size: int
    created: float
    deadline: float
    expires: float
    upstream: str | None
    callback: str | None
    waiting: list[str]
    legs: dict[str, State]
    peers: dict[str, str]
    scheme: str
    path: tuple[str, ...]
    trust: dict[str, str]
    history: list[tuple[State, float]]
    proofs: dict[str, bytes] = {}
    took: bytes = b""
    passed: dict[str, bytes] = {}


class _MessageData(msgspec.Struct, array_like=True, frozen=True):
    peer: str
    path: str
    sealed: bool
    refs: list[tuple[UUID, str]]
    created: float
    deadline: float
    url: str | None


_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode
_row_data = msgspec.msgpack.Decoder(_RowData).decode
_message_data = msgspec.msgpack.Decoder(_MessageData).decode


def row_data(row: Row, *, bare: bool = False) -> bytes:
    """Everything of a row but its ref, version and secret; `bare` leaves the values of proofs out."""
    return _encode(
        _RowData(
            row.state,
            row.initiator,
            row.targets,
            row.size,
            row.created,
            row.deadline,
            row.expires,
            row.upstream,
            row.callback,
            sorted(row.waiting),
            row.legs,
            row.peers,
            row.scheme,
            row.path,
            row.trust,
            [(event.state, event.at) for event in row.history],
            dict.fromkeys(row.proofs, b"") if bare else row.proofs,
            row.took,
            row.passed,
        )
    )


def row_from(ref: Ref, version: int, data: bytes, secret: Secret | None = None) -> Row:
    """The row of a record; raises msgspec.MsgspecError for data that are not a row's."""
    kept = _row_data(data)
    return Row(
        ref=ref,
        state=kept.state,
        initiator=kept.initiator,
        targets=kept.targets,
        size=kept.size,
        created=kept.created,
        deadline=kept.deadline,
        expires=kept.expires,
        upstream=kept.upstream,
        callback=kept.callback,
        waiting=frozenset(kept.waiting),
        legs=kept.legs,
        peers=kept.peers,
        scheme=kept.scheme,
        path=kept.path,
        trust=kept.trust,
        secret=secret,
        history=tuple([Event(state, at) for state, at in kept.history]),
        proofs=kept.proofs,
        took=kept.took,
        passed=kept.passed,
        version=version,
    )


def columns(row: Row) -> tuple[int, str, str, float, float]:
    """Columns `phase` to `expires`: what queries look for."""
    return phase(row), row.initiator, first_target(row.targets), row.deadline, row.expires


def first_target(targets: tuple[str, ...] | frozenset[str]) -> str:
    """The smallest name, or "" where there is none."""
    return min(targets, default="")


def row_place(ref: Ref, version: int, data: bytes) -> bytes:
    """Associated data of a row's secret: table, key id, leg, version and all its metadata."""
    return _encode(("rows", ref.key_id, ref.leg, version, data))


def block_place(name: bytes, leg: str, version: int, members: bytes, data: bytes, marks: bytes) -> bytes:
    """Associated data of a block's secrets: table, name, leg, version, members and all their metadata."""
    return _encode(("blocks", name, leg, version, members, data, marks))


def item_place(space: str, name: str) -> bytes:
    """Associated data of a named value."""
    return _encode(("items", space, name))


def message_data(message: Message) -> bytes:
    """Everything of a message but its id and body."""
    refs = [(ref.key_id, ref.leg) for ref in message.refs]
    return _encode(
        _MessageData(
            message.peer,
            message.path,
            message.sealed,
            refs,
            message.created,
            message.deadline,
            message.url,
        )
    )


def message_from(message_id: UUID, data: bytes, body: bytes) -> Message:
    """The message of a record; raises msgspec.MsgspecError for data that are not a message's."""
    kept = _message_data(data)
    return Message(
        id=message_id,
        peer=kept.peer,
        path=kept.path,
        body=body,
        sealed=kept.sealed,
        refs=tuple([Ref(key_id, leg) for key_id, leg in kept.refs]),
        created=kept.created,
        deadline=kept.deadline,
        url=kept.url,
    )


def message_place(message_id: UUID, data: bytes) -> bytes:
    """Associated data of a message's body."""
    return _encode(("outbox", message_id, data))
