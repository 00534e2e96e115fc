"""The kernel as the node port calls it: each message goes to the module that knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from keyhaul.errors import Unauthorized
from keyhaul.gossip import Gossip
from keyhaul.links.refill import Refill
from keyhaul.messages.etsi020 import Ack, ExtKeys, Void
from keyhaul.relay import Relay
from keyhaul.settlement import Settlement


class Kernel:
    """What the node port calls: each message goes to the module that knows it."""

    def __init__(
        self, relay: Relay, settlement: Settlement, refills: Mapping[str, Refill], gossip: Gossip
    ) -> None:
        self._relay = relay
        self._settlement = settlement
        self._refills = refills
        self._gossip = gossip

    async def accept(self, peer: str, transfer: ExtKeys) -> None:
        await self._relay.accept(peer, transfer)

    async def acknowledge(self, peer: str, acks: Sequence[Ack]) -> None:
        await self._settlement.acknowledge(peer, acks)

    async def void(self, peer: str, request: Void) -> None:
        await self._settlement.void(peer, request)

    async def envelope(self, peer: str, body: bytes) -> None:
        await self._relay.envelope(peer, body)

    async def refill(self, peer: str, body: bytes) -> bytes:
        if peer not in self._refills:
            raise Unauthorized(f"{peer!r} is not a neighbour on a sealed link")
        return await self._refills[peer].answer(body)

    async def records(self, peer: str, body: bytes) -> bytes:
        return await self._gossip.receive(peer, body)
