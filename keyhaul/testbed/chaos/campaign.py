"""One run: a network under load, every fault in turn, many kills, then the reckoning.

The load goes on from the first second to the last. Each fault lasts a while, is healed, and the time until
all pairs of applications are served again is its recovery time. At the end slaves fetch what lies in the
stores, and the whole history is held against the promises of `keyhaul.testbed.invariants`. A run that is
ended before reports what it has done so far, and leaves nothing running either.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keyhaul.errors import ConfigError
from keyhaul.routing import Edge, Network
from keyhaul.testbed.chaos.faults import FAULTS, Fault, World, build_shim, shim_folder
from keyhaul.testbed.chaos.namespaces import obstacle
from keyhaul.testbed.chaos.packets import Packets
from keyhaul.testbed.chaos.people import People, Tally
from keyhaul.testbed.chaos.report import Outcome, Row, row
from keyhaul.testbed.chaos.search import search
from keyhaul.testbed.chaos.wires import Wires
from keyhaul.testbed.history import History
from keyhaul.testbed.interrupt import unless
from keyhaul.testbed.invariants import Limits, check
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Topology

PATIENCE = 120.0  # seconds until a network that does not recover counts as not recovered
TIMEOUT = 5.0  # seconds a node tries to deliver a key
NEWS_EVERY = 20  # kills

Say = Callable[[str], None]
Kind = Literal["auto", "namespaces", "proxies"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much. Seconds, and numbers of kills."""

    calm: float = 5.0
    fault: float = 8.0
    kills: int = 300
    recovery: float = 30.0
    """After which, all faults healed, every request has to succeed."""
    faults: Sequence[Fault] = FAULTS
    pool: int | None = None
    """Keys relayed ahead; None: as the product does by default."""
    network: Kind = "auto"
    """What wires are made of; `auto`: namespaces where they may be made, else proxies on loopback."""


async def run(
    topology: Topology,
    directory: Path,
    plan: Plan,
    say: Say,
    story: Path | None = None,
    stop: asyncio.Event | None = None,
) -> Outcome:
    """The whole campaign, or as much of it as is done when `stop` is set.

    Nothing is left running, whatever happens. `story`: where the history is saved. Raises ConfigError where
    the network that the plan wants cannot be made.
    """
    stop = stop or asyncio.Event()
    async with AsyncExitStack() as stack:
        # Not told twice to end: a half-made testbed takes its time to stop what it has started.
        world = await unless(stop, _set_up(stack, topology, directory, plan, say), insist=60.0)
        if world is None:
            return Outcome(interrupted=True)
        outcome = await Campaign(world, plan, say).run(stop)
        if story is not None:
            world.people.history.save(story)
        return outcome


async def _set_up(stack: AsyncExitStack, topology: Topology, directory: Path, plan: Plan, say: Say) -> World:
    shim = shim_folder()
    stack.callback(shutil.rmtree, shim, ignore_errors=True)
    environment = await asyncio.to_thread(build_shim, shim)
    delivery: dict[str, Any] = {"request_timeout": TIMEOUT}
    if plan.pool is not None:
        delivery["pool"] = plan.pool
    wires = await _wires(plan.network, topology, shim, say)
    stack.push_async_callback(wires.close)
    testbed = Testbed(
        topology,
        directory,
        settings={"delivery": delivery},
        progress=say,
        environment=environment,
        way=wires.between if isinstance(wires, Wires) else None,
        places=wires.places if isinstance(wires, Packets) else None,
    )
    await stack.enter_async_context(testbed)
    people = People(testbed.state(), History(time.monotonic), _pairs(topology))
    stack.push_async_callback(people.close)
    return World(testbed, wires, people, shim if environment else None)


async def _wires(kind: Kind, topology: Topology, folder: Path, say: Say) -> Wires | Packets:
    problem = "" if kind == "proxies" else await asyncio.to_thread(obstacle)
    if kind == "namespaces" and problem:
        raise ConfigError(f"no network namespaces here: {problem}", "or use --network proxies")
    if kind == "proxies" or problem:
        say(
            "wires are proxies on loopback" + (f", for there are no namespaces: {problem}" if problem else "")
        )
        return Wires()
    say("each node has a network namespace; wires are packets")
    return await Packets.open(topology, folder)


def _pairs(topology: Topology) -> list[tuple[str, str]]:
    """Neighbours, the far ends, and everything half-way across, both ways: enough for all links."""
    saes = [node.saes[0] for node in topology.nodes if node.saes]
    half = len(saes) // 2
    ways = [*itertools.pairwise(saes), *zip(saes, saes[half:], strict=False), (saes[0], saes[-1])]
    return list(dict.fromkeys(pair for a, b in ways if a != b for pair in ((a, b), (b, a))))


@dataclass(slots=True)
class _Phase:
    """What goes on now. `touched`: the nodes whose keys may suffer; `culprit`: the SAE that is to blame."""

    name: str
    begun: float
    touched: frozenset[str] = frozenset()
    culprit: str = ""


