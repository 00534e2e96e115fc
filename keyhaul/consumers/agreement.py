"""How two agents change to a new key so that neither ever begins with one that the other refuses.

    initiator                                 responder
    ─────────                                 ─────────
    get_key at its node
       ── stage key_ID, in_use ──────────▶    fetch_key at its node
                                              install: takes it, and what is in use; drops the rest
              ◀───────── staged ─────────
    install: begins with it
       ── settle key_ID ─────────────────▶    drops all others
              ◀───────── settled ────────
    drops all others

An agent keeps nothing on disk. If the answer to `stage` is lost, the same id is staged again, and the
responder knows it. If either end dies in between, the responder takes both keys, or, where its program holds
one only, the ends differ until the next agreement, which the initiator tries at once and then ever more
slowly. If `settle` is lost, the next stage says what is in use, and so does its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol
from uuid import UUID

import structlog

from keyhaul.consumers.port import AgreedKey, Consumer
from keyhaul.errors import KeyhaulError, PeerUnreachable, Refused, TimedOut
from keyhaul.keys import Secret
from keyhaul.messages.etsi014 import Delivered

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts, doubled from first to longest
TELLINGS = 3
"""How often the other agent is told the same, if no answer comes."""
KEPT = 3
"""Keys a responder leaves to its program beside a new one, where nobody knows which is in use."""

Step = Literal["stage", "settle"]

log = structlog.get_logger("keyhaul.agent")


class Sae(Protocol):
    """This agent's node; `keyhaul.client.AsyncClient` is one."""

    async def get_key(self, slave: str, *, size: int) -> list[Delivered]:
        """One fresh key of `size` bits. Raises KeyhaulError."""

    async def fetch_key(self, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        """The keys of these ids. Raises KeyhaulError."""


class Channel(Protocol):
    """The other agent."""

    async def tell(self, step: Step, key_id: UUID, in_use: UUID | None = None) -> None:
        """Returns when the step is done there. Raises what it refused with, PeerUnreachable or TimedOut."""


async def until(event: asyncio.Event, most: float) -> bool:
    """Whether it came within `most` seconds."""
    try:
        async with asyncio.timeout(most):
            return await event.wait()
    except TimeoutError:
        return False


class Age:
    """How long ago a key was last agreed: `expired` is called when `most` seconds have passed, if `lock`.

    An agent that starts does not know how old the program's key is, so it begins at zero.
    """

    def __init__(self, most: float, *, lock: bool) -> None:
        self._most, self._lock = most, lock
        self._agreed = asyncio.Event()

    def renewed(self) -> None:
        """A key was agreed just now."""
        self._agreed.set()

    async def watch(self, expired: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. A program that does not lock is told again."""
        while True:
            self._agreed.clear()
            if not await until(self._agreed, self._most):
                await self._end(expired)

    async def _end(self, expired: Callable[[], Awaitable[None]]) -> None:
        while self._lock:
            try:
                await expired()
            except KeyhaulError as error:
                log.error("no new key for too long, and the program is not locked", cause=error.cause)
                await asyncio.sleep(FIRST_PAUSE)
            else:
                log.error("no new key for too long: locked until there is one", seconds=self._most)
                break
        else:
            log.warning("no new key for too long; the old one stays, as configured", seconds=self._most)
        await self._agreed.wait()


class _Keys:
    """The keys a program has, as far as is known, oldest first; one call to the program at a time."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.turn = asyncio.Lock()
        self.ids: list[UUID] = []
        self._asked = False

    async def look(self) -> None:
        """Ask the program once what it has. With the turn."""
        if not self._asked:
            self.ids = await self.consumer.held()
            self._asked = True

    async def install(self, key_id: UUID, bits: Secret) -> None:
        """With the turn."""
        await self.consumer.install(AgreedKey(key_id, bits))
        self.ids.append(key_id)

    async def keep_only(self, kept: Sequence[UUID]) -> None:
        """Drop all others. With the turn."""
        for key_id in [each for each in self.ids if each not in kept]:
            await self.consumer.drop(key_id)
            self.ids.remove(key_id)

    async def lock(self) -> None:
        """No key is valid any more. Raises KeyhaulError."""
        async with self.turn:
            await self.consumer.lock()
            self.ids.clear()


class Initiator:
    """The end that asks for keys and says when. `renewed` is called whenever one was agreed."""

    def __init__(
        self, sae: Sae, peer: str, channel: Channel, consumer: Consumer, renewed: Callable[[], None]
    ) -> None:
        self._sae, self._peer, self._channel = sae, peer, channel
        self._keys = _Keys(consumer)
        self._size = consumer.key_bits
        self._renewed = renewed
        self.lock = self._keys.lock

    async def rotate(self) -> UUID:
        """Agree on one new key. Raises KeyhaulError if it is not in use at both ends."""
        async with self._keys.turn:
            await self._keys.look()
        (delivered,) = await self._sae.get_key(self._peer, size=self._size)
        key_id = delivered.key_id
        with delivered.bits:
            in_use = self._keys.ids[-1] if self._keys.ids else None
            await self._tell("stage", key_id, in_use)
            async with self._keys.turn:
                await self._keys.install(key_id, delivered.bits)
        self._renewed()
        log.info("key in use", key_id=str(key_id))
        await self._settle(key_id)
        return key_id

    async def _settle(self, key_id: UUID) -> None:
        try:
            await self._tell("settle", key_id)
            async with self._keys.turn:
                await self._keys.keep_only([key_id])
        except KeyhaulError as error:
            log.warning("the key before is kept as well, until the next one", cause=error.cause)
        else:
            log.info("key settled", key_id=str(key_id))

    async def keep(self, interval: float, stop: asyncio.Event) -> None:
        """A new key at once and then every `interval` seconds, until `stop`; failures are tried again."""
        failures = 0
        while not stop.is_set():
            try:
                await self.rotate()
            except KeyhaulError as error:
                pause = min(FIRST_PAUSE * 2**failures, LONGEST_PAUSE, interval)
                failures = min(failures + 1, 10)
                log.warning("no new key", cause=error.cause, next=error.remedy, again_in=pause)
            else:
                pause, failures = interval, 0
            await until(stop, pause)

    async def _tell(self, step: Step, key_id: UUID, in_use: UUID | None = None) -> None:
        for left in reversed(range(TELLINGS)):
            try:
                await self._channel.tell(step, key_id, in_use)
            except (PeerUnreachable, TimedOut):
                if not left:
                    raise
            else:
                return


class Responder:
    """The end that fetches what it is told of. `renewed` is called whenever a key was staged."""

    def __init__(self, sae: Sae, peer: str, consumer: Consumer, renewed: Callable[[], None]) -> None:
        self._sae, self._peer = sae, peer
        self._keys = _Keys(consumer)
        self._size = consumer.key_bits
        self._renewed = renewed
        self.lock = self._keys.lock

    async def stage(self, key_id: UUID, in_use: UUID | None = None) -> None:
        """Fetch and install; once, however often it is asked. Raises KeyhaulError."""
        keys = self._keys
        async with keys.turn:
            await keys.look()
            if key_id in keys.ids:
                return
            (delivered,) = await self._sae.fetch_key(self._peer, [key_id])
            with delivered.bits:
                bits = len(delivered.bits) * 8
                if bits != self._size:
                    raise Refused(
                        f"the key has {bits} bits, the program here takes {self._size}",
                        "configure the same kind of consumer, and the same key_bits, at both ends",
                    )
                await keys.install(key_id, delivered.bits)
            before = [in_use] if in_use is not None else keys.ids[-1 - KEPT :]
            await keys.keep_only([*before, key_id])
        self._renewed()
        log.info("key staged", key_id=str(key_id))

    async def settle(self, key_id: UUID, _: UUID | None = None) -> None:
        """All other keys go. Raises Refused for a key that is not the newest here."""
        keys = self._keys
        async with keys.turn:
            if keys.ids[-1:] != [key_id]:
                raise Refused(f"key {key_id} is not the newest here", "stage a new key")
            await keys.keep_only([key_id])
        log.info("key settled", key_id=str(key_id))
