"""A testbed whose nodes share a few processes, and its devices one: for networks of many nodes.

    python -m keyhaul.testbed.crowd nodes|devices READY_FILE CONFIG …

Nothing else differs: every node has its own store, ports and certificates, and speaks to the others over TLS.
Killing or restarting a single node is not possible here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyhaul.config.write import write
from keyhaul.errors import ConfigError
from keyhaul.testbed.network import START_PATIENCE, Testbed
from keyhaul.testbed.processes import POLL, Process
from keyhaul.testbed.topology import Topology

_EACH = 5.0  # seconds more to start, for every node of a process


class Crowd(Testbed):
    """As `Testbed`, with all nodes in `processes` processes."""

    def __init__(self, topology: Topology, directory: Path, *, processes: int, **more: Any) -> None:
        super().__init__(topology, directory, restart=False, **more)
        names = [node.name for node in topology.nodes]
        self._groups = [names[at::processes] for at in range(min(processes, len(names)))]

    def node_pids(self) -> list[int]:
        """The processes the nodes run in."""
        return [process.pid for process in self._nodes.values()]

    async def kill(self, node: str) -> None:
        raise ConfigError(f"{node} shares its process with others", "use a testbed of at most 64 nodes")

    async def restart(self, node: str) -> None:
        raise ConfigError(f"{node} shares its process with others", "use a testbed of at most 64 nodes")

    def _process(self, name: str) -> Process:
        for at, group in enumerate(self._groups):
            if name in group:
                return self._nodes[f"nodes-{at}"]
        return self._devices["devices"]

    async def _start_devices(self) -> None:
        files = [self.layout.device_file(spot.name) for spot in self.layout.spots]
        self._devices["devices"] = self._together("devices", "devices", files)
        await self._devices["devices"].start()
        await self._devices["devices"].until_ready(START_PATIENCE + _EACH * len(files))
        self._urls |= {spot.name: {"device": self.layout.device_url(spot.name)} for spot in self.layout.spots}

    async def _start_nodes(self, sockets: Mapping[str, Mapping[str, socket.socket]]) -> None:
        for at, group in enumerate(self._groups):
            name = f"nodes-{at}"
            self._nodes[name] = self._together("nodes", name, [self.layout.node_file(node) for node in group])
            handed = {f"{node}.{port}": each for node in group for port, each in sockets[node].items()}
            await self._nodes[name].start(handed)
        patience = START_PATIENCE + _EACH * len(self.topology.nodes)
        await asyncio.gather(*(process.until_ready(patience) for process in self._nodes.values()))

    def _together(self, kind: str, name: str, files: list[Path]) -> Process:
        ready = self.layout.ready_file(name)
        command = ["-m", "keyhaul.testbed.crowd", kind, str(ready), *map(str, files)]
        return self._make_process(name, command)


async def _nodes(ready: Path, files: list[Path], stop: asyncio.Event) -> None:
    from keyhaul.config import load
    from keyhaul.edge.activation import inherited
    from keyhaul.node import Node

    nodes = [Node(load(file)) for file in files]
    ports = {f"{node.config.name}.{port}" for node in nodes for port, _ in node.config.listeners}
    sockets = inherited(frozenset(ports))
    try:
        # All at once: whoever is up calls its neighbours, and waits for those that do not serve yet.
        async with asyncio.TaskGroup() as tasks:
            for node in nodes:
                names = {port: f"{node.config.name}.{port}" for port, _ in node.config.listeners}
                tasks.create_task(node.start({port: sockets[name] for port, name in names.items()}))
        write(ready, "{}")
        await stop.wait()
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def _devices(ready: Path, files: list[Path], stop: asyncio.Event) -> None:
    from keyhaul.testbed.devices import Device, load

    configs = [load(file) for file in files]
    running = [asyncio.create_task(Device(config).run(stop), name=config.name) for config in configs]
    while not all(os.path.exists(config.ready) for config in configs):  # noqa: ASYNC240 - as cheap as a call gets
        if ended := [task for task in running if task.done()]:
            ended[0].result()  # a device ends early only by an error
        await asyncio.sleep(POLL)
    write(ready, "{}")
    await asyncio.gather(*running)


async def _until_signal(kind: str, ready: Path, files: list[Path]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await (_nodes if kind == "nodes" else _devices)(ready, files, stop)


if __name__ == "__main__":
    import uvloop

    os.umask(0o077)
    uvloop.run(_until_signal(sys.argv[1], Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]]))
