"""A head that came before is answered as it was the first time, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiohttp.http import HttpRequestParser

from keyhaul.edge.heads import LONGEST, MOST, Head, Heads

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
