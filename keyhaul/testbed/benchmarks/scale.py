"""How cost grows with the network: a line up to 24 nodes, random networks up to 100, nodes in few processes.

For each size: memory at rest, keys a second between as many pairs of applications as there are nodes,
processor time a key, and memory a key that waits to be fetched. Growth is the slope of a straight line
through the logarithms: 1 means in proportion to the number of nodes.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul.errors import Unavailable
from keyhaul.routing import Edge, Network
from keyhaul.testbed.benchmarks.report import Report, processor_seconds, resident_bytes, waiting_seconds
from keyhaul.testbed.benchmarks.stage import Generator, Say
from keyhaul.testbed.crowd import Crowd
from keyhaul.testbed.processes import Process
from keyhaul.testbed.report.charts import Axis, Series, lines
from keyhaul.testbed.report.page import Figure, Heading, Table
from keyhaul.testbed.topology import Topology, generate

SIZES = {"line": (6, 12, 24), "random": (25, 50, 100)}
QUICK = {"line": (6, 12, 24), "random": (10, 20, 40)}
LARGEST = 100
PROCESSES = 2
ON_DEMAND = {"delivery": {"pool": 0, "request_timeout": 55.0}}
"""As many requests at once as there are nodes share two cores, and each takes as long as all together.

Less than the 60 s after which the load generator hangs up."""
KEYS = 32  # keys a request
HELD = 5_120  # keys that wait to be fetched, for their memory
_CALM = 0.1  # of a core used or waited for, below which a network of many nodes rests


@dataclass(frozen=True, slots=True)
class Size:
    """What one network gave. Memory in bytes, times in seconds; of all nodes together.

    `resident` is without the interpreters: less what as many processes take that hold no node. `waited` is
    the share of the time in which the nodes had something to do and no processor to do it on.
    """

    shape: str
    nodes: int
    up: float
    resident: int
    hops: float
    keys: int
    seconds: float
    busy: float
    latencies: list[float]
    refused: int
    different: int
    held: int
    grown: int
    waited: float

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.nodes}"


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    found: dict[str, list[Size]] = {}
    empty, seconds = await _empty(), 2.0 if quick else 8.0
    for shape, sizes in (QUICK if quick else SIZES).items():
        for nodes in sizes:
            say(f"{shape}-{nodes}")
            found.setdefault(shape, []).append(await _measure(shape, nodes, seconds, empty, say))
    report.add("resident memory of a process without nodes", [empty / PROCESSES / 2**20], "MiB")
    _fill(report, found)


async def _measure(shape: str, nodes: int, seconds: float, empty: int, say: Say) -> Size:
    topology = generate(shape, nodes, LARGEST)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keyhaul-bench-") as folder:
        directory = Path(folder) / "testbed"
        async with (
            Crowd(topology, directory, processes=PROCESSES, settings=ON_DEMAND, progress=say) as crowd,
            Generator() as generator,
        ):
            up = time.monotonic() - begun
            await _at_rest(crowd)
            resident = _resident(crowd) - empty
            say(f"{shape}-{nodes}: {nodes} pairs")
            pairs = _pairs(topology)
            task = {"kind": "crowd", "pairs": _saes(crowd, pairs), "number": KEYS}
            await generator.ask({**task, "seconds": seconds / 4})
            await _at_rest(crowd)
            busy, waited = _busy(crowd), _waiting(crowd)
            load = await generator.ask({**task, "seconds": seconds})
            busy, waited = _busy(crowd) - busy, _waiting(crowd) - waited
            await _at_rest(crowd)
            before = _resident(crowd)
            held = await generator.ask(_holding(crowd, pairs[0]))
            await _at_rest(crowd)
            grown = _resident(crowd) - before
    answered = sum(status == 200 for status in held["status"]) * held["number"]
    return Size(
        shape, nodes, up, resident, _mean_hops(topology, pairs), load["keys"], load["seconds"], busy,
        load["enc"], sum(load["refused"].values()), load["different"], answered, grown,
        waited / PROCESSES / load["seconds"],
    )  # fmt: skip


async def _empty() -> int:
    """Bytes that the processes would take without any node in them."""
    with tempfile.TemporaryDirectory(prefix="keyhaul-bench-") as folder:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        command = [sys.executable, "-m", "keyhaul.testbed.crowd", "nodes", str(ready)]
        process = Process("no nodes", command, log, ready)
        await process.start()
        try:
            await process.until_ready(60.0)
            return PROCESSES * resident_bytes(process.pid)
        finally:
            await process.stop()


def _pairs(topology: Topology) -> list[tuple[str, str]]:
    """Every node's application asks for one other's, drawn once and for all for each network."""
    names = [node.name for node in topology.nodes]
    rng = random.Random(topology.name)  # noqa: S311 - who asks for whom, not keys
    return [(near, rng.choice([far for far in names if far != near])) for near in names]


def _network(topology: Topology) -> Network:
    return Network(
        {node.name: node.domain for node in topology.nodes},
        [Edge(link.a, link.b, link.kind) for link in topology.links],
        {sae: node.name for node in topology.nodes for sae in node.saes},
    )


def _mean_hops(topology: Topology, pairs: Sequence[tuple[str, str]]) -> float:
    network = _network(topology)
    return statistics.fmean(len(network.route(near, far).hops) - 1 for near, far in pairs)


def _saes(crowd: Crowd, pairs: Sequence[tuple[str, str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    saes = {sae["node"]: {**sae, "url": sae["sae_url"]} for sae in crowd.state()["saes"]}
    return [(saes[near], saes[far]) for near, far in pairs]


def _holding(crowd: Crowd, pair: tuple[str, str]) -> dict[str, Any]:
    ((near, far),) = _saes(crowd, [pair])
    return {"kind": "sequence", "near": near, "far": far, "requests": HELD // 128, "number": 128}


async def _at_rest(crowd: Crowd, patience: float = 300.0) -> None:
    """Until the nodes have little to do, and do not wait for a processor to do it on.

    Raises Unavailable if that does not come.
    """
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        before = _busy(crowd) + _waiting(crowd)
        await asyncio.sleep(1.0)
        if _busy(crowd) + _waiting(crowd) - before < _CALM * PROCESSES:
            return
    raise Unavailable("the nodes do not come to rest", "repeat it on a machine with less to do")


def _busy(crowd: Crowd) -> float:
    return sum(map(processor_seconds, crowd.node_pids()))


def _waiting(crowd: Crowd) -> float:
    return sum(map(waiting_seconds, crowd.node_pids()))


def _resident(crowd: Crowd) -> int:
    return sum(map(resident_bytes, crowd.node_pids()))


def growth(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The exponent b of value = a · size^b that fits best in logarithms; None where no line can be drawn."""
    points = [(math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if n > 0 and v > 0]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


CURVES: dict[str, tuple[str, str]] = {
    "memory at rest, all nodes": ("MiB", "memory"),
    "keys a second, all pairs": ("/s", "throughput"),
    "keys a second, times their hops": ("/s", "relayed"),
    "processor time a key": ("us", "processor"),
    "processor time a key and hop": ("us", "processor_hop"),
    "memory a key that waits to be fetched": ("B", "held"),
    "from certificates to ready": ("s", "up"),
}


def _value(size: Size, what: str) -> float:
    keys = max(1, size.keys)
    return {
        "memory": size.resident / 2**20,
        "throughput": size.keys / size.seconds,
        "relayed": size.keys * size.hops / size.seconds,
        "processor": 1e6 * size.busy / keys,
        "processor_hop": 1e6 * size.busy / keys / size.hops,
        "held": size.grown / max(1, size.held),
        "up": size.up,
    }[what]


def _fill(report: Report, found: dict[str, list[Size]]) -> None:
    report.title = "Growth with the size of the network"
    report.lead = (
        "A line and random networks of average degree 3, their nodes in two processes, devices that never "
        "run short. Every node's application asks another's for keys, on demand, and both ends compare them."
    )
    for title, (unit, what) in CURVES.items():
        for shape, sizes in found.items():
            for size in sizes:
                note = f"{size.hops:.1f} hops on average"
                report.add(f"{title}, {size.name}", [_value(size, what)], unit, note=note)
            exponent = growth([size.nodes for size in sizes], [_value(size, what) for size in sizes])
            if exponent is not None:
                report.add(f"  growth with the nodes, {shape}", [exponent], "", note="exponent")
    everything = [size for sizes in found.values() for size in sizes]
    different, keys = sum(size.different for size in everything), sum(size.keys for size in everything)
    report.add("keys that differ at the far end", [float(different)], "", most=0, note=f"of {keys}")
    report.add("requests refused", [float(sum(size.refused for size in everything))], "")
    waited = [100 * size.waited for size in everything]
    report.add("time in which nodes waited for a processor, at most", [max(waited)], "%")
    _pictures(report, found)
    report.data["sizes"] = [
        {what: _value(size, what) for _, what in CURVES.values()}
        | {"network": size.name, "hops": size.hops, "waited": size.waited}
        for size in everything
    ]


def _pictures(report: Report, found: dict[str, list[Size]]) -> None:
    report.blocks.append(Heading("Curves"))
    for title, (unit, what) in CURVES.items():
        series = [
            Series(shape, [(float(size.nodes), _value(size, what)) for size in sizes])
            for shape, sizes in found.items()
        ]
        axes = Axis("nodes", log=True), Axis(unit, log=True)
        drawn = lines(title[0].upper() + title[1:], series, *axes, size=(470.0, 320.0))
        slopes = [
            f"{shape}: n^{slope:.2f}"
            for shape, sizes in found.items()
            if (slope := growth([s.nodes for s in sizes], [_value(s, what) for s in sizes])) is not None
        ]
        report.blocks.append(Figure(drawn, "Fitted growth: " + ", ".join(slopes), small=True))
    rows = [
        [size.name, f"{size.hops:.1f}", _middle(size), str(size.keys), str(size.refused),
         f"{size.resident / size.nodes / 2**20:.1f}", f"{100 * size.waited:.0f} %"]
        for sizes in found.values() for size in sizes
    ]  # fmt: skip
    heads = ("network", "mean hops", "enc_keys median, ms", "keys", "refused", "MiB a node", "no processor")
    report.blocks.append(Table("Networks", heads, rows, "Without what two processes take that hold no node."))


def _middle(size: Size) -> str:
    return f"{1e3 * statistics.median(size.latencies):.0f}" if size.latencies else "–"
