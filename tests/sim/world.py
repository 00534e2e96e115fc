"""A whole network of real kernels in one loop with virtual time: faults in the wire, crashes in the nodes.

Real: relay, settlement, origin, outbox, links, envelopes, codecs, pairing, directory, gossip, refill,
ledger semantics. Simulated: the wire, the devices, the signatures (HMAC instead of ML-DSA, for speed),
and the disk (MemoryLedger, which survives a crash of its node as a file would).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID, uuid4

from keyhaul.control import Directory
from keyhaul.entropy import SystemEntropy
from keyhaul.errors import (
    InsufficientKey,
    KeyhaulError,
    KeyNotFound,
    Malformed,
    PeerUnreachable,
    Tampered,
    Unauthorized,
    Unavailable,
)
from keyhaul.gossip import Gossip
from keyhaul.keys import Message, Secret
from keyhaul.letters import Letters
from keyhaul.links.onetime import OneTimeKey, OneTimeKeys
from keyhaul.links.prefetch import DeviceKeys
from keyhaul.links.refill import Refill
from keyhaul.links.sealed import SealedLink
from keyhaul.links.supply import Supply
from keyhaul.messages import etsi020
from keyhaul.messages.envelope import Mode
from keyhaul.messages.etsi014 import Delivered, Order
from keyhaul.minting import OwnMint
from keyhaul.origin import Origin
from keyhaul.outbox import Outbox
from keyhaul.pairing import Pairing
from keyhaul.ports import Answer
from keyhaul.relay import Relay
from keyhaul.routing import Edge, Network
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from keyhaul.settlement import Settlement
from keyhaul.site import ForeignPeer, Settings, Site
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock

Result = TypeVar("Result")


class SimSigner:
    """An identity whose signatures only this process can make."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.der = name.encode()

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(b"simulated identity " + self.der, message, "sha256")


@dataclass(frozen=True)
class SimVerified:
    name: str
    domain: str = "sim"

    def check(self, signature: bytes, message: bytes) -> None:
        if not hmac.compare_digest(SimSigner(self.name).sign(message), signature):
            raise Tampered


class SimAnchors:
    def verify(self, der: bytes, now: float) -> SimVerified:
        return SimVerified(der.decode())


@dataclass
class _Key:
    key_id: str
    bits: Secret


class DevicePair:
    """Two linked devices: what one end hands out, the other end has."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.dry = False
        self.waiting: dict[str, bytes] = {}

    async def enc_keys(self, number: int, size: int) -> Sequence[_Key]:
        await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        if self.dry:
            raise InsufficientKey("the device is dry")
        keys = [_Key(str(uuid4()), Secret(self.rng.randbytes(size // 8))) for _ in range(number)]
        self.waiting.update((key.key_id, key.bits.reveal()) for key in keys)
        return keys

    async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[_Key]:
        await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        if any(key_id not in self.waiting for key_id in key_ids):
            raise KeyNotFound("one or more keys specified are not found on KME")
        return [_Key(key_id, Secret(self.waiting.pop(key_id))) for key_id in key_ids]


@dataclass
class Faults:
    """Probabilities per message, and what is cut right now."""

    lose: float = 0.0
    lose_answer: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.01  # seconds, mean
    slow: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Extra seconds of messages, by sender, receiver and operation."""
    cut: set[frozenset[str]] = field(default_factory=set)


