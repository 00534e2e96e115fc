"""Calls whose head came before are served like any other: in order, refused, counted, and waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from keyhaul.admission import Admission, Rules
from keyhaul.edge.accepting import Bounds
from keyhaul.edge.connection import Connection
from keyhaul.edge.server import Port
from tests.northbound import MASTER, SLAVE, STRANGER, Cast, Slow, Stage, read_answer, stage

BODY = b'{"number":1,"size":256}'


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of calls that were answered without aiohttp."""
    seen: list[str] = []
    reply = Connection._reply

    async def noted(self: Connection, call: Any) -> None:
        seen.append(call.path.rpartition("/")[2])
        await reply(self, call)

    monkeypatch.setattr(Connection, "_reply", noted)
    return seen


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What came over all connections, as it came."""
    seen: list[bytes] = []
    received = Connection.data_received

    def noted(self: Connection, data: bytes) -> None:
        seen.append(data)
        received(self, data)

    monkeypatch.setattr(Connection, "data_received", noted)
    return seen


def ask(path: str, body: bytes = b"") -> bytes:
    verb = "POST" if body else "GET"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{verb} /api/v1/keys/{path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + body


ENC = ask(f"{SLAVE}/enc_keys", BODY)


def run(story: Any) -> Any:
    return asyncio.run(asyncio.wait_for(story, 60))


@asynccontextmanager
async def at_work(
    cast: Cast, bounds: Bounds | None = None
) -> AsyncIterator[tuple[Stage, Slow, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection whose second call, with a head that came before, waits for the kernel to `go`."""
    kernel = Slow()
    kernel.go.set()
    async with (
        stage(cast, kernel=kernel, workers=0, bounds=bounds) as port,
        port.connection(MASTER) as (reader, writer),
    ):
        writer.write(ENC)
        await read_answer(reader)
        kernel.go.clear()
        kernel.entered.clear()
        writer.write(ENC)
        await kernel.entered.wait()
        yield port, kernel, reader, writer


