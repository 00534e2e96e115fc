"""The network of a benchmark: real processes of a testbed, the bare server beside them, the load apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from keyhaul.errors import Unavailable
from keyhaul.testbed.benchmarks.report import processor_seconds
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.processes import Process
from keyhaul.testbed.topology import Topology

Say = Callable[[str], None]

_CALM = 0.04  # processor seconds a second, below which a process rests
_LOOK = 0.5  # seconds between looks
_LOAD_PATIENCE = 900.0  # seconds


class WatchedTestbed(Testbed):
    """A testbed whose nodes write down their steps (see `watched`)."""

    def _make_process(self, name: str, command: list[str]) -> Process:
        swapped = ["keyhaul.cli.watched" if word == "keyhaul.cli" else word for word in command]
        return super()._make_process(name, swapped)


class Stage:
    """A running testbed with a bare server beside it."""

    def __init__(self, testbed: Testbed, bare: Process, bare_url: str) -> None:
        self.testbed = testbed
        self.bare = bare
        self.bare_url = bare_url
        state = testbed.state()
        self.saes: dict[str, dict[str, str]] = {
            sae["id"]: {**{name: sae[name] for name in ("id", "cert", "key", "ca")}, "url": sae["sae_url"]}
            for sae in state["saes"]
        }

    async def rest(self, *nodes: str, patience: float = 120.0) -> None:
        """Wait until the nodes have nothing to do: key material stocked, pools full."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while loop.time() < give_up:
            pids = [self.testbed.pid(node) for node in nodes]
            before = [processor_seconds(pid) for pid in pids]
            await asyncio.sleep(_LOOK)
            used = [processor_seconds(pid) - old for pid, old in zip(pids, before, strict=True)]
            if max(used) < _CALM * _LOOK:
                return
        raise Unavailable("the nodes do not come to rest", "see their logs")


@contextlib.asynccontextmanager
async def stage(
    topology: Topology, *, settings: Mapping[str, Any], say: Say, watched: bool = False
) -> AsyncIterator[Stage]:
    """A fresh network in a temporary directory; everything ends with the context."""
    kind = WatchedTestbed if watched else Testbed
    with tempfile.TemporaryDirectory(prefix="keyhaul-bench-") as folder:
        directory = Path(folder) / "testbed"
        async with kind(topology, directory, restart=False, settings=settings, progress=say) as testbed:
            first = topology.nodes[0].name
            files = testbed.config(first).listeners.sae
            ready = Path(folder) / "bare.ready"
            command = [
                "-m",
                "keyhaul.testbed.benchmarks.bare",
                str(files.cert),
                str(files.key),
                str(files.ca),
            ]
            bare = Process("bare", [sys.executable, *command, str(ready)], Path(folder) / "bare.log", ready)
            await bare.start()
            try:
                await bare.until_ready(30.0)
                url = json.loads(ready.read_text())["url"]
                yield Stage(testbed, bare, url)
            finally:
                await bare.stop()


async def load(task: Mapping[str, Any]) -> dict[str, Any]:
    """Run one task of the load generator in its own process. Raises Unavailable with its last words."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyhaul.testbed.benchmarks.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_LOAD_PATIENCE):
            answer, trouble = await child.communicate(json.dumps(task).encode())
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise Unavailable(
            f"the load generator failed\n{trouble.decode(errors='replace')[-800:]}", "see above"
        )
    result: dict[str, Any] = json.loads(answer)
    return result
