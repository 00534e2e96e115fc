"""What the relay needs from the world: a ledger, links, neighbours, entropy and a clock, as Protocols.

Every back end passes the contract suite of its port in `keyhaul.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from keyhaul.keys import Message, Ref, Row, Secret
from keyhaul.rounds import NOBODY, Payer


class Change(Protocol):
    """One atomic unit of work on the ledger: everything in it is durable, or nothing happened.

    `rows` holds a fresh draft for every ref the edit was opened with, None where there is no row.
    Change a draft in place; assign a new Row for a ref to create it (version 0).
    """

    rows: dict[Ref, Row | None]

    def post(self, message: Message) -> None:
        """Queue a message to a neighbour."""

    def drop(self, message_id: UUID) -> None:
        """Take a message off the queue; unknown ids are fine."""

    def put(self, space: str, name: str, value: bytes) -> None:
        """Keep a named secret value (insert or replace)."""

    def claim(self, space: str, name: str, value: bytes = b"") -> None:
        """Insert a named value; the commit raises Taken if the name is there already."""

    def spend(self, space: str, name: str) -> None:
        """Erase a named value; the commit raises Spent if it is not there."""

    def erase(self, space: str, name: str) -> None:
        """Erase a named value if it is there."""


class Herd(Protocol):
    """Rows that stand alike: they differ in nothing but key ids and the values of secrets and proofs.

    `row` is a draft that stands for each of them, without a secret; its proofs are one row's, and each
    row keeps its own. `secrets` are theirs, in the order of the refs, and belong to whoever opened the
    edit. They stay stored while `row` is in a state that is not final (see lifecycle).
    """

    row: Row
    secrets: list[Secret]


class Ledger(Protocol):
    """Durable rows, queued messages and named secret values of one node.

    There is no save: rows change only through `edit`, which locks the refs, hands out fresh drafts
    and commits on leaving. A commit is on disk when `__aexit__` returns. If the body raises, nothing
    is committed. Commit errors: Taken, Spent, StaleRow (somebody else wrote the row meanwhile),
    StoreUnavailable (disk); after any of them nothing of the change is there.
    """

    async def get(self, ref: Ref) -> Row | None: ...

    async def find(self, *key_ids: UUID) -> list[Row]:
        """All rows of these key ids at this node, without their secrets; those of one id by their legs."""

    def edit(self, *refs: Ref) -> AbstractAsyncContextManager[Change]:
        """Open a unit of work; locks are taken in sorted order, so edits never dead-lock."""

    def together(self, refs: Sequence[Ref]) -> AbstractAsyncContextManager[Herd | None]:
        """Open all of `refs` as one draft, at the cost of one row; None where they do not stand alike.

        Rows that were created in one edit, with key ids that share all but their last byte, and have
        gone through everything together since, stand alike. Else use `edit`.
        """

    async def unfinished(self) -> list[Row]:
        """Rows in `sending` or `sent`, without their secrets."""

    async def deliverable(self) -> list[Row]:
        """Rows in `deliverable`, without their secrets."""

    async def between(self, initiator: str, targets: frozenset[str]) -> list[Row]:
        """Recallable rows (see lifecycle) of one initiator with targets all in `targets`; no secrets."""

    async def due(self, now: float, limit: int = 256) -> list[Ref]:
        """Rows not final whose `expires` has passed, or unfinished ones whose `deadline` has passed."""

    async def forget(self, before: float) -> int:
        """Remove final rows that expired before Unix time `before`; returns how many."""

    async def messages(self) -> list[Message]:
        """The queue, oldest first (read at start)."""

    async def item(self, space: str, name: str) -> bytes | None:
        """One named value: a point read, cheap enough for every message."""

    async def items(self, space: str) -> dict[str, bytes]:
        """All named values of one space (read at start)."""

    async def close(self) -> None: ...


class Grant(Protocol):
    """Material for exactly one outgoing message on one link. Use it once, or cancel it."""

    def pad(self) -> bytes:
        """The one-time pad asked for, in bytes."""

    def seal(self, path: str, content: bytes) -> bytes:
        """The envelope that carries `content`."""

    def spend(self, change: Change) -> None:
        """Erase what the message used up, in the same commit that queues the message."""

    def cancel(self) -> None:
        """Give the material up; bits that were shown to a cipher are never used again."""


class Opened(Protocol):
    """An authentic incoming envelope."""

    sender: str
    path: str
    content: bytes

    def pad(self, length: int) -> bytes:
        """The sender's pad, `length` bytes; raises Malformed if the sender announced too few bits."""

    def spend(self, change: Change) -> None:
        """Mark the message as received and erase its keys, in the commit that accepts it."""


class Link(Protocol):
    """The adjacency of two nodes: makes pads, seals and opens envelopes (design §2, §3)."""

    peer: str
    kind: str  # "qkd" or "pqc" or "plain"
    symbol: str  # how a path shows it: "=" or "-" or "~"
    labels: frozenset[str]  # what it gives against wiretappers: "its-wire", "pq", "qkd"

    async def grant(
        self, pad_bytes: int, *, deadline: float, payer: Payer = NOBODY, leave: int | None = None
    ) -> Grant:
        """Material for one message with a pad of `pad_bytes`; waits at most until Unix `deadline`.

        Who waits is served in turns between payers (see keyhaul.rounds). What nobody waits for says how many
        bits of device key it has to `leave` ready, and gets its own at once or not at all.

        Raises InsufficientKey when the devices have too little, PeerUnreachable when the neighbour
        has to be asked and does not answer.
        """

    async def open(self, body: bytes) -> Opened | None:
        """Open an envelope. None: this very message was accepted before, so answer as then.

        Raises Malformed, Tampered, InsufficientKey (device key not there yet) or Conflict.
        """

    def recheck(self) -> None:
        """The neighbour's store may be another than before: use nothing it does not confirm or make anew."""

    def doubt(self) -> None:
        """The neighbour could not open what was sealed for it: do not use what was agreed on ahead."""

    def level(self) -> int | None:
        """Bits of key material ready for sending; None where only computation limits it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a neighbour said to a message: HTTP status, and its problem details where it sent some."""

    status: int
    cause: str = ""


class Peers(Protocol):
    """Sends one message to one neighbour. Raises PeerUnreachable if no answer came."""

    async def post(self, message: Message) -> Answer: ...


class Entropy(Protocol):
    """Where end keys come from (paper B §4.1): never a QKD device, except in profile `paper-a`."""

    def read(self, length: int) -> Secret:
        """`length` bytes."""


class Clock(Protocol):
    """Unix time in seconds. Waiting goes through the event loop, which a simulation replaces."""

    def now(self) -> float: ...


Spawn = Callable[[Coroutine[Any, Any, None], str], None]
"""Starts a supervised background task with a name."""
