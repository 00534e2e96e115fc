"""Keeps the supplies of one link full: asks the neighbour for one-time keys, offers it device keys.

One small request and answer between neighbours, off the path of every key. Two loops, because devices
answer a thousand times slower than nodes. A third one, once a day, has what is ready confirmed or made anew,
so that the neighbour still holds its half, and erases what is held for the neighbour in vain.

Both say which incarnation their store is of. A neighbour that was restored has lost its halves of what was
agreed on before: nothing of that is used once it is heard of.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import structlog

from keyhaul.control import Signer, Verifier
from keyhaul.errors import KeyhaulError, Malformed, PeerUnreachable
from keyhaul.links.kept import RENEW
from keyhaul.links.onetime import Batch, OneTimeKey, OneTimeKeys, check_batch, sign_batch
from keyhaul.links.prefetch import DeviceKeys
from keyhaul.links.supply import Supply
from keyhaul.ports import Clock
from keyhaul.signs import Sign

Call = Callable[[str, bytes], Awaitable[bytes]]
"""Posts a refill request to a neighbour and returns its answer."""

Epoch = Annotated[bytes, msgspec.Meta(max_length=16)]
"""The incarnation of a node's store, as envelopes name it; empty where it is not said."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds

log = structlog.get_logger("keyhaul.refill")


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`want` one-time keys, please; and do you hold these device keys? `epoch` is that of envelopes."""

    want: int
    offers: tuple[str, ...]
    epoch: Epoch = b""


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    batch: Batch | None
    held: tuple[str, ...]
    epoch: Epoch = b""


class _Silent(PeerUnreachable):
    """It is the neighbour that does not answer, not its device or ours."""


_request = msgspec.msgpack.Decoder(Request).decode
_reply = msgspec.msgpack.Decoder(Reply).decode


class Refill:
    """Both sides of the conversation for one neighbour."""

    def __init__(
        self,
        *,
        peer: str,
        call: Call,
        signer: Signer,
        anchors: Verifier,
        clock: Clock,
        peer_keys: Supply[OneTimeKey],
        own_keys: OneTimeKeys,
        device: DeviceKeys | None,
        epoch: bytes,
        heard: Callable[[bytes], None],
        renew: float = RENEW,
    ) -> None:
        """`epoch`: of this node's store; `heard` is told the neighbour's; `renew` is in seconds."""
        self._peer = peer
        self._call = call
        self._signer = signer
        self._anchors = anchors
        self._clock = clock
        self._peer_keys = peer_keys
        self._own_keys = own_keys
        self._device = device
        self._epoch = epoch
        self._heard = heard
        self._every = renew
        self._sign = Sign()

    def nearby(self) -> None:
        """The neighbour was heard from: what waits because it did not answer is tried again soon."""
        self._sign.give()

    async def answer(self, body: bytes) -> bytes:
        """What the neighbour asked for. Raises Malformed, or what the device raises."""
        try:
            request = _request(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"the refill request cannot be read ({error})") from None
        self._heard(request.epoch)
        batch = None
        if request.want > 0:
            batch = sign_batch(await self._own_keys.make(request.want), self._signer, self._peer)
        held: list[str] = []
        if request.offers:
            if self._device is None:
                raise Malformed("device keys are offered on a link without a device")
            held = await self._device.hold(request.offers)
        return msgspec.msgpack.encode(Reply(batch, tuple(held), self._epoch))

    async def run(self) -> None:
        """Refill until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(self._peer_keys, self.fetch_keys))
            if self._device is not None and self._device.ahead:
                tasks.create_task(self._keep(self._device.supply, self.offer_keys))
            tasks.create_task(self._stay_young())

    async def _stay_young(self) -> None:
        while True:
            try:
                await self.prune()
            except KeyhaulError as error:
                log.warning("what is held in vain could not be erased", peer=self._peer, cause=str(error))
            await asyncio.sleep(self._every)
            self.renew()

    async def prune(self) -> None:
        """Erase what this node holds for messages of the neighbour that will not come."""
        await self._own_keys.prune()
        if self._device is not None and self._device.ahead:
            await self._device.prune()

    def renew(self) -> None:
        """Have what is ready for sending confirmed or made anew, before the neighbour holds it too long."""
        self._peer_keys.drain()
        if self._device is not None and self._device.ahead:
            self._device.reoffer()

    async def _keep(self, supply: Supply[Any], step: Callable[[], Awaitable[bool]]) -> None:
        pause = FIRST_PAUSE
        while True:
            await supply.wanted.wait()
            silent = False
            try:
                moved = await step()
            except KeyhaulError as error:
                supply.trouble, moved, silent = str(error), False, isinstance(error, _Silent)
            if moved:
                pause = FIRST_PAUSE
                continue
            rest = self._sign.rest if silent else asyncio.sleep
            await rest(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a key)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def fetch_keys(self) -> bool:
        """Ask for one-time keys once."""
        reply = await self._ask(Request(self._peer_keys.shortage, (), self._epoch))
        if reply.batch is None:
            raise Malformed(f"{self._peer} sent no one-time keys")
        keys = check_batch(reply.batch, self._anchors, self._peer, self._signer.name, self._clock.now())
        self._peer_keys.add(keys)
        return bool(keys)

    async def offer_keys(self) -> bool:
        """Draw device keys and offer them once."""
        device = self._device
        assert device is not None
        offers = await device.draw()
        if not offers:
            return False
        reply = await self._ask(Request(0, tuple(offers), self._epoch))
        await device.confirm(offers, reply.held)
        return bool(reply.held)

    async def _ask(self, request: Request) -> Reply:
        try:
            answer = await self._call(self._peer, msgspec.msgpack.encode(request))
        except PeerUnreachable as error:
            raise _Silent(error.cause, error.remedy) from None
        try:
            reply = _reply(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"{self._peer} sent a refill answer that cannot be read ({error})") from None
        self._heard(reply.epoch)
        return reply
