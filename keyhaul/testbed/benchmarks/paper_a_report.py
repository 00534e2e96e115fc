"""The report on paper A, section VI: its tables and figures in its order, published values beside ours."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from keyhaul.testbed.benchmarks import published
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.statistics_a import (
    METRICS,
    DelayRow,
    answered,
    correlations,
    delay_row,
    metrics,
    moving,
    rates,
)
from keyhaul.testbed.report.charts import Axis, Bars, Picture, Series, bars, boxes, heatmap, histogram, lines
from keyhaul.testbed.report.page import Figure, Heading, Table, Words
from keyhaul.testbed.topology import Topology

OURS, PAPER = "default", "paper-a"
PROFILES = (OURS, PAPER)
BITS = 256
SMALL = (470.0, 320.0)

Found = Mapping[str, Any]
Pairs = dict[str, dict[tuple[int, int], Any]]


def fill(report: Report, units: Found, topology: Topology) -> None:
    """All figures, tables and pictures from what the units of a run gave, by their names."""
    names = [node.name for node in topology.nodes]
    pairs: Pairs = {
        profile: {
            (near, far): units[f"{profile}: pair {near + 1} {far + 1}"]
            for near, far in itertools.permutations(range(len(names)), 2)
        }
        for profile in PROFILES
    }
    report.title = "Paper A, section VI, measured again"
    report.lead = (
        "Eight nodes in a line with eight simulated QKD devices (presets after the paper's Tables III and "
        "IV), twice side by side on one machine: keyhaul as it delivers, and profile paper-a, which works as "
        "the paper does: on demand, a key exchange for every message, the device's key as end key. Values "
        "marked “published” are the paper's, from real devices; all others were measured in this run."
    )
    _rates(report, pairs, names)
    _delays(report, pairs, names)
    _over_time(report, pairs, names)
    _bursts(report, units, names)
    _correlated(report, units)
    _left_open(report, units, names)
    _supply(report, units["otp: supply"])
    _compared(report, units)


def _key_rates(found: Mapping[tuple[int, int], Any], size: int) -> list[list[list[float]]]:
    """Bits/s of every answered request, by row and column."""
    return [
        [rates(answered(found[near, far]), BITS) if near != far else [] for far in range(size)]
        for near in range(size)
    ]


def _means(table: Sequence[Sequence[Sequence[float]]]) -> list[list[float | None]]:
    return [[statistics.fmean(cell) if cell else None for cell in row] for row in table]


def _rates(report: Report, pairs: Pairs, names: Sequence[str]) -> None:
    tables = {profile: _key_rates(pairs[profile], len(names)) for profile in PROFILES}
    report.data["key rate, mean bits/s"] = {profile: _means(tables[profile]) for profile in PROFILES}
    ratios = [
        statistics.fmean(ours) / statistics.fmean(theirs)
        for near, far in itertools.permutations(range(len(names)), 2)
        if (ours := tables[OURS][near][far]) and (theirs := tables[PAPER][near][far])
    ]
    whole = len(names) * (len(names) - 1)
    note = f"{len(ratios)} of {whole} pairs got keys in both"
    report.add(
        "key rate, default / paper-a, the pair that gains least", [min(ratios)], "x", least=50, note=note
    )
    report.add("key rate, default / paper-a, all pairs", ratios, "x")
    printed = [
        statistics.fmean(ours) / value
        for row, published_row in zip(tables[OURS], published.KEY_RATE, strict=True)
        for ours, value in zip(row, published_row, strict=True)
        if ours and value
    ]
    report.add("key rate, default / published, all pairs", printed, "x", note=f"least {min(printed):.3g}")
    requests = {profile: len(pairs[profile][0, 1]["status"]) for profile in PROFILES}
    report.blocks.append(Heading("Key rate (Table III, Figure 4)"))
    for profile in PROFILES:
        shown = heatmap(
            f"Table III, {profile}", names, names, _means(tables[profile]),
            label="mean key rate in bits/s, from row to column", log=True,
        )  # fmt: skip
        caption = f"{requests[profile]} requests for one key in a row for each pair, one connection."
        report.blocks.append(Figure(shown, caption))
    title = "Table III, published"
    reference = heatmap(title, names, names, published.KEY_RATE, label="mean key rate in bits/s", log=True)
    report.blocks.append(Figure(reference, f"Published reference values: {published.SOURCE}, Table III."))
    report.blocks.append(_rate_table(tables, names))
    for node in (0, 6):
        samples = {profile: [each for cell in tables[profile][node] for each in cell] for profile in PROFILES}
        drawn = histogram(
            f"Figure 4: key rate of {names[node]}", samples, Axis("bits/s", log=True), size=SMALL
        )
        report.blocks.append(Figure(drawn, f"KMSTN{node + 1} of the paper; all seven peers.", small=True))


def _rate_table(tables: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Mean and deviation per row: default, paper-a, published."""
    rows = []
    for near, name in enumerate(names):
        cells = {profile: [each for cell in tables[profile][near] for each in cell] for profile in PROFILES}
        printed = [value for value in published.KEY_RATE[near] if value is not None]
        theirs = [value for value in published.KEY_RATE_DEVIATION[near] if value is not None]
        rows.append(
            [
                name,
                *(_mean_deviation(cells[profile]) for profile in PROFILES),
                f"{statistics.fmean(printed):,.0f} ± {statistics.fmean(theirs):,.0f}",
            ]
        )
    return Table(
        "Key rate of each node over its seven peers, bits/s, mean ± standard deviation",
        ("node", *PROFILES, "published"),
        rows,
        "Published: the mean of the row's means and of its deviations.",
    )


