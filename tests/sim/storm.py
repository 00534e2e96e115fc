"""One seed is one storm: a network, its applications and its faults, then calm, then the twelve promises.

Everything follows from the seed: the topology and settings, when what breaks, and every random number in
the kernel (`seeded`). `run_seed` gives the history and what is broken in it. Nothing here decides what is
right; that is the business of `keyhaul.testbed.invariants`.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from keyhaul import story
from keyhaul.config import BlindConfig
from keyhaul.config.schemes import missing_libraries
from keyhaul.errors import KeyhaulError, Unavailable
from keyhaul.messages.etsi014 import LABELS, Delivered, Order
from keyhaul.routing import Edge
from keyhaul.testbed.clock import run
from keyhaul.testbed.history import History, tell
from keyhaul.testbed.invariants import Limits, Violation, check
from tests.sim.seeded import seeded
from tests.sim.weather import disturb, restore, set_weather
from tests.sim.wire import material
from tests.sim.world import STOCK, STOCK_OF_PADS, SimNode, World

TOPOLOGIES: dict[str, list[tuple[str, str, str]]] = {
    "line": [("a", "b", "qkd"), ("b", "c", "pqc"), ("c", "d", "qkd")],
    "pair": [("a", "b", "qkd")],
    "star": [("hub", "x", "pqc"), ("hub", "y", "qkd"), ("hub", "z", "pqc")],
    "ring": [("a", "b", "qkd"), ("b", "c", "pqc"), ("c", "d", "pqc"), ("d", "e", "qkd"), ("a", "e", "pqc")],
    "mesh": [("a", "b", "qkd"), ("a", "c", "pqc"), ("a", "d", "pqc"), ("b", "c", "qkd"), ("c", "d", "qkd")],
}
RECOVERY = 100.0  # seconds after which every request succeeds again
PATIENCE = 30.0  # seconds an application waits for an answer
JUMP = 60.0  # seconds a clock may jump
CALM_TTL = 86_400.0
RESTORED = 0.3  # share of storms in which nodes come back from old backups
TRANSIT = 0.4  # share of storms with a foreign key manager in which there are two
OTP = 0.3  # share of quantum links that take one-time pads of device bits, where the scheme allows it
ONCE = 0.3  # share of storms in which `masked` makes a secret for every payload
BLIND = 0.06  # share of storms whose scheme is `blind`, where SEAL is there
LONGEST = 5_000.0  # seconds that a calm may take


@dataclass
class Storm:
    """One run: what there is, and what the applications hold."""

    seed: int
    rng: random.Random
    shape: str
    world: World
    held: list[tuple[str, tuple[str, ...], UUID]] = field(default_factory=list)  # master, slaves, key
    fetched: set[tuple[str, UUID]] = field(default_factory=set)
    taken_back: list[tuple[str, str, UUID]] = field(default_factory=list)  # master, slave, key
    bits: dict[bytes, UUID] = field(default_factory=dict)
    transit: random.Random = field(default_factory=random.Random)  # for keys between two of other makers

    @property
    def limits(self) -> Limits:
        settings = self.world.settings
        # Even under `auto` neighbours use `trusted`, but then there is no relay.
        return Limits(settings.ttl, JUMP, RECOVERY, trusted=settings.scheme == "trusted")

    # --- applications

    async def call(
        self, node: SimNode, work: Callable[[], Coroutine[Any, Any, list[Delivered]]]
    ) -> list[Delivered] | KeyhaulError | None:
        """What an application gets from its node: keys, an error, or no answer."""
        if not node.alive:
            return Unavailable("the node is down")

        async def serve() -> list[Delivered] | KeyhaulError:
            try:
                answer = await work()
            except KeyhaulError as error:
                return error
            await node.point("answering")
            return answer

        task = asyncio.ensure_future(serve())
        node.track(task)
        life = node.life
        await asyncio.wait((task,), timeout=PATIENCE)
        if task.cancelled() or not task.done() or self.rng.random() < self.world.faults.lose_answer:
            return None
        if node.life == life and self.world.aimed("answered", node.name):
            node.crash()
        return task.result()

    async def ask(
        self, master: str, slaves: tuple[str, ...], number: int = 1, *, fresh: bool = False
    ) -> list[UUID]:
        """A master asks its node for keys; the ids of those that reached it. `fresh`: of no pool."""
        note, request = self.world.history.note, self.world.history.request()
        node = self.world.nodes[self.home(master)]
        note(master, "asked", request=request, to=slaves)
        order = Order(master, slaves, number, 256, {LABELS: ()} if fresh else {})
        story.begin()  # as the port does: keys and acknowledgements carry a trace
        answer = await self.call(node, lambda: node.origin.request(order))
        if isinstance(answer, list):
            for key in answer:
                self.noted(master, "got", request, key, slaves)
                self.held.append((master, slaves, key.key_id))
            return [key.key_id for key in answer]
        self.ended(master, request, answer)
        return []

    async def fetch(self, slave: str, master: str, key_id: UUID) -> bool:
        """A slave asks its node for one key by its id; whether it got it."""
        note, request = self.world.history.note, self.world.history.request()
        node = self.world.nodes[self.home(slave)]
        note(slave, "fetching", request=request, key_id=key_id)
        answer = await self.call(node, lambda: node.origin.fetch(slave, master, [key_id]))
        if isinstance(answer, list):
            for key in answer:
                self.noted(slave, "fetched", request, key)
                self.fetched.add((slave, key.key_id))
            return True
        self.ended(slave, request, answer)
        return False

    def noted(self, sae: str, verb: str, request: int, key: Delivered, slaves: tuple[str, ...] = ()) -> None:
        bits, history = key.bits.reveal(), self.world.history
        self.bits[bits] = key.key_id
        history.note(sae, verb, request=request, key_id=key.key_id, digest=history.digest(bits), to=slaves)

    def ended(self, sae: str, request: int, answer: KeyhaulError | None) -> None:
        if answer is None:
            self.world.history.note(sae, "cut", request=request)
        else:
            self.world.history.note(sae, "refused", request=request, status=answer.status, text=answer.cause)

    def home(self, sae: str) -> str:
        return self.world.network.home(sae)

    async def application(self, rng: random.Random) -> None:
        """Asks for keys now and then, and fetches some of them at once."""
        saes = ["sae-2", *(f"sae-{name}" for name in (*self.world.nodes, *self.world.foreign))]
        for _ in range(4):
            await asyncio.sleep(rng.uniform(0.0, 2.0))
            master, *slaves = rng.sample(saes, k=min(rng.choice((2, 2, 3)), len(saes)))
            if self.home(master) == self.home(slaves[0]) or master.removeprefix("sae-") in self.world.foreign:
                continue
            for key_id in await self.ask(master, tuple(slaves), rng.choice((1, 1, 3))):
                if rng.random() < 0.4 and slaves[0].removeprefix("sae-") not in self.world.foreign:
                    await self.fetch(slaves[0], master, key_id)

    async def other_maker(self, rng: random.Random) -> None:
        """A foreign key manager gives keys to the network and takes some of them back."""
        for name, kme in self.world.foreigners.items():
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0.0, 3.0))
                key_id, value = uuid4(), rng.randbytes(32)
                target = f"sae-{rng.choice([n for n in self.world.nodes])}"
                others = [other.sae for other in self.world.foreigners.values() if other is not kme]
                if others and self.transit.random() < 0.5:
                    target = self.transit.choice(others)
                await kme.give(key_id, value, (target,))
                self.bits[value] = key_id
                if rng.random() < 0.4:
                    await asyncio.sleep(rng.uniform(0.0, 2.0))
                    await kme.take_back(key_id, (target,))
                    self.taken_back.append((kme.sae, target, key_id))
                    continue
                self.world.later(self._hold(name, key_id, value, target))

    async def _hold(self, name: str, key_id: UUID, value: bytes, target: str) -> None:
        """The foreign master has its key as soon as it was told that the far end has it."""
        kme, history = self.world.foreigners[name], self.world.history
        while kme.told(key_id) is None:
            await asyncio.sleep(0.5)
        if kme.told(key_id) == "relayed":
            digest = history.digest(value)
            history.note(
                kme.sae, "got", request=history.request(), key_id=key_id, digest=digest, to=(target,)
            )
            self.held.append((kme.sae, (target,), key_id))

    # --- after the storm

    async def calm(self) -> None:
        """All is healed; everything that a master holds is fetched, and everybody asks once more."""
        world = self.world
        world.faults.__dict__.update(type(world.faults)().__dict__ | {"wrong": world.faults.wrong})
        world.faults.wrong.clear()
        world.aims.clear()
        for node in world.nodes.values():
            node.disk.slow = node.disk.fail = 0.0
        for device in world.devices.values():
            device.dry, device.disagree = False, 0.0
        while not all(node.alive for node in world.nodes.values()):
            await asyncio.sleep(1.0)
        for node in world.nodes.values():
            node.site.schemes = node.honest
        world.history.note("world", "healed")
        await self.use_wrong_keys()
        await asyncio.sleep(RECOVERY)
        for master, slaves, key_id in list(self.held):
            for slave in slaves:
                if slave.removeprefix("sae-") in world.foreign:
                    continue
                await self.fetch(self.stranger(slaves), master, key_id)
                if (slave, key_id) not in self.fetched:
                    await self.fetch(slave, master, key_id)
                await self.fetch(slave, master, key_id)
        for master, slave, key_id in self.taken_back:
            await self.fetch(slave, master, key_id)
        await self.all_ask()
        await asyncio.sleep(30.0)
        if world.settings.ttl < CALM_TTL:
            await self.grow_old()

    async def use_wrong_keys(self) -> None:
        """Applications go on asking: device keys that do not agree are found out by being used.

        Those of a stock are used in turn: behind good ones there may be others, drawn a moment later.
        """
        for _ in range(self.world.stock):
            if not self.wrong_keys():
                break
            await self.neighbours_ask()
            await asyncio.sleep(3.0)

    def wrong_keys(self) -> bool:
        """Whether a node has a device key to send with of which its neighbour has other bits."""
        wrong = set[str]().union(*(device.wrong for device in self.world.devices.values()))
        spaces = tuple(node.disk.tables.items for node in self.world.nodes.values())
        return bool(wrong) and any(
            name in wrong and space.endswith("/out") for items in spaces for space, name in items
        )

    async def grow_old(self) -> None:
        """Nobody fetches the last keys; when their time is over nobody can, and then they are forgotten."""
        a, *_, b = sorted(self.world.nodes)
        key_ids = await self.ask(f"sae-{a}", (f"sae-{b}",), 2)
        await asyncio.sleep(self.world.settings.ttl + JUMP)
        for key_id in key_ids:
            await self.fetch(f"sae-{b}", f"sae-{a}", key_id)
        await asyncio.sleep(self.world.settings.retention)
        for name, node in self.world.nodes.items():
            rows = len(node.disk.tables.rows)
            self.world.history.note(name, "size", name="rows when all is over", value=rows, limit=0)

    def stranger(self, slaves: tuple[str, ...]) -> str:
        return self.rng.choice(
            [f"sae-{n}" for n in self.world.nodes if f"sae-{n}" not in slaves] or ["sae-2"]
        )

    async def neighbours_ask(self) -> None:
        for edge in self.world.edges:
            await self.ask(f"sae-{edge.a}", (f"sae-{edge.b}",), fresh=True)
            await self.ask(f"sae-{edge.b}", (f"sae-{edge.a}",), fresh=True)

    async def all_ask(self) -> None:
        """Round the circle in both directions; in small networks that is every pair."""
        names = sorted(self.world.nodes)
        for at, name in enumerate(names):
            for step in (1, len(names) - 1):
                slave = f"sae-{names[(at + step) % len(names)]}"
                for key_id in await self.ask(f"sae-{name}", (slave,)):
                    await self.fetch(slave, f"sae-{name}", key_id)

    # --- what is counted at the end

    def measure(self, logs: list[str]) -> None:
        """Note sizes, accounts, and every place where a key can be read."""
        for name, node in self.world.nodes.items():
            self._sizes(name, node)
        self._accounts()
        places: dict[tuple[str, str], list[bytes]] = {("everybody", "log"): [line.encode() for line in logs]}
        for node, place, text in self.world.glimpses:
            places.setdefault((node, place), []).append(text)
        for name, node in self.world.nodes.items():
            tables = node.disk.tables
            bodies = [message.body for message in tables.queue.values()]
            places[name, "disk"] = [*bodies, *tables.items.values()]
        note, digest = self.world.history.note, self.world.history.digest
        written = {bits: _forms(bits) for bits in self.bits}
        for (name, place), texts in places.items():
            joined = b"\0".join(texts)
            for bits, forms in written.items():
                if any(form in joined for form in forms):
                    note(name, "held", digest=digest(bits), text=place)

    def _sizes(self, name: str, node: SimNode) -> None:
        note, tables = self.world.history.note, node.disk.tables
        unfinished = sum(row.state in ("sending", "sent") for row in tables.rows.values())
        note(name, "size", name="unfinished rows", value=unfinished, limit=0)
        note(name, "size", name="messages", value=len(tables.queue), limit=0)
        spaces, stocks = Counter(space for space, _ in tables.items), self.world.stock / STOCK
        for space, count in spaces.items():
            kind = space.split("/")[0]
            most = MOST[kind] * (stocks if kind in ("kem", "pad") else 1)
            note(name, "size", name=f"items of {space}", value=count, limit=most)
        relayed = [row for row in tables.rows.values() if row.ref.leg != name and row.secret is not None]
        note(name, "size", name="keys of others", value=len(relayed), limit=0)

    def _accounts(self) -> None:
        """What devices handed out is fetched or waits; what one end may use, the other end holds."""
        note = self.world.history.note
        for edge in self.world.edges:
            if edge.kind != "qkd":
                continue
            pair = self.world.devices[frozenset((edge.a, edge.b))]
            for name, value in (
                ("in handed out", pair.handed),
                ("out fetched", pair.fetched),
                ("out waiting", len(pair.waiting)),
            ):
                note(f"{edge.a}={edge.b}", "account", name=name, value=value)
            for here, there in ((edge.a, edge.b), (edge.b, edge.a)):
                device = self.world.nodes[here].links[there]._device
                ready = {name for name, _ in device.supply._items}
                stored = {n for s, n in self.world.nodes[there].disk.tables.items if s == f"pad/{here}/in"}
                kept = {n for s, n in self.world.nodes[here].disk.tables.items if s == f"pad/{there}/out"}
                note(f"{here} of {edge.a}={edge.b}", "account", name="in ready", value=len(ready))
                held = len(ready & stored & kept)
                note(f"{here} of {edge.a}={edge.b}", "account", name="out held at both ends", value=held)
                known = kept & (ready | device._offered.keys() | set(device._burned))
                note(f"keys kept at {here} for {there}", "account", name="in", value=len(kept))
                note(f"keys kept at {here} for {there}", "account", name="out to be used", value=len(known))
                self._spent(f"{here}>{there}", pair.names, kept, stored)
                self._ends(here, there, pair.drawn.get(here, set()))

    def _ends(self, here: str, there: str, drawn: set[str]) -> None:
        """Every device key that `here` drew to send with, by what devices and disks saw at both ends."""
        world, note = self.world, self.world.history.note
        counts = {}
        for name, space in ((here, f"pad/{there}/out"), (there, f"pad/{here}/in")):
            disk = world.nodes[name].disk
            seen = {what: disk.pads.get((what, space), set()) for what in ("put", "spent", "erased")}
            seen["left"] = {n for s, n in disk.tables.items if s == space}
            counts[name] = seen
            known = (seen["spent"] | seen["erased"] | seen["left"]) & seen["put"]
            note(f"keys saved at {name} for {here}>{there}", "account", name="in", value=len(seen["put"]))
            note(f"keys saved at {name} for {here}>{there}", "account", name="out", value=len(known))
        out, far = counts[here], counts[there]
        killed = len(drawn - out["put"]) if world.nodes[here].life > 1 else 0  # between device and disk
        for what, came, went in (
            ("drawn", len(drawn), len(drawn & out["put"]) + killed),
            ("saved", len(out["put"]), len(out["put"] & drawn)),
            ("spent", len(out["spent"]), len(out["spent"] & far["put"])),
            ("spent at the far end", len(far["spent"]), len(far["spent"] & out["spent"])),
        ):
            note(f"keys {what} for {here}>{there}", "account", name="in", value=came)
            note(f"keys {what} for {here}>{there}", "account", name="out", value=went)

    def _spent(self, link: str, handed: set[str], kept: set[str], stored: set[str]) -> None:
        """A device key that is in a message came from the device once, and is left at neither end.

        At the far end that is so as soon as the message was accepted.
        """
        note, world = self.world.history.note, self.world
        sender, receiver = link.split(">")
        used = [e.name for e in world.history if e.verb == "used" and e.text == link and e.name in handed]
        came = {
            name
            for who, message in world.accepted
            if who == sender and message.peer == receiver
            for name in material(message)[1]
            if name in handed
        }
        for what, names, left in (("used", set(used), kept), ("accepted", came, stored)):
            note(f"keys {what} on {link}", "account", name="in", value=len(names))
            note(f"keys {what} on {link}", "account", name="out", value=len(names - left))


MOST = {"kem": 300, "pad": 64, "seen": 8192, "pair": 64, "sequence": 8, "directory": 8, "anew": 8, "bfv": 8}
"""Items a node may keep of each kind, for each neighbour."""


def _forms(bits: bytes) -> tuple[bytes, ...]:
    """How key bits may be written."""
    return bits, bits.hex().encode(), base64.b64encode(bits).rstrip(b"=")


@dataclass(frozen=True)
class Outcome:
    """What one seed showed."""

    seed: int
    shape: str
    scheme: str
    settings: str
    history: History
    violations: list[Violation]
    broken: list[str]

    @property
    def good(self) -> bool:
        return not self.violations and not self.broken

    def story(self, *, whole: bool = False) -> str:
        """Who said what to whom, when, as far as it concerns what is broken; and how to see it again."""
        head = f"seed {self.seed}: {self.shape}, {self.settings}"
        parts = [violation.story(self.history) for violation in self.violations] + self.broken
        if whole:
            parts.append(tell(self.history))
        return "\n\n".join([head, *parts, f"replay: make sim SEED={self.seed}"])


def run_seed(seed: int) -> Outcome:
    """One storm, from its seed alone."""
    with seeded(seed) as logs:
        return run(_run(seed, logs))


async def _run(seed: int, logs: list[str]) -> Outcome:
    rng = random.Random(seed)
    shape = rng.choice(["line", "line", *TOPOLOGIES])
    links = TOPOLOGIES[shape]
    settings = {
        "request_timeout": 8.0,
        "pool": rng.choice((0, 0, 0, 4, 16)),
        "ttl": (ttl := rng.choice((CALM_TTL, CALM_TTL, CALM_TTL, 150.0))),
        "retention": ttl,
        "scheme": rng.choice(("auto", "auto", "trusted", "masked")),
    }
    foreign = {"kme": rng.choice(links)[0]} if rng.random() < 0.4 else {}
    more = random.Random(
        f"more {seed}"
    )  # what came later has dice of its own: the other storms stay as they were
    restored, blind = more.random() < RESTORED, more.random() < BLIND and not missing_libraries()
    if blind:
        settings["scheme"] = "blind"
    transit = random.Random(f"transit {seed}")
    if foreign and transit.random() < TRANSIT:
        foreign["far"] = transit.choice([n for link in links for n in link[:2] if n != foreign["kme"]])
    world = World(seed, links, foreign, {"sae-2": links[0][1]}, **settings)
    world.blind = dict.fromkeys(world.nodes, BlindConfig(enabled=blind))
    modes = random.Random(f"modes {seed}")
    world.once = modes.random() < ONCE
    if not blind:  # whose payloads are larger than what a device makes in a night
        for at, edge in enumerate(world.edges):
            if edge.kind == "qkd" and modes.random() < OTP:
                world.edges[at] = Edge(edge.a, edge.b, "qkd", "otp")
                world.stock = STOCK_OF_PADS
    for kme in world.foreigners.values():
        kme.lively = True
    storm = Storm(seed, rng, shape, world, transit=transit)
    await world.start()
    set_weather(world, rng)
    async with asyncio.TaskGroup() as tasks:
        for at in range(3):
            tasks.create_task(storm.application(random.Random(seed * 7 + at)))
        tasks.create_task(storm.other_maker(random.Random(seed * 7 + 5)))
        tasks.create_task(disturb(world, rng))
        if restored:
            tasks.create_task(restore(world, more))
    try:
        async with asyncio.timeout(LONGEST):
            await storm.calm()
    except TimeoutError:
        world.broken.append(f"after {LONGEST:g} s the network is not calm")
    storm.measure(logs)
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    said += "".join(f", one-time pads on {edge.a}={edge.b}" for edge in world.edges if edge.mode == "otp")
    violations = check(world.history, storm.limits)
    return Outcome(seed, shape, world.settings.scheme, said, world.history, violations, list(world.broken))
