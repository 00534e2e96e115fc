"""One durable queue per neighbour: what is owed is sent, again and unchanged, until it was answered.

A message is on disk before it gets here (`Change.post`), so this module keeps only tasks. The rules:

* an answer 2xx settles a message; 400 and 401 settle it too, as refused: the neighbour kept nothing
  (020 V1.1.1 §2.6). Everything else, no answer included, leaves the neighbour's state unknown: the
  message is sent again, byte for byte, until its deadline; then it has lapsed and the relay voids it.
* at most `IN_FLIGHT` transfers are under way to one neighbour; the others wait, in turns between their payers
  (`keyhaul.rounds`). One that waits over there for scarce keys holds its place here, so whoever has as many
  under way as there are places left has to wait: some are always left to others.
* acknowledgements and voids wait for none of that; they have places of their own.
* a neighbour that does not answer is tried less and less often, by all messages together, and soon after
  it was heard from.
* an acknowledgement or a void is sealed when it first leaves; repetitions are byte-equal after that.
* what was settled is taken off the disk in batches: losing that record costs one more repetition.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from keyhaul import story
from keyhaul.errors import KeyhaulError, Unavailable
from keyhaul.keys import Message
from keyhaul.messages.etsi020 import EXT_KEYS
from keyhaul.ports import Answer, Clock, Peers, Spawn
from keyhaul.rounds import NOBODY, Payer, Rounds
from keyhaul.signs import LEAST, Sign

IN_FLIGHT = 64
LETTERS = 32  # acknowledgements and voids under way to one neighbour
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds
SETTLE_AFTER = 0.25  # seconds that settled messages are collected: their commit must not delay others

log = structlog.get_logger("keyhaul.outbox")


class Outcome(Protocol):
    """Who is told what became of a message."""

    async def settled(self, messages: Sequence[Message]) -> None:
        """Accepted by the neighbour."""

    async def refused(self, message: Message, answer: Answer) -> None:
        """The neighbour kept nothing and will not."""

    async def lapsed(self, message: Message) -> None:
        """The deadline passed; what the neighbour holds is unknown."""


class _Places:
    """Places for transfers under way to one neighbour, given in turns between payers.

    An application may have as many as it leaves free, a neighbour with all behind it thrice as many.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._held: Counter[Payer] = Counter()
        self._waiting: Rounds[asyncio.Future[None]] = Rounds()

    async def enter(self, payer: Payer, patience: float) -> bool:
        """Whether a place came free within so many seconds; it has to be left again."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.push(payer, turn)
        self._next()
        if turn.done():
            return True
        try:
            await asyncio.wait((turn,), timeout=max(patience, 0.0))
        except asyncio.CancelledError:
            if turn.done():
                self.leave(payer)
            else:
                self._waiting.remove(payer, turn)
            raise
        if not turn.done():
            self._waiting.remove(payer, turn)
        return turn.done()

    def leave(self, payer: Payer) -> None:
        """Give a place back to whoever is next."""
        self._free += 1
        for prefix in {payer[:1], payer}:
            self._held[prefix] -= 1
            if not self._held[prefix]:
                del self._held[prefix]
        self._next()

    def _next(self) -> None:
        while self._free and (payer := self._waiting.turn(self._may)) is not None:
            self._free -= 1
            self._held.update({payer[:1], payer})
            self._waiting.pop(payer).set_result(None)

    def _may(self, prefix: Payer) -> bool:
        whole = self._waiting.waits(prefix)
        return self._held[prefix] < self._free * (1 if whole else 3)


class _Lane:
    """What messages to one neighbour share."""

    def __init__(self) -> None:
        self.transfers = _Places(IN_FLIGHT)
        self.letters = asyncio.Semaphore(LETTERS)
        self.sign = Sign()
        self.pause = 0.0
        self.try_at = 0.0
        self.failed_at = 0.0
        self.waiting = 0
        self.cause = ""

    @asynccontextmanager
    async def place(self, message: Message, payer: Payer, patience: float) -> AsyncIterator[bool]:
        """A place for one attempt; whether there was one in time."""
        if message.path != EXT_KEYS:
            async with self.letters:
                yield True
            return
        entered = await self.transfers.enter(payer, patience)
        try:
            yield entered
        finally:
            if entered:
                self.transfers.leave(payer)

    def failed(self, started: float, now: float) -> None:
        """An attempt made at `started` met no answer; those made together count as one."""
        if started < self.failed_at:
            return
        self.failed_at = now
        self.pause = min(max(self.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
        self.try_at = now + self.pause * random.uniform(0.5, 1.0)  # noqa: S311 (jitter, not a key)

    def worked(self) -> None:
        self.pause = self.try_at = 0.0

    def heard(self) -> None:
        """The neighbour is there; what waits goes now, and the pause grows on if that fails."""
        if self.pause:
            self.try_at = min(self.try_at, self.failed_at + LEAST)
            self.sign.give()


class Outbox:
    """See the module docstring."""

    def __init__(self, peers: Peers, clock: Clock, spawn: Spawn) -> None:
        self._peers = peers
        self._clock = clock
        self._spawn = spawn
        self._lanes: defaultdict[str, _Lane] = defaultdict(_Lane)
        self._done: list[Message] = []
        self._collecting = False
        self.outcome: Outcome | None = None
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        """Messages by neighbour, operation, and what became of them: accepted, refused, lapsed."""
        self.seconds: dict[str, tuple[int, float]] = {}
        """By neighbour: attempts that were answered, and how long that took in all."""
        self.tracer = story.NO_TRACER
        self.seal: Callable[[Message], Awaitable[Message]] = _as_it_is

    def waiting(self) -> dict[str, int]:
        """Messages not yet answered, by neighbour."""
        return {peer: lane.waiting for peer, lane in self._lanes.items()}

    def silent(self) -> dict[str, str]:
        """Neighbours that messages wait for and that did not answer the last attempt, and how it failed."""
        lanes = sorted(self._lanes.items())
        return {peer: lane.cause for peer, lane in lanes if lane.pause and lane.waiting}

    def trouble(self, peer: str) -> str:
        """Why the last attempt to send to a neighbour met no answer; empty if it met one."""
        lane = self._lanes.get(peer)
        return lane.cause if lane is not None and lane.pause else ""

    def heard(self, peer: str) -> None:
        """A neighbour sent something, so messages need not wait for it much longer."""
        if peer in self._lanes:
            self._lanes[peer].heard()

    def send(self, message: Message, payer: Payer = NOBODY) -> None:
        """Start sending a message that is on disk; keys take their turn as those of `payer`.

        After a restart nobody waits for what is left, and it shares one turn.
        """
        self._spawn(self._deliver(message, payer), f"outbox {message.path} to {message.peer}")

    async def _deliver(self, message: Message, payer: Payer) -> None:
        lane = self._lanes[message.peer]
        lane.waiting += 1
        try:
            with self.tracer.span("send", "client", to=message.peer, operation=message.path):
                answer = await self._until_answered(lane, message, payer)
        finally:
            lane.waiting -= 1
        outcome = self.outcome
        assert outcome is not None
        refused = answer is not None and answer.status in (400, 401)
        became = "lapsed" if answer is None else "refused" if refused else "accepted"
        self.outcomes[message.peer, message.path, became] += 1
        story.tell(log, "message answered", peer=message.peer, path=message.path, outcome=became)
        if answer is None:
            await self._noted(lambda: outcome.lapsed(message))
        elif refused:
            log.warning(
                "neighbour refused",
                peer=message.peer,
                path=message.path,
                status=answer.status,
                cause=answer.cause,
            )
            await self._noted(lambda: outcome.refused(message, answer))
        else:
            self._settle(message)

    async def _noted(self, note: Callable[[], Awaitable[None]]) -> None:
        """Tell what became of a message, until the store could save it: nobody will tell it again."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await note()
            except Unavailable as error:
                log.warning("an outcome could not be saved; tried again", cause=error.cause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _until_answered(self, lane: _Lane, message: Message, payer: Payer) -> Answer | None:
        """The definite answer, or None when the deadline passed."""
        attempt = 0.0
        while self._clock.now() < message.deadline:
            left = max(message.deadline - self._clock.now(), 0.0)
            if attempt:
                await asyncio.sleep(min(attempt, left))
            elif (pause := lane.try_at - self._clock.now()) > 0:
                await lane.sign.rest(min(pause, left))
            async with lane.place(message, payer, message.deadline - self._clock.now()) as placed:
                if not placed:
                    continue
                started = self._clock.now()
                try:
                    message = await self.seal(message)
                    answer = await self._peers.post(message)
                except Unavailable as error:
                    lane.failed(started, self._clock.now())
                    lane.cause = error.cause
                    log.info("neighbour unreachable", peer=message.peer, cause=error.cause)
                    continue
            lane.worked()
            count, seconds = self.seconds.get(message.peer, (0, 0.0))
            self.seconds[message.peer] = (count + 1, seconds + self._clock.now() - started)
            if answer.status in (200, 202, 204, 400, 401):
                return answer
            # The neighbour lives but cannot take this one now: only this message slows down.
            attempt = min(max(attempt * 2, FIRST_PAUSE), LONGEST_PAUSE)
            log.info("neighbour busy", peer=message.peer, path=message.path, cause=answer.cause)
        return None

    def _settle(self, message: Message) -> None:
        self._done.append(message)
        if not self._collecting:
            self._collecting = True
            self._spawn(self._collect(), "outbox settle")

    async def _collect(self) -> None:
        await asyncio.sleep(SETTLE_AFTER)
        self._collecting = False
        story.none()  # messages of many requests
        done, self._done = self._done, []
        assert self.outcome is not None
        try:
            await self.outcome.settled(done)
        except KeyhaulError as error:
            log.warning("settling failed; the messages are sent once more", cause=error.cause)
            for message in done:
                self.send(message)


async def _as_it_is(message: Message) -> Message:
    return message
