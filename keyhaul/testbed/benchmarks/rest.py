"""What a node costs before anybody asks it for a key: time from exec to ready, resident memory at rest.

The nodes of `galicia-basque` are ended and started again one by one, as an operator's machine would start one
beside others that run already. A start includes the interpreter, unsealing the store, and the three ports.
"""

from __future__ import annotations

import time

from keyhaul.testbed.benchmarks.report import Report, resident_bytes
from keyhaul.testbed.benchmarks.stage import Say, stage
from keyhaul.testbed.topology import named

READY_SECONDS, RESIDENT_MIB = 2.0, 90.0


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    topology = named("galicia-basque")
    nodes = [node.name for node in topology.nodes]
    async with stage(topology, settings={}, say=say) as on:
        await on.rest(*nodes)
        seconds = []
        for turn in range(1 if quick else 3):
            for node in nodes:
                say(f"start {node}, {turn + 1}")
                await on.testbed.kill(node)
                begun = time.perf_counter()
                await on.testbed.restart(node)
                seconds.append(time.perf_counter() - begun)
                await on.rest(*nodes)
        resident = [resident_bytes(on.testbed.pid(node)) / 2**20 for node in nodes]
    report.add("exec to ready, one node at a time", seconds, "s", most=READY_SECONDS)
    report.add("resident memory at rest", resident, "MiB", most=RESIDENT_MIB)
    report.add("  the largest node", [max(resident)], "MiB", most=RESIDENT_MIB)
