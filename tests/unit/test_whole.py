"""An answer written in one piece says what aiohttp would say, and only where that is all there is to say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from aiohttp import web

from keyhaul.edge import whole
from keyhaul.edge.calls import Reply
from keyhaul.edge.whole import Whole

BODY = b'{"keys":[]}'
ASK = "POST /x HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n"


async def answers(
    reply: Reply, *requests: str, how: Callable[..., web.StreamResponse] = whole.answer
) -> tuple[list[bytes], list[type]]:
    """What a plain server sends on one connection for requests, and how each answer was made."""
    made: list[type] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = how(reply, request)
        made.append(type(response))
        return response

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    received = []
    for request in requests:
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(fields(head)["content-length"])
        received.append(head + await reader.readexactly(length))
    last_closes = "close" in requests[-1] or "HTTP/1.0" in requests[-1]
    if last_closes:
        assert await reader.read() == b""
    writer.close()
    await runner.cleanup()
    return received, made


def fields(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def run(story: Any) -> Any:
    return asyncio.run(asyncio.wait_for(story, 60))


@pytest.mark.parametrize(
    "reply",
    [Reply(200, BODY), Reply(503, BODY, {"Retry-After": "2"}), Reply(405, BODY, {"Allow": "GET,POST"})],
    ids=lambda reply: str(reply.status),
)
def test_it_says_what_aiohttp_would_say(reply: Reply) -> None:
    ours, made = run(answers(reply, ASK, ASK))
    assert made == [Whole, Whole]
    theirs, other = run(answers(reply, ASK, how=lambda reply, _: whole.http(reply)))
    assert other == [web.Response]
    for answer in ours:
        status, _, rest = answer.partition(b"\r\n")
        assert status == theirs[0].partition(b"\r\n")[0]
        assert rest.endswith(b"\r\n\r\n" + BODY)
        said, expected = fields(answer), fields(theirs[0])
        assert parsedate_to_datetime(said.pop("date"))
        assert expected.pop("date")
        assert said == expected


@pytest.mark.parametrize(
    "request_text",
    [
        "POST /x HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "POST /x HTTP/1.0\r\nHost: node\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_connection_that_ends_gets_aiohttps_own(request_text: str) -> None:
    (answer,), made = run(answers(Reply(200, BODY), request_text))
    assert made == [web.Response]
    assert answer.endswith(BODY)


def test_the_last_reply_of_a_connection_says_so() -> None:
    (answer,), made = run(answers(Reply(503, BODY, last=True), ASK))
    assert made == [web.Response]
    assert fields(answer)["connection"] == "close"
    assert b"\r\nConnection: close\r\n" in whole.written(Reply(503, BODY, last=True))


def test_who_hung_up_meanwhile_gets_nothing_and_breaks_nothing() -> None:
    async def story() -> None:
        gone = asyncio.Event()

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if request.rel_url.path == "/slow":
                await gone.wait()
            return whole.answer(Reply(200, BODY), request)

        runner = web.ServerRunner(web.Server(answer, access_log=None))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        _, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(ASK.replace("/x", "/slow").encode())
        writer.transport.abort()
        gone.set()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(ASK.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await runner.cleanup()

    run(story())
