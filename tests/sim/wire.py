"""The wire of the simulation, and the key managers of other makers at its far ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from msgspec import Raw

from keyhaul.errors import KeyhaulError, PeerUnreachable
from keyhaul.keys import Message
from keyhaul.messages import etsi020
from keyhaul.messages.envelope import parse
from keyhaul.messages.etsi020 import Ack, AckStatus, ExtKey, ExtKeys, Void
from keyhaul.ports import Answer

if TYPE_CHECKING:
    from tests.sim.world import World

PAUSE = 0.5  # seconds between two tries of a foreign key manager


class SimPeers:
    """A `ports.Peers` of one node."""

    def __init__(self, world: World, me: str) -> None:
        self.world = world
        self.me = me

    async def post(self, message: Message) -> Answer:
        world, peer = self.world, message.peer
        said = world.contents.get(message.id, message.path)
        world.history.note(self.me, "sent", to=(peer,), text=said)
        await world.nodes[self.me].point("posted")
        if peer in world.foreigners:
            return await world.foreigners[peer].take(message)
        world.noted_material(self.me, message)
        await asyncio.sleep(world.faults.slow.get((self.me, peer, message.path), 0.0))
        answer = await world.carry(self.me, peer, lambda: self._handle(message))
        world.history.note(self.me, "answered", to=(peer,), text=f"{answer.status} {answer.cause} to {said}")
        await world.nodes[self.me].point("heard")
        return answer

    async def _handle(self, message: Message) -> Answer:
        world, node = self.world, self.world.nodes[message.peer]
        if message.path == etsi020.EXT_KEYS and node.name in world.faults.swallow:
            return Answer(202)
        if world.accepted and world.rng.random() < world.faults.replay:
            world.replay(node)
        try:
            await node.kernel.envelope(self.me, message.body)
        except KeyhaulError as error:
            return Answer(error.status, error.cause)
        world.accepted.append((self.me, message))
        return Answer(202)


def material(message: Message) -> tuple[str, tuple[str, ...]]:
    """The id of a sealed message, and the names of the device and one-time keys that it uses."""
    header = parse(message.body).header
    return header.message_id.hex(), (*header.message_keys, *header.pad_keys, header.kem_id.hex())


class SimForeign:
    """A key manager of another maker: it answers 202 and keeps what it was sent.

    A `lively` one does its part: it acknowledges keys, gives keys of its own to its gateway and takes
    some of them back.
    """

    def __init__(self, name: str, world: World, gateway: str) -> None:
        self.name = name
        self.sae = f"sae-{name}"
        self.inbox: list[Message] = []
        self.lively = False
        self._world = world
        self._gateway = gateway
        self._seen: dict[UUID, bytes] = {}
        self._given: dict[UUID, list[bytes]] = {}  # the stores of all nodes when the key was given first
        self.said: dict[UUID, dict[str, Raw]] = {}  # the extensions it sent with its keys

    def acks(self) -> list[tuple[str, UUID]]:
        """Every status it was told so far, in order."""
        return [
            (ack.status.value, key_id)
            for message in self.inbox
            if message.path == etsi020.ACK
            for ack in etsi020.decode_acks(message.body)
            for key_id in ack.key_ids
        ]

    async def take(self, message: Message) -> Answer:
        world = self._world
        if self.lively:
            await asyncio.sleep(world.rng.expovariate(1 / world.faults.delay))
            if world.rng.random() < world.faults.lose:
                raise PeerUnreachable(f"{self.name} does not answer")
        self.inbox.append(message)
        if self.lively and message.path == etsi020.EXT_KEYS:
            self._keep(etsi020.decode_ext_keys(message.body))
        if self.lively and message.path == etsi020.ACK:
            self._learn(etsi020.decode_acks(message.body))
        if self.lively and world.rng.random() < world.faults.lose_answer:
            raise PeerUnreachable(f"{self.name} does not answer")
        return Answer(202)

    def _keep(self, transfer: ExtKeys) -> None:
        history = self._world.history
        for key in transfer.keys:
            if self._seen.get(key.key_id) != key.value:  # a repetition is the same delivery
                digest = history.digest(key.value)
                history.note(self.sae, "fetched", key_id=key.key_id, digest=digest)
            self._seen[key.key_id] = key.value
        key_id = transfer.keys[0].key_id
        said = next((kme.said[key_id] for kme in self._world.foreigners.values() if key_id in kme.said), {})
        if transfer.extension_optional != said:
            self._world.broken.append(f"{self.name} is given keys with other extensions than were sent")
        ids = tuple(key.key_id for key in transfer.keys)
        ack = Ack(ids, AckStatus.RELAYED, transfer.initiator_sae_id, transfer.target_sae_ids)
        self._world.later(self._until_taken(etsi020.ACK, etsi020.encode_acks([ack])))

    def _learn(self, acks: Sequence[Ack]) -> None:
        """Keys that were void before they came may not come later either; a restored node forgot them."""
        for ack in acks:
            for key_id in ack.key_ids:
                early = ack.status is AckStatus.NOT_PRESENT and self._given.get(key_id) == self._stores()
                if early or ack.status is AckStatus.VOIDED:
                    self._world.history.note(self.sae, "voided", key_id=key_id)

    def told(self, key_id: UUID) -> str | None:
        """The last status of a key of its own."""
        return {key: status for status, key in self.acks()}.get(key_id)

    async def give(self, key_id: UUID, value: bytes, targets: tuple[str, ...]) -> None:
        """Hand a key over, again and again until the gateway took it or refused it, or was restored.

        A restored gateway cannot know what it took before, so nobody may repeat that (docs/operations.md).
        """
        keys = (ExtKey(key_id, value),)
        self._given[key_id] = self._stores()
        optional = self.said[key_id] = {"E32473_said": Raw(f'{{ "of": "{key_id}" }}'.encode())}
        transfer = ExtKeys(keys, self.sae, targets, "https://kme", extension_optional=optional)
        await self._until_taken(etsi020.EXT_KEYS, etsi020.encode_ext_keys(transfer))

    async def take_back(self, key_id: UUID, targets: tuple[str, ...]) -> None:
        void = Void((key_id,), self.sae, targets, "https://kme")
        await self._until_taken(etsi020.VOID, etsi020.encode_void(void))

    def _store(self) -> bytes:
        """Which disk the gateway has: another one after a restore."""
        return self._world.nodes[self._gateway].disk.tables.incarnation

    def _stores(self) -> list[bytes]:
        return [node.disk.tables.incarnation for node in self._world.nodes.values()]

    async def _until_taken(self, path: str, body: bytes) -> None:
        """Plain 020, as bytes."""
        world = self._world

        async def handle() -> Answer:
            node = world.nodes[self._gateway]
            try:
                if path == etsi020.EXT_KEYS:
                    await node.relay.accept(self.name, etsi020.decode_ext_keys(body))
                elif path == etsi020.ACK:
                    await node.settlement.acknowledge(self.name, etsi020.decode_acks(body))
                else:
                    await node.settlement.void(self.name, etsi020.decode_void(body))
            except KeyhaulError as error:
                return Answer(error.status, error.cause)
            return Answer(202)

        store = self._store()
        while path != etsi020.EXT_KEYS or self._store() == store:
            try:
                answer = await world.carry(self.name, self._gateway, handle)
                if answer.status in (202, 400, 401):
                    return
            except PeerUnreachable:
                pass
            await asyncio.sleep(PAUSE)
