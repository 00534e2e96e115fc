"""SIGTERM: requests in progress get their keys, nobody new is let in, and it is over in bounded time."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Policy, client_context
from keyhaul.errors import PeerUnreachable
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import client, credentials, eventually, lines

pytestmark = pytest.mark.e2e


def test_a_request_that_waits_for_the_far_end_is_finished_before_the_node_stops(tmp_path: Path) -> None:
    asyncio.run(drained(tmp_path / "net"))


async def drained(directory: Path) -> None:
    settings = {"delivery": {"pool": 0}, "log": {"level": "DEBUG"}}
    async with (
        Testbed(named("line-2"), directory, settings=settings, restart=False) as testbed,
        client(testbed, "sae-n1") as master,
        client(testbed, "sae-n2") as slave,
    ):
        await master.get_key("sae-n2")  # the nodes know each other
        before = len(lines(testbed, "n1"))

        def told(event: str) -> bool:
            return any(line["event"] == event for line in lines(testbed, "n1")[before:])

        os.kill(testbed.pid("n2"), signal.SIGSTOP)
        try:
            asked = asyncio.create_task(master.get_key("sae-n2"))
            await eventually(lambda: told("keys leave"))
            os.kill(testbed.pid("n1"), signal.SIGTERM)
            await eventually(lambda: told("node stops"))
            await nobody_new(testbed)
            assert not asked.done()
        finally:
            os.kill(testbed.pid("n2"), signal.SIGCONT)
        (key,) = await asked
        (copy,) = await slave.fetch_key("sae-n1", [key.key_id])
        assert copy.bits.same_as(key.bits)
        async with asyncio.timeout(60):
            assert await testbed._process("n1").wait() == 0


async def nobody_new(testbed: Testbed) -> None:
    entry = next(each for each in testbed.state()["saes"] if each["id"] == "sae-n1")
    tls = client_context(credentials(entry), Policy.COMPATIBLE)
    async with SaeClient(entry["sae_url"], tls, patience=0.0) as late:
        with pytest.raises(PeerUnreachable):
            await late.get_key("sae-n2")


def test_a_request_that_cannot_end_does_not_hold_the_node_up_for_ever(tmp_path: Path) -> None:
    asyncio.run(held_up(tmp_path / "net"))


async def held_up(directory: Path) -> None:
    settings = {"delivery": {"pool": 0, "request_timeout": 600}, "log": {"level": "DEBUG"}}
    async with (
        Testbed(named("line-2"), directory, settings=settings, restart=False) as testbed,
        client(testbed, "sae-n1") as master,
    ):
        await master.get_key("sae-n2")
        os.kill(testbed.pid("n2"), signal.SIGSTOP)
        before = len(lines(testbed, "n1"))
        try:
            asked = asyncio.create_task(master.get_key("sae-n2"))
            await eventually(
                lambda: any(line["event"] == "keys leave" for line in lines(testbed, "n1")[before:])
            )
            os.kill(testbed.pid("n1"), signal.SIGTERM)
            async with asyncio.timeout(60):  # the unit gives it 30 s; this machine may be slower
                assert await testbed._process("n1").wait() == 0
        finally:
            os.kill(testbed.pid("n2"), signal.SIGCONT)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
