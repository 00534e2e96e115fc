"""The kernel as the node port calls it: each message goes to the module that knows it.

Whatever a neighbour sends is a sign that it is there, for all that waits because it did not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from keyhaul.errors import Unauthorized
from keyhaul.gossip import Gossip
from keyhaul.links.refill import Refill
from keyhaul.messages.etsi020 import Ack, ExtKeys, Void
from keyhaul.outbox import Outbox
from keyhaul.relay import Relay
from keyhaul.settlement import Settlement


class Kernel:
    """What the node port calls: each message goes to the module that knows it."""

    def __init__(
        self,
        relay: Relay,
        settlement: Settlement,
        refills: Mapping[str, Refill],
        gossip: Gossip,
        outbox: Outbox,
    ) -> None:
        self._relay = relay
        self._settlement = settlement
        self._refills = refills
        self._gossip = gossip
        self._outbox = outbox

    def heard(self, peer: str) -> None:
        """A neighbour sent something, good or bad."""
        self._outbox.heard(peer)
        self._gossip.heard(peer)
        if peer in self._refills:
            self._refills[peer].nearby()

    async def accept(self, peer: str, transfer: ExtKeys) -> None:
        self.heard(peer)
        await self._relay.accept(peer, transfer)

    async def acknowledge(self, peer: str, acks: Sequence[Ack]) -> None:
        self.heard(peer)
        await self._settlement.acknowledge(peer, acks)

    async def void(self, peer: str, request: Void) -> None:
        self.heard(peer)
        await self._settlement.void(peer, request)

    async def envelope(self, peer: str, body: bytes) -> None:
        self.heard(peer)
        await self._relay.envelope(peer, body)

    async def refill(self, peer: str, body: bytes) -> bytes:
        if peer not in self._refills:
            raise Unauthorized(f"{peer!r} is not a neighbour on a sealed link")
        self.heard(peer)
        return await self._refills[peer].answer(body)

    async def records(self, peer: str, body: bytes) -> bytes:
        self.heard(peer)
        return await self._gossip.receive(peer, body)
