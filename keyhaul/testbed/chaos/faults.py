"""What is done to a running network, and how it is undone: one short context manager a fault.

Inside the context the fault is there; on leaving it is healed, whatever happened meanwhile. `touches` names
the nodes whose keys may suffer: a pair of applications counts as touched if its path meets one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyhaulError, Unavailable
from keyhaul.pki import Lifetimes, Pki
from keyhaul.testbed.chaos.people import People
from keyhaul.testbed.chaos.wiring import Wire, Wiring
from keyhaul.testbed.layout import DeviceSpot
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.presets import PRESETS

FULL = 4096  # bytes a file may have on a "full" disk: every log and database is longer
SLOW_CLIENTS, FLOOD, GREED = 60, 300, 24  # connections
PREEMPT = 0.5  # seconds between two drops of a slow client


@dataclass(frozen=True)
class World:
    """What faults act on. `bad_disk`: folder of the shim's switches; None where it could not be built."""

    testbed: Testbed
    wires: Wiring
    people: People
    bad_disk: Path | None

    @property
    def nodes(self) -> list[str]:
        """In the order of the topology."""
        return [node.name for node in self.testbed.topology.nodes]

    @property
    def middle(self) -> str:
        """A relay in the middle of everything."""
        return self.nodes[len(self.nodes) // 2]


Done = AbstractAsyncContextManager[None]


@dataclass(frozen=True)
class Fault:
    """`name` for reports; `touches` says which nodes suffer; `done` is the fault itself.

    `waits`: seconds that what was used up takes to come again, on top of the bound for recovery. `culprit`:
    the SAE that does it, if one does; its own requests do not count among those elsewhere, of which at least
    `floor` have to be served.
    """

    name: str
    touches: Callable[[World], frozenset[str]]
    done: Callable[[World], Done]
    reason: Callable[[World], str] = lambda world: ""
    """Why it cannot be tried here; empty where it can."""
    waits: Callable[[World], float] = lambda world: 0.0
    culprit: Callable[[World], str] = lambda world: ""
    floor: float = 0.0


def everywhere(world: World) -> frozenset[str]:
    return frozenset(world.nodes)


def in_the_middle(world: World) -> frozenset[str]:
    return frozenset({world.middle})


# ---------------------------------------------------------------------- the network


def weather(wire: Wire) -> Callable[[World], Done]:
    """All wires like this."""

    @asynccontextmanager
    async def done(world: World) -> AsyncIterator[None]:
        world.wires.set_all(wire)
        try:
            yield
        finally:
            world.wires.set_all(Wire())

    return done


@asynccontextmanager
async def partition(world: World) -> AsyncIterator[None]:
    """The first half of the nodes cannot talk to the second."""
    half = world.nodes[: len(world.nodes) // 2]
    crossing = world.wires.cut(half)
    try:
        yield
    finally:
        for a, b in crossing:
            world.wires.set(a, b, Wire())


def _halves(world: World) -> frozenset[str]:
    half = len(world.nodes) // 2
    return frozenset({world.nodes[half - 1]})  # what crosses has to pass the last node of the first half


@asynccontextmanager
async def flapping(world: World) -> AsyncIterator[None]:
    """The wires of one node go up and down twice a second."""

    async def flap() -> None:
        up = True
        while True:
            up = not up
            for a, b in world.wires.pairs():
                if world.middle in (a, b):
                    world.wires.set(a, b, Wire(up=up))
            await asyncio.sleep(0.25)

    task = asyncio.create_task(flap())
    try:
        yield
    finally:
        task.cancel()
        world.wires.set_all(Wire())


# ---------------------------------------------------------------------- processes and disks


@asynccontextmanager
async def killed(world: World) -> AsyncIterator[None]:
    """kill -9 of one relay; it stays dead until the end."""
    await world.testbed.kill(world.middle)
    try:
        yield
    finally:
        await world.testbed.restart(world.middle)


@asynccontextmanager
async def full_disk(world: World) -> AsyncIterator[None]:
    """The disk of one node is full: what it writes to a file fails with ENOSPC.

    Without the shim no file of it may grow, and it gets EFBIG.
    """
    if world.bad_disk is not None:
        async with bad_disk("N")(world):
            yield
        return
    pid = world.testbed.pid(world.middle)
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # started anew meanwhile, with room again
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def bad_disk(how: str) -> Callable[[World], Done]:
    """The disk of one node fails as a letter says; see `baddisk.c`."""

    @asynccontextmanager
    async def done(world: World) -> AsyncIterator[None]:
        assert world.bad_disk is not None
        switch = world.bad_disk / str(world.testbed.pid(world.middle))
        switch.write_text(how)
        try:
            yield
        finally:
            switch.unlink()

    return done


def _no_shim(world: World) -> str:
    return "" if world.bad_disk else "no C compiler: install gcc"


def build_shim(folder: Path) -> dict[str, str]:
    """Environment of nodes whose disk can be made to fail; empty where no C compiler is. Blocks."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return {}
    source, library = Path(__file__).with_name("baddisk.c"), folder / "baddisk.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
        check=True,
        capture_output=True,
    )
    return {"LD_PRELOAD": str(library), "KEYHAUL_BAD_DISK": str(folder)}


@asynccontextmanager
async def expired(world: World) -> AsyncIterator[None]:
    """The certificate of one node is past its time, then replaced; the node is started anew for each."""
    node = next(each for each in world.testbed.topology.nodes if each.name == world.middle)
    old = Lifetimes(leaf=1, start=datetime.now(UTC) - timedelta(days=3))

    async def renew(lifetimes: Lifetimes) -> None:
        pki = Pki.open(world.testbed.directory / "pki", lifetimes=lifetimes, overwrite=True)
        await asyncio.to_thread(pki.node, node.domain, node.name, world.testbed.layout.hosts(node.name))
        with contextlib.suppress(Unavailable):  # a node may refuse to start with such a certificate
            await world.testbed.restart(node.name)

    await renew(old)
    try:
        yield
    finally:
        await renew(Lifetimes())


# ---------------------------------------------------------------------- devices


def device(**knobs: float) -> Callable[[World], Done]:
    """Knobs of one device of the link nearest to the middle."""

    @asynccontextmanager
    async def done(world: World) -> AsyncIterator[None]:
        name = _device(world).name
        await turn(world.testbed, name, knobs)
        try:
            yield
        finally:
            await turn(world.testbed, name, dict.fromkeys(knobs, 0))

    return done


@asynccontextmanager
async def device_killed(world: World) -> AsyncIterator[None]:
    """kill -9 of both devices of a link, with all keys in their memory; they stay dead until the end."""
    names = _pair(world)
    for name in names:
        await world.testbed.kill(name)
    try:
        yield
    finally:
        for name in names:
            await world.testbed.restart(name)


def _pair(world: World) -> list[str]:
    """Both devices of the link."""
    link = _device(world).link
    return [spot.name for spot in world.testbed.layout.spots if spot.link == link]


def _block(world: World) -> float:
    """Seconds until a device that is empty makes its next block of keys, in the mean."""
    supply = PRESETS[_device(world).preset].supply()
    return supply.block / supply.rate


def _device(world: World) -> DeviceSpot:
    spots = world.testbed.layout.spots
    return next((spot for spot in spots if spot.node == world.middle), spots[0])


def _device_nodes(world: World) -> frozenset[str]:
    spot = _device(world)
    return frozenset({spot.node, spot.far})


def _no_devices(world: World) -> str:
    return "" if world.testbed.layout.spots else "this network has no devices"


async def turn(testbed: Testbed, name: str, knobs: dict[str, float]) -> None:
    """Turn knobs of a simulated device, as its operator. Raises Unavailable if it refuses."""
    spot = next(each for each in testbed.layout.spots if each.name == name)
    files = testbed.operator(testbed.layout.domains[spot.link.a])
    tls = client_context(Credentials(files.cert, files.key, files.ca), Policy.COMPATIBLE)
    flags = {
        knob: bool(value) if knob in ("cut", "dry", "disagree") else value for knob, value in knobs.items()
    }
    devices = {device["name"]: device for device in testbed.state()["devices"]}
    url = f"{devices[name]['url']}/testbed/knobs"
    async with (
        aiohttp.ClientSession() as session,
        session.put(url, data=json.dumps(flags), ssl=tls) as answer,
    ):
        if answer.status != 200:
            raise Unavailable(f"{name} answered {answer.status}: {await answer.text()}")


# ---------------------------------------------------------------------- callers


@asynccontextmanager
async def slow_clients(world: World) -> AsyncIterator[None]:
    """Applications with good certificates that send their header drop by drop."""
    async with _crowd(SLOW_CLIENTS, lambda: _drip(world)):
        yield


@asynccontextmanager
async def flood(world: World) -> AsyncIterator[None]:
    """Strangers that open connections to an application port and say nothing."""
    host, port = _address(world)
    async with _crowd(FLOOD, lambda: _mute(host, port)):
        yield


@asynccontextmanager
async def greedy(world: World) -> AsyncIterator[None]:
    """One application of the first node asks for as many keys as it can, all the time."""
    state = world.testbed.state()
    sae = next(each for each in state["saes"] if each["id"] == _greedy(world))
    other = next(each for each in state["saes"] if each["node"] == world.nodes[-1])
    files = Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    tls = client_context(files, Policy.COMPATIBLE)
    url = f"{sae['sae_url']}/api/v1/keys/{other['id']}/enc_keys?number=128"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0)) as session:

        async def grab() -> None:
            async with session.get(url) as answer:
                await answer.read()
                if answer.status != 200:
                    await asyncio.sleep(0.01)

        async with _crowd(GREED, grab):
            yield


def _greedy(world: World) -> str:
    """The SAE that asks for everything; everybody else is owed a fair share."""
    return str(next(each["id"] for each in world.testbed.state()["saes"] if each["node"] == world.nodes[0]))


def nobody(world: World) -> frozenset[str]:
    return frozenset()


def _address(world: World) -> tuple[str, int]:
    sae = next(each for each in world.testbed.state()["saes"] if each["node"] == world.middle)
    host, _, port = sae["sae_url"].removeprefix("https://").rpartition(":")
    return host, int(port)


async def _drip(world: World) -> None:
    sae = next(each for each in world.testbed.state()["saes"] if each["node"] == world.middle)
    files = Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    host, port = _address(world)
    tls = client_context(files, Policy.COMPATIBLE)
    _, writer = await asyncio.open_connection(host, port, ssl=tls)
    with contextlib.closing(writer):
        for byte in b"GET /api/v1/keys/x/status HTTP/1.1\r\nX-Slow: ":
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(PREEMPT)


async def _mute(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        await reader.read()  # until the port has had enough of it


@asynccontextmanager
async def _crowd(number: int, act: Callable[[], object]) -> AsyncIterator[None]:
    """So many callers at once, each starting over when it is thrown out."""

    async def again() -> None:
        while True:
            try:
                await act()  # type: ignore[misc]
            except (OSError, aiohttp.ClientError, KeyhaulError, EOFError, TimeoutError):
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(again()) for _ in range(number)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


FAULTS: tuple[Fault, ...] = (
    Fault("delay 20 ms, jitter 5 ms", everywhere, weather(Wire(delay=0.02, jitter=0.005))),
    Fault("loss 5 %", everywhere, weather(Wire(delay=0.005, loss=0.05))),
    Fault("rate 512 kbit/s", everywhere, weather(Wire(rate=512_000))),
    Fault("partition into halves", _halves, partition),
    Fault("one node's wires flap", in_the_middle, flapping),
    Fault("relay killed", in_the_middle, killed),
    Fault("disk full", in_the_middle, full_disk),
    Fault("fsync fails with EIO", in_the_middle, bad_disk("F"), _no_shim),
    Fault("fsync takes 0.2 s longer", in_the_middle, bad_disk("S"), _no_shim),
    Fault("certificate expired, then replaced", in_the_middle, expired),
    Fault("quantum link cut", _device_nodes, device(cut=1), _no_devices, _block),
    Fault("device dry", _device_nodes, device(dry=1), _no_devices, _block),
    Fault("device lags 1 s", _device_nodes, device(lag_s=1.0), _no_devices, _block),
    Fault("devices disagree", _device_nodes, device(disagree=1), _no_devices, _block),
    Fault("devices killed", _device_nodes, device_killed, _no_devices, _block),
    Fault("slow clients", in_the_middle, slow_clients),
    Fault("connection flood", in_the_middle, flood),
    Fault("greedy application", nobody, greedy, culprit=_greedy, floor=0.99),
)


def shim_folder() -> Path:
    """A private folder for the shim and its switches."""
    return Path(tempfile.mkdtemp(prefix="keyhaul-disk-"))