class Campaign:
    """The phases of one run over one world."""

    def __init__(self, world: World, plan: Plan, say: Say) -> None:
        self.world = world
        self.plan = plan
        self.outcome = Outcome(world.wires.kind)
        self._say = say
        self._rng = random.Random()  # noqa: S311 (which node dies next, not a key)
        self._phase: _Phase | None = None
        topology = world.testbed.topology
        edges = [Edge(link.a, link.b, link.kind, link.mode) for link in topology.links]
        homes = {sae: node.name for node in topology.nodes for sae in node.saes}
        self._network = Network({node.name: node.domain for node in topology.nodes}, edges, homes)

    async def run(self, stop: asyncio.Event) -> Outcome:
        """All phases, then the reckoning; from `stop` on nothing but the reckoning."""
        done = await unless(stop, self._all())
        if done is None:
            self.outcome.interrupted = True
            if self._phase is not None:
                self._end(time.monotonic() - self._phase.begun, note="interrupted")
        people = self.world.people
        testbed, keys = self.world.testbed, people.sample
        self._say(f"{len(keys)} of the keys are looked for in files and errors")
        self.outcome.looked_for = len(keys)
        self.outcome.found = await asyncio.to_thread(
            search, people.history, testbed.state(), testbed.directory, keys, people.errors
        )
        left = sum(len(pair.kept) for pair in people.pairs)
        limits = Limits(recovery=self.plan.recovery)
        await asyncio.to_thread(self.outcome.reckon, list(people.history.events), left, limits)
        return self.outcome

    async def _all(self) -> bool:
        people = self.world.people
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(people.work())
            try:
                await self._phases()
            finally:
                people.stop()
            await working
        people.phase = "collecting"
        self._say("slaves fetch what is left")
        await people.collect(PATIENCE)
        return True

    async def _phases(self) -> None:
        people = self.world.people
        await people.until_served(people.pairs, PATIENCE)
        await self._calm("calm before")
        for fault in self.plan.faults:
            reason = fault.reason(self.world)
            if reason:
                self.outcome.rows.append(Row(fault.name, 0.0, note=f"skipped: {reason}"))
            else:
                await self._fault(fault)
        await self._kills()
        people.history.note("world", "healed", text="everything")
        await self._calm("calm after", self.plan.recovery + self.plan.calm)

    async def _calm(self, phase: str, seconds: float | None = None) -> None:
        seconds = seconds or self.plan.calm
        self._begin(phase, frozenset())
        await asyncio.sleep(seconds)
        self._end(seconds)

    async def _fault(self, fault: Fault) -> None:
        people = self.world.people
        self._begin(fault.name, fault.touches(self.world), fault.culprit(self.world))
        people.history.note("world", "fault", text=fault.name)
        start = time.monotonic()
        async with fault.done(self.world):
            await asyncio.sleep(self.plan.fault)
            seconds = time.monotonic() - start
            people.phase = "recovering"  # what is asked from here on does not count for the fault
        waits = fault.waits(self.world)
        people.history.note("world", "healed", text=fault.name, value=waits)
        recovery = await people.until_served(people.pairs, PATIENCE)
        self._end(seconds, recovery, self.plan.recovery + waits, fault.floor)

    async def _kills(self) -> None:
        """kill -9 of random nodes, one or two at a time, under full load."""
        if not self.plan.kills:
            return
        name = f"{self.plan.kills} x kill -9"
        self._begin(name, frozenset(self.world.nodes))
        self.world.people.history.note("world", "fault", text=name)
        begun, told = time.monotonic(), 0
        while self.outcome.kills < self.plan.kills:
            left = self.plan.kills - self.outcome.kills
            victims = self._rng.sample(self.world.nodes, min(left, self._rng.choice((1, 1, 2))))
            await asyncio.gather(*(self._kill(victim) for victim in victims))
            await asyncio.sleep(self._rng.uniform(0.0, 0.3))
            if self.outcome.kills >= told + NEWS_EVERY:
                told = self.outcome.kills
                self._say(f"{told} of {self.plan.kills} kills; {await self._news()}")
        seconds = time.monotonic() - begun
        recovery = await self.world.people.until_served(self.world.people.pairs, PATIENCE)
        self._end(seconds, recovery, self.plan.recovery)

    async def _kill(self, node: str) -> None:
        await self.world.testbed.kill(node)
        start = time.monotonic()
        await self.world.testbed.restart(node)
        self.outcome.restarts.append(time.monotonic() - start)
        self.outcome.kills += 1

    async def _news(self) -> str:
        """What those who watch want to know in between."""
        events = list(self.world.people.history.events)
        limits = Limits(recovery=self.plan.recovery)
        broken = len(await asyncio.to_thread(check, events, limits))
        keys = sum(event.verb == "got" for event in events)
        return f"{keys} keys acknowledged, {broken} promises broken"

    def _begin(self, phase: str, touched: frozenset[str], culprit: str = "") -> None:
        self._say(phase)
        self._phase = _Phase(phase, time.monotonic(), touched, culprit)
        self.world.people.phase = phase

    def _end(
        self,
        seconds: float,
        recovery: float | None = None,
        bound: float | None = None,
        floor: float = 0.0,
        note: str = "",
    ) -> None:
        """Close a phase. All pairs must be served `bound` seconds later, and `floor` of those elsewhere."""
        assert self._phase is not None
        phase, self._phase = self._phase, None
        total, spared = Tally(), Tally()
        for (name, master, slave), tally in self.world.people.tallies.items():
            if name != phase.name:
                continue
            hit = master == phase.culprit or phase.touched & set(self._path(master, slave))
            groups = (total,) if hit else (total, spared)
            for group in groups:
                group.served += tally.served
                group.refused += tally.refused
                group.unanswered += tally.unanswered
        self.outcome.rows.append(row(phase.name, seconds, total, spared, recovery, bound, floor, note))

    def _path(self, master: str, slave: str) -> tuple[str, ...]:
        return self._network.hops(self._network.home(master), self._network.home(slave))
