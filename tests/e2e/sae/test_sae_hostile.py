"""The SAE port over real TLS: peers that are slow, broken, too large, or gone leave it as it was."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from keyhaul.edge.accepting import Bounds
from tests.northbound import (
    MASTER,
    SLAVE,
    Answer,
    Cast,
    Slow,
    bits,
    check_answer,
    read_answer,
    stage,
)

pytestmark = pytest.mark.usefixtures("workers")

ENC = f"{SLAVE}/enc_keys"
POST = f"POST /api/v1/keys/{ENC} HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_400_and_the_connection_ends(cast: Cast, chunked: bool) -> None:
    async def story() -> None:
        bounds = Bounds(body=1000, linger=0.1)
        async with stage(cast, bounds=bounds) as port, port.connection(MASTER) as (reader, writer):
            framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 5000"
            writer.write(f"{POST}{framing}\r\n\r\n".encode())
            writer.write((b"7d0\r\n" if chunked else b"") + b" " * 2000)
            answer = await read_answer(reader)
            check_answer(answer, None)
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert "larger than 1000 bytes" in answer.json["message"]
            assert await reader.read() == b""

    asyncio.run(story())


def test_the_largest_body_is_a_mebibyte(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            filler = {"number": 1, "padding": "x" * (1024 * 1024 - 30)}
            assert (await port.post(MASTER, ENC, filler)).status == 200
            assert (await port.post(MASTER, ENC, b" " * (1024 * 1024 + 1))).status == 400

    asyncio.run(story())


def test_a_body_that_comes_too_slowly_is_400_and_the_connection_ends(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast, bounds=Bounds(body_time=0.1, linger=0.1)) as port:
            async with port.connection(MASTER) as (reader, writer):
                writer.write(f"{POST}Content-Length: 9\r\n\r\n{{".encode())
                answer = await read_answer(reader)
                check_answer(answer, None)
                assert (answer.status, answer.headers["connection"]) == (400, "close")
                assert await reader.read() == b""
            assert port.kernel.orders == []

    asyncio.run(story())


@pytest.mark.parametrize("sent", [b"", b"GET /api/v1/keys/x/status HTTP/1.1\r\nHost:"])
def test_a_header_that_never_ends_ends_the_connection(cast: Cast, sent: bytes) -> None:
    async def story() -> None:
        async with stage(cast, bounds=Bounds(idle=0.1)) as port, port.connection(MASTER) as (reader, writer):
            writer.write(sent)
            assert await reader.read() == b""

    asyncio.run(story())


def test_a_handshake_that_never_starts_ends_the_connection(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast, bounds=Bounds(handshake=0.1)) as port:
            reader, writer = await asyncio.open_connection(*port.address)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01 not http\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_json_and_a_closed_connection(
    cast: Cast, logs: list[Any], request_: bytes
) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            async with port.connection(MASTER) as (reader, writer):
                writer.write(request_)
                answer = await read_answer(reader)
                check_answer(answer, None)
                assert answer.status == 400
                assert await reader.read() == b""
            assert (await port.get(MASTER, f"{SLAVE}/status")).status == 200
            assert sum(entry["event"] == "request refused" for entry in logs) == 1

    asyncio.run(story())


def test_broken_chunks_and_compressed_bodies_are_400(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            chunks = await port.post(MASTER, ENC, b"zz\r\n{}\r\n0\r\n\r\n", Transfer_Encoding="chunked")
            assert chunks.status == 400
            squeezed = await port.post(MASTER, ENC, b"\x1f\x8b\x08", Content_Encoding="gzip")
            assert (squeezed.status, squeezed.json["message"]) == (400, "the body is compressed")
            whole = await port.post(
                MASTER, ENC, b'c\r\n{"number":2}\r\n0\r\n\r\n', Transfer_Encoding="chunked"
            )
            assert len(whole.json["keys"]) == 2

    asyncio.run(story())


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_no_trace(cast: Cast, logs: list[Any]) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            async with port.connection(MASTER) as (_, writer):
                writer.write(f"{POST}Content-Length: 99\r\n\r\n{{".encode())
                await writer.drain()
            assert (await port.get(MASTER, f"{SLAVE}/status")).status == 200
            assert port.kernel.orders == []

    asyncio.run(story())
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


def test_one_connection_carries_many_requests_good_and_bad(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port, port.connection(MASTER) as (reader, writer):
            statuses = []
            for number in (1, 0, 2, 999, 3):
                body = json.dumps({"number": number}).encode()
                head = f"{POST}Content-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                statuses.append((await read_answer(reader)).status)
            assert statuses == [200, 400, 200, 400, 200]

    asyncio.run(story())


def test_small_answers_are_not_held_back(cast: Cast) -> None:
    """The option is set where connections are accepted, which is here with workers too."""

    async def story() -> None:
        async with stage(cast, workers=0) as port, port.connection(MASTER) as (reader, writer):
            writer.write(f"GET /api/v1/keys/{SLAVE}/status HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await read_answer(reader)
            assert port.port._runner.server is not None
            connections = port.port._runner.server.connections
            sockets = [connection.transport.get_extra_info("socket") for connection in connections]
            assert [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0 for s in sockets] == [True]

    asyncio.run(story())


def test_closing_lets_a_request_in_progress_finish(cast: Cast) -> None:
    async def story() -> None:
        kernel = Slow()
        async with stage(cast, kernel=kernel) as port:
            asked = asyncio.create_task(port.get(MASTER, ENC))
            await kernel.entered.wait()
            closing = asyncio.create_task(port.port.close())
            await asyncio.sleep(0)
            kernel.go.set()
            assert (await asked).status == 200
            await closing

    asyncio.run(story())


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(cast: Cast) -> None:
    async def story() -> tuple[str, Answer]:
        async with stage(cast) as port, port.connection(MASTER) as (reader, writer):
            writer.write(f"{POST}Content-Length: 12\r\nExpect: 100-Continue\r\n\r\n".encode())
            told = (await reader.readuntil(b"\r\n\r\n")).decode()
            writer.write(b'{"number":2}')
            return told, await read_answer(reader)

    told, answer = asyncio.run(story())
    assert told == "HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.status == 200
    assert len(bits(answer)) == 2


def test_paths_that_only_look_like_the_interface_are_not_it(cast: Cast) -> None:
    async def story() -> list[Answer]:
        async with stage(cast) as port:
            lines = (
                f"GET /api/v1/keys/{SLAVE}/enc_keys/",
                f"GET /api/v1/keys/x/{SLAVE}/enc_keys",
                "GET /api/v1/keys/enc_keys",
                f"GET /api/v2/keys/{SLAVE}/enc_keys",
                f"GET //api/v1/keys/{SLAVE}/enc_keys",
                f"PUT /api/v1/keys/{SLAVE}/dec_keys",
            )
            head = " HTTP/1.1\r\nHost: x\r\n\r\n"
            return [await port.raw(MASTER, f"{line}{head}".encode()) for line in lines]

    answers = asyncio.run(story())
    assert [answer.status for answer in answers] == [404, 404, 404, 404, 404, 405]
    assert answers[-1].headers["allow"] == "GET,POST"
    assert all("message" in answer.json for answer in answers)
