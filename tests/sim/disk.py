"""A node's disk: it survives crashes, may be slow, may refuse to flush, and may lie about having flushed.

`SimLedger` is the real `MemoryLedger` with the weather of a disk around each commit. One object lives as
long as its node; after a crash it never answers again, so nothing that still runs in the dead node can
change what the next one finds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from uuid import UUID

from keyhaul.errors import StoreUnavailable
from keyhaul.keys import Message, Ref, Row, Secret
from keyhaul.stores import renewal
from keyhaul.stores.change import Erase, Put, Spend, StagedChange
from keyhaul.stores.memory import MemoryLedger


@dataclass
class Tables:
    """What is on the platter."""

    rows: dict[Ref, Row] = field(default_factory=dict)
    queue: dict[UUID, Message] = field(default_factory=dict)
    items: dict[tuple[str, str], bytes] = field(default_factory=dict)
    incarnation: bytes = b""

    def copy(self) -> Tables:
        """As a backup would keep it; the originals' secrets are wiped when rows change."""
        rows = {ref: replace(row.draft(), secret=_copied(row.secret)) for ref, row in self.rows.items()}
        return Tables(rows, dict(self.queue), dict(self.items), self.incarnation)


async def renewed(backup: Tables, now: float) -> Tables:
    """A node's disk after `keyhaul restore`, at Unix time `now`; the backup itself may be restored again."""
    copy = Bench(backup.copy())
    await renewal.renew(copy, copy, now)
    return copy.tables


class Bench(MemoryLedger):
    """A backup on the bench: the ledger and the `renewal.Copy` of tables that no node runs on."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self._rows, self._queue, self._items = tables.rows, tables.queue, tables.items

    async def drop_messages(self) -> int:
        count = len(self._queue)
        self._queue.clear()
        return count

    async def erase_items(self, but: Sequence[str]) -> int:
        gone = [item for item in self._items if not any(fnmatchcase(item[0], glob) for glob in but)]
        for item in gone:
            del self._items[item]
        return len(gone)

    async def rename(self, incarnation: bytes) -> None:
        self.tables.incarnation = incarnation


def _copied(secret: Secret | None) -> Secret | None:
    return None if secret is None else Secret(secret.reveal())


@dataclass
class Disk:
    """Weather: `slow` is the mean of a flush in seconds, `fail` the share of commits that cannot flush.

    With `lies` > 0 commits are answered before they are flushed, which happens every so many seconds
    (as SQLite's synchronous=NORMAL would): what came after the last flush is gone after a crash.
    """

    rng: random.Random
    slow: float = 0.0
    fail: float = 0.0
    lies: float = 0.0
    tables: Tables = field(default_factory=Tables)
    pads: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """Names of the device keys that were ever put, spent and erased here, by `what/space`, whoever did it."""
    _flushed: Tables | None = None
    _flushed_at: float = 0.0

    def commits(self) -> None:
        """Called before every commit."""
        if self.lies:
            now = asyncio.get_running_loop().time()
            if self._flushed is None or now >= self._flushed_at + self.lies:
                self._flushed, self._flushed_at = self.tables.copy(), now

    def observe(self, what: str, space: str, name: str) -> None:
        if space.startswith("pad/"):
            self.pads.setdefault((what, space), set()).add(name)

    def replace(self, tables: Tables) -> None:
        """Other tables, of a backup: what is not in them is gone."""
        for space, name in self.tables.items.keys() - tables.items.keys():
            self.observe("erased", space, name)
        self.tables = tables

    def crashed(self) -> None:
        if self.lies and self._flushed is not None:
            self.tables = self._flushed.copy()


class SimLedger(MemoryLedger):
    """The ledger of one life of a node. `point` is told what stage a commit is at, and may end that life."""

    def __init__(
        self,
        disk: Disk,
        point: Callable[[str], Awaitable[None]],
        committed: Callable[[Row], None],
    ) -> None:
        super().__init__()
        self._rows, self._queue, self._items = disk.tables.rows, disk.tables.queue, disk.tables.items
        self._disk = disk
        self._point = point
        self._committed = committed
        self.dead = False

    @asynccontextmanager
    async def edit(self, *refs: Ref) -> AsyncIterator[StagedChange]:
        async with super().edit(*refs) as change:
            yield change
            await self._flush()
        await self._point("saved")

    async def _flush(self) -> None:
        disk = self._disk
        await self._point("save")
        if disk.slow:
            await asyncio.sleep(disk.rng.expovariate(1 / disk.slow))
        if disk.fail and disk.rng.random() < disk.fail:
            raise StoreUnavailable("the store could not save: the disk does not flush")
        disk.commits()

    def _commit(self, change: StagedChange) -> None:
        rows = [row for row in change.altered()]
        super()._commit(change)
        for row in rows:
            self._committed(row)
        for step in change.steps:
            match step:
                case Put(space, name):
                    self._disk.observe("put", space, name)
                case Spend(space, name) if (space, name) not in self._items:  # else it was written anew
                    self._disk.observe("spent", space, name)
                case Erase(space, name):
                    self._disk.observe("erased", space, name)

    async def _turn(self) -> None:
        await super()._turn()
        if self.dead:
            await asyncio.get_running_loop().create_future()  # nobody ever answers
