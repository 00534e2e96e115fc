"""A head that came before is answered as it was the first time, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from aiohttp.http import HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.edge.calls import Call, NoSuchPath, Reply
from keyhaul.edge.connection import Connection
from keyhaul.edge.heads import LONGEST, MOST, Head, Heads
from keyhaul.edge.server import Port
from keyhaul.errors import KeyhaulError, Malformed

ASK = b"POST /api/v1/keys/sae/enc_keys HTTP/1.1\r\nHost: node\r\nContent-Length: 2\r\n\r\n{}"


class Protocol:
    """As much of a connection as the parser looks at."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def learned(*pieces: bytes) -> Heads:
    """What remains of data that came in these pieces."""

    async def story() -> Heads:
        heads = Heads()
        loop, protocol = asyncio.get_running_loop(), cast(Any, Protocol())
        parser: Any = HttpRequestParser(protocol, loop, 2**16, auto_decompress=False)
        for piece in pieces:
            messages, _, _ = parser.feed_data(piece)
            if heads.aligned:
                heads.learn(piece, messages)
            for _ in messages:
                parser.message_consumed()
        return heads

    return asyncio.run(story())


def test_the_same_head_is_found_with_another_body() -> None:
    heads = learned(ASK)
    assert heads.aligned
    head = Head("POST", "/api/v1/keys/sae/enc_keys", "", 2)
    assert heads.find(ASK) == (head, b"{}")
    assert heads.find(ASK[:-2] + b"[]") == (head, b"[]")


def test_parameters_and_escapes_stay_as_they_were_sent() -> None:
    ask = b"GET /api/v1/keys/a%2Fb/enc_keys?number=1&size=%32 HTTP/1.1\r\nHost: node\r\n\r\n"
    assert learned(ask).find(ask) == (
        Head("GET", "/api/v1/keys/a%2Fb/enc_keys", "number=1&size=%32", 0),
        b"",
    )


@pytest.mark.parametrize(
    "data",
    [
        ASK[:-1],
        ASK + b"G",
        ASK + ASK,
        ASK[1:],
        ASK.replace(b"node", b"nodE"),
        ASK.replace(b"Length: 2", b"Length: 3") + b" ",
        ASK[: ASK.index(b"\r\n\r\n") + 2],
        b"",
        b"\r\n\r\n",
    ],
)
def test_whatever_differs_is_not_found(data: bytes) -> None:
    assert learned(ASK).find(data) is None


@pytest.mark.parametrize(
    "ask",
    [
        ASK.replace(b"Host", b"Connection: close\r\nHost"),
        ASK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ASK.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host", b"Connection: keep-alive\r\nHost"),
        ASK.replace(b"Host", b"Expect: 100-continue\r\nHost"),
        ASK.replace(b"Host", b"Content-Encoding: br\r\nHost"),
        ASK.replace(b"POST", b"HEAD"),
        ASK.replace(b"POST", b"PUT"),
        ASK.replace(b" /api", b" https://node/api"),
        ASK.replace(b"Host", b"X-Long: " + b"x" * LONGEST + b"\r\nHost"),
    ],
)
def test_a_request_that_asks_for_more_is_read_by_aiohttp_every_time(ask: bytes) -> None:
    assert learned(ask).find(ask) is None


@pytest.mark.parametrize(
    "pieces",
    [
        (ASK[:40], ASK[40:]),
        (ASK[:-1], ASK[-1:]),
        (ASK + ASK[:5], ASK[5:]),
        (ASK + ASK,),
        (ASK.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2] + b"2\r\n{}\r\n0\r\n\r\n",),
        (ASK.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2], b"2\r\n{}\r\n0\r\n\r\n"),
        (ASK.replace(b"Host", b"Upgrade: x\r\nConnection: Upgrade\r\nHost"),),
    ],
)
def test_where_requests_end_elsewhere_than_what_came_nothing_is_learned_any_more(
    pieces: tuple[bytes, ...],
) -> None:
    heads = learned(*pieces, ASK)
    assert not heads.aligned
    assert heads.find(ASK) is None


