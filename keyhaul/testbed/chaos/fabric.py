"""Carries IP packets between namespaces, late, thinned out, slowly, or not at all: a process of its own.

    python -m keyhaul.testbed.chaos.fabric READY_FILE

It is handed the TUN interfaces of all nodes and a `control` socket (as sd_listen_fds(3) says), reads what the
wires are like from there, one JSON message at a time, and ends when the other side closes it. Packets for
anybody but a neighbour are dropped: nodes have no other way to each other. Nothing overtakes on a wire.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

from keyhaul.testbed.chaos.wiring import Wire

FIRST = 3  # SD_LISTEN_FDS_START
QUEUE = 0.2  # seconds of traffic that wait before a slow wire; what comes then is dropped
BURST = 64  # packets read from one interface before the others have their turn
LARGEST = 65_536  # bytes of a packet or of a control message


class Paths:
    """When a packet arrives at the other end of its wire, if it does. Pure: it is told the time (seconds)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._wires: dict[tuple[str, str], Wire] = {}
        self._free: dict[tuple[str, str], float] = {}  # when the wire has sent what waits
        self._last: dict[tuple[str, str], float] = {}  # when the packet before arrives

    def set(self, a: str, b: str, wire: Wire) -> None:
        """Both directions alike."""
        self._wires[a, b] = self._wires[b, a] = wire

    def due(self, way: tuple[str, str], size: int, now: float) -> float | None:
        """When `size` bytes that leave now arrive; None if they never do."""
        wire = self._wires.get(way)
        if wire is None or not wire.up or (wire.loss and self._rng.random() < wire.loss):
            return None
        sent = now
        if wire.rate:
            start = max(now, self._free.get(way, 0.0))
            if start - now > QUEUE:
                return None
            sent = self._free[way] = start + size * 8 / wire.rate
        flight = max(0.0, wire.delay + self._rng.uniform(-wire.jitter, wire.jitter))
        arrival = self._last[way] = max(sent + flight, self._last.get(way, 0.0))
        return arrival


class Fabric:
    """The loop around `Paths`: packets in, packets out. Nobody else may read from the interfaces."""

    def __init__(self, tuns: dict[str, int], control: socket.socket) -> None:
        self._tuns = tuns
        self._control = control
        self._paths = Paths(random.Random())  # noqa: S311 (weather, not a key)
        self._nodes: dict[bytes, str] = {}
        self._flying: list[tuple[float, int, int, bytes]] = []  # due, number, interface, packet
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        for name, tun in tuns.items():
            self._selector.register(tun, selectors.EVENT_READ, name)

    def run(self, ready: Path) -> None:
        """Until the control socket is closed; `ready` is written when all wires are known."""
        while True:
            wait = max(0.0, self._flying[0][0] - time.monotonic()) if self._flying else None
            heard = [key for key, _ in self._selector.select(wait)]
            if any(key.data is None for key in heard):  # before the packets that were sent after it
                message = self._control.recv(LARGEST)
                if not message:
                    return
                self._tell(json.loads(message))
                ready.touch()
            for key in heard:
                if key.data is not None:
                    self._take(key.data, key.fd)
            self._deliver()

    def _tell(self, message: dict[str, Any]) -> None:
        for name, address in message.get("addresses", {}).items():
            self._nodes[socket.inet_aton(address)] = name
        for a, b, wire in message["wires"]:
            self._paths.set(a, b, Wire(**wire))

    def _take(self, source: str, tun: int) -> None:
        for _ in range(BURST):
            try:
                packet = os.read(tun, LARGEST)
            except BlockingIOError:
                return
            target = self._nodes.get(packet[16:20]) if packet[0] >> 4 == 4 else None  # IPv4, RFC 791
            if target is None:
                continue
            due = self._paths.due((source, target), len(packet), time.monotonic())
            if due is not None:
                self._number += 1
                heapq.heappush(self._flying, (due, self._number, self._tuns[target], packet))

    def _deliver(self) -> None:
        while self._flying and self._flying[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(self._flying)
            try:
                os.write(tun, packet)
            except OSError:
                continue  # the interface's queue is full, as a router's may be


def main(argv: list[str]) -> None:
    """What `Packets` starts."""
    names = os.environ["LISTEN_FDNAMES"].split(":")
    descriptors = dict(zip(names, range(FIRST, FIRST + len(names)), strict=True))
    control = socket.socket(fileno=descriptors.pop("control"))
    Fabric(descriptors, control).run(Path(argv[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
