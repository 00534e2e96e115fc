"""One run: a network under load, every fault in turn, many kills, then the reckoning.

The load goes on from the first second to the last. Each fault lasts a while, is healed, and the time until
all pairs of applications are served again is its recovery time. At the end slaves fetch what lies in the
stores, and the whole history is held against the promises of `keyhaul.testbed.invariants`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keyhaul import __version__
from keyhaul.routing import Edge, Network
from keyhaul.testbed.benchmarks.report import machine
from keyhaul.testbed.chaos.faults import FAULTS, Fault, World, build_shim, shim_folder
from keyhaul.testbed.chaos.people import People, Tally
from keyhaul.testbed.chaos.wires import Wires
from keyhaul.testbed.history import History
from keyhaul.testbed.invariants import Limits, Violation, check, seen
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Topology

PATIENCE = 120.0  # seconds until a network that does not recover counts as not recovered
TIMEOUT = 5.0  # seconds a node tries to deliver a key

Say = Callable[[str], None]


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


@dataclass(slots=True)
class Row:
    """One phase of the report. Shares are of requests for keys; `None` where nobody asked."""

    phase: str
    seconds: float
    asked: int
    served: int
    deferred: int
    unanswered: int
    share: float | None
    share_untouched: float | None
    recovery: float | None
    note: str = ""


@dataclass(slots=True)
class Outcome:
    """All of one run."""

    rows: list[Row] = field(default_factory=list)
    kills: int = 0
    restarts: list[float] = field(default_factory=list)
    keys_got: int = 0
    keys_fetched: int = 0
    never_fetched: int = 0
    violations: list[Violation] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)
    promises: list[int] = field(default_factory=list)

    def document(self, command: str) -> dict[str, Any]:
        """What `--json` writes."""
        restarts = sorted(self.restarts)
        return {
            "command": command,
            "keyhaul": __version__,
            "machine": machine(),
            "phases": [asdict(row) for row in self.rows],
            "kills": self.kills,
            "restart_seconds_median": restarts[len(restarts) // 2] if restarts else None,
            "keys_acknowledged": self.keys_got,
            "keys_fetched": self.keys_fetched,
            "keys_left_unfetched": self.never_fetched,
            "promises_looked_at": self.promises,
            "violations": [asdict(violation) for violation in self.violations],
        }


async def run(
    topology: Topology, directory: Path, plan: Plan, say: Say, story: Path | None = None
) -> Outcome:
    """The whole campaign. Nothing is left running, whatever happens. `story`: where the history is saved."""
    async with AsyncExitStack() as stack:
        wires = Wires()
        stack.push_async_callback(wires.close)
        shim = shim_folder()
        stack.callback(shutil.rmtree, shim, ignore_errors=True)
        environment = await asyncio.to_thread(build_shim, shim)
        delivery: dict[str, Any] = {"request_timeout": TIMEOUT}
        if plan.pool is not None:
            delivery["pool"] = plan.pool
        testbed = await stack.enter_async_context(
            Testbed(
                topology,
                directory,
                settings={"delivery": delivery},
                progress=say,
                way=wires.between,
                environment=environment,
            )
        )
        history = History(time.monotonic)
        people = People(testbed.state(), history, _pairs(topology))
        stack.push_async_callback(people.close)
        world = World(testbed, wires, people, shim if environment else None)
        outcome = await Campaign(world, plan, say).run()
        if story is not None:
            history.save(story)
        return outcome


def _pairs(topology: Topology) -> list[tuple[str, str]]:
    """Neighbours, the far ends, and everything half-way across, both ways: enough for all links."""
    saes = [node.saes[0] for node in topology.nodes if node.saes]
    half = len(saes) // 2
    ways = [*itertools.pairwise(saes), *zip(saes, saes[half:], strict=False), (saes[0], saes[-1])]
    return list(dict.fromkeys(pair for a, b in ways if a != b for pair in ((a, b), (b, a))))


class Campaign:
    """The phases of one run over one world."""

    def __init__(self, world: World, plan: Plan, say: Say) -> None:
        self.world = world
        self.plan = plan
        self.outcome = Outcome()
        self._say = say
        self._rng = random.Random()  # noqa: S311 (which node dies next, not a key)
        topology = world.testbed.topology
        edges = [Edge(link.a, link.b, link.kind, link.mode) for link in topology.links]
        homes = {sae: node.name for node in topology.nodes for sae in node.saes}
        self._network = Network({node.name: node.domain for node in topology.nodes}, edges, homes)

    async def run(self) -> Outcome:
        """All phases, then the reckoning."""
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
        return self._reckon()

    async def _phases(self) -> None:
        people = self.world.people
        await people.until_served(people.pairs, PATIENCE)
        await self._calm("calm before")
        for fault in self.plan.faults:
            reason = fault.reason(self.world)
            if reason:
                self.outcome.rows.append(
                    Row(fault.name, 0.0, 0, 0, 0, 0, None, None, None, f"skipped: {reason}")
                )
            else:
                await self._fault(fault)
        await self._kills()
        people.history.note("world", "healed", text="everything")
        await self._calm("calm after", self.plan.recovery + self.plan.calm)

    async def _calm(self, phase: str, seconds: float | None = None) -> None:
        seconds = seconds or self.plan.calm
        self._begin(phase)
        await asyncio.sleep(seconds)
        self._end(phase, seconds, frozenset(), None)

    async def _fault(self, fault: Fault) -> None:
        people = self.world.people
        self._begin(fault.name)
        people.history.note("world", "fault", text=fault.name)
        start = time.monotonic()
        async with fault.done(self.world):
            await asyncio.sleep(self.plan.fault)
            seconds = time.monotonic() - start
            people.phase = "recovering"  # what is asked from here on does not count for the fault
        recovery = await people.until_served(people.pairs, PATIENCE)
        people.history.note("world", "healed", text=fault.name)
        self._end(fault.name, seconds, fault.touches(self.world), recovery)

    async def _kills(self) -> None:
        """kill -9 of random nodes, one or two at a time, under full load."""
        if not self.plan.kills:
            return
        name = f"{self.plan.kills} x kill -9"
        self._begin(name)
        self.world.people.history.note("world", "fault", text=name)
        begun = time.monotonic()
        while self.outcome.kills < self.plan.kills:
            left = self.plan.kills - self.outcome.kills
            victims = self._rng.sample(self.world.nodes, min(left, self._rng.choice((1, 1, 2))))
            await asyncio.gather(*(self._kill(victim) for victim in victims))
            await asyncio.sleep(self._rng.uniform(0.0, 0.3))
            if self.outcome.kills % 20 < len(victims):
                self._say(f"{self.outcome.kills} of {self.plan.kills} kills")
        seconds = time.monotonic() - begun
        recovery = await self.world.people.until_served(self.world.people.pairs, PATIENCE)
        self._end(name, seconds, frozenset(self.world.nodes), recovery)

    async def _kill(self, node: str) -> None:
        await self.world.testbed.kill(node)
        start = time.monotonic()
        await self.world.testbed.restart(node)
        self.outcome.restarts.append(time.monotonic() - start)
        self.outcome.kills += 1

    def _begin(self, phase: str) -> None:
        self._say(phase)
        self.world.people.phase = phase

    def _end(self, phase: str, seconds: float, touched: frozenset[str], recovery: float | None) -> None:
        total, spared = Tally(), Tally()
        for (name, master, slave), tally in self.world.people.tallies.items():
            if name != phase:
                continue
            groups = (total,) if touched & set(self._path(master, slave)) else (total, spared)
            for group in groups:
                group.served += tally.served
                group.refused += tally.refused
                group.unanswered += tally.unanswered
        self.outcome.rows.append(
            Row(
                phase,
                round(seconds, 1),
                total.asked,
                total.served,
                total.refused,
                total.unanswered,
                _share(total),
                _share(spared),
                None if recovery is None else round(recovery, 2),
                "" if recovery is not None or not touched else "not recovered in time",
            )
        )

    def _path(self, master: str, slave: str) -> tuple[str, ...]:
        return self._network.hops(self._network.home(master), self._network.home(slave))

    def _reckon(self) -> Outcome:
        events, outcome = self.world.people.history.events, self.outcome
        outcome.violations = check(events, Limits(recovery=self.plan.recovery))
        outcome.stories = [violation.story(events) for violation in outcome.violations]
        outcome.promises = seen(events)
        outcome.keys_got = sum(event.verb == "got" for event in events)
        outcome.keys_fetched = sum(event.verb == "fetched" for event in events)
        outcome.never_fetched = sum(len(pair.kept) for pair in self.world.people.pairs)
        return outcome


def _share(tally: Tally) -> float | None:
    return round(tally.served / tally.asked, 4) if tally.asked else None
