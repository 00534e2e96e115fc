"""The network of a benchmark: real processes of a testbed, the bare server beside them, the load apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp

from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import Unavailable
from keyhaul.testbed.benchmarks.report import processor_seconds, resident_bytes
from keyhaul.testbed.benchmarks.traffic import Traffic
from keyhaul.testbed.network import START_PATIENCE, Testbed
from keyhaul.testbed.processes import Process
from keyhaul.testbed.topology import Link, Topology, device_links

Say = Callable[[str], None]

_CALM = 0.04  # processor seconds a second, below which a process rests
_LOOK = 0.5  # seconds between looks
_STATUS = "/admin/v1/status"
_LOAD_PATIENCE = 900.0  # seconds
_LONGEST = 256 * 2**20  # bytes of an answer


class WatchedTestbed(Testbed):
    """A testbed whose nodes write down their steps (see `watched`)."""

    def _make_process(self, name: str, command: list[str]) -> Process:
        swapped = ["keyhaul.cli.watched" if word == "keyhaul.cli" else word for word in command]
        return super()._make_process(name, swapped)


class Stage:
    """A running testbed with a bare server beside it."""

    def __init__(self, testbed: Testbed, bare: Process, bare_url: str, own_url: str) -> None:
        self.testbed = testbed
        self.bare = bare
        self.bare_url = bare_url
        self.own_url = own_url
        state = testbed.state()
        self._traffic = Traffic(int(node["node_url"].rpartition(":")[2]) for node in state["nodes"])
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
            self._traffic.total()
            used = [processor_seconds(pid) - old for pid, old in zip(pids, before, strict=True)]
            if max(used) < _CALM * _LOOK:
                return
        raise Unavailable("the nodes do not come to rest", "see their logs")

    async def stocked(self, node: str, patience: float = 300.0) -> None:
        """Wait until no pool of a node is low: on a busy machine a node may look at rest that is not."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while any(pool["ready"] * 4 < pool["target"] * 3 for pool in await self.pools(node)):
            if loop.time() > give_up:
                raise Unavailable(f"the pools of {node} do not fill", "see its log")
            await asyncio.sleep(_LOOK)

    def processor(self) -> dict[str, float]:
        """Processor seconds each node has used."""
        return {
            node.name: processor_seconds(self.testbed.pid(node.name)) for node in self.testbed.topology.nodes
        }

    def resident(self) -> dict[str, int]:
        """Bytes of memory each node has."""
        return {
            node.name: resident_bytes(self.testbed.pid(node.name)) for node in self.testbed.topology.nodes
        }

    def node_bytes(self) -> int:
        """Bytes so far between all nodes."""
        return self._traffic.total()

    async def device_bits(self) -> int:
        """Bits of device key that have been used so far on all quantum links, counted once for both ends."""
        return sum((await self.link_bits()).values())

    async def link_bits(self) -> dict[str, int]:
        """The same for each quantum link: what was drawn, less what lies ready for the next messages."""
        drawn, ready = await self._drawn_bits(), await self._ready_bits()
        return {
            link.name: drawn[link.name] - ready[link.name] for link, _ in device_links(self.testbed.topology)
        }

    async def pools(self, node: str) -> list[dict[str, Any]]:
        """What a node says of its pools (see `Pools.summary`)."""
        (here,) = (each for each in self.testbed.state()["nodes"] if each["name"] == node)
        async with self._operator() as session, session.get(here["admin_url"] + _STATUS) as answer:
            pools: list[dict[str, Any]] = (await answer.json())["pools"]
        return pools

    async def _ready_bits(self) -> Counter[str]:
        """Bits the nodes have drawn ahead, by link."""
        found: Counter[str] = Counter()
        names = {pair: link.name for link in self.testbed.topology.links for pair in _both_ways(link)}
        async with self._operator() as session:
            for node in self.testbed.state()["nodes"]:
                async with session.get(node["admin_url"] + _STATUS) as answer:
                    for link in (await answer.json())["links"]:
                        found[names[node["name"], link["peer"]]] += link["level_bits"] or 0
        return found

    def _operator(self) -> aiohttp.ClientSession:
        """Calls of the operator."""
        admin = self.testbed.state()["admin"]
        trusted = client_context(
            Credentials(Path(admin["cert"]), Path(admin["key"]), Path(admin["ca"])), Policy.COMPATIBLE
        )
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted))

    async def _drawn_bits(self) -> Counter[str]:
        """Bits the nodes have drawn from their devices, by link; every key is drawn at both ends."""
        layout, found = self.testbed.layout, Counter[str]()
        for spot in layout.spots:
            files = self.testbed.operator(layout.domains[spot.link.a])
            trusted = client_context(Credentials(files.cert, files.key, files.ca), Policy.CLASSIC)
            url = layout.device_url(spot.name) + "/testbed/knobs"
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session,
                session.get(url) as answer,
            ):
                found[spot.link.name] += (await answer.json())["bits"]["delivered"]
        return Counter({name: bits // 2 for name, bits in found.items()})


def _both_ways(link: Link) -> tuple[tuple[str, str], tuple[str, str]]:
    return (link.a, link.b), (link.b, link.a)


@contextlib.asynccontextmanager
async def stage(
    topology: Topology, *, settings: Mapping[str, Any], say: Say, kind: type[Testbed] = Testbed
) -> AsyncIterator[Stage]:
    """A fresh network in a temporary directory; everything ends with the context."""
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
                await bare.until_ready(START_PATIENCE)
                urls = json.loads(ready.read_text())
                yield Stage(testbed, bare, urls["url"], urls["own"])
            finally:
                await bare.stop()


class Generator:
    """The load generator: a process that does one task after the other, and ends with this context."""

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None
        self._trouble: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "keyhaul.testbed.benchmarks.generator",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST,
        )
        assert self._child.stderr is not None
        self._trouble = asyncio.create_task(self._child.stderr.read(), name="words of the load generator")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._child is not None
        assert self._trouble is not None
        if self._child.returncode is None:
            self._child.kill()  # it holds nothing worth an orderly end
            await self._child.wait()
        await asyncio.gather(self._trouble, return_exceptions=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid if self._child else 0

    async def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Do one task. Raises Unavailable with its last words if it fails."""
        child, trouble = self._child, self._trouble
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        assert trouble is not None
        child.stdin.write(json.dumps(task).encode() + b"\n")
        async with asyncio.timeout(_LOAD_PATIENCE):
            answer = await child.stdout.readline()
        if not answer:
            words = (await trouble).decode(errors="replace")[-800:]
            raise Unavailable(f"the load generator failed\n{words}", "see above")
        result: dict[str, Any] = json.loads(answer)
        return result


async def load(task: Mapping[str, Any]) -> dict[str, Any]:
    """Run one task of the load generator in its own process. Raises Unavailable with its last words."""
    async with Generator() as generator:
        return await generator.ask(task)
