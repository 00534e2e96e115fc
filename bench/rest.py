"""A node at rest: resident memory, and the time from exec to ready, over the nodes of a testbed."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import report

from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named


async def main() -> None:
    options = report.arguments("rest")
    with tempfile.TemporaryDirectory() as directory:
        async with Testbed(named("galicia-basque"), Path(directory) / "net") as testbed:
            await asyncio.sleep(10.0)
            report.write(options.json, "rest", await measure(testbed))


async def measure(testbed: Testbed) -> dict[str, Any]:
    names = [node.name for node in testbed.topology.nodes]
    resident = [psutil.Process(testbed.pid(name)).memory_info().rss / 2**20 for name in names]
    devices = [device["pid"] for device in testbed.state()["devices"]]
    ready = []
    for name in names:
        await testbed.kill(name)
        start = time.perf_counter()
        await testbed.restart(name)
        ready.append(time.perf_counter() - start)
    return {
        "nodes": len(names),
        "resident_mib": {"median": round(statistics.median(resident), 1), "most": round(max(resident), 1)},
        "device_resident_mib": round(
            statistics.median(psutil.Process(pid).memory_info().rss / 2**20 for pid in devices), 1
        ),
        "exec_to_ready_s": {"median": round(statistics.median(ready), 2), "most": round(max(ready), 2)},
    }


if __name__ == "__main__":
    asyncio.run(main())