class SimNode:
    """One node; `crash` ends it at once, `start` builds a new one on the same ledger."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.ledger = MemoryLedger()
        self.alive = False
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def guard() -> None:
            try:
                await work
            except KeyhaulError as error:
                self.world.notes.append(f"{self.name}: {name} failed: {error}")

        task = asyncio.ensure_future(guard())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: work.close())  # a task that was cancelled before its first turn

    async def start(self) -> None:
        world, signer, anchors, clock = self.world, SimSigner(self.name), SimAnchors(), world_clock
        directory = Directory(anchors, world.network.domains)
        self.pairing = Pairing(signer, "sim", directory, self.ledger, clock)
        self.links: dict[str, SealedLink] = {}
        self.refills: dict[str, Refill] = {}
        for edge in world.edges:
            if self.name in (edge.a, edge.b):
                self._link(edge.b if edge.a == self.name else edge.a, edge, signer, anchors)
        self.gossip = Gossip(
            self.links,
            lambda peer, body: world.call(self.name, peer, "records", body),
            directory,
            self.pairing,
            self.ledger,
            clock,
        )
        self.site = Site(
            name=self.name,
            ledger=self.ledger,
            links=self.links,
            view=world.network,
            schemes={"trusted": Trusted(), "masked": Masked()},
            pairing=self.pairing,
            clock=clock,
            settings=world.settings,
            callback=f"https://{self.name}/kmapi/v1/ext_keys/ack",
            foreign={
                name: ForeignPeer(name, frozenset({f"sae-{name}"}))
                for name, gateway in world.foreign.items()
                if gateway == self.name
            },
        )
        self.outbox = Outbox(SimPeers(world, self.name), clock, self.spawn)
        self.settlement = Settlement(self.site, self.outbox)
        self.outbox.outcome = self.settlement
        self.outbox.seal = Letters(self.site).seal
        self._only_what_is_on_disk()
        self.relay = Relay(self.site, self.outbox, self.settlement)
        self.origin = Origin(
            self.site, self.relay, self.settlement, self.spawn, OwnMint(SystemEntropy(), world_clock)
        )
        await self.pairing.start()
        await self.gossip.start()
        for link in self.links.values():
            await link.start()
        await self.origin.start()
        self.alive = True
        for message in await self.ledger.messages():
            self.outbox.send(message)
        self.spawn(self.gossip.run(), "gossip")
        self.spawn(self._sweep(), "sweep")
        for refill in self.refills.values():
            self.spawn(refill.run(), "refill")

    def _link(self, peer: str, edge: Edge, signer: SimSigner, anchors: SimAnchors) -> None:
        world = self.world
        device = None
        if edge.kind == "qkd":
            device = DeviceKeys(
                peer=peer,
                owner=self.name,
                device=world.devices[frozenset((edge.a, edge.b))],
                ledger=self.ledger,
                low=4,
                high=12,
            )
        own_keys = OneTimeKeys(peer, self.ledger)
        peer_keys: Supply[OneTimeKey] = Supply(f"one-time keys of {peer}", 4, 12)
        self.links[peer] = SealedLink(
            me=self.name,
            peer=peer,
            mode=Mode(edge.mode),
            epoch=hashlib.sha256(self.name.encode()).digest()[:8],
            ledger=self.ledger,
            clock=world_clock,
            peer_keys=peer_keys,
            own_keys=own_keys,
            device=device,
        )
        self.refills[peer] = Refill(
            peer=peer,
            call=lambda name, body: world.call(self.name, name, "refill", body),
            signer=signer,
            anchors=anchors,
            clock=world_clock,
            peer_keys=peer_keys,
            own_keys=own_keys,
            device=device,
        )

    def _only_what_is_on_disk(self) -> None:
        """Note every message that is about to be sent before it was saved: a crash could deny it."""
        send = self.outbox.send

        def watched(message: Message) -> None:
            if message.id not in self.ledger._queue:
                self.world.broken.append(f"{self.name} sends {message.path} that is not on disk")
            send(message)

        self.outbox.send = watched  # type: ignore[method-assign]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.settlement.sweep()

    def crash(self) -> None:
        """As kill -9: every task ends where it stands; the ledger keeps what was committed."""
        self.alive = False
        for task in list(self.tasks):
            task.cancel()
        self.tasks.clear()


class SimForeign:
    """A key manager of another maker: it answers 202 and keeps what it was sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inbox: list[Message] = []

    def acks(self) -> list[tuple[str, UUID]]:
        """Every status it was told so far, in order."""
        return [
            (ack.status.value, key_id)
            for message in self.inbox
            if message.path == etsi020.ACK
            for ack in etsi020.decode_acks(message.body)
            for key_id in ack.key_ids
        ]


