"""Paper A, section VI, once more: its tables and figures from one run, our default beside its own design.

Two networks `galicia-basque` run side by side, each with its eight simulated devices of the same presets: one
as we deliver, one with `profile = "paper-a"` (on demand, a key exchange per message, the device's key as end
key). They take turns with every unit of work, so that a noisy machine hits both. Each finished unit is a line
of the journal; a run that was interrupted goes on behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul import __version__
from keyhaul.errors import Unavailable
from keyhaul.testbed.benchmarks import paper_a_report, published, supply
from keyhaul.testbed.benchmarks.journal import Journal
from keyhaul.testbed.benchmarks.paper_a_report import OURS, PAPER
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.stage import Generator, Say, Stage, stage
from keyhaul.testbed.topology import Topology, named

SETTINGS: dict[str, dict[str, Any]] = {
    OURS: {"delivery": {"pool": 128}},
    PAPER: {"delivery": {"profile": "paper-a"}},
}
PATIENCE = 20.0  # seconds a key may take to the far end; a node gives up after 15


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured. `requests`, `cost`: in a row; `bursts`: nodes; `grid`: keys × concurrency."""

    requests: dict[str, int]
    bursts: tuple[int, ...]
    rounds: int
    numbers: tuple[int, ...]
    concurrencies: tuple[int, ...]
    repeats: int
    journeys: dict[str, int]
    cost: dict[str, int]


FULL = Amount(
    {OURS: 100, PAPER: 100}, (0, 2, 3, 4, 6, 7), 5, (1, 4, 16), (1, 10, 50, 100), 2,
    {OURS: 30, PAPER: 10}, {OURS: 400, PAPER: 40},
)  # fmt: skip
QUICK = Amount({OURS: 100, PAPER: 2}, (4,), 1, (1, 8), (1, 30), 1, {OURS: 5, PAPER: 1}, {OURS: 200, PAPER: 4})


@dataclass(frozen=True, slots=True)
class Running:
    """One of the two networks with its load generator."""

    on: Stage
    generator: Generator


Measure = Callable[[Running], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work; `seconds` is about what it takes, for the progress shown."""

    name: str
    profile: str
    seconds: float
    measure: Measure


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report, from the journal where that has it already."""
    amount = QUICK if quick else FULL
    topology = named("galicia-basque")
    journal = Journal(
        report.journal or Path(f"paper-a{'-quick' if quick else ''}.jsonl"),
        {"benchmark": "paper-a", "quick": quick, "keyhaul": __version__},
    )
    report.journal = journal.file
    units = _units(topology, amount)
    left = [unit for unit in units if unit.name not in journal]
    if left:
        if len(left) < len(units):
            say(f"goes on from {journal.file}: {len(units) - len(left)} of {len(units)} are measured")
        async with _networks(topology, say) as networks:
            await _measure(left, journal, networks, say)
    if "otp: supply" not in journal:
        found = await supply.share(*((supply.PAIR, 12.0) if quick else (supply.line(), 240.0)), say)
        journal.note("otp: supply", found)
    paper_a_report.fill(report, journal, topology)


async def _measure(left: list[Unit], journal: Journal, networks: dict[str, Running], say: Say) -> None:
    begun, planned, done = time.monotonic(), sum(unit.seconds for unit in left), 0.0
    for at, unit in enumerate(left, 1):
        pace = (time.monotonic() - begun) / done if done else 1.0
        rest = pace * (planned - done)
        say(f"[{at}/{len(left)}] {unit.name}; about {rest:.0f} s left")
        journal.note(unit.name, await unit.measure(networks[unit.profile]))
        done += unit.seconds


@contextlib.asynccontextmanager
async def _networks(topology: Topology, say: Say) -> AsyncIterator[dict[str, Running]]:
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, Running] = {}
        for profile, settings in SETTINGS.items():
            say(f"network of the {profile} profile")
            on = await stack.enter_async_context(stage(topology, settings=settings, say=say))
            found[profile] = Running(on, await stack.enter_async_context(Generator()))
        await _warm(topology, found[OURS], say)
        yield found


async def _warm(topology: Topology, running: Running, say: Say) -> None:
    """Each pair asks once, as any that has been in use has; then its keys are relayed ahead."""
    say("default: first keys of all pairs")
    nodes = [node.name for node in topology.nodes]
    for near, far in itertools.permutations(range(len(nodes)), 2):
        await running.generator.ask(_sequence(running, near, far, 1))
    say("default: keys are relayed ahead")
    await running.on.rest(*nodes, patience=300.0)