def test_keys_come_and_are_fetched(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        async with stage(cast, workers=0) as port:
            bits = {}
            async with port.connection(MASTER) as (reader, writer):
                for _ in range(5):
                    writer.write(ENC)
                    (key,) = (await read_answer(reader)).json["keys"]
                    bits[key["key_ID"]] = key["key"]
            assert len(bits) == 5
            async with port.connection(SLAVE) as (reader, writer):
                for key_id, key in bits.items():
                    body = json.dumps({"key_IDs": [{"key_ID": key_id}]}).encode()
                    writer.write(ask(f"{MASTER}/dec_keys", body))
                    assert (await read_answer(reader)).json["keys"][0]["key"] == key
            assert port.port.traffic.answers == {200: 10}

    run(story())
    assert direct == ["enc_keys"] * 4 + ["dec_keys"] * 4


def test_refusals_are_answered_counted_and_change_nothing(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        async with stage(cast, workers=0) as port, port.connection(MASTER) as (reader, writer):
            bad = ENC.replace(b"256", b"257")
            for request, status in ((ENC, 200), (bad, 400), (ENC, 200), (bad, 400)):
                writer.write(request)
                answer = await read_answer(reader)
                assert answer.status == status
                assert ("x-request-id" in answer.headers) == (status == 400)
                assert "connection" not in answer.headers
            assert port.port.traffic.answers == {200: 2, 400: 2}
            assert port.port.traffic.refusals == {"Refused": 2}

    run(story())
    assert len(direct) == 3


def test_a_client_that_calls_too_often_waits(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        rules = Rules(sae_requests=2, burst=1)
        async with (
            stage(cast, workers=0, admission=Admission(rules)) as port,
            port.connection(MASTER) as (reader, writer),
        ):
            found = []
            for _ in range(3):
                writer.write(ENC)
                found.append(await read_answer(reader))
            assert [answer.status for answer in found] == [200, 200, 503]
            assert found[-1].headers["retry-after"] == "1"

    run(story())
    assert len(direct) == 2


def test_what_comes_while_one_is_at_work_is_answered_after_it(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        async with at_work(cast) as (_, kernel, reader, writer):
            status = ask(f"{SLAVE}/status")
            writer.write(status + ENC + status[:20])
            await writer.drain()
            kernel.go.set()
            assert (await read_answer(reader)).json["keys"]
            assert (await read_answer(reader)).json["slave_SAE_ID"] == SLAVE
            assert (await read_answer(reader)).json["keys"]
            writer.write(status[20:])
            assert (await read_answer(reader)).json["slave_SAE_ID"] == SLAVE
            assert len(kernel.orders) == 3

    run(story())
    assert direct == ["enc_keys"]


def test_a_head_in_two_pieces_is_never_a_body(cast: Cast, direct: list[str], pieces: list[bytes]) -> None:
    """What comes behind half a request belongs to it, even if it looks like one that is known."""

    async def story() -> None:
        async with stage(cast, workers=0) as port, port.connection(MASTER) as (reader, writer):
            writer.write(ENC)
            await read_answer(reader)
            long = ask(f"{SLAVE}/enc_keys", b" " * len(ENC) + BODY)
            for piece in (long[: -len(ENC) - len(BODY)], ENC):
                writer.write(piece)
                while pieces[-1] != piece:
                    await asyncio.sleep(0)
            writer.write(BODY)
            answer = await read_answer(reader)
            assert answer.status == 400, "the known request was part of a body that is no JSON"
            assert len(port.kernel.orders) == 1

    run(story())
    assert direct == []


def test_a_body_that_is_too_large_is_so_again(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        bounds = Bounds(body=len(BODY))
        async with (
            stage(cast, workers=0, bounds=bounds) as port,
            port.connection(MASTER) as (reader, writer),
        ):
            for body, status in ((BODY, 200), (b" " + BODY, 400), (b" " + BODY, 400), (BODY, 200)):
                writer.write(ask(f"{SLAVE}/enc_keys", body))
                answer = await read_answer(reader)
                assert answer.status == status
                assert (b"larger than" in answer.body) == (status == 400)
            assert len(port.kernel.orders) == 2

    run(story())
    assert len(direct) == 2


def test_an_aiohttp_that_lacks_a_name_reads_all_by_itself(
    cast: Cast, direct: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyhaul.edge.server.REACHED", ("_waiter", "_of_another_release"))

    async def story() -> None:
        async with stage(cast, workers=0) as port, port.connection(MASTER) as (reader, writer):
            assert isinstance(port.port, Port)
            assert not port.port.direct
            for _ in range(3):
                writer.write(ENC)
                assert (await read_answer(reader)).status == 200

    run(story())
    assert direct == []


def test_a_client_that_is_gone_costs_nothing(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        async with at_work(cast) as (port, kernel, _, writer):
            writer.transport.abort()
            while port.port.traffic.connections:
                await asyncio.sleep(0)
            kernel.go.set()
            assert (await port.get(STRANGER, f"{SLAVE}/status")).status == 200

    run(story())
    assert direct == ["enc_keys"]


def test_closing_waits_for_the_answer(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        async with at_work(cast) as (port, kernel, reader, _):
            closing = asyncio.create_task(port.port.close())
            await asyncio.sleep(0)
            kernel.go.set()
            assert (await read_answer(reader)).status == 200
            await closing
            assert await reader.read() == b""

    run(story())
    assert direct == ["enc_keys"]


def test_idle_time_runs_from_the_last_answer(cast: Cast, direct: list[str]) -> None:
    async def story() -> None:
        async with at_work(cast, Bounds(idle=0.3)) as (_, kernel, reader, _writer):
            loop = asyncio.get_running_loop()
            loop.call_later(0.7, kernel.go.set)  # longer than a connection may be idle
            assert (await read_answer(reader)).status == 200
            answered = loop.time()
            assert await reader.read() == b""
            assert loop.time() - answered > 0.2

    run(story())
    assert direct == ["enc_keys"]