def _mean_deviation(values: Sequence[float]) -> str:
    if not values:
        return "no key"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):,.0f} ± {spread:,.0f}"


def _runs(pairs: Mapping[tuple[int, int], Any], node: int, size: int) -> list[list[float]]:
    return [answered(pairs[node, far]) for far in range(size) if far != node]


def _delays(report: Report, pairs: Pairs, names: Sequence[str]) -> None:
    report.blocks.append(Heading("Delay (Table IV, Figure 5)"))
    rows = []
    for node, name in enumerate(names):
        printed = DelayRow(*published.DELAY[node])
        for profile in PROFILES:
            found = delay_row(_runs(pairs[profile], node, len(names)), published.WINDOW)
            rows.append([name, profile, *_row(found)])
        rows.append([name, "published", *_row(printed)])
    heads = ("node", "", "jitter, median", "jitter, 95 %", "rolling deviation, 95 %", "latency, median")
    note = (
        f"Window of the rolling deviation: {published.WINDOW} samples, as in Figure 6; the paper states none."
    )
    report.blocks.append(Table("Table IV: delay of key requests in ms", heads, rows, note))
    for profile in PROFILES:
        samples = {
            str(node + 1): [1e3 * each for run in _runs(pairs[profile], node, len(names)) for each in run]
            for node in range(len(names))
        }
        report.data.setdefault("latency, ms", {})[profile] = samples
        title = f"Figure 5: delay, {profile}"
        drawn = boxes(title, samples, Axis("ms", log=True), x_label="KMSTN", size=SMALL)
        caption = "Density, quartiles, median; the line spans 5 % to 95 %."
        report.blocks.append(Figure(drawn, caption, small=True))
    report.blocks.append(Words(_SLOWER))
    _farthest(report, pairs, len(names))


_SLOWER = (
    "Where the first hop is a quantum link, profile paper-a asks its device twice, for the end key and for "
    "the key of the message. The presets take the published latencies, which hold all of the paper's "
    "software, as the delay of the device alone. So the profile is slower here than the paper's own figures; "
    "both are stated."
)


