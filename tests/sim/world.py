"""A whole network of real kernels in one loop with virtual time: faults in the wire, crashes in the nodes.

Real: relay, settlement, origin, outbox, links, envelopes, codecs, pairing, directory, gossip, refill,
ledger semantics. Simulated: the wire (here), signatures and devices (`parts`), the disk (`disk`), and in
seeded runs the randomness (`seeded`). What happens is noted in `World.history` for the checkers of
`keyhaul.testbed.invariants`.

A node can be ended at named points, `POINTS`, aimed at the gaps between two steps.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from keyhaul import blindkeys, story
from keyhaul.config import BlindConfig
from keyhaul.control import Directory
from keyhaul.entropy import SystemEntropy
from keyhaul.errors import KeyhaulError, Malformed, PeerUnreachable, Unauthorized, Unavailable
from keyhaul.gossip import Gossip
from keyhaul.kernel import Kernel
from keyhaul.keys import Message, Row, State
from keyhaul.letters import Letters
from keyhaul.links.onetime import OneTimeKey, OneTimeKeys
from keyhaul.links.prefetch import DeviceKeys
from keyhaul.links.refill import Refill
from keyhaul.links.sealed import SealedLink
from keyhaul.links.supply import Supply
from keyhaul.messages.envelope import Mode
from keyhaul.messages.etsi014 import Delivered, Order
from keyhaul.messages.payload import Scheme
from keyhaul.minting import OwnMint
from keyhaul.origin import Origin
from keyhaul.outbox import Outbox
from keyhaul.pairing import Pairing
from keyhaul.policy import NO_POLICY, PathPolicy
from keyhaul.relay import Relay
from keyhaul.rounds import NOBODY, Payer
from keyhaul.routing import Edge, Network
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from keyhaul.settlement import Settlement
from keyhaul.site import ForeignPeer, Settings, Site
from keyhaul.stores.renewal import INCARNATION_BYTES
from keyhaul.testbed.history import History
from keyhaul.whispers import Whispers
from tests.sim.disk import Disk, SimLedger, Tables, renewed
from tests.sim.parts import DeviceEnd, DevicePair, SimAnchors, SimClock, SimSigner, world_clock
from tests.sim.watching import Watched, committed, contents
from tests.sim.wire import SimForeign, SimPeers, material

RENEW = 30.0  # seconds; what links hold ready and keep lives faster than outside, so that storms see it end
STOCK = 12  # keys of each kind that a link holds ready at most
STOCK_OF_PADS = 48  # the same where each bit of a message takes one

POINTS = {
    "starting": "a node comes up and has read half of its ledger",
    "save": "everything of a step is decided and nothing is on disk",
    "saved": "a step is on disk and nobody was told: between save and send",
    "send": "a message of a saved step is handed to the outbox",
    "posted": "a message is about to leave",
    "arrived": "a message came in and nothing was done about it",
    "accepted": "a message was accepted and its answer has not left",
    "replied": "right after the answer left",
    "heard": "the sender has the answer and has not noted it",
    "answering": "an application's answer is ready and has not left",
    "answered": "right after an application's answer left",
}
"""Where a node can be ended, and what has happened there."""

Result = TypeVar("Result")


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
    wrong: dict[str, float] = field(default_factory=dict)
    """Seconds by which the clocks of nodes are off."""
    swallow: set[str] = field(default_factory=set)
    """Nodes that answer 202 to keys and throw them away."""
    replay: float = 0.0  # per message: an old one comes once more


class SimNode:
    """One node; `crash` ends it at once, `start` builds a new one on the same ledger."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = Disk(world.rng)
        self.disk.tables.incarnation = hashlib.sha256(name.encode()).digest()[:INCARNATION_BYTES]
        self.ledger = self._ledger()
        self.alive = False
        self.life = 0
        self.tasks: dict[asyncio.Task[Any], None] = {}  # in order: a set of tasks has none

    def _ledger(self) -> SimLedger:
        return SimLedger(self.disk, self.point, lambda row: self.world.committed(self.name, row))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def guard() -> None:
            try:
                await work
            except KeyhaulError as error:
                self.world.notes.append(f"{self.name}: {name} failed: {error}")
            except Exception as error:  # noqa: BLE001 - the root of a task, as in node.py
                self.world.broken.append(f"{self.name}: {name} ended with {error!r}")

        if self.ledger.dead:  # a dead node's last lines of code start nothing
            work.close()
            return
        task = asyncio.ensure_future(guard())
        self.track(task)
        task.add_done_callback(lambda _: work.close())  # a task that was cancelled before its first turn

    def track(self, task: asyncio.Task[Any]) -> None:
        """A task that ends with this node."""
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))

    async def point(self, name: str) -> None:
        """The node is at a named point; the world may end it here, and then nothing follows."""
        if self.world.aimed(name, self.name):
            self.crash()
            await asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Come up on what is on disk."""
        self.life += 1
        self.ledger = self._ledger()
        await self._start()
        self.alive = True
        for message in await self.ledger.messages():
            self.outbox.send(message)
        self.spawn(self.gossip.run(), "gossip")
        self.spawn(self._sweep(), "sweep")
        for refill in self.refills.values():
            self.spawn(refill.run(), "refill")

    async def _start(self) -> None:
        world, signer, anchors = self.world, SimSigner(self.name), SimAnchors()
        clock = SimClock(self.name, world.faults.wrong)
        directory = Directory(anchors, world.network.domains)
        wanted = world.blind.get(self.name, BlindConfig())
        whispers = Whispers(directory, clock)
        blind, keys = blindkeys.build(wanted, self.ledger, clock, directory, whispers)
        schemes: list[Scheme] = [Trusted(), Masked(once=world.once), *blind, *world.more]
        self.honest = {each.name: Watched(each, world, self.name) for each in schemes}
        self.pairing = Pairing(
            signer,
            "sim",
            directory,
            self.ledger,
            clock,
            kem=world.kem,
            schemes=tuple(self.honest),
            labels=("pq",) if self.name not in world.classic else (),
            others=[keys] if keys is not None else [],
        )
        whispers.own = self.pairing.own_key
        self.links: dict[str, SealedLink] = {}
        self.refills: dict[str, Refill] = {}
        for edge in world.edges:
            if self.name in (edge.a, edge.b):
                self._link(edge.b if edge.a == self.name else edge.a, edge, signer, clock)
        self.gossip = Gossip(
            self.links,
            lambda peer, body: world.call(self.name, peer, "records", body),
            directory,
            self.pairing,
            self.ledger,
            clock,
        )
        if keys is not None:
            keys.hurry = self.gossip.hurry
        self.site = Site(
            name=self.name,
            ledger=self.ledger,
            links=self.links,
            view=world.network,
            schemes=self.honest,
            pairing=self.pairing,
            clock=clock,
            settings=world.settings,
            callback=f"https://{self.name}/kmapi/v1/ext_keys/ack",
            foreign={
                name: ForeignPeer(name, frozenset({f"sae-{name}"}))
                for name, gateway in world.foreign.items()
                if gateway == self.name
            },
            policy=world.policies.get(self.name, world.policy),
        )
        self.outbox = Outbox(SimPeers(world, self.name), clock, self.spawn)
        self.settlement = Settlement(self.site, self.outbox)
        self.outbox.outcome = self.settlement
        self.outbox.seal = Letters(self.site).seal
        self._only_what_is_on_disk()
        self.relay = Relay(self.site, self.outbox, self.settlement)
        self.origin = Origin(
            self.site, self.relay, self.settlement, self.spawn, OwnMint(SystemEntropy(), clock)
        )
        self.kernel = Kernel(self.relay, self.settlement, self.refills, self.gossip, self.outbox)
        await self.pairing.start()
        await self.point("starting")
        await self.gossip.start()
        for link in self.links.values():
            await link.start()
        await self.origin.start()

    def _link(self, peer: str, edge: Edge, signer: SimSigner, clock: SimClock) -> None:
        world = self.world
        device = None
        if edge.kind == "qkd":
            device = DeviceKeys(
                peer=peer,
                owner=self.name,
                device=DeviceEnd(world.devices[frozenset((edge.a, edge.b))], self.name),
                ledger=self.ledger,
                clock=clock,
                low=max(4, world.stock // 4),
                high=world.stock,
                most=4 * world.stock,
                keep=7 * RENEW,
            )
        own_keys = OneTimeKeys(peer, self.ledger, clock, most=16 * world.stock, keep=7 * RENEW)
        peer_keys: Supply[OneTimeKey] = Supply(f"one-time keys of {peer}", 4, world.stock)
        self.links[peer] = SealedLink(
            me=self.name,
            peer=peer,
            mode=Mode(edge.mode),
            epoch=self.disk.tables.incarnation[:8],
            ledger=self.ledger,
            clock=clock,
            peer_keys=peer_keys,
            own_keys=own_keys,
            device=device,
        )
        self.refills[peer] = Refill(
            peer=peer,
            call=lambda name, body: world.call(self.name, name, "refill", body),
            signer=signer,
            anchors=SimAnchors(),
            clock=clock,
            peer_keys=peer_keys,
            own_keys=own_keys,
            device=device,
            epoch=self.disk.tables.incarnation[:8],
            heard=self.links[peer].heard,
            renew=RENEW,
        )

    def _only_what_is_on_disk(self) -> None:
        """Note every message that is about to be sent before it was saved: a crash could deny it."""
        send = self.outbox.send

        def watched(message: Message, payer: Payer = NOBODY) -> None:
            if message.id not in self.ledger._queue and not self.ledger.dead:
                self.world.broken.append(f"{self.name} sends {message.path} that is not on disk")
            self.world.contents[message.id] = contents(message)
            if self.world.aimed("send", self.name):
                self.crash()
            send(message, payer)

        self.outbox.send = watched  # type: ignore[method-assign]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.settlement.sweep()
            except KeyhaulError as error:
                self.world.notes.append(f"{self.name}: sweep failed: {error}")

    def crash(self) -> None:
        """As kill -9: every task ends where it stands; the disk keeps what was committed."""
        self.alive = False
        self.ledger.dead = True
        for task in list(self.tasks):
            task.cancel()
        self.tasks.clear()
        self.disk.crashed()


@dataclass
class Aim:
    """End `node` (any, if None) when it is at `point` for the `nth` time; it comes back after `down` s."""

    point: str
    node: str | None
    nth: int
    down: float


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
        self.history = History(world_time, self.rng.randbytes(32))
        self.last: dict[tuple[str, UUID, str], State] = {}
        self.contents: dict[UUID, str] = {}
        self.glimpses: list[tuple[str, str, bytes]] = []  # node, place, what could be read there
        self.aims: list[Aim] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._used: set[str] = set()
        self.settings = Settings(**settings)
        # Set these before `start`.
        self.stock = STOCK
        self.blind: dict[str, BlindConfig] = {}
        self.more: list[Scheme] = []
        self.kem, self.once = "ml-kem-768", False
        self.policy = NO_POLICY
        self.policies: dict[str, PathPolicy] = {}  # of nodes whose own differs
        self.classic: set[str] = set()  # nodes that do not vouch for post-quantum TLS
        self.edges = [Edge(a, b, kind, "expanded" if kind == "qkd" else "kem") for a, b, kind in links]
        names = sorted({name for edge in self.edges for name in (edge.a, edge.b)})
        self.foreign = dict(foreign or {})
        self.foreigners = {name: SimForeign(name, self, gateway) for name, gateway in self.foreign.items()}
        homes = {f"sae-{name}": name for name in names} | dict(saes or {})
        behind = {f"sae-{name}": gateway for name, gateway in self.foreign.items()}
        self.network = Network({name: "sim" for name in names}, self.edges, homes, behind)
        homes |= behind  # a gateway is the end of what it hands over, not a relay
        self.devices = {frozenset((edge.a, edge.b)): DevicePair(self.rng) for edge in self.edges}
        self.nodes = {name: SimNode(self, name) for name in names}
        for name in names:
            self.history.note(name, "home", to=[sae for sae, home in homes.items() if home == name])

    async def start(self) -> None:
        for node in self.nodes.values():
            await node.start()

    # --- what goes wrong

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that happens beside everything else, to nobody's node."""
        task = asyncio.ensure_future(work)
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))

    def aimed(self, point: str, name: str) -> bool:
        """Whether a node at a named point ends there."""
        if not self.aims or self.nodes[name].ledger.dead:
            return False
        for aim in self.aims:
            if aim.point == point and aim.node in (None, name):
                aim.nth -= 1
                if aim.nth <= 0:
                    self.aims.remove(aim)
                    self.history.note("world", "fault", text=f"{name} is killed: {POINTS[point]}")
                    self.later(self.revive(name, aim.down))
                    return True
        return False

    def kill(self, name: str, down: float) -> None:
        """kill -9 at a moment nobody chose."""
        if self.nodes[name].alive:
            self.history.note("world", "fault", text=f"{name} is killed")
            self.nodes[name].crash()
            self.later(self.revive(name, down))

    async def revive(self, name: str, down: float) -> None:
        """Start a dead node after a while, and again if its disk refuses."""
        node = self.nodes[name]
        while True:
            await asyncio.sleep(down)
            task = asyncio.ensure_future(node.start())
            node.track(task)
            await asyncio.wait((task,))
            if task.cancelled() or task.exception() is None:
                return
            self.notes.append(f"{name} does not come up: {task.exception()}")
            node.crash()

    async def restore(self, name: str, backup: Tables, down: float) -> None:
        """End a node that runs, put an old backup in the place of its disk, and start it again."""
        node = self.nodes[name]
        node.crash()
        self.history.note("world", "fault", text=f"{name} is restored from a backup")
        self.history.note(name, "restored")
        node.disk.replace(await renewed(backup, world_clock.now()))
        await self.revive(name, down)

    def replay(self, node: SimNode) -> None:
        """Somebody recorded a message for this node and sends it once more."""
        sender, message = self.rng.choice(self.accepted)
        if message.peer == node.name:
            node.spawn(self._quietly(lambda: node.relay.envelope(sender, message.body)), "replay")

    # --- what is noted

    def committed(self, name: str, row: Row) -> None:
        committed(self, name, row)

    def noted_material(self, me: str, message: Message) -> None:
        message_id, names = material(message)
        if message_id not in self._used:
            self._used.add(message_id)
            for name in names:
                self.history.note(me, "used", name=name, text=f"{me}>{message.peer}", to=(message_id,))

    # --- the wire

    async def carry(self, source: str, target: str, handle: Callable[[], Awaitable[Result]]) -> Result:
        """One request and its answer over the wire, as well as the wire is today."""
        faults, rng = self.faults, self.rng
        await asyncio.sleep(rng.expovariate(1 / faults.delay))
        if frozenset((source, target)) in faults.cut or rng.random() < faults.lose:
            raise PeerUnreachable(f"{target} does not answer")
        node = self.nodes[target]
        if not node.alive:
            raise PeerUnreachable(f"{target} is down")
        life = node.life
        if rng.random() < faults.duplicate:
            node.spawn(self._quietly(handle), "duplicate")
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may be dead

        async def serve() -> None:
            await node.point("arrived")
            try:
                result = await handle()
            except KeyhaulError as error:
                if not done.done():
                    done.set_exception(error)
                return
            await node.point("accepted")
            if not done.done():
                done.set_result(result)

        node.spawn(serve(), "request")
        await asyncio.wait((done,), timeout=3.0)
        if not done.done() or rng.random() < faults.lose_answer:
            done.cancel()
            raise PeerUnreachable(f"{target} does not answer")
        if node.life == life and self.aimed("replied", target):
            node.crash()
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
                return await node.kernel.refill(source, body)
            return await node.kernel.records(source, body)

        return await self.carry(source, target, handle)

    # --- what SAEs do

    async def ask(
        self,
        a: str,
        b: str | tuple[str, ...],
        number: int = 1,
        size: int = 256,
        mandatory: Mapping[str, Any] | None = None,
        optional: Mapping[str, Any] | None = None,
    ) -> list[Delivered]:
        targets = (b,) if isinstance(b, str) else b
        options = {**(mandatory or {}), **(optional or {})}
        order = Order(
            f"sae-{a}",
            tuple(f"sae-{name}" for name in targets),
            number,
            size,
            options,
            frozenset(mandatory or ()),
        )
        story.begin()
        return await self.nodes[a].origin.request(order)

    async def fetch(self, a: str, b: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        return await self.nodes[b].origin.fetch(f"sae-{b}", f"sae-{a}", key_ids)


def world_time() -> float:
    """Seconds since the world began; 0 before."""
    try:
        return round(asyncio.get_running_loop().time(), 6)
    except RuntimeError:
        return 0.0


__all__ = ["Faults", "Malformed", "SimSigner", "Unauthorized", "Unavailable", "World", "world_clock"]
