"""Carries signed descriptors between neighbours until every node of the federation holds the newest.

`keyhaul.control` decides what is authentic and new; this module keeps it on disk and sends it on. A
neighbour that announces itself afresh, and every neighbour after a start, is asked which of the records
held here it lacks, so a node that lost its memory is whole again after one exchange. One of an earlier
version does not know the question; it gets them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from keyhaul.control import (
    Directory,
    Known,
    Record,
    decode_names,
    decode_told,
    encode_names,
    encode_records,
    encode_stamps,
    newest,
)
from keyhaul.errors import KeyhaulError, Malformed, Unavailable
from keyhaul.pairing import ANEW, Pairing
from keyhaul.ports import Clock, Ledger
from keyhaul.signs import Sign

SPACE = "directory"
ANNOUNCE_EVERY = 900.0  # seconds between two announcements of one's own
GATHER = 0.2  # seconds between two messages to a neighbour at least
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0  # seconds
LARGEST = 1 << 20  # bytes of records in one message, or one record if that is larger

Call = Callable[[str, bytes], Awaitable[bytes]]
"""Posts records or stamps to a neighbour; returns its answer."""

log = structlog.get_logger("keyhaul.gossip")


class _Neighbour:
    def __init__(self) -> None:
        self.owed: dict[str, Record] = {}
        self.doubtful = False  # what it holds is to be asked
        self.news = asyncio.Event()
        self.sign = Sign()

    def owe(self, node: str, record: Record) -> None:
        self.owed[node] = record
        self.news.set()

    def doubt(self) -> None:
        self.doubtful = True
        self.news.set()

    def some(self) -> dict[str, Record]:
        """As much of what is owed as goes into one message."""
        taken: dict[str, Record] = {}
        size = 0
        for node, record in self.owed.items():
            size += len(record.body) + len(record.certificate) + len(record.signature)
            if taken and size > LARGEST:
                break
            taken[node] = record
        return taken


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
        self._taking = asyncio.Lock()
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
        for neighbour in self._neighbours.values():
            neighbour.doubt()
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
        neighbour.doubt()
        if self._tasks is not None:
            self._telling[name] = self._tasks.create_task(self._tell(name, neighbour))

    def leave(self, name: str) -> None:
        """A neighbour that is none any more."""
        self._neighbours.pop(name, None)
        task = self._telling.pop(name, None)
        if task is not None:
            task.cancel()

    def heard(self, name: str) -> None:
        """A neighbour sent something, so it need not wait much longer for what it is owed."""
        if (neighbour := self._neighbours.get(name)) is not None:
            neighbour.sign.give()

    def hurry(self) -> None:
        """Announce now: a key was replaced before its time."""
        self._due.set()

    async def announce(self) -> None:
        """Renew this node's keys where due, and tell everyone."""
        await self._pairing.rotate()
        await self._pairing.prune()
        record = self._pairing.announce(self._announced)
        # Kept first: after a restart with a clock that was set back it would look older than the last one.
        # No neighbour would answer it with what this node may have lost.
        async with self._ledger.edit() as change:
            change.put(SPACE, self._pairing.name, msgspec.msgpack.encode(record))
        known = self._directory.receive(record, self._clock.now())
        if known is None:
            return
        self._announced = known.descriptor.sequence
        self._spread(known, but="")

    async def receive(self, peer: str, body: bytes) -> bytes:
        """Records from a neighbour: the good ones count, whatever stands beside them. Or stamps of records.

        Returns the answer: for stamps, whose records are wanted. Raises what `Directory.receive` raises
        for the first bad record, after the others were taken in.
        """
        told = decode_told(body)
        if isinstance(told, dict):
            if (held := self._directory.newer(peer, told)) is not None:
                self._remind(held)
            return encode_names(self._directory.lacking(told))
        await self._take_in(peer, told)
        return b""

    async def _take_in(self, peer: str, records: list[Record]) -> None:
        """What the disk does not take is not held either: the neighbour keeps it and sends it again."""
        async with self._taking:  # what comes together must not overtake each other on the way to the disk
            bad: KeyhaulError | None = None
            news: dict[str, Known] = {}
            self._need_not_tell(peer, records)
            for record in records:
                try:
                    known = self._directory.check(record, self._clock.now())
                except KeyhaulError as error:
                    bad = bad or error
                    continue
                if known is not None and known.descriptor.node == self._pairing.name:
                    self._go_beyond(known)
                elif known is not None:
                    news[known.descriptor.node] = newest(known, news.get(known.descriptor.node))
                elif (held := self._directory.overtaken(record)) and held.descriptor.node == peer:
                    self._remind(held)
            if news:
                async with self._ledger.edit() as change:
                    for node, known in news.items():
                        change.put(SPACE, node, msgspec.msgpack.encode(known.record))
                        if self._pairing.anew(known):  # after a restart nothing else would tell
                            change.put(ANEW, node, b"")
            for known in news.values():
                self._directory.take(known)
                self._learn(peer, known)
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

    def _go_beyond(self, known: Known) -> None:
        """Said by this node before it was restored, with keys it has no more."""
        self._directory.take(known)
        self._announced = max(self._announced, known.descriptor.sequence)
        self.hurry()

    def _learn(self, peer: str, known: Known) -> None:
        """Tell everyone about it who should know, and ask a neighbour that announces itself what it lacks."""
        node = known.descriptor.node
        self._pairing.heard(node)
        self._spread(known, but=peer)
        if node != peer:
            self._remind(known)
        if (neighbour := self._neighbours.get(node)) is not None:
            neighbour.doubt()

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
            try:
                if neighbour.doubtful:
                    await self._compare(name, neighbour)
                told = neighbour.some()
                if told:
                    await self._call(name, encode_records(list(told.values())))
            except KeyhaulError as error:
                log.info("descriptors not delivered", peer=name, cause=error.cause)
                await neighbour.sign.rest(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a key)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            for node, record in told.items():
                if neighbour.owed.get(node) is record:
                    del neighbour.owed[node]
            if not neighbour.owed and not neighbour.doubtful:
                neighbour.news.clear()

    async def _compare(self, name: str, neighbour: _Neighbour) -> None:
        """Owe a neighbour what it lacks of all that is held here, and nothing that it has."""
        known = self._directory.known(self._clock.now())
        held = {each.descriptor.node: each for each in known if each.descriptor.node != name}
        neighbour.doubtful = False
        try:
            answer = await self._call(name, encode_stamps({node: each.stamp for node, each in held.items()}))
            lacks = set(decode_names(answer))
        except Malformed:  # of an earlier version
            lacks = {*held}
        except BaseException:
            neighbour.doubtful = True
            raise
        for node, each in held.items():
            if node in lacks:
                neighbour.owed.setdefault(node, each.record)  # what is owed already is no older
            elif neighbour.owed.get(node) is each.record:
                del neighbour.owed[node]

    def _drop_expired(self, neighbour: _Neighbour) -> None:
        """Nobody takes an expired descriptor, so its node being gone must not make us repeat it for ever."""
        fresh = {known.descriptor.node for known in self._directory.known(self._clock.now())}
        neighbour.owed = {node: record for node, record in neighbour.owed.items() if node in fresh}
