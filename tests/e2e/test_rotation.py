"""CAs of nodes and of applications are rotated under running nodes of two domains; no request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Policy, client_context
from keyhaul.errors import ConfigError
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Link, Node, Topology
from tests.e2e.test_operate import credentials, keyhaul
from tests.e2e.test_reload import key_through

pytestmark = pytest.mark.e2e

TWO = Topology(
    "two-domains",
    "one rotates its CAs, the other looks on",
    (Node("n1", "north", ("sae-n1",)), Node("n2", "south", ("sae-n2",))),
    (Link("n1", "n2", "pqc"),),
)


class Load:
    """Applications at both ends that ask over a new connection each time; nothing is asked twice."""

    def __init__(self, testbed: Testbed) -> None:
        self.entries = {each["id"]: each for each in testbed.state()["saes"]}
        self.keys = 0

    async def client(self, sae: str) -> SaeClient:
        entry = self.entries[sae]
        return SaeClient(entry["sae_url"], await self.context(entry), patience=0.0)

    async def context(self, entry: dict[str, Any]) -> ssl.SSLContext:
        """What lies there now: a new key and its certificate are renamed one after the other."""
        async with asyncio.timeout(10):
            while True:
                try:
                    return client_context(credentials(entry), Policy.COMPATIBLE)
                except ConfigError as between:
                    if "does not belong to the certificate" not in str(between):
                        raise
                    await asyncio.sleep(0.01)

    async def run(self, master: str, slave: str) -> None:
        while True:
            async with await self.client(master) as one, await self.client(slave) as other:
                (key,) = await one.get_key(slave)
                (copy,) = await other.fetch_key(master, [key.key_id])
                assert key.bits.same_as(copy.bits)
                self.keys += 1

    async def some_more(self) -> None:
        """Wait until both ends have got through since now."""
        wanted = self.keys + 6
        async with asyncio.timeout(60):
            while self.keys < wanted:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def under_load(testbed: Testbed) -> AsyncIterator[Load]:
    """Whatever a request raises ends the test."""
    load = Load(testbed)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(load.run(*pair)) for pair in (("sae-n1", "sae-n2"), ("sae-n2", "sae-n1"))]
        yield load
        for task in tasks:
            task.cancel()


async def typed(*words: str, directory: Path) -> None:
    """One command of `keyhaul pki` for the domain that rotates; then all nodes read what it wrote."""
    done = await keyhaul("pki", *words, "--pki", str(directory / "pki"))
    assert done.returncode == 0, done.stderr
    done = await keyhaul("reload", "--dir", str(directory), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(each["kept_as_it_was"] for each in json.loads(done.stdout).values())


def test_no_request_is_lost_while_cas_are_rotated(tmp_path: Path) -> None:
    asyncio.run(rotation(tmp_path / "net"))


async def rotation(directory: Path) -> None:
    async with Testbed(TWO, directory, settings={"delivery": {"pool": 0}}) as testbed:
        await key_through(testbed, "n1", "n2")
        async with under_load(testbed) as load:
            await load.some_more()
            for role in ("node", "sae"):
                for step in ("rotate-ca", "switch-ca"):
                    await typed(step, role, "--domain", "north", directory=directory)
                    await load.some_more()
            await typed("renew", "--all", "--new-key", directory=directory)
            await load.some_more()
            for role in ("node", "sae"):
                await typed("drop-ca", role, "--domain", "north", directory=directory)
                await load.some_more()
        found = await keyhaul("pki", "show", str(directory / "pki"), "--json")
        assert json.loads(found.stdout)["ok"]
        for node in ("n1", "n2"):  # nothing rests on connections that were open before
            await testbed.restart(node)
        await key_through(testbed, "n1", "n2")
        await key_through(testbed, "n2", "n1")
