"""The wires of a network whose nodes have a namespace each: faults act on packets, not on byte streams."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from keyhaul.testbed.chaos.namespaces import Namespace
from keyhaul.testbed.chaos.wiring import Wire, Wiring
from keyhaul.testbed.processes import Process
from keyhaul.testbed.topology import Topology

PREFIX = "10.77.0."  # inside of namespaces that nothing else is joined to; a testbed has 64 nodes at most
PATIENCE = 20.0  # seconds until the fabric runs


class Packets(Wiring):
    """Namespaces by node, and the process that carries packets between neighbours; see `fabric`."""

    kind = "namespaces"

    def __init__(self, process: Process, places: dict[str, Namespace]) -> None:
        super().__init__()
        self.places = places
        self._process = process
        self._control, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @classmethod
    async def open(cls, topology: Topology, folder: Path) -> Self:
        """Make everything; `folder` takes the log. Raises OSError where there may be no namespaces."""
        places: dict[str, Namespace] = {}
        log, ready = folder / "fabric.log", folder / "fabric.ready"
        command = [sys.executable, "-m", "keyhaul.testbed.chaos.fabric", str(ready)]
        made = cls(Process("fabric", command, log, ready), places)
        try:
            for number, node in enumerate(topology.nodes, 1):
                places[node.name] = await asyncio.to_thread(Namespace, f"{PREFIX}{number}")
            for link in topology.links:
                made._wires[frozenset((link.a, link.b))] = Wire()
            await made._start()
        except BaseException:
            await made.close()
            raise
        return made

    async def _start(self) -> None:
        handed = {"control": self._far.fileno(), **{name: each.tun for name, each in self.places.items()}}
        await self._process.start(handed)
        self._far.close()
        addresses = {name: each.address for name, each in self.places.items()}
        self._tell(self.pairs(), addresses=addresses)
        await self._process.until_ready(PATIENCE)

    def _changed(self, a: str, b: str, wire: Wire) -> None:
        self._tell([(a, b)])

    def _tell(self, pairs: Sequence[tuple[str, str]], **more: object) -> None:
        wires = [(a, b, vars(self._wires[frozenset((a, b))])) for a, b in pairs]
        self._control.send(json.dumps({"wires": wires, **more}).encode())

    async def close(self) -> None:
        """The fabric ends; a namespace goes when nobody is in it any more."""
        self._control.close()
        self._far.close()
        await self._process.stop()
        for place in self.places.values():
            place.close()
        self.places.clear()
