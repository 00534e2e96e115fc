"""A whole network of real processes on this machine: set up in a directory, kept running, stopped for good.

The sockets of all nodes are bound before the first node starts, so that all addresses are known when the
configurations are written; nodes get theirs the way systemd hands them over. A node that dies is started
again on the same ports. Children die with their parent, however it dies.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from keyhaul.config import NodeConfig, load
from keyhaul.config.write import write
from keyhaul.errors import ConfigError, KeyhaulError, Unavailable
from keyhaul.pki import Files
from keyhaul.testbed.faults import Attack
from keyhaul.testbed.layout import PORTS, Certificates, Layout
from keyhaul.testbed.pidfile import PidFile
from keyhaul.testbed.processes import Process, listening, rebound
from keyhaul.testbed.state import describe
from keyhaul.testbed.topology import Topology

START_PATIENCE = 120.0
"""Seconds a process may take until it serves; on an idle machine it takes one or two."""

_RETRY = 1.0  # seconds between attempts to start a node that does not come up

Progress = Callable[[str], None]
Way = Callable[[str, str, str, int], Awaitable[tuple[str, int]]]
"""Gives the address at which a node reaches a neighbour that listens on a host and port."""


class Place(Protocol):
    """Where a node lives with its devices: a network namespace, its descriptor, and its address there."""

    @property
    def descriptor(self) -> int: ...
    @property
    def address(self) -> str: ...

    def listening(self, port: int = 0) -> socket.socket:
        """A listening socket inside, as `keyhaul.testbed.processes.listening` makes it outside."""


def _quiet(_: str) -> None:
    """Nobody watches."""


class Testbed:
    """`async with Testbed(named("galicia-basque"), directory) as testbed: ...`.

    `settings` are tables for every node's configuration, such as `{"delivery": {"pool": 8}}`. `cheats` names
    nodes that do what `keyhaul.testbed.faults` says to keys that pass them. `progress` is told each step in a
    few words. `way` may put something between two nodes; `environment` is added to that of each node.
    `places` are namespaces by node: node and device ports are inside, those for applications and operators
    outside, on loopback. Raises ConfigError if the directory is in use, Unavailable if a process does not
    come up.
    """

    __test__ = False  # not a test class, whatever its name

    def __init__(
        self,
        topology: Topology,
        directory: Path,
        *,
        restart: bool = True,
        settings: Mapping[str, Any] | None = None,
        cheats: Mapping[str, Attack] | None = None,
        progress: Progress = _quiet,
        way: Way | None = None,
        environment: Mapping[str, str] | None = None,
        places: Mapping[str, Place] | None = None,
    ) -> None:
        self.topology = topology
        self._places = places or {}
        addresses = {name: place.address for name, place in self._places.items()}
        self.layout = Layout(topology, directory, addresses)
        self.directory = self.layout.directory
        self._restart = restart
        self._settings = settings or {}
        self._cheats = {name: Attack(attack) for name, attack in (cheats or {}).items()}
        if unknown := self._cheats.keys() - {node.name for node in topology.nodes}:
            raise ConfigError(f"there is no {', '.join(sorted(unknown))} that could cheat", "name its nodes")
        self._progress = progress
        self._way = way
        self._environment = environment
        self._pid_file = PidFile(self.directory / "testbed.pid")
        self._certificates: Certificates | None = None
        self._urls: dict[str, dict[str, str]] = {}
        self._nodes: dict[str, Process] = {}
        self._devices: dict[str, Process] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:  # also a Ctrl-C half-way up: what has started must not stay
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Set everything up and return when all nodes serve."""
        self._claim()
        if missing := self.topology.left_out():
            self._progress(missing)
        self._progress("certificates")
        self._certificates = await asyncio.to_thread(self.layout.make_certificates)
        self.layout.write_devices(self._certificates)
        self._progress(f"{len(self.layout.spots)} devices")
        await self._start_devices()
        sockets = {
            node.name: {port: self._listening(node.name, port) for port in PORTS}
            for node in self.topology.nodes
        }
        try:
            self._urls |= {name: _urls(ports) for name, ports in sockets.items()}
            self.layout.write_nodes(self._certificates, self._urls, self._settings, await self._ways())
            self._progress("stores")
            await self._prepare_stores()
            self._progress(f"{len(sockets)} nodes")
            await self._start_nodes(sockets)
        finally:
            _close(each for ports in sockets.values() for each in ports.values())
        self._write_state()

    async def stop(self) -> None:
        """End all processes, nodes before devices; calling it twice is fine."""
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        self._watchers.clear()
        await asyncio.gather(*(process.stop() for process in self._nodes.values()))
        await asyncio.gather(*(process.stop() for process in self._devices.values()))
        self._pid_file.release()

    async def kill(self, node: str) -> None:
        """kill -9 one node or device; it stays dead until `restart`."""
        await self._unwatch(node)
        await self._process(node).kill()
        self._write_state()

    async def restart(self, node: str) -> None:
        """Start a node or device again on its ports, dead or not; returns when it serves."""
        await self._unwatch(node)
        await self._process(node).stop()
        await self._revive(node)
        self._watch(node)

    def config(self, node: str) -> NodeConfig:
        """The configuration one node runs with."""
        return load(self.layout.node_file(node))

    def pid(self, process: str) -> int:
        """The process id of a node or a device; 0 while it does not run."""
        return self._process(process).pid

    def operator(self, domain: str) -> Files:
        """Who may turn the knobs of the devices of one domain (`PUT {device}/testbed/knobs`)."""
        return self._made.operators[domain]

    def state(self) -> dict[str, Any]:
        """What testbed.json says: absolute addresses and paths."""
        return describe(self.layout, self._made, self._urls, self.pid)

    @property
    def _made(self) -> Certificates:
        if self._certificates is None:
            raise ConfigError("the testbed has not been started", "start it first")
        return self._certificates

    def _process(self, name: str) -> Process:
        found = self._nodes.get(name) or self._devices.get(name)
        if found is None:
            raise ConfigError(f"there is no {name} in this testbed", f"use one of {', '.join(self._nodes)}")
        return found

    def _claim(self) -> None:
        """Take a fresh or empty directory; an earlier testbed's keys are not overwritten."""
        if self._pid_file.holder():
            raise ConfigError(
                f"a testbed runs in {self.directory} already", f"keyhaul testbed down --dir {self.directory}"
            )
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ConfigError(f"{self.directory} is not empty", "remove it, or choose another directory")
        self.layout.make_folders()
        self._pid_file.take()

    async def _start_devices(self) -> None:
        sockets = {
            spot.name: {port: self._listening(spot.name, port) for port in self._device_ports(spot.node)}
            for spot in self.layout.spots
        }
        try:
            self._urls |= {name: _urls(ports) for name, ports in sockets.items()}
            for spot in self.layout.spots:
                command = [
                    "-m",
                    "keyhaul.testbed.devices",
                    "--config",
                    str(self.layout.device_file(spot.name)),
                ]
                self._devices[spot.name] = self._make_process(spot.name, command)
            await _all_up(self._devices.values(), sockets)
        finally:
            _close(each for ports in sockets.values() for each in ports.values())

    async def _prepare_stores(self) -> None:
        from keyhaul.node import prepare

        for node in self.topology.nodes:
            await asyncio.to_thread(prepare, self.config(node.name))

    async def _ways(self) -> dict[tuple[str, str], str]:
        """The URLs of neighbours that are not reached directly, by (node, neighbour)."""
        if self._way is None:
            return {}
        ends = [pair for link in self.topology.links for pair in ((link.a, link.b), (link.b, link.a))]
        ways = {}
        for node, far in ends:
            host, _, port = self._urls[far]["node"].removeprefix("https://").rpartition(":")
            ways[node, far] = "https://{}:{}".format(*await self._way(node, far, host, int(port)))
        return ways

    async def _start_nodes(self, sockets: Mapping[str, Mapping[str, socket.socket]]) -> None:
        for node in self.topology.nodes:
            command = ["-m", "keyhaul.cli", "serve", "--config", str(self.layout.node_file(node.name))]
            if attack := self._cheats.get(node.name):
                command[1:3] = ["keyhaul.cli.byzantine"]
                command += ["--attack", attack.value]
            self._nodes[node.name] = self._make_process(node.name, command)
        await _all_up(self._nodes.values(), sockets)
        for name in (*self._devices, *self._nodes):
            self._watch(name)

    def _make_process(self, name: str, command: list[str]) -> Process:
        log, ready = self.layout.log_file(name), self.layout.ready_file(name)
        environment = self._environment if name in self.layout.domains else None
        place = self._places.get(self.layout.site(name))
        namespace = None if place is None else place.descriptor
        return Process(name, [sys.executable, *command], log, ready, environment, namespace)

    def _device_ports(self, node: str) -> tuple[str, ...]:
        return ("device", "operator") if node in self._places else ("device",)

    def _listening(self, process: str, port: str, number: int | None = None) -> socket.socket:
        """A socket for one of a process's ports; with its number again after the process has died."""
        place = self._places.get(self.layout.site(process))
        if port in ("node", "device") and place is not None:
            return place.listening(number or 0)
        return listening() if number is None else rebound(number)

    def _watch(self, node: str) -> None:
        if self._restart:
            self._watchers[node] = asyncio.create_task(self._keep(node), name=f"keep {node}")

    async def _unwatch(self, node: str) -> None:
        watcher = self._watchers.pop(node, None)
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _keep(self, node: str) -> None:
        """Start a node or device again whenever it ends, for as long as it takes."""
        while True:
            code = await self._process(node).wait()
            self._progress(f"{node} ended with {code}; starting it again")
            try:
                await self._revive(node)
            except (KeyhaulError, OSError) as problem:
                self._progress(f"{node} does not start: {problem}")
                await self._process(node).kill()
                await asyncio.sleep(_RETRY)

    async def _revive(self, node: str) -> None:
        ports: dict[str, socket.socket] = {}
        try:
            for port, url in self._urls[node].items():
                number = int(url.rpartition(":")[2])
                ports[port] = await _again(functools.partial(self._listening, node, port, number))
            await self._process(node).start(ports)
            await self._process(node).until_ready(START_PATIENCE)
        finally:
            _close(ports.values())
        self._write_state()

    def _write_state(self) -> None:
        write(self.directory / "testbed.json", json.dumps(self.state(), indent=1) + "\n")


