"""Real processes, real TLS, real SQLCipher: keys cross four nodes while nodes are killed with SIGKILL."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keyhaul.edge import tls
from keyhaul.edge.client import Received, SaeClient
from keyhaul.errors import KeyhaulError, KeyNotFound, Unauthorized, Unavailable
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Topology, named

pytestmark = pytest.mark.e2e


class Bench:
    """A running testbed and a client for each of its applications."""

    def __init__(self, testbed: Testbed, stack: AsyncExitStack) -> None:
        self.testbed = testbed
        self.names = [node.name for node in testbed.topology.nodes]
        self.saes: dict[str, str] = {}
        self._stack = stack
        self._clients: dict[str, SaeClient] = {}

    async def open(self) -> None:
        for sae in self.testbed.state()["saes"]:
            self.saes[sae["node"]] = sae["id"]
            credentials = tls.Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
            context = tls.client_context(credentials, tls.Policy.COMPATIBLE)
            client = SaeClient(sae["sae_url"], context, patience=20.0)
            self._clients[sae["node"]] = await self._stack.enter_async_context(client)

    async def ask(self, a: str, b: str, number: int = 1) -> list[Received]:
        return await self._clients[a].get_key(self.saes[b], number)

    async def fetch(self, a: str, b: str, keys: list[Received]) -> list[Received]:
        return await self._clients[b].fetch_key(self.saes[a], [key.key_id for key in keys])


@asynccontextmanager
async def running(directory: Path, topology: Topology, **settings: Any) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        testbed = await stack.enter_async_context(Testbed(topology, directory, settings=settings))
        bench = Bench(testbed, stack)
        await bench.open()
        yield bench


def story(
    directory: Path,
    tell: Callable[[Bench], Coroutine[Any, Any, None]],
    size: int = 4,
    mode: str = "expanded",
    **settings: Any,
) -> None:
    async def main() -> None:
        topology = named(f"line-{size}").with_devices("instant")
        links = (replace(link, mode=mode) if link.devices else link for link in topology.links)
        topology = replace(topology, links=tuple(links))
        async with running(directory / "net", topology, **settings) as bench:
            await tell(bench)

    asyncio.run(main())


async def patiently(call: Callable[[], Coroutine[Any, Any, list[Received]]]) -> list[Received]:
    """As an application does: try again while the node says 503 or is not there."""
    for _ in range(600):
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.1)
    return await call()


def test_no_acknowledged_key_is_lost_or_changed_when_nodes_are_killed(tmp_path: Path) -> None:
    async def tell(bench: Bench) -> None:
        first, *_, last = bench.names
        held: list[list[Received]] = []
        stop = asyncio.Event()

        async def use() -> None:
            while not stop.is_set():
                try:
                    held.append(await bench.ask(first, last, 2))
                except KeyhaulError:
                    await asyncio.sleep(0.05)

        users = [asyncio.ensure_future(use()) for _ in range(3)]
        for name in bench.names:
            await more_than(held, 5)
            await bench.testbed.kill(name)
            await bench.testbed.restart(name)
        await more_than(held, 5)
        stop.set()
        await asyncio.gather(*users)
        assert len(held) > 20
        for keys in held:
            same = await patiently(lambda keys=keys: bench.fetch(first, last, keys))  # type: ignore[misc]
            assert all(a.bits.same_as(b.bits) for a, b in zip(keys, same, strict=True))
            with pytest.raises(KeyNotFound):
                await bench.fetch(first, last, keys)

    story(tmp_path, tell, delivery={"request_timeout": 5.0})


async def more_than(held: list[list[Received]], number: int) -> None:
    enough = len(held) + number
    async with asyncio.timeout(120.0):
        while len(held) < enough:
            await asyncio.sleep(0.01)


def test_relays_keep_no_key_and_the_trace_tells_the_way(tmp_path: Path) -> None:
    async def tell(bench: Bench) -> None:
        first, second, third, last = bench.names
        (key,) = await bench.ask(first, last)
        state = bench.testbed.state()
        for name, expected in (
            (first, "taken"),
            (second, "relayed"),
            (third, "relayed"),
            (last, "deliverable"),
        ):
            rows = await trace(state, name, str(key.key_id))
            assert [row["state"] for row in rows] == [expected]
            assert rows[0]["path"] == [first, second, third, last]
        for node in state["nodes"]:
            limits = Path(f"/proc/{node['pid']}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits)
        bits = key.bits.reveal()
        for name in bench.names:
            for file in (bench.testbed.directory / "nodes" / name).iterdir():
                held = file.read_bytes()
                assert bits not in held
                assert bits.hex().encode() not in held
        for file in (bench.testbed.directory / "logs").iterdir():
            assert bits.hex() not in file.read_text()

    story(tmp_path, tell)


async def trace(state: dict[str, Any], node: str, key_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await operator(state, node, f"keys/{key_id}"))["rows"]
    return rows


async def pools(state: dict[str, Any], node: str) -> list[dict[str, Any]]:
    ready: list[dict[str, Any]] = (await operator(state, node, "status"))["pools"]
    return ready


async def operator(state: dict[str, Any], node: str, path: str) -> dict[str, Any]:
    admin = state["admin"]
    url = next(each["admin_url"] for each in state["nodes"] if each["name"] == node)
    credentials = tls.Credentials(Path(admin["cert"]), Path(admin["key"]), Path(admin["ca"]))
    context = tls.client_context(credentials, tls.Policy.COMPATIBLE)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/admin/v1/{path}", ssl=context) as answer,
    ):
        assert answer.status == 200
        said: dict[str, Any] = await answer.json()
        return said


def test_who_was_not_named_gets_nothing(tmp_path: Path) -> None:
    async def tell(bench: Bench) -> None:
        first, second, _, last = bench.names
        keys = await bench.ask(first, last)
        with pytest.raises(Unauthorized):
            await bench._clients[first].fetch_key(bench.saes[first], [keys[0].key_id])
        with pytest.raises(KeyNotFound):
            await bench._clients[second].fetch_key(bench.saes[first], [keys[0].key_id])
        (same,) = await bench.fetch(first, last, keys)
        assert same.bits.same_as(keys[0].bits)

    story(tmp_path, tell)


def test_a_multicast_to_every_node_arrives_everywhere(tmp_path: Path) -> None:
    async def tell(bench: Bench) -> None:
        first, *others = bench.names
        ids = [bench.saes[name] for name in others]
        keys = await bench._clients[first].get_key(ids[0], 3, additional=ids[1:])
        for name in others:
            same = await bench.fetch(first, name, keys)
            assert all(a.bits.same_as(b.bits) for a, b in zip(keys, same, strict=True))

    story(tmp_path, tell)


def test_information_theoretic_pads_where_every_link_has_a_device(tmp_path: Path) -> None:
    async def tell(bench: Bench) -> None:
        first, second, *_ = bench.names
        (key,) = await bench._clients[first].get_key(bench.saes[second], optional=({"keyhaul_trust": True},))
        assert key.trust is not None
        assert key.trust["scheme"] == "trusted"
        assert key.trust["wire"] == "information-theoretic"
        (same,) = await bench.fetch(first, second, [key])
        assert same.bits.same_as(key.bits)

    story(tmp_path, tell, size=2, mode="otp")


def test_ahead_of_demand_keys_are_served_from_the_store_after_a_kill(tmp_path: Path) -> None:
    async def tell(bench: Bench) -> None:
        first, last = bench.names
        await bench.ask(first, last)

        async with asyncio.timeout(120.0):
            while not any(pool["ready"] == 8 for pool in await pools(bench.testbed.state(), first)):
                await asyncio.sleep(0.02)
        await bench.testbed.kill(first)
        await bench.testbed.restart(first)
        await bench.testbed.kill(last)
        keys = await bench.ask(first, last, 8)  # the far end is dead: only the pool can have served this
        await bench.testbed.restart(last)
        same = await patiently(lambda: bench.fetch(first, last, keys))
        assert all(a.bits.same_as(b.bits) for a, b in zip(keys, same, strict=True))

    story(tmp_path, tell, size=2, delivery={"pool": 8})
