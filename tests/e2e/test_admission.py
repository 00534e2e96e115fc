"""A greedy application beside a modest one, too many connections, a flooding neighbour: real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keyhaul.edge import tls
from keyhaul.edge.accepting import Bounds, Crowd
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Link, Node, Topology
from tests.northbound import MASTER, SLAVE, Cast, make_cast, read_answer, segment, stage

pytestmark = pytest.mark.e2e

DRY = Topology(
    "dry",
    "two applications share a link that makes some keys a second, one-time pads",
    (Node("near", "one", ("sae-greedy", "sae-modest")), Node("far", "one", ("sae-far",))),
    (Link("near", "far", "qkd", "otp", ("clavis3", "clavis3")),),
)
MODEST = 12  # requests
SLOW = {"request_timeout": 120.0}  # a slow machine is no reason to refuse


class Caller:
    """One application; every answer is kept as (status, Retry-After)."""

    def __init__(self, session: aiohttp.ClientSession, url: str, context: ssl.SSLContext) -> None:
        self.answers: list[tuple[int, str | None]] = []
        self._session = session
        self._url = url
        self._tls = context

    async def ask(self, number: int = 1) -> int:
        url = f"{self._url}/api/v1/keys/sae-far/enc_keys"
        async with self._session.post(url, json={"number": number}, ssl=self._tls) as answer:
            await answer.read()
            self.answers.append((answer.status, answer.headers.get("Retry-After")))
            return answer.status


@contextlib.asynccontextmanager
async def callers(testbed: Testbed) -> AsyncIterator[dict[str, Caller]]:
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for sae in testbed.state()["saes"]:
            credentials = tls.Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            context = tls.client_context(credentials, tls.Policy.COMPATIBLE)
            found[sae["id"]] = Caller(session, sae["sae_url"], context)
        yield found


async def greed(caller: Caller) -> None:
    """One of many hands of the greedy one: asks again at once, whatever it is told."""
    while True:
        await caller.ask(4)


@pytest.mark.parametrize("pool", [0, "auto", 64])
def test_a_greedy_application_does_not_cost_a_modest_one_its_keys(pool: int | str, tmp_path: Path) -> None:
    """On demand, and with keys relayed ahead; several hundred requests in tests/sim/test_dry.py."""

    async def scene() -> None:
        settings = {"delivery": {"pool": pool}}
        async with Testbed(DRY, tmp_path / "net", settings=settings) as testbed, callers(testbed) as saes:
            greedy, modest = saes["sae-greedy"], saes["sae-modest"]
            hands = [asyncio.ensure_future(greed(greedy)) for _ in range(100)]
            async with asyncio.timeout(120):
                while (503, "2") not in greedy.answers:  # the link is dry, and somebody was told so
                    await asyncio.sleep(0.1)
                for _ in range(MODEST):
                    await modest.ask()
                    await asyncio.sleep(0.4)
            for hand in hands:
                hand.cancel()
            await asyncio.gather(*hands, return_exceptions=True)
            assert modest.answers == [(200, None)] * MODEST
            assert {status for status, _ in greedy.answers} == {200, 503}
            assert all(pause is not None for status, pause in greedy.answers if status == 503)

    asyncio.run(scene())


def test_a_hundred_at_once_are_all_served(tmp_path: Path) -> None:
    async def scene() -> None:
        topology = replace(DRY, links=(Link("near", "far", "pqc"),))
        settings = {"delivery": SLOW, "admission": {"patience": 120.0}}
        network = Testbed(topology, tmp_path / "net", settings=settings)
        async with network as testbed, callers(testbed) as saes:
            one, other = saes["sae-greedy"], saes["sae-modest"]
            await asyncio.gather(*(sae.ask() for sae in (one, other) for _ in range(100)))
            assert one.answers == other.answers == [(200, None)] * 100

    asyncio.run(scene())


def test_small_limits_defer_and_every_request_is_served_in_the_end(tmp_path: Path) -> None:
    admission = {"slots": 2, "reserved": 1, "priority": ["sae-modest"], "queue_per_sae": 5}
    settings = {"admission": admission, "delivery": SLOW}

    async def scene() -> None:
        topology = replace(DRY, links=(Link("near", "far", "pqc"),))
        network = Testbed(topology, tmp_path / "net", settings=settings)
        async with network as testbed, callers(testbed) as saes:
            crowd, vip = saes["sae-greedy"], saes["sae-modest"]

            async def stubborn() -> None:
                while await crowd.ask() == 503:
                    await asyncio.sleep(0.05)

            async with asyncio.timeout(120):
                await asyncio.gather(*(stubborn() for _ in range(40)), vip.ask())
            assert crowd.answers.count((200, None)) == 40
            assert (503, "2") in crowd.answers
            assert vip.answers == [(200, None)]

    asyncio.run(scene())


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("pki"))


REQUEST = f"GET /api/v1/keys/{segment(SLAVE)}/status HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def test_a_client_with_too_many_connections_gets_503_on_the_surplus(cast: Cast) -> None:
    async def scene() -> None:
        bounds = Bounds(crowd=Crowd(per_client=2))
        async with stage(cast, bounds=bounds) as here, contextlib.AsyncExitStack() as stack:
            pipes = [await stack.enter_async_context(here.connection(MASTER)) for _ in range(3)]
            statuses = [await asked(pipe) for pipe in pipes]
            assert statuses == [(200, None), (200, None), (503, "2")]
            assert await pipes[2][0].read() == b"", "the surplus connection stays open"
            other = await stack.enter_async_context(here.connection(SLAVE))
            assert await asked(other) == (200, None), "another client pays for it"
            assert await asked(pipes[0]) == (200, None)

    asyncio.run(scene())


async def asked(pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> tuple[int, str | None]:
    pipe[1].write(REQUEST)
    answer = await read_answer(pipe[0])
    return answer.status, answer.headers.get("retry-after")


def test_unfinished_handshakes_are_bounded_and_make_room_when_they_time_out(cast: Cast) -> None:
    async def scene() -> None:
        bounds = Bounds(crowd=Crowd(per_address=3), handshake=3.0)
        async with stage(cast, bounds=bounds) as here:
            silent = [await asyncio.open_connection(*here.address) for _ in range(3)]
            async with asyncio.timeout(60):
                while here.port.traffic.handshakes < 3:
                    await asyncio.sleep(0.01)
                with pytest.raises(OSError):
                    await here.get(MASTER, f"{segment(SLAVE)}/status")
                assert here.port.traffic.turned_away == 1
                while here.port.traffic.handshakes:
                    await asyncio.sleep(0.05)
            answer = await here.get(MASTER, f"{segment(SLAVE)}/status")
            assert answer.status == 200
            assert here.port.traffic.handshakes_failed == 3
            for _, writer in silent:
                writer.close()

    asyncio.run(scene())


def test_a_full_port_turns_away_and_serves_again_when_somebody_left(cast: Cast) -> None:
    async def scene() -> None:
        async with stage(cast, bounds=Bounds(crowd=Crowd(connections=1))) as here:
            async with here.connection(MASTER) as pipe:
                assert await asked(pipe) == (200, None)
                with pytest.raises(OSError):
                    await here.get(SLAVE, f"{segment(MASTER)}/status")
            async with asyncio.timeout(60):
                while here.port.traffic.connections:
                    await asyncio.sleep(0.01)
            assert (await here.get(SLAVE, f"{segment(MASTER)}/status")).status == 200

    asyncio.run(scene())


def test_a_neighbour_over_its_rate_is_told_to_come_back_and_no_key_is_lost(tmp_path: Path) -> None:
    """Each message over the rate gets 503 and is sent again: slower, but every key arrives."""
    # So few that the slowest machine sends more.
    settings: dict[str, Any] = {"admission": {"peer_messages": 2.0, "burst": 1.0}, "delivery": SLOW}

    async def scene() -> None:
        topology = replace(DRY, links=(Link("near", "far", "pqc"),))
        network = Testbed(topology, tmp_path / "net", settings=settings)
        async with network as testbed, callers(testbed) as saes:
            served = await asyncio.gather(*(saes["sae-modest"].ask() for _ in range(8)))
            assert served == [200] * 8
            assert (await status(testbed, "far"))["admission"]["refused"]["peer_messages"] > 0

    asyncio.run(scene())


async def status(testbed: Testbed, node: str) -> dict[str, Any]:
    state = testbed.state()
    files = tls.Credentials(*(Path(state["admin"][name]) for name in ("cert", "key", "ca")))
    url = next(each["admin_url"] for each in state["nodes"] if each["name"] == node)
    context = tls.client_context(files, tls.Policy.COMPATIBLE)
    async with aiohttp.ClientSession() as session, session.get(f"{url}/admin/v1/status", ssl=context) as said:
        found: dict[str, Any] = await said.json()
        return found