def remove(directory: Path) -> None:
    """Take away what an earlier testbed left; raises ConfigError if it runs, or if it is none."""
    if not directory.exists():
        return
    if PidFile(directory / "testbed.pid").holder():
        raise ConfigError(f"a testbed runs in {directory}", f"keyhaul testbed down --dir {directory}")
    if any(directory.iterdir()) and not (directory / "network.toml").exists():
        raise ConfigError(f"{directory} holds no testbed", "choose another directory")
    shutil.rmtree(directory)


async def _all_up(processes: Iterable[Process], sockets: Mapping[str, Mapping[str, socket.socket]]) -> None:
    """Start all and wait for all; the first failure ends the wait."""
    waiting = []
    try:
        for process in processes:
            await process.start(sockets.get(process.name))
            waiting.append(asyncio.create_task(process.until_ready(START_PATIENCE)))
        await asyncio.gather(*waiting)
    finally:
        for task in waiting:
            task.cancel()


async def _again(bind: Callable[[], socket.socket]) -> socket.socket:
    """Bind a port that a dead child held; an outgoing connection may sit on it for a moment."""
    give_up = time.monotonic() + 5.0
    while True:
        try:
            return bind()
        except OSError as problem:
            if time.monotonic() > give_up:
                raise Unavailable(f"a port is taken: {problem.strerror}", "stop the testbed") from None
            await asyncio.sleep(0.05)


def _urls(ports: Mapping[str, socket.socket]) -> dict[str, str]:
    return {name: "https://{}:{}".format(*each.getsockname()) for name, each in ports.items()}


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()