def _units(topology: Topology, amount: Amount) -> list[Unit]:
    """All work, the profiles in turns."""
    size = len(topology.nodes)
    of_each = [_of_profile(profile, size, amount) for profile in (OURS, PAPER)]
    return [unit for turn in zip(*of_each, strict=True) for unit in turn]


def _of_profile(profile: str, size: int, amount: Amount) -> list[Unit]:
    units: list[Unit] = []

    def add(name: str, seconds: float, measure: Measure) -> None:
        units.append(Unit(f"{profile}: {name}", profile, seconds, measure))

    requests = amount.requests[profile]
    for near, far in itertools.permutations(range(size), 2):
        seconds = published.DELAY[near][3] / 1000 * requests if profile == PAPER else 0.3
        add(f"pair {near + 1} {far + 1}", seconds, _pair(near, far, requests))
    add("hops", 2.0 * amount.journeys[profile], _hops(amount.journeys[profile]))
    add("cost", 10.0, _cost(size, amount.cost[profile]))
    for node in amount.bursts:
        add(f"burst {node + 1}", 4.0, _burst(node, amount.rounds))
    for repeat in range(amount.repeats):
        for number, concurrency in itertools.product(amount.numbers, amount.concurrencies):
            add(f"grid {number} {concurrency} {repeat}", 2.0, _grid(number, concurrency))
    add("compared", 10.0, _compared)
    return units


def _sequence(running: Running, near: int, far: int, requests: int) -> dict[str, Any]:
    saes = list(running.on.saes.values())
    task = {"kind": "sequence", "near": saes[near], "far": saes[far], "requests": requests, "number": 1}
    return {**task, "pause": 0.1, "patience": PATIENCE}


def _pair(near: int, far: int, requests: int) -> Measure:
    async def measure(running: Running) -> Any:
        return await running.generator.ask(_sequence(running, near, far, requests))

    return measure


def _burst(near: int, rounds: int, number: int = 1, concurrency: int = 100) -> Measure:
    async def measure(running: Running) -> Any:
        saes = list(running.on.saes.values())
        task = {"kind": "burst", "near": saes[near], "far": saes[0 if near >= len(saes) // 2 else -1]}
        return await running.generator.ask(
            {**task, "concurrency": concurrency, "number": number, "rounds": rounds, "pause": 1.0}
        )

    return measure


def _grid(number: int, concurrency: int) -> Measure:
    """The first node asks the last: all links of the line are on the way."""
    return _burst(0, 1, number, concurrency)


def _hops(rounds: int) -> Measure:
    async def measure(running: Running) -> Any:
        near, *far = running.on.saes.values()
        task = {"kind": "journey", "near": near, "far": far, "rounds": rounds, "patience": PATIENCE}
        return await running.generator.ask(task)

    return measure


def _cost(size: int, requests: int) -> Measure:
    """What a key costs that is asked for at one end and fetched at the other, seven hops apart."""

    async def measure(running: Running) -> Any:
        on = running.on
        earlier = await _compared(running)
        await _at_rest(on)
        idle = sum(on.processor().values())
        await asyncio.sleep(2.0)
        idle = (sum(on.processor().values()) - idle) / 2.0
        used, sent, drawn, begun = on.processor(), on.node_bytes(), await on.device_bits(), time.monotonic()
        await running.generator.ask(_sequence(running, 0, size - 1, requests))
        compared = await _compared(running)
        await _at_rest(on)
        seconds = time.monotonic() - begun
        return {
            "keys": compared["same"],
            "compared": [earlier, compared],
            "seconds": seconds,
            "idle": idle,
            "processor": {node: after - used[node] for node, after in on.processor().items()},
            "bytes": on.node_bytes() - sent,
            "device_bits": await on.device_bits() - drawn,
            "resident": on.resident(),
        }

    return measure


async def _at_rest(on: Stage) -> None:
    nodes = [node.name for node in on.testbed.topology.nodes]
    with contextlib.suppress(Unavailable):  # a network under strain may never rest; what it does is counted
        await on.rest(*nodes, patience=30.0)


async def _compared(running: Running) -> Any:
    return await running.generator.ask({"kind": "held", "patience": PATIENCE})