class SimPeers:
    def __init__(self, world: World, me: str) -> None:
        self.world = world
        self.me = me

    async def post(self, message: Message) -> Answer:
        if message.peer in self.world.foreigners:
            self.world.foreigners[message.peer].inbox.append(message)
            return Answer(202)
        await asyncio.sleep(self.world.faults.slow.get((self.me, message.peer, message.path), 0.0))
        node = self.world.nodes[message.peer]

        async def handle() -> Answer:
            try:
                await node.relay.envelope(self.me, message.body)
            except KeyhaulError as error:
                return Answer(error.status, error.cause)
            self.world.accepted.append((self.me, message))
            return Answer(202)

        return await self.world.carry(self.me, message.peer, handle)


class World:
    """Nodes, wires and devices, from one seed."""

    def __init__(
        self,
        seed: int,
        links: Sequence[tuple[str, str, str]],
        foreign: Mapping[str, str] | None = None,
        saes: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """`foreign` maps key managers of other makers, each with one SAE, to the node they talk to.

        Every node `n` has one SAE `sae-n`; `saes` maps further ones to their nodes.
        """
        self.rng = random.Random(seed)
        self.faults = Faults()
        self.notes: list[str] = []
        self.broken: list[str] = []  # promises that were seen broken on the way
        self.accepted: list[tuple[str, Message]] = []  # by whom sent, and what
        self.settings = Settings(**settings)
        self.edges = [Edge(a, b, kind, "expanded" if kind == "qkd" else "kem") for a, b, kind in links]
        names = sorted({name for edge in self.edges for name in (edge.a, edge.b)})
        self.foreign = dict(foreign or {})
        self.foreigners = {name: SimForeign(name) for name in self.foreign}
        homes = {f"sae-{name}": name for name in names} | dict(saes or {})
        homes |= {f"sae-{name}": gateway for name, gateway in self.foreign.items()}
        self.network = Network({name: "sim" for name in names}, self.edges, homes)
        self.devices = {frozenset((edge.a, edge.b)): DevicePair(self.rng) for edge in self.edges}
        self.nodes = {name: SimNode(self, name) for name in names}

    async def start(self) -> None:
        for node in self.nodes.values():
            await node.start()

    async def carry(self, source: str, target: str, handle: Callable[[], Awaitable[Result]]) -> Result:
        """One request and its answer over the wire, as well as the wire is today."""
        faults, rng = self.faults, self.rng
        await asyncio.sleep(rng.expovariate(1 / faults.delay))
        if frozenset((source, target)) in faults.cut or rng.random() < faults.lose:
            raise PeerUnreachable(f"{target} does not answer")
        node = self.nodes[target]
        if not node.alive:
            raise PeerUnreachable(f"{target} is down")
        if rng.random() < faults.duplicate:
            node.spawn(self._quietly(handle), "duplicate")
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            try:
                result = await handle()
            except KeyhaulError as error:
                if not done.done():
                    done.set_exception(error)
                return
            if not done.done():
                done.set_result(result)

        node.spawn(serve(), "request")
        await asyncio.wait((done,), timeout=3.0)
        if not done.done() or rng.random() < faults.lose_answer:
            if done.done():
                done.exception()
            done.cancel()
            raise PeerUnreachable(f"{target} does not answer")
        return done.result()

    async def _quietly(self, handle: Callable[[], Awaitable[Any]]) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 0.5))
        try:
            await handle()
        except KeyhaulError as error:
            self.notes.append(f"duplicate: {error}")

    async def call(self, source: str, target: str, path: str, body: bytes) -> bytes:
        node = self.nodes[target]

        async def handle() -> bytes:
            if path == "refill":
                return await node.refills[source].answer(body)
            await node.gossip.receive(source, body)
            return b""

        return await self.carry(source, target, handle)

    # --- what SAEs do

    async def ask(
        self, a: str, b: str | tuple[str, ...], number: int = 1, size: int = 256
    ) -> list[Delivered]:
        targets = (b,) if isinstance(b, str) else b
        order = Order(f"sae-{a}", tuple(f"sae-{name}" for name in targets), number, size)
        return await self.nodes[a].origin.request(order)

    async def fetch(self, a: str, b: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        return await self.nodes[b].origin.fetch(f"sae-{b}", f"sae-{a}", key_ids)


world_clock = LoopClock()
__all__ = ["Faults", "Malformed", "Unauthorized", "Unavailable", "World", "world_clock"]
