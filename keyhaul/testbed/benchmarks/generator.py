"""The load generator, a process of its own: a task as a line of JSON on stdin, its result as one on stdout.

    python -m keyhaul.testbed.benchmarks.generator

It ends with its input. Tasks (`kind`), besides those of `asking` and `pairing_up`:
* `hops`: one key after the other from one SAE to several, each compared with its copy at the far end;
* `flood`: as many requests as a few connections carry, in slices that take turns between targets;
* `turns`: one request at a time, alternating between targets, so that noise hits all of them.

`hops` speaks through aiohttp, as an application would. The other two write prepared requests and look for
nothing but status and length, so that the node and not this process is the limit.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from yarl import URL

from keyhaul.edge.client import SaeClient
from keyhaul.testbed.benchmarks import asking, pairing_up
from keyhaul.testbed.benchmarks.report import flush_seconds, processor_seconds
from keyhaul.testbed.benchmarks.wire import Json, Wire, line, tls


class Target:
    """A port and the requests for it; the last one is repeated if `endless`.

    With `anew` each request of a flood has a connection of its own, whose handshake counts.
    """

    def __init__(self, task: Json) -> None:
        self.task = task
        url = URL(task["url"])
        self.host, self.port = url.host or "", url.port or 443
        host = f"{self.host}:{self.port}"
        requests = (line(host, each) for each in task["requests"])
        repeated: Iterator[bytes] = itertools.repeat(line(host, task["requests"][0]))
        self.requests = repeated if task.get("endless") else requests
        self.bodies: list[bytes] = []
        self.slices: list[Json] = []
        self.seconds: list[float] = []
        self.wires: list[Wire] = []
        self._tls = tls(task)

    async def connect(self, number: int) -> None:
        self.wires += [await self.wire() for _ in range(number)]

    async def wire(self) -> Wire:
        """A new connection."""
        _, wire = await asyncio.get_running_loop().create_connection(
            Wire, self.host, self.port, ssl=self._tls, server_hostname=self.host
        )
        return wire

    async def ask(self, wire: Wire, request: bytes) -> None:
        begun = time.perf_counter()
        status, body = await wire.ask(request)
        self.seconds.append(time.perf_counter() - begun)
        if status != 200:
            raise RuntimeError(f"status {status}: {body[:200].decode(errors='replace')}")
        if self.task.get("keep"):
            self.bodies.append(body)

    async def flood(self, seconds: float, most: int | None = None) -> None:
        """One slice on all connections, of at most so many requests."""
        requests = self.requests if most is None else itertools.islice(self.requests, most)
        pid, others = self.task["pid"], self.task.get("workers", [])
        self.seconds = []
        begun, used, own = time.perf_counter(), processor_seconds(pid), time.process_time()
        beside = sum(map(processor_seconds, others))
        end = begun + seconds

        async def one(wire: Wire) -> None:
            while time.perf_counter() < end:
                request = next(requests, None)
                if request is None:
                    return
                if self.task.get("anew"):
                    wire.close()
                    wire = await self.wire()
                await self.ask(wire, request)

        await asyncio.gather(*(one(wire) for wire in self.wires))
        took, ordered = time.perf_counter() - begun, sorted(self.seconds)
        if ordered:
            self.slices.append(
                {
                    "rate": len(ordered) / took,
                    "requests": len(ordered),
                    "p50": ordered[len(ordered) // 2],
                    "p95": ordered[len(ordered) * 95 // 100],
                    "server": (processor_seconds(pid) - used) / len(ordered),
                    "workers": (sum(map(processor_seconds, others)) - beside) / len(ordered),
                    "client_share": (time.process_time() - own) / took,
                }
            )

    def result(self) -> Json:
        found = [key["key_ID"] for body in self.bodies for key in json.loads(body)["keys"]]
        return {"slices": self.slices, "seconds": self.seconds, "key_ids": found}


async def flood(task: Json) -> Json:
    """Slices of `seconds`, or of `most` requests if these are over before, that take turns between the
    targets, `rounds` times; the first is a warm-up."""
    targets = [Target(each) for each in task["targets"]]
    for target in targets:
        await target.connect(task["connections"])
    for _ in range(task["rounds"]):
        for target in targets:
            await target.flood(task["seconds"], task.get("most"))
    return {"targets": [target.result() for target in targets]}


async def turns(task: Json) -> Json:
    """One request at a time, `rounds` times each target."""
    targets = [Target(each) for each in task["targets"]]
    for target in targets:
        await target.connect(1)
    for _ in range(task["rounds"]):
        for target in targets:
            await target.ask(target.wires[0], next(target.requests))
    return {"targets": [target.result() for target in targets]}


async def hops(task: Json) -> Json:
    """Rounds over all slaves; `warm` rounds come first and are not counted. Times in seconds."""
    near, far = task["near"], task["far"]
    directory = Path(task["directory"])
    seconds: list[list[tuple[float, float]]] = [[] for _ in far]
    empty: list[float] = []
    flushes: list[float] = []
    connector = aiohttp.TCPConnector(ssl=tls(near))
    async with (
        SaeClient(near["url"], tls(near)) as master,
        aiohttp.ClientSession(connector=connector) as bare,
    ):
        slaves = [SaeClient(sae["url"], tls(sae)) for sae in far]
        for number in range(task["warm"] + task["rounds"]):
            for at, sae in enumerate(far):
                begun = time.perf_counter()
                (sent,) = await master.get_key(sae["id"])
                ended = time.perf_counter()
                (received,) = await slaves[at].fetch_key(near["id"], [sent.key_id])
                if not sent.bits.same_as(received.bits):
                    raise RuntimeError(f"the two ends of key {sent.key_id} differ")
                if number >= task["warm"]:
                    seconds[at].append((begun, ended))
                await asyncio.sleep(task.get("pause", 0.0))
            begun = time.perf_counter()
            async with bare.post(task["bare"], data=b'{"number":1}') as response:
                await response.read()
            empty.append(time.perf_counter() - begun)
            flushes.append(await asyncio.to_thread(flush_seconds, directory))
        for slave in slaves:
            await slave.close()
    return {"keys": seconds, "empty": empty[task["warm"] :], "flush": flushes}


KINDS: dict[str, Callable[[Json], Coroutine[Any, Any, Json]]] = {
    **asking.KINDS,
    **pairing_up.KINDS,
    "flood": flood,
    "turns": turns,
    "hops": hops,
}


def serve(tasks: Iterable[str]) -> None:
    """Do one task after the other and answer each with a line.

    Through a buffer, even where Python was told to do without (PYTHONUNBUFFERED): after a loop of uvloop a
    large write to a pipe may take a part only, and an unbuffered stream forgets the rest.
    """
    with open(sys.stdout.fileno(), "wb", closefd=False) as answers:
        for text in tasks:
            asked = json.loads(text)
            answers.write(json.dumps(uvloop.run(KINDS[asked["kind"]](asked))).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    serve(sys.stdin)
