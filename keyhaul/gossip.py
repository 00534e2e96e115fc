"""Carries signed descriptors between neighbours until every node of the federation holds the newest.

`keyhaul.control` decides what is authentic and new; this module keeps it on disk and sends it on. A
neighbour that announces itself afresh gets everything known here, so a node that lost its memory is
whole again after one exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from keyhaul.control import Directory, Known, Record, decode_records, encode_records
from keyhaul.errors import KeyhaulError, Unavailable
from keyhaul.pairing import Pairing
from keyhaul.ports import Clock, Ledger

SPACE = "directory"
ANNOUNCE_EVERY = 900.0  # seconds between two announcements of one's own
GATHER = 0.2  # seconds between two messages to a neighbour at least
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0  # seconds

Call = Callable[[str, bytes], Awaitable[bytes]]
"""Posts records to a neighbour."""

log = structlog.get_logger("keyhaul.gossip")


class _Neighbour:
    def __init__(self) -> None:
        self.owed: dict[str, Record] = {}
        self.news = asyncio.Event()

    def owe(self, node: str, record: Record) -> None:
        self.owed[node] = record
        self.news.set()


class Gossip:
    """See the module docstring. `neighbours` are the sealed ones."""

    def __init__(
        self,
        neighbours: Iterable[str],
        call: Call,
        directory: Directory,
        pairing: Pairing,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._neighbours = {name: _Neighbour() for name in neighbours}
        self._call = call
        self._directory = directory
        self._pairing = pairing
        self._ledger = ledger
        self._clock = clock
        self._announced = 0  # the sequence number of this node's last descriptor
        self._due = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._telling: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Take in what earlier runs knew, as far as it still passes every check."""
        for name, value in (await self._ledger.items(SPACE)).items():
            try:
                record = msgspec.msgpack.decode(value, type=Record)
                known = self._directory.receive(record, self._clock.now())
                if known is not None and name == self._pairing.name:
                    self._announced = known.descriptor.sequence
            except (KeyhaulError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.info("a stored descriptor is not good any more", node=name, cause=str(error))

    async def run(self) -> None:
        """Announce and pass on until cancelled."""
        # What an earlier run received and did not pass on before it ended is owed still.
        for known in self._directory.known():
            self._spread(known, but="")
        async with asyncio.TaskGroup() as self._tasks:
            for name, neighbour in self._neighbours.items():
                self._telling[name] = self._tasks.create_task(self._tell(name, neighbour))
            while True:
                self._due.clear()
                pause = ANNOUNCE_EVERY
                try:
                    await self.announce()
                except Unavailable as error:  # the disk; nobody would hear of this node any more
                    log.warning("not announced; tried again later", cause=error.cause)
                    pause = LONGEST_PAUSE
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), pause)

    def join(self, name: str) -> None:
        """A new neighbour: it should hear everything that is known here."""
        neighbour = self._neighbours[name] = _Neighbour()
        for known in self._directory.known():
            if known.descriptor.node != name:
                neighbour.owe(known.descriptor.node, known.record)
        if self._tasks is not None:
            self._telling[name] = self._tasks.create_task(self._tell(name, neighbour))

    def leave(self, name: str) -> None:
        """A neighbour that is none any more."""
        self._neighbours.pop(name, None)
        task = self._telling.pop(name, None)
        if task is not None:
            task.cancel()

    def hurry(self) -> None:
        """Announce now: a key was replaced before its time."""
        self._due.set()

    async def announce(self) -> None:
        """Renew this node's keys where due, and tell everyone."""
        await self._pairing.rotate()
        await self._pairing.prune()
        record = self._pairing.announce(self._announced)
        known = self._directory.receive(record, self._clock.now())
        if known is None:
            return
        # Kept, because after a restart with a clock that was set back it would look older than the last one:
        # no neighbour would answer it with what this node may have lost.
        async with self._ledger.edit() as change:
            change.put(SPACE, known.descriptor.node, msgspec.msgpack.encode(record))
        self._announced = known.descriptor.sequence
        self._spread(known, but="")

    async def receive(self, peer: str, body: bytes) -> None:
        """Records from a neighbour: the good ones count, whatever stands beside them.

        Raises what `Directory.receive` raises for the first bad one, after the others were taken in.
        """
        bad: KeyhaulError | None = None
        records = decode_records(body)
        self._need_not_tell(peer, records)
        for record in records:
            try:
                known = self._directory.receive(record, self._clock.now())
            except KeyhaulError as error:
                bad = bad or error
                continue
            if known is not None:
                await self._learn(peer, known)
            elif (held := self._directory.overtaken(record)) and held.descriptor.node == peer:
                self._remind(held)
        if bad is not None:
            raise bad

    def _remind(self, known: Known) -> None:
        """Tell a neighbour what it said last itself: it may have forgotten.

        One that was restored from a backup while its clock is behind says what nobody takes for new.
        """
        node = known.descriptor.node
        if node in self._neighbours:
            self._neighbours[node].owe(node, known.record)

    def _need_not_tell(self, peer: str, records: list[Record]) -> None:
        """What a neighbour says itself it need not hear from here."""
        if (neighbour := self._neighbours.get(peer)) is not None:
            said = {record.body for record in records}
            neighbour.owed = {n: owed for n, owed in neighbour.owed.items() if owed.body not in said}

    async def _learn(self, peer: str, known: Known) -> None:
        node = known.descriptor.node
        if node == self._pairing.name:  # said by this node before it was restored, with keys it has no more
            self._announced = max(self._announced, known.descriptor.sequence)
            self.hurry()
            return
        self._pairing.heard(node)
        self._spread(known, but=peer)
        if node != peer:
            self._remind(known)
        if node == peer and (neighbour := self._neighbours.get(peer)) is not None:
            for other in self._directory.known():
                if other.descriptor.node != peer:
                    neighbour.owe(other.descriptor.node, other.record)
        async with self._ledger.edit() as change:
            change.put(SPACE, node, msgspec.msgpack.encode(known.record))

    def _spread(self, known: Known, but: str) -> None:
        for name, neighbour in self._neighbours.items():
            if name not in (but, known.descriptor.node):
                neighbour.owe(known.descriptor.node, known.record)

    async def _tell(self, name: str, neighbour: _Neighbour) -> None:
        pause, loop = FIRST_PAUSE, asyncio.get_running_loop()
        last = -GATHER
        while True:
            await neighbour.news.wait()
            # The first word goes at once; what follows on its heels goes together.
            await asyncio.sleep(max(0.0, last + GATHER - loop.time()))
            last = loop.time()
            self._drop_expired(neighbour)
            owed = dict(neighbour.owed)
            try:
                await self._call(name, encode_records(list(owed.values())))
            except KeyhaulError as error:
                log.info("descriptors not delivered", peer=name, cause=error.cause)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a key)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            for node, record in owed.items():
                if neighbour.owed.get(node) is record:
                    del neighbour.owed[node]
            if not neighbour.owed:
                neighbour.news.clear()

    def _drop_expired(self, neighbour: _Neighbour) -> None:
        """Nobody takes an expired descriptor, so its node being gone must not make us repeat it for ever."""
        fresh = {known.descriptor.node for known in self._directory.known(self._clock.now())}
        neighbour.owed = {node: record for node, record in neighbour.owed.items() if node in fresh}
