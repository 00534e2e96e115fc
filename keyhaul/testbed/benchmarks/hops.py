"""On-demand delivery over 1 to 7 hops: how long, and in which steps.

Pool 0, devices without delay, every key confirmed and durable at both ends before enc_keys answers. Fsync and
the round trip of an empty handler are measured between the keys, in the same process and minutes. Where the
time goes is seen in a second, shorter run whose nodes are watched, because watching costs a little.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from typing import Any

from keyhaul.testbed.benchmarks import watched
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.stage import Say, Stage, WatchedTestbed, load, stage
from keyhaul.testbed.topology import named

LENGTHS = (1, 2, 3, 4, 5, 6, 7)
BOUNDS = {1: 12.0, 7: 70.0}
"""Milliseconds."""

Span = tuple[float, float]


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    topology = named("line-8")
    nodes = [node.name for node in topology.nodes]
    async with stage(topology, settings={"delivery": {"pool": 0}}, say=say) as on:
        await on.rest(*nodes)
        say("keys")
        found = await load(_task(on, LENGTHS, 30 if quick else 200))
        _times(report, found)
    async with stage(topology, settings={"delivery": {"pool": 0}}, say=say, kind=WatchedTestbed) as on:
        await on.rest(*nodes)
        say("steps")
        found = await load(_task(on, (1, 7), 20 if quick else 60, pause=0.05))
        await on.testbed.stop()
        events = {node: _events(on, node) for node in nodes}
        for length, keys in zip((1, 7), found["keys"], strict=True):
            _steps(report, length, keys, events)


def _task(on: Stage, lengths: tuple[int, ...], rounds: int, pause: float = 0.0) -> dict[str, Any]:
    saes = list(on.saes.values())
    return {
        "kind": "hops",
        "rounds": rounds,
        "warm": 5,
        "pause": pause,
        "near": saes[0],
        "far": [saes[length] for length in lengths],
        "bare": on.bare_url,
        "directory": str(on.testbed.directory),
    }


def _times(report: Report, found: dict[str, Any]) -> None:
    empty = statistics.median(found["empty"])
    report.add("empty handler, round trip", [1000 * each for each in found["empty"]], "ms")
    report.add("flush of 12 KiB to disk", [1000 * each for each in found["flush"]], "ms")
    for length, keys in zip(LENGTHS, found["keys"], strict=True):
        taken = [1000 * (end - begin) for begin, end in keys]
        bound = BOUNDS.get(length)
        report.add(f"enc_keys on demand, {_hops(length)}", taken, "ms", most=bound)
        report.add("  x empty handler", [each / 1000 / empty for each in taken], "x")


def _events(on: Stage, node: str) -> list[watched.Event]:
    file = on.testbed.layout.node_folder(node) / watched.FILE
    return [(step, begin, end) for step, begin, end in json.loads(file.read_text())]


def _steps(report: Report, length: int, keys: list[Span], events: dict[str, list[watched.Event]]) -> None:
    """Per key: how often a step ran anywhere while the caller waited, and how long in sum."""
    known = [name for _, _, name in watched.steps()]
    sums: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(list)
    everything = sorted((event for each in events.values() for event in each), key=lambda event: event[1])
    for begin, end in keys:
        inside = [event for event in everything if begin <= event[1] and event[2] <= end]
        for step in known:
            spans = [stop - start for name, start, stop in inside if name == step]
            sums[step].append(1000 * sum(spans))
            counts[step].append(len(spans))
    for step in known:
        if any(counts[step]):
            often = statistics.median(counts[step])
            report.add(f"{_hops(length)}: {step}", sums[step], "ms", note=f"{often:g} times a key, in sum")


def _hops(length: int) -> str:
    return "1 hop" if length == 1 else f"{length} hops"
