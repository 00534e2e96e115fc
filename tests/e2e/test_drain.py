"""SIGTERM: requests in progress get their keys, nobody new is let in, and it is over in bounded time."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from keyhaul.edge.accepting import Bounds
from keyhaul.edge.client import SaeClient
from keyhaul.edge.server import Port
from keyhaul.edge.tls import Policy, client_context
from keyhaul.edge.workers import SPARE
from keyhaul.errors import PeerUnreachable
from keyhaul.node import Node
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import client, credentials, eventually, lines
from tests.nodes import make_node, make_ports
from tests.northbound import MASTER, SLAVE, Cast, Slow, make_cast, read_answer, stage

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("pki") / "pki")


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
            async with asyncio.timeout(30):  # what the unit gives it
                assert await testbed._process("n1").wait() == 0
        finally:
            os.kill(testbed.pid("n2"), signal.SIGCONT)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        (said,) = [line for line in lines(testbed, "n1") if "cut off" in line["event"]]
        assert (said["level"], said["role"], said["count"]) == ("warning", "sae", 1)
        assert said["requests"] == {"sae-n1: POST /api/v1/keys/sae-n2/enc_keys": 1}


def test_all_ports_of_a_kind_close_at_once_and_those_of_applications_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, five ports would outlast what systemd gives a node."""
    ports = make_ports(tmp_path / "pki")
    more = {"skip": ports["sae"], "plain": ports["node"]}
    config = make_node(tmp_path / "node", {**ports, **more})
    groups = [{"sae", "skip"}, {"node", "plain", "admin"}]
    together = [asyncio.Barrier(len(group)) for group in groups]
    closed: list[str] = []
    close = Port.close

    async def met(port: Port) -> None:
        await next(each for each, group in zip(together, groups, strict=True) if port.role in group).wait()
        await close(port)
        closed.append(port.role)

    async def scene() -> None:
        node = Node(config)
        await node.start()
        monkeypatch.setattr(Port, "close", met)
        async with asyncio.timeout(30):
            await node.stop()

    asyncio.run(scene())
    assert {*closed[:2]} == groups[0]
    assert {*closed[2:]} == groups[1]


ENC_KEYS = f"GET /api/v1/keys/{SLAVE}/enc_keys HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def begin(pipe: Pipe, slow: Slow, seen: int) -> None:
    """So many answered calls, and one that is not; the port reads heads that it has seen by itself."""
    reader, writer = pipe
    slow.go.set()
    for _ in range(seen):
        writer.write(ENC_KEYS)
        assert (await read_answer(reader)).status == 200
    slow.go.clear()
    slow.entered.clear()
    writer.write(ENC_KEYS)
    await slow.entered.wait()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seen", [0, 2])
def test_a_port_waits_for_its_requests_for_all_of_its_grace(cast: Cast, workers: int, seen: int) -> None:
    async def scene() -> None:
        slow = Slow()
        bounds = Bounds(grace=8.0)
        async with (
            stage(cast, bounds=bounds, kernel=slow, workers=workers) as here,
            here.connection(MASTER) as pipe,
        ):
            await begin(pipe, slow, seen)
            asyncio.get_running_loop().call_later(0.7 * bounds.grace, slow.go.set)
            answer, _ = await asyncio.gather(read_answer(pipe[0]), here.port.close())
            assert answer.status == 200

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seen", [0, 2])
@pytest.mark.parametrize("gone", [False, True])
def test_a_port_waits_for_its_requests_for_its_grace_and_not_for_twice_that(
    cast: Cast, workers: int, seen: int, gone: bool
) -> None:
    async def scene() -> None:
        slow = Slow()
        bounds = Bounds(grace=SPARE + 1.0)
        async with (
            stage(cast, bounds=bounds, kernel=slow, workers=workers) as here,
            here.connection(MASTER) as pipe,
        ):
            await begin(pipe, slow, seen)
            if gone:  # a worker has nothing to wait for then, the node has
                pipe[1].close()
            loop = asyncio.get_running_loop()
            began = loop.time()
            await here.port.close()
            assert loop.time() - began < 2 * bounds.grace

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seen", [0, 2])
def test_one_line_says_which_requests_were_cut_off(cast: Cast, workers: int, seen: int) -> None:
    """Those that were answered in time, and connections without a request, are not among them."""

    async def scene() -> None:
        slow = Slow()
        async with (
            stage(cast, bounds=Bounds(grace=1.0), kernel=slow, workers=workers) as here,
            here.connection(MASTER) as first,
            here.connection(MASTER) as second,
            here.connection(MASTER) as idle,
        ):
            slow.go.set()
            for reader, writer in (idle, first, second):
                for _ in range(seen):
                    writer.write(ENC_KEYS)
                    assert (await read_answer(reader)).status == 200
            slow.go.clear()
            for _, writer in (first, second):
                slow.entered.clear()
                writer.write(ENC_KEYS)
                await slow.entered.wait()
            with capture_logs() as log:
                await here.port.close()
            said = [line for line in log if "cut off" in line["event"]]
            assert [(line["log_level"], line["role"], line["count"]) for line in said] == [
                ("warning", "sae", 2)
            ]
            assert said[0]["requests"] == {f"{MASTER}: GET /api/v1/keys/{SLAVE}/enc_keys": 2}

    asyncio.run(scene())


def test_nothing_is_said_of_a_port_that_cuts_nothing_off(cast: Cast) -> None:
    async def scene() -> None:
        slow = Slow()
        async with stage(cast, kernel=slow) as here, here.connection(MASTER) as pipe:
            await begin(pipe, slow, 2)
            slow.go.set()
            with capture_logs() as log:
                answer, _ = await asyncio.gather(read_answer(pipe[0]), here.port.close())
            assert answer.status == 200
            assert not [line for line in log if "cut off" in line["event"]]

    asyncio.run(scene())


def test_a_body_that_never_came_counts_as_cut_off(cast: Cast) -> None:
    async def scene() -> None:
        async with stage(cast, bounds=Bounds(grace=1.0)) as here, here.connection(MASTER) as pipe:
            head = f"POST /api/v1/keys/{SLAVE}/enc_keys?secret=1 HTTP/1.1\r\nHost: localhost\r\n"
            pipe[1].write(f"{head}Content-Length: 9\r\n\r\n{{".encode())
            while not here.port.traffic.clients:
                await asyncio.sleep(0)
            with capture_logs() as log:
                await here.port.close()
            (said,) = [line for line in log if "cut off" in line["event"]]
            assert said["requests"] == {f"{MASTER}: POST /api/v1/keys/{SLAVE}/enc_keys": 1}

    asyncio.run(scene())
