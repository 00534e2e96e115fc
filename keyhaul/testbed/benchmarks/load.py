"""Pairs of applications under load: hops × scheme × connections × keys a request, beside an empty handler.

A line of eight nodes with devices that never run short. In every cell each connection asks for keys at the
first node, fetches them at the other end, compares the bits, and begins again. The same loop runs against the
bare handler right before and after each cell: that is the ceiling of HTTP, TLS and the load generator. `pool`
takes keys that were relayed ahead; a scheme by name is relayed on demand.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keyhaul.testbed.benchmarks.report import Report, percentile, processor_seconds
from keyhaul.testbed.benchmarks.stage import Generator, Say, Stage, stage
from keyhaul.testbed.presets import PRESETS
from keyhaul.testbed.report.charts import Axis, Bars, Series, bars, lines
from keyhaul.testbed.report.page import Figure, Heading, Table, Words
from keyhaul.testbed.topology import named

POOL = "pool"
BITS = 256
LEVEL = 4096
"""Keys relayed ahead: enough for a slice of load, few enough to be there within seconds."""

SUPPLY = PRESETS["instant"].rate or 0.0
"""Bits/s of every quantum link here."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination."""

    hops: int
    scheme: str
    connections: int
    number: int

    @property
    def name(self) -> str:
        hops = "1 hop" if self.hops == 1 else f"{self.hops} hops"
        keys = "1 key" if self.number == 1 else f"{self.number} keys"
        links = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        return f"{hops}, {self.scheme}, {links}, {keys}"


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell gave, and the empty handler beside it. `busy`, `drawn`, `sent`: all nodes together."""

    cell: Cell
    found: dict[str, Any]
    bare: dict[str, Any]
    busy: float
    drawn: int
    sent: int

    @property
    def rate(self) -> float:
        """Pairs of enc_keys and dec_keys a second."""
        return len(self.found["enc"]) / float(self.found["seconds"])

    @property
    def ceiling(self) -> float:
        """The same against the empty handler."""
        return len(self.bare["enc"]) / float(self.bare["seconds"])

    @property
    def keys(self) -> int:
        return int(self.found["keys"])

    @property
    def supply_share(self) -> float:
        """Of what the narrowest quantum link makes meanwhile, how much was used."""
        links = (self.cell.hops + 1) // 2
        return self.drawn / links / (SUPPLY * float(self.found["seconds"]))


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    seconds = 0.8 if quick else 3.0
    async with (
        stage(named("line-8"), settings={"delivery": {"pool": LEVEL}}, say=say) as on,
        Generator() as generator,
    ):
        schemes = await _offered(on, generator, ("trusted", "masked", "blind"))
        cells = list(_cells(quick, schemes))
        results = []
        for at, cell in enumerate(cells, 1):
            say(f"[{at}/{len(cells)}] {cell.name}")
            results.append(await _measure(on, generator, cell, seconds))
    _fill(report, results, schemes)


def _cells(quick: bool, schemes: Iterable[str]) -> Iterable[Cell]:
    """On demand, a quick run looks at the two corners only: one key on one connection, and much of both."""
    lengths, widths, numbers = ((1, 7), (1, 16), (1, 32)) if quick else ((1, 3, 7), (1, 8, 64), (1, 16, 128))
    for hops, scheme in itertools.product(lengths, (POOL, *schemes)):
        for width, number in itertools.product(widths, numbers):
            corner = (width == widths[0]) == (number == numbers[0])
            if scheme == POOL or corner or not quick:
                yield Cell(hops, scheme, width, number)


async def _offered(on: Stage, generator: Generator, schemes: Iterable[str]) -> list[str]:
    """The schemes the network carries; a node refuses others by their name."""
    found = []
    for scheme in schemes:
        tried = await generator.ask(_task(on, Cell(2, scheme, 1, 1), 0.01))
        if tried["keys"]:
            found.append(scheme)
    return found


def _task(on: Stage, cell: Cell, seconds: float) -> dict[str, Any]:
    saes = list(on.saes.values())
    near, far = saes[0], saes[cell.hops]
    return {
        "kind": "pairs",
        "near": near,
        "far": far,
        "master": near["id"],
        "slave": far["id"],
        "scheme": None if cell.scheme == POOL else cell.scheme,
        "concurrency": cell.connections,
        "number": cell.number,
        "seconds": seconds,
    }


async def _measure(on: Stage, generator: Generator, cell: Cell, seconds: float) -> Result:
    nodes = [node.name for node in on.testbed.topology.nodes]
    task = _task(on, cell, seconds)
    await generator.ask({**task, "seconds": seconds / 4})  # connections, pools and stocks are warm after this
    if cell.scheme == POOL:
        await on.stocked(nodes[0])
    await on.rest(*nodes)
    # `number` as name of the slave tells the bare handler how long its answer shall be.
    bare = {**task, "near": {**task["near"], "url": on.bare_url}, "far": {**task["far"], "url": on.bare_url}}
    bare |= {"slave": str(cell.number), "master": str(cell.number), "scheme": None, "seconds": seconds / 4}
    before = await generator.ask(bare)
    busy, sent, drawn = _busy(on), on.node_bytes(), await on.device_bits()
    found = await generator.ask(task)
    if cell.scheme == POOL:
        await on.rest(*nodes)  # the keys that were taken are relayed anew: that is their cost
    busy, sent, drawn = _busy(on) - busy, on.node_bytes() - sent, await on.device_bits() - drawn
    after = await generator.ask(bare)
    beside = {name: before[name] + after[name] for name in ("seconds", "enc", "dec", "keys", "generator")}
    return Result(cell, found, beside, busy, drawn, sent)


def _busy(on: Stage) -> float:
    return sum(processor_seconds(on.testbed.pid(node.name)) for node in on.testbed.topology.nodes)


def _fill(report: Report, results: list[Result], schemes: list[str]) -> None:
    report.title = "Pairs of applications under load"
    report.lead = (
        "A line of eight nodes, quantum and post-quantum links in turn, devices of 100 Mbit/s. Every "
        "connection asks for keys at the first node, fetches them at the other end, compares the bits and "
        "begins again. Nodes, devices and load generator share the machine's cores."
    )
    for result in results:
        _figures(report, result)
    report.data["cells"] = [_data(result) for result in results]
    different = sum(result.found["different"] for result in results)
    keys = sum(result.keys for result in results)
    report.add(
        "keys that differ at the far end, all cells", [float(different)], "", most=0, note=f"of {keys}"
    )
    refused = sum(sum(result.found["refused"].values()) for result in results)
    report.add("requests that were refused, all cells", [float(refused)], "", most=0)
    _pictures(report, results, schemes)


def _figures(report: Report, result: Result) -> None:
    cell, found = result.cell, result.found
    enc = [1e3 * each for each in found["enc"]]
    if not enc:
        report.add(f"{cell.name}: no request was answered", [0.0], "", note=str(found["refused"]))
        return
    warm = cell.scheme == POOL and cell.number == 1
    nothing = statistics.median(result.bare["enc"]) * 1e3
    report.add(f"{cell.name}: enc_keys", enc, "ms", note=f"99 %: {percentile(sorted(enc), 99):.3g} ms")
    bound: dict[str, Any] = {"most": 3} if warm and cell.connections == 1 and cell.hops == 7 else {}
    report.add("  enc_keys, x the empty handler", [each / nothing for each in enc], "x", **bound)
    dec = [1e3 * each for each in found["dec"]]
    report.add("  dec_keys", dec, "ms", note=f"99 %: {percentile(sorted(dec), 99):.3g} ms")
    bound = {"least": 1500} if warm and cell.connections > 1 and cell.hops == 1 else {}
    report.add("  pairs of enc_keys and dec_keys", [result.rate], "/s", **bound)
    report.add("  pairs, empty handler beside it", [result.ceiling], "/s")
    report.add("  keys", [result.keys / found["seconds"]], "/s")
    report.add("  processor time a key, all nodes", [1e6 * result.busy / result.keys], "us")
    report.add("  device bits a key, all quantum links", [result.drawn / result.keys], "bit")
    report.add("  of the device supply of a link", [100 * result.supply_share], "%")
    report.add("  bytes between nodes a key", [result.sent / result.keys], "B")
    report.add("  load generator's share of a core", [found["generator"]], "")


def _data(result: Result) -> dict[str, Any]:
    cell = result.cell
    return {
        "hops": cell.hops,
        "scheme": cell.scheme,
        "connections": cell.connections,
        "keys a request": cell.number,
        "keys": result.keys,
        "refused": result.found["refused"],
        "late": result.found["late"],
        "different": result.found["different"],
        "pairs a second": result.rate,
        "ceiling": result.ceiling,
    }


def _pictures(report: Report, results: list[Result], schemes: list[str]) -> None:
    report.blocks.append(Heading("Throughput and latency"))
    if missing := [scheme for scheme in ("trusted", "masked", "blind") if scheme not in schemes]:
        report.blocks.append(Words(f"Not offered by this network: {', '.join(missing)}."))
    lengths = sorted({result.cell.hops for result in results})
    for hops in lengths:
        here = [result for result in results if result.cell.hops == hops]
        report.blocks.append(_table(hops, here))
        series = [
            Series(
                f"{scheme}, {number} a request",
                [(float(r.cell.connections), r.keys / r.found["seconds"]) for r in here
                 if (r.cell.scheme, r.cell.number) == (scheme, number)],
            )
            for scheme, number in dict.fromkeys((r.cell.scheme, r.cell.number) for r in here)
        ]  # fmt: skip
        title = f"Keys a second, {hops} hop{'s' if hops > 1 else ''}"
        drawn = lines(title, series, Axis("connections", log=True), Axis("keys/s", log=True))
        report.blocks.append(Figure(drawn, "Each key fetched and compared at the far end."))
    single = [r for r in results if r.cell.connections == 1 and r.cell.number == 1 and r.found["enc"]]
    names = list(dict.fromkeys(r.cell.scheme for r in single))
    columns = [Bars(scheme, [_median(single, hops, scheme) for hops in lengths]) for scheme in names]
    drawn = bars("enc_keys, one key on one connection", [str(each) for each in lengths], columns,
                 Axis("median, ms", log=True), x_label="hops")  # fmt: skip
    report.blocks.append(
        Figure(drawn, "pool: relayed ahead; the schemes: on demand, confirmed at the far end.")
    )


def _median(results: list[Result], hops: int, scheme: str) -> float:
    found = [r.found["enc"] for r in results if (r.cell.hops, r.cell.scheme) == (hops, scheme)]
    return 1e3 * statistics.median(found[0]) if found else float("nan")


def _table(hops: int, results: list[Result]) -> Table:
    heads = ("scheme", "connections", "keys a request", "enc 50 %", "95 %", "99 %", "dec 50 %", "pairs/s",
             "ceiling", "keys/s", "us a key", "device bits a key", "refused", "differ")  # fmt: skip
    return Table(f"{hops} hop{'s' if hops > 1 else ''}; latencies in ms", heads, [_line(r) for r in results])


def _line(result: Result) -> list[str]:
    cell, found = result.cell, result.found
    enc, dec = (sorted(1e3 * each for each in found[name]) for name in ("enc", "dec"))
    middle = [f"{percentile(enc, each):.3g}" if enc else "–" for each in (50, 95, 99)]
    keys = max(1, result.keys)
    return [
        cell.scheme, str(cell.connections), str(cell.number), *middle,
        f"{percentile(dec, 50):.3g}" if dec else "–",
        f"{result.rate:,.0f}", f"{result.ceiling:,.0f}", f"{result.keys / found['seconds']:,.0f}",
        f"{1e6 * result.busy / keys:,.0f}", f"{result.drawn / keys:,.0f}",
        str(sum(found["refused"].values())), str(found["different"]),
    ]  # fmt: skip