def test_few_heads_are_remembered() -> None:
    asks = [ASK.replace(b"node", b"node%d" % number) for number in range(3 * MOST)]
    heads = learned(*asks)
    assert heads.find(asks[-1]) is not None
    assert sum(heads.find(ask) is not None for ask in asks) <= MOST


class Wire(asyncio.Transport):
    """Collects what a connection sends, until it hangs up."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.open:
            self.sent += data

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self.open = False

    def is_closing(self) -> bool:
        return not self.open

    def pause_reading(self) -> None:
        """What comes all the same has to be kept."""

    def resume_reading(self) -> None:
        """As above."""


async def echo(call: Call) -> Reply:
    """Answers with what was understood, some of it later; refuses some of it."""
    body = await call.body()
    if b"later" in body:
        for _ in range(15):
            await asyncio.sleep(0)
    if b"bad" in body:
        raise Malformed("the body is bad")
    if not call.path.startswith("/api"):
        raise NoSuchPath
    return Reply(200, repr((call.caller, call.method, call.path, call.query(), body)).encode())


def refused(error: KeyhaulError) -> Reply:
    return Reply(error.status, error.cause.encode())


async def conversation(pieces: Sequence[bytes]) -> tuple[bytes, bool]:
    """All that is answered to data in these pieces, without dates and ids, and whether the port hung up."""
    loop = asyncio.get_running_loop()
    port = Port("sae", echo, refused, lambda _: "sae", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    await port.start()
    assert port._runner is not None
    assert port._runner.server is not None
    connection = Connection(port._runner.server, port, 0, loop=loop)
    connection.caller, wire = "sae", Wire()
    port.traffic.named("sae", port.bounds.crowd)
    connection.connection_made(wire)
    for piece in pieces:
        if wire.open:
            connection.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    still = wire.open
    connection.connection_lost(None)
    await port.close()
    return re.sub(rb"(Date|X-Request-ID): [^\r]*", b"", wire.sent), still


def request(verb: str, path: str, body: bytes, *fields: str) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: node", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


REQUESTS = [
    ASK,
    request("POST", "/api/a", b"later"),
    request("POST", "/api/a", b"12345"),
    request("POST", "/api/a", b"bad12"),
    request("POST", "/api/b", ASK),
    request("POST", "/api/b", ASK[:-2] + b"[]"),
    request("GET", "/api/c?x=%31&x=2", b""),
    request("GET", "/elsewhere", b""),
    request("HEAD", "/api/c", b""),
    request("POST", "/api/a", b"later", "Expect: 100-continue"),
    request("POST", "/api/a", b"12345", "Content-Encoding: br"),
    request("POST", "/api/a", b"12345", "Connection: close"),
    b"POST /api/d HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"no request\r\n\r\n",
]
USUAL = st.sampled_from(REQUESTS[1:4])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(USUAL, USUAL, st.sampled_from(REQUESTS)), min_size=1, max_size=7),
    st.lists(st.integers(0, 400), max_size=4),
    st.lists(st.sampled_from([True, True, False]), min_size=7, max_size=7),
)
def test_what_is_answered_is_what_aiohttp_alone_would_have_answered(
    requests: list[bytes], cuts: list[int], apart: list[bool]
) -> None:
    """Requests one by one, together, and cut anywhere."""
    stream = b"".join(requests)
    ends = itertools.accumulate(map(len, requests))
    edges = {0, len(stream), *(end for end, alone in zip(ends, apart, strict=False) if alone)}
    edges |= {cut for cut in cuts if cut < len(stream)}
    pieces = [stream[start:end] for start, end in itertools.pairwise(sorted(edges))]
    ours = asyncio.run(conversation(pieces))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heads, "find", lambda self, data: None)
        theirs = asyncio.run(conversation(pieces))
    assert ours == theirs
