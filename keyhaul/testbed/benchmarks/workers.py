"""The application's port with 0, 1 and 2 workers, on one core and on two, beside an empty handler.

Three nodes that differ in nothing but `workers` serve enc_keys for keys that are in their stores already. The
load goes to them and to the empty handler in turns. Nodes, workers and load generator are first held to one
core, then to two: the load generator takes its part of them, so the ratio of the two is that of the whole
machine. What the node alone could do follows from processor time: its busiest process is the limit.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import Unavailable
from keyhaul.testbed.benchmarks.north import SPARE
from keyhaul.testbed.benchmarks.report import Report, resident_bytes
from keyhaul.testbed.benchmarks.stage import Generator, Say, Stage, stage
from keyhaul.testbed.report.charts import Axis, Bars, bars
from keyhaul.testbed.report.page import Figure, Heading
from keyhaul.testbed.topology import Link, Node, Topology

CONNECTIONS = 16
WORKERS = {"none": 0, "one": 1, "two": 2}
"""Nodes, by how many workers they have."""

TOPOLOGY = Topology(
    "workers",
    "three nodes that differ in their workers",
    tuple(Node(name, "lab", (f"sae-{name}", f"sae-{name}-too")) for name in WORKERS),
    (Link("none", "one", "pqc"), Link("one", "two", "pqc")),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One node on so many cores: its slices, and those of the empty handler right after each.

    `fresh`: slices in which each request, a status, had a new connection.
    """

    cores: int
    workers: int
    ours: list[dict[str, float]]
    bare: list[dict[str, float]]
    fresh: list[dict[str, float]]

    @property
    def rate(self) -> float:
        """Requests/s, the median slice."""
        return statistics.median(each["rate"] for each in self.ours)

    @property
    def ratio(self) -> float:
        """Of the empty handler's rate, slice by slice."""
        pairs = zip(self.ours, self.bare, strict=True)
        return statistics.median(ours["rate"] / bare["rate"] for ours, bare in pairs)

    @property
    def busiest(self) -> float:
        """Processor seconds a request costs the process that is the limit."""
        node = statistics.median(each["server"] for each in self.ours)
        if not self.workers:
            return node
        return max(node, statistics.median(each["workers"] for each in self.ours) / self.workers)

    @property
    def greeting(self) -> float:
        """Processor seconds a new connection and its request cost the node's own process."""
        return statistics.median(each["server"] for each in self.fresh)


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    stored, rounds, seconds = (12_000, 3, 0.4) if quick else (50_000, 9, 0.5)
    settings = {"delivery": {"pool": stored}, "limits": {"max_key_count": 1_000_000}}
    cores = sorted(os.sched_getaffinity(0))[:2]
    async with stage(TOPOLOGY, settings=settings, say=say) as on, Generator() as generator:
        say(f"{stored} keys in each store")
        once = [_target(on, name) for name in WORKERS]
        await generator.ask({"kind": "turns", "rounds": 1, "targets": once})
        await on.rest(*WORKERS)
        for name, number in WORKERS.items():
            await _restart(on, name, number)
        await on.rest(*WORKERS)
        held = {name: await _workers(on, name) for name in WORKERS}
        everybody = [on.bare.pid, generator.pid, *(on.testbed.pid(name) for name in WORKERS)]
        everybody += [pid for each in held.values() for pid in each]
        cells = []
        for width in range(1, len(cores) + 1):
            say(f"on {width} of {len(cores)} cores")
            _hold(everybody, cores[:width])
            task = {"kind": "flood", "rounds": rounds, "seconds": seconds}
            task["most"] = (stored - SPARE) // (rounds * len(cores))
            cells += await _flood(on, generator, held, width, task)
        await _check_stock(on)
        memory = [resident_bytes(pid) / 2**20 for each in held.values() for pid in each]
    _fill(report, cells, memory)


async def _restart(on: Stage, name: str, number: int) -> None:
    """With workers, and a pool that serves what it has and is no longer refilled."""
    file = on.testbed.layout.node_file(name)
    lines = file.read_text().splitlines(keepends=True)
    text = "".join("pool = 0\n" if line.startswith("pool = ") else line for line in lines)
    file.write_text(f"workers = {number}\n{text}")
    await on.testbed.restart(name)


async def _workers(on: Stage, name: str) -> list[int]:
    """The pids of a node's workers."""
    state = on.testbed.state()
    admin = state["admin"]
    trusted = client_context(
        Credentials(Path(admin["cert"]), Path(admin["key"]), Path(admin["ca"])), Policy.COMPATIBLE
    )
    url = next(node["admin_url"] for node in state["nodes"] if node["name"] == name)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session,
        session.get(f"{url}/admin/v1/status") as answer,
    ):
        told = (await answer.json())["workers"] or {"running": []}
    found = [int(each["pid"]) for each in told["running"]]
    if len(found) != WORKERS[name]:
        raise Unavailable(f"{name} has {len(found)} workers", "see its log")
    return found