def _row(row: DelayRow) -> list[str]:
    values = (row.jitter_median, row.jitter_95, row.rolling_95, row.latency_median)
    return ["–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values]


def _farthest(report: Report, pairs: Pairs, size: int) -> None:
    """The goal on delay: both directions between the ends of the line."""
    ends = ((0, size - 1), (size - 1, 0))
    delays = {
        profile: [1e3 * each for pair in ends for each in answered(pairs[profile][pair])]
        for profile in PROFILES
    }
    for profile in PROFILES:
        report.add(f"enc_keys between the ends of the line, {profile}", delays[profile], "ms")
    ratio = statistics.median(delays[PAPER]) / statistics.median(delays[OURS])
    report.add("enc_keys delay between the ends, paper-a / default", [ratio], "x", least=50)
    printed = [published.DELAY[node][3] / statistics.median(delays[OURS]) for node in (0, -1)]
    report.add("enc_keys delay between the ends, published / default", printed, "x")


def _over_time(report: Report, pairs: Pairs, names: Sequence[str]) -> None:
    report.blocks.append(Heading("Latency over time (Figure 6)"))
    for profile in PROFILES:
        series = []
        for node, name in enumerate(names):
            whole = [1e3 * each for run in _runs(pairs[profile], node, len(names)) for each in run]
            smooth = moving(whole[:200], published.WINDOW)
            points = [(float(at), mean) for at, (mean, _) in enumerate(smooth, 1)]
            series.append(Series(name, points, spread=[(max(0.0, m - s), m + s) for m, s in smooth]))
        axis = Axis(f"latency, ms, mean of {published.WINDOW}", low=0.0)
        drawn = lines(f"Figure 6: latency over time, {profile}", series, Axis("request"), axis)
        report.blocks.append(
            Figure(drawn, "Shaded: one standard deviation. The first 200 requests of each node.")
        )


def _bursts(report: Report, units: Found, names: Sequence[str]) -> None:
    report.blocks.append(Heading("100 concurrent requests (Figure 7)"))
    nodes = [node for node in range(len(names)) if f"{OURS}: burst {node + 1}" in units]
    failed = {profile: [0, 0] for profile in PROFILES}
    rows = []
    for node, profile in itertools.product(nodes, PROFILES):
        found = units[f"{profile}: burst {node + 1}"]
        bad = sum(status != 200 for status in found["status"])
        failed[profile][0] += bad
        failed[profile][1] += len(found["status"])
        good = [1e3 * each for each in answered(found)]
        middle = f"{statistics.median(good):.3g}" if good else "–"
        most = f"{max(good):.3g}" if good else "–"
        rows.append([names[node], profile, str(len(found["status"])), str(bad), middle, most])
        report.blocks.append(Figure(_burst(f"{names[node]}, {profile}", found), "", small=True))
    heads = ("node", "", "requests", "failed", "median, ms", "slowest, ms")
    report.blocks.append(Table("Concurrent requests", heads, rows))
    for profile in PROFILES:
        bad, asked = failed[profile]
        bound: dict[str, Any] = {"most": 0} if profile == OURS else {}
        note = f"{bad} of {asked}"
        report.add(
            f"failed of 100 concurrent requests, {profile}", [100 * bad / asked], "%", note=note, **bound
        )


def _burst(name: str, found: Mapping[str, Any]) -> Picture:
    start = min(found["begun"])
    places = [
        (begun - start, 1e3 * took, status)
        for begun, took, status in zip(found["begun"], found["took"], found["status"], strict=True)
    ]
    series = [
        Series("answered", [(at, ms) for at, ms, status in places if status == 200], "dots"),
        Series("failed", [(at, ms) for at, ms, status in places if status != 200], "crosses"),
    ]
    return lines(
        f"Figure 7: {name}",
        series,
        Axis("request sent, s", low=0.0),
        Axis("latency, ms", log=True),
        size=SMALL,
    )


def _correlated(report: Report, units: Found) -> None:
    report.blocks.append(Heading("Correlations (Figure 8)"))
    for profile in PROFILES:
        cells = [name for name in units if name.startswith(f"{profile}: grid ")]
        rows = []
        for name in cells:
            number, concurrency, _ = map(int, name.partition(": grid ")[2].split())
            rows.append(metrics(number, concurrency, units[name], BITS))
        report.data.setdefault("grid", {})[profile] = {"columns": METRICS, "rows": rows}
        drawn = heatmap(
            f"Figure 8: correlations, {profile}", METRICS, METRICS, correlations(rows), diverging=True,
            show=lambda value: f"{value:+.2f}",
        )  # fmt: skip
        caption = f"Pearson's r over {len(rows)} runs between the ends; – where a metric is constant."
        report.blocks.append(Figure(drawn, caption))


def _left_open(report: Report, units: Found, names: Sequence[str]) -> None:
    report.blocks += [
        Heading("What the paper left open"),
        Words("Delay by number of hops, and what a key costs in processor time, memory and bytes."),
    ]
    lengths = range(1, len(names))
    medians: dict[str, dict[str, list[float]]] = {profile: {} for profile in PROFILES}
    for profile in PROFILES:
        found = units[f"{profile}: hops"]
        for what in ("enc", "whole"):
            medians[profile][what] = [1e3 * statistics.median(each) if each else 0.0 for each in found[what]]
            for length, each in zip(lengths, found[what], strict=True):
                words = "enc_keys" if what == "enc" else "until the far end has it"
                if each:
                    report.add(f"{words}, {length} hops, {profile}", [1e3 * one for one in each], "ms")
    series = [
        Series(
            f"{profile}, {words}",
            [
                (float(n), value or float("nan"))
                for n, value in zip(lengths, medians[profile][what], strict=True)
            ],
        )
        for profile, (what, words) in itertools.product(
            PROFILES, (("enc", "enc_keys"), ("whole", "until fetched at the far end"))
        )
    ]
    drawn = lines("Delay by number of hops", series, Axis("hops"), Axis("median, ms", log=True))
    caption = (
        "paper-a releases a key before it has travelled; what counts for two applications is the second line."
    )
    report.blocks.append(Figure(drawn, caption))
    _cost(report, units, names)


def _cost(report: Report, units: Found, names: Sequence[str]) -> None:
    hops = len(names) - 1
    rows = []
    processor, memory = {}, {}
    for profile in PROFILES:
        found = units[f"{profile}: cost"]
        keys = max(1, found["keys"])
        busy = max(0.0, sum(found["processor"].values()) - found["idle"] * found["seconds"])
        note = f"{found['keys']} keys over {hops} hops"
        report.add(f"processor time a key and hop, {profile}", [1e3 * busy / keys / hops], "ms", note=note)
        report.add(f"bytes a key and hop, {profile}", [found["bytes"] / keys / hops], "B", note=note)
        report.add(
            f"device bits a key, all quantum links, {profile}",
            [found["device_bits"] / keys],
            "bit",
            note=note,
        )
        resident = [each / 2**20 for each in found["resident"].values()]
        report.add(f"resident memory of a node, {profile}", resident, "MiB")
        processor[profile] = [1e3 * found["processor"][name] / keys for name in names]
        memory[profile] = [found["resident"][name] / 2**20 for name in names]
        rows.append([profile, str(found["keys"]), f"{found['seconds']:.1f}", f"{found['idle']:.3f}"])
    for title, values, unit in (
        ("Processor time of each node a key", processor, "ms"),
        ("Resident memory of each node", memory, "MiB"),
    ):
        both = [Bars(profile, values[profile]) for profile in PROFILES]
        numbers = [str(node + 1) for node in range(len(names))]
        drawn = bars(title, numbers, both, Axis(unit), x_label="KMSTN", size=SMALL)
        caption = f"Keys from {names[0]} to {names[-1]}; background included."
        report.blocks.append(Figure(drawn, caption, small=True))
    heads = ("", "keys", "seconds", "processor seconds a second at rest, all nodes")
    report.blocks.append(Table("How the costs were measured", heads, rows))


def _supply(report: Report, found: Mapping[str, Any]) -> None:
    """Requests that found no key at the narrowest link have cost the links before it nevertheless."""
    used = found["used"][found["narrowest"]]
    note = f"{found['delivered']:,} bits of key, {used:,} of {found['narrowest']}, {found['refused']} refused"
    what = "otp: key delivered, of what the narrowest link supplied"
    report.add(what, [100 * found["delivered"] / used], "%", least=95, note=note)
    rows = [
        [name, f"{bits:,}", f"{100 * found['delivered'] / bits:.1f}"] for name, bits in found["used"].items()
    ]
    report.blocks.append(
        Table("Pad mode otp", ("quantum link", "bits used", "of them delivered as key, %"), rows)
    )


def _compared(report: Report, units: Found) -> None:
    for profile in PROFILES:
        all_of_them = [units[f"{profile}: compared"], *units[f"{profile}: cost"]["compared"]]
        same, different, missing = (
            sum(each[kind] for each in all_of_them) for kind in ("same", "different", "missing")
        )
        note = f"{same} the same, {missing} not there after 20 s"
        report.add(f"keys that differ at the far end, {profile}", [float(different)], "", most=0, note=note)
        bound: dict[str, Any] = {"most": 0} if profile == OURS else {}
        report.add(f"keys that never arrived at the far end, {profile}", [float(missing)], "", **bound)
