"""Power loss under whole nodes: applications ask over ETSI 014 while nodes lose all that they did not flush.

Three nodes as processes, each over the shim of `test_power_loss.py`. A node is killed at a moment that chance
chose and comes up with its store as of the last flush. KEYHAUL_POWER_LOSSES sets how often, a tenth of it at
most; `make powerloss` does it ten times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from keyhaul.edge.client import Received
from keyhaul.errors import KeyhaulError, KeyNotFound
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Link, Node, Topology
from tests.e2e.test_power_loss import pytestmark, shim
from tests.e2e.test_promises import Bench, patiently

__all__ = ["pytestmark", "shim"]

LOSSES = max(3, int(os.environ.get("KEYHAUL_POWER_LOSSES", "4")) // 10)
NAMES = ("n1", "n2", "n3")
LINE = Topology(
    "line-of-three",
    "an origin, a relay and a destination",
    tuple(Node(name, "lab", (f"sae-{name}",)) for name in NAMES),
    (Link("n1", "n2", "pqc"), Link("n2", "n3", "pqc")),
)
STORE = ("keyhaul.db", "keyhaul.db-wal", "keyhaul.db-shm")


@dataclass
class Power:
    """What nodes lose. `lies`: their disks say that they flushed, and keep what they began with."""

    folder: Path
    lies: bool = False
    times: Counter[str] = field(default_factory=Counter)

    def of(self, node: str) -> Path:
        return self.folder / "nodes" / node

    def before_the_first_start(self, step: str) -> None:
        """From now on what a node flushes is kept; its store is made when it starts."""
        if step == f"{len(NAMES)} nodes":
            for node in NAMES:
                (self.of(node) / "flushed").mkdir()

    def began(self) -> None:
        """What a disk that lies will keep."""
        for node in NAMES:
            shutil.copytree(self.of(node) / "flushed", self.of(node) / "begun")

    async def fails(self, testbed: Testbed, node: str) -> None:
        """The node is gone, and so is what it did not flush; returns when it serves again."""
        self.times[node] += 1
        await testbed.kill(node)
        kept = self.of(node) / "flushed"
        for unfinished in kept.glob("*.[0-9]*"):
            unfinished.unlink()  # the copy in which the power failed
        for name in STORE:
            (self.of(node) / name).unlink(missing_ok=True)
        for name in STORE:
            file = (self.of(node) / "begun" if self.lies else kept) / name
            if file.exists():
                shutil.copy2(file, self.of(node) / name)
        await testbed.restart(node)
        self.times[node] += 1


class Users:
    """A master that asks, a slave that fetches about half of it meanwhile; they know what they were told."""

    def __init__(self, bench: Bench, power: Power) -> None:
        self.bench = bench
        self.power = power
        self.waiting: list[Received] = []
        self.fetched: list[Received] = []
        self.seen: set[UUID] = set()
        self.found: Counter[str] = Counter()

    async def ask(self) -> None:
        while True:
            try:
                keys = await self.bench.ask(NAMES[0], NAMES[-1], 2)
            except KeyhaulError:
                await asyncio.sleep(0.02)
                continue
            for key in keys:
                self.found["acknowledged"] += 1
                self.found["ids again"] += key.key_id in self.seen
                self.seen.add(key.key_id)
                self.waiting.append(key)

    async def fetch(self) -> None:
        while True:
            if len(self.waiting) <= len(self.fetched):
                await asyncio.sleep(0.02)
                continue
            key = self.waiting.pop(random.randrange(len(self.waiting)))
            times = self.power.times[NAMES[-1]]
            try:
                (same,) = await self.bench.fetch(NAMES[0], NAMES[-1], [key])
            except KeyhaulError as error:
                calm = times % 2 == 0 and times == self.power.times[NAMES[-1]]
                self.found["lost" if isinstance(error, KeyNotFound) and calm else "answer lost"] += 1
                continue
            self.found["changed"] += not same.bits.same_as(key.bits)
            self.fetched.append(key)

    async def more(self, number: int) -> None:
        enough = self.found["acknowledged"] + number
        async with asyncio.timeout(120.0):
            while self.found["acknowledged"] < enough:
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Everything that waits is there, and nothing that was fetched."""
        for key in self.waiting:
            try:
                (same,) = await patiently(lambda key=key: self.bench.fetch(NAMES[0], NAMES[-1], [key]))  # type: ignore[misc]
                self.found["changed"] += not same.bits.same_as(key.bits)
            except KeyNotFound:
                self.found["lost"] += 1
        for key in self.fetched:
            with contextlib.suppress(KeyNotFound):
                await patiently(lambda key=key: self.bench.fetch(NAMES[0], NAMES[-1], [key]))  # type: ignore[misc]
                self.found["delivered and back"] += 1


async def storm(directory: Path, shim: Path, nodes: list[str], *, lies: bool = False) -> Users:
    """Power fails at these nodes in turn, under load."""
    power = Power(directory / "net", lies)
    environment = {"LD_PRELOAD": str(shim), "KEYHAUL_SHADOW": "flushed"}
    settings = {"delivery": {"request_timeout": 5.0}}
    async with contextlib.AsyncExitStack() as stack:
        testbed = Testbed(
            LINE,
            power.folder,
            settings=settings,
            environment=environment,
            progress=power.before_the_first_start,
        )
        bench = Bench(await stack.enter_async_context(testbed), stack)
        await bench.open()
        power.began()
        users = Users(bench, power)
        tasks = [asyncio.ensure_future(use()) for use in (users.ask, users.ask, users.ask, users.fetch)]
        for node in nodes:
            await users.more(random.randrange(10, 40))
            await power.fails(testbed, node)
        await users.more(4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await users.settle()
        print(f"{len(nodes)} power losses:", dict(users.found), f"{len(users.fetched)} fetched meanwhile")
        return users


def test_no_key_that_an_application_has_is_lost_or_comes_twice(tmp_path: Path, shim: Path) -> None:
    nodes = [NAMES[number % len(NAMES)] for number in range(LOSSES)]
    found = asyncio.run(storm(tmp_path, shim, nodes)).found
    assert found["acknowledged"] > 10 * LOSSES
    broken = {name: found[name] for name in ("lost", "changed", "ids again", "delivered and back")}
    assert not any(broken.values()), broken


@pytest.mark.skipif(LOSSES < 10, reason="`make powerloss` shows that a disk which lies is found out")
def test_a_disk_that_lies_about_flushing_is_found_out(tmp_path: Path, shim: Path) -> None:
    found = asyncio.run(storm(tmp_path, shim, [NAMES[-1]], lies=True)).found
    assert found["lost"] + found["delivered and back"] > 0
