"""A ledger in memory with the semantics of the durable one, for tests and simulation.

Every operation gives up the event loop at least once, between reading and committing too, so that
a step which forgets its lock loses updates here as it would on a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar
from uuid import UUID

from keyhaul.errors import KeyhaulError, Spent, StaleRow, StoreUnavailable, Taken
from keyhaul.keys import Message, Ref, Row, Secret, State
from keyhaul.lifecycle import FINAL, UNFINISHED, recallable
from keyhaul.stores.change import Claim, Drop, Erase, Herd, Post, Put, Spend, StagedChange, Step
from keyhaul.stores.locks import RefLocks

Item = tuple[str, str]
Undo = Callable[[], object]
K = TypeVar("K")
V = TypeVar("V")


class MemoryLedger:
    """A `ports.Ledger` that forgets everything with the process."""

    def __init__(self) -> None:
        self._rows: dict[Ref, Row] = {}
        self._queue: dict[UUID, Message] = {}
        self._items: dict[Item, bytes] = {}
        self._locks = RefLocks()
        self._open = True

    async def get(self, ref: Ref) -> Row | None:
        await self._turn()
        return self._draft(ref)

    async def find(self, *key_ids: UUID) -> list[Row]:
        wanted = {*key_ids}
        return await self._select(lambda row: row.ref.key_id in wanted)

    @asynccontextmanager
    async def edit(self, *refs: Ref) -> AsyncIterator[StagedChange]:
        async with self._locks.hold(refs):
            await self._turn()
            change = StagedChange({ref: self._draft(ref) for ref in refs})
            try:
                yield change
                await self._turn()
                self._commit(change)
            finally:
                change.wipe_orphans()

    @asynccontextmanager
    async def together(self, refs: Sequence[Ref]) -> AsyncIterator[Herd | None]:
        async with self.edit(*refs) as change:
            rows = [row for ref in refs if (row := change.rows[ref]) is not None]
            if len(rows) < len(refs) or not rows or not _alike(rows):
                yield None
                return
            kept = [Secret(row.secret.reveal()) for row in rows if row.secret is not None]
            herd = Herd(replace(rows[0].draft(), secret=None), kept)
            yield herd
            for row in rows if herd.altered() else ():
                secret = row.secret if herd.keeps else None
                draft = herd.row.draft()
                draft.ref, draft.version, draft.secret, draft.proofs = (
                    row.ref,
                    row.version,
                    secret,
                    row.proofs,
                )
                change.rows[row.ref] = draft

    async def unfinished(self) -> list[Row]:
        return await self._select(lambda row: row.state in UNFINISHED)

    async def deliverable(self) -> list[Row]:
        return await self._select(lambda row: row.state is State.DELIVERABLE)

    async def between(self, initiator: str, targets: frozenset[str]) -> list[Row]:
        return await self._select(
            lambda row: recallable(row) and row.initiator == initiator and targets.issuperset(row.targets)
        )

    async def due(self, now: float, limit: int = 256) -> list[Ref]:
        self._check()  # asked every second, so it takes no turn of the loop
        late: list[tuple[float, Ref]] = []
        for row in self._rows.values():
            if row.state in FINAL or min(row.expires, row.deadline) > now:
                continue
            until = min(row.expires, row.deadline) if row.state in UNFINISHED else row.expires
            if until <= now:
                late.append((until, row.ref))
        return [ref for _, ref in sorted(late)[:limit]]

    async def forget(self, before: float) -> int:
        await self._turn()
        old = [ref for ref, row in self._rows.items() if row.state in FINAL and row.expires < before]
        for ref in old:
            del self._rows[ref]
        return len(old)

    async def messages(self) -> list[Message]:
        await self._turn()
        return list(self._queue.values())

    async def item(self, space: str, name: str) -> bytes | None:
        self._check()  # a point read takes no turn of the loop, here as in a database
        return self._items.get((space, name))

    async def items(self, space: str) -> dict[str, bytes]:
        await self._turn()
        return dict(sorted((name, value) for (kept, name), value in self._items.items() if kept == space))

    async def close(self) -> None:
        """Wipe every stored secret; later operations raise StoreUnavailable."""
        await asyncio.sleep(0)
        self._open = False
        for row in self._rows.values():
            if row.secret is not None:
                row.secret.wipe()

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        self._check()

    def _check(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is closed")

    def _draft(self, ref: Ref) -> Row | None:
        row = self._rows.get(ref)
        return None if row is None else _copy(row)

    async def _select(self, wanted: Callable[[Row], bool]) -> list[Row]:
        await self._turn()
        found = sorted((row for row in self._rows.values() if wanted(row)), key=lambda row: row.ref)
        return [_bare(row) for row in found]

    def _commit(self, change: StagedChange) -> None:
        rows = list(change.altered())
        replaced = [self._rows[row.ref].secret for row in rows if row.ref in self._rows]
        undo: list[Undo] = []
        try:
            for row in rows:
                self._write(row, undo)
            for step in change.steps:
                self._take(step, undo)
        except KeyhaulError:
            for back in reversed(undo):
                back()
            raise
        for row in rows:
            row.version += 1
        for secret in replaced:
            if secret is not None:
                secret.wipe()

    def _write(self, row: Row, undo: list[Undo]) -> None:
        old = self._rows.get(row.ref)
        if (old.version if old is not None else 0) != row.version:
            raise StaleRow(f"row {row.ref} was written by somebody else")
        kept = _copy(row)
        kept.version += 1
        _set(self._rows, row.ref, kept, undo)

    def _take(self, step: Step, undo: list[Undo]) -> None:
        match step:
            case Post(message):
                if message.id in self._queue:
                    raise Taken(f"message {message.id} is queued already")
                _set(self._queue, message.id, message, undo)
            case Drop(message_id):
                # Putting one message back would move it to the end, so the whole queue is put back.
                undo.append(partial(self._queue.update, list(self._queue.items())))
                undo.append(self._queue.clear)
                self._queue.pop(message_id, None)
            case Put(space, name, value):
                _set(self._items, (space, name), bytes(value), undo)
            case Claim(space, name, value):
                if (space, name) in self._items:
                    raise Taken(f"{space}/{name} is taken")
                _set(self._items, (space, name), bytes(value), undo)
            case Spend(space, name):
                if (space, name) not in self._items:
                    raise Spent(f"{space}/{name} is spent")
                _unset(self._items, (space, name), undo)
            case Erase(space, name):
                _unset(self._items, (space, name), undo)


def _alike(rows: Sequence[Row]) -> bool:
    """Whether rows differ in nothing but their ids and the values of their secrets."""
    first = rows[0]
    bare = [replace(row, ref=first.ref, secret=None, proofs=dict.fromkeys(row.proofs, b"")) for row in rows]
    lengths = {None if row.secret is None else len(row.secret) for row in rows}
    return len(lengths) == 1 and all(row == bare[0] for row in bare)


def _bare(row: Row) -> Row:
    copy = row.draft()
    copy.secret = None
    return copy


def _copy(row: Row) -> Row:
    copy = row.draft()
    copy.secret = None if row.secret is None else Secret(row.secret.reveal())
    return copy


def _set(table: dict[K, V], key: K, value: V, undo: list[Undo]) -> None:
    _unset(table, key, undo)
    table[key] = value


def _unset(table: dict[K, V], key: K, undo: list[Undo]) -> None:
    if key in table:
        undo.append(partial(table.__setitem__, key, table[key]))
        del table[key]
    else:
        undo.append(partial(table.pop, key, None))