def _hold(pids: Iterable[int], cores: Iterable[int]) -> None:
    """All threads of these processes run on these cores only."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def _target(on: Stage, name: str, workers: Iterable[int] = ()) -> dict[str, Any]:
    return {
        **on.saes[f"sae-{name}"],
        "pid": on.testbed.pid(name),
        "workers": [*workers],
        "requests": [
            {
                "method": "POST",
                "path": f"/api/v1/keys/sae-{name}-too/enc_keys",
                "body": json.dumps({"number": 1, "size": 256}),
            }
        ],
        "endless": True,
    }


async def _flood(
    on: Stage, generator: Generator, held: dict[str, list[int]], cores: int, task: dict[str, Any]
) -> list[Cell]:
    """All nodes and the empty handler in turns; the first slice of each warms up."""
    targets = [_target(on, name, held[name]) for name in WORKERS]
    bare = {**targets[0], "url": on.bare_url, "pid": on.bare.pid, "workers": []}
    asked = {**task, "connections": CONNECTIONS, "targets": [*targets, bare]}
    *nodes, empty = await _slices(generator, asked)
    status = {"method": "GET", "path": "/api/v1/keys/sae-one/status"}
    newly = [{**target, "requests": [status], "anew": True} for target in targets]
    fresh = await _slices(generator, {**asked, "targets": newly})
    return [
        Cell(cores, number, ours, empty, new)
        for number, ours, new in zip(WORKERS.values(), nodes, fresh, strict=True)
    ]


async def _slices(generator: Generator, task: dict[str, Any]) -> list[list[dict[str, float]]]:
    found = await generator.ask(task)
    return [target["slices"][1:] for target in found["targets"]]


async def _check_stock(on: Stage) -> None:
    """Raises Unavailable if a request found no key in the pool."""
    for name in WORKERS:
        pools = await on.pools(name)
        if not pools or any(pool["misses"] for pool in pools):
            cause = f"the pool of {name} ran dry, so delivery on demand was measured"
            raise Unavailable(cause, "store more keys")


def _fill(report: Report, cells: list[Cell], memory: list[float]) -> None:
    report.title = "Workers of the application's port"
    report.lead = __doc__.partition("\n\n")[2] if __doc__ else ""
    for cell in cells:
        _figures(report, cell)
    _scaling(report, cells)
    report.add("resident memory of a worker", memory, "MiB")
    report.data["cells"] = [
        {"cores": c.cores, "workers": c.workers, "rate": c.rate, "ratio": c.ratio, "busiest": c.busiest}
        for c in cells
    ]
    widths = sorted({cell.cores for cell in cells})
    columns = [Bars(_cores(width), [cell.rate for cell in cells if cell.cores == width]) for width in widths]
    drawn = bars("enc_keys, requests a second", [str(each) for each in WORKERS.values()], columns,
                 Axis("requests/s"), x_label="workers")  # fmt: skip
    report.blocks += [Heading("Throughput"), Figure(drawn, "Node, workers and load generator together.")]


def _figures(report: Report, cell: Cell) -> None:
    ours, where = cell.ours, f"{cell.workers} workers, {_cores(cell.cores)}"
    requests = sum(each["requests"] for each in ours)
    note = f"{requests} requests, {CONNECTIONS} connections"
    report.add(f"enc_keys, {where}", [each["rate"] for each in ours], "/s", note=note)
    report.add("  empty handler beside it", [each["rate"] for each in cell.bare], "/s")
    pairs = zip(ours, cell.bare, strict=True)
    report.add("  ratio", [one["rate"] / other["rate"] for one, other in pairs], "x")
    report.add("  median latency", [1e3 * each["p50"] for each in ours], "ms")
    report.add("  processor time a request, node", [1e6 * each["server"] for each in ours], "us")
    if cell.workers:
        report.add("  processor time a request, workers", [1e6 * each["workers"] for each in ours], "us")
    report.add("  new connections, one request each", [each["rate"] for each in cell.fresh], "/s")
    report.add("  processor time of one, node", [1e6 * each["server"] for each in cell.fresh], "us")
    if cell.workers:
        report.add("  processor time of one, workers", [1e6 * each["workers"] for each in cell.fresh], "us")
    report.add("  load generator's share of a core", [each["client_share"] for each in ours], "")


def _scaling(report: Report, cells: list[Cell]) -> None:
    """The whole machine from one core to two; and the node, if it had a core for each of its processes."""
    by = {(cell.cores, cell.workers): cell for cell in cells}
    plain = by[1, 0]
    for number in WORKERS.values():
        if wide := by.get((2, number)):
            name = f"{number} workers: from one core to two, load generator included"
            report.add(name, [wide.rate / by[1, number].rate], "x")
    for number in [each for each in WORKERS.values() if each]:
        if wide := by.get((2, number)):
            name = f"from none on one core to {number} workers on two, load generator included"
            report.add(name, [wide.rate / plain.rate], "x")
            report.add(f"{number} workers against none, both on two cores", [wide.rate / by[2, 0].rate], "x")
        name = f"{number} workers against none, by processor time of the busiest process"
        report.add(name, [plain.busiest / by[1, number].busiest], "x", note="a core for each process")


def _cores(number: int) -> str:
    return "1 core" if number == 1 else f"{number} cores"
