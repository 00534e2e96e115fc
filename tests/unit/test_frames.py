"""Frames between a node and its workers: whole again however they are cut, and never longer than agreed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.edge.calls import Reply
from keyhaul.edge.frames import (
    HEAD,
    Channel,
    Kind,
    Told,
    pack_call,
    pack_reply,
    pack_told,
    unpack_call,
    unpack_reply,
    unpack_told,
)
from keyhaul.errors import Malformed

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=300)))
# What aiohttp makes of a request line: bytes that are not UTF-8 become surrogates.
LINES = st.binary(max_size=200).map(lambda octets: octets.decode("utf-8", "surrogateescape"))


class Pipe:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True


class End(Channel):
    def __init__(self, **bounds: int) -> None:
        super().__init__(**bounds)
        self.pipe: Any = Pipe()
        self.connection_made(self.pipe)
        self.taken: list[tuple[int, int, bytes]] = []
        self.over = 0

    def take(self, kind: int, number: int, content: bytes) -> None:
        self.taken.append((kind, number, content))

    def ended(self) -> None:
        self.over += 1


@given(FRAMES, st.lists(st.integers(1, 50), min_size=1))
def test_frames_arrive_in_their_order_however_they_are_cut(
    frames: list[tuple[Kind, int, bytes]], cuts: list[int]
) -> None:
    async def written() -> bytes:
        here = End()
        for frame in frames:
            here.send(*frame)
        assert here.pipe.sent == b"", "frames of one turn leave together"
        await asyncio.sleep(0)
        return bytes(here.pipe.sent)

    there = End()
    stream, at = asyncio.run(written()), 0
    while stream:
        size = cuts[at % len(cuts)]
        there.data_received(stream[:size])
        stream, at = stream[size:], at + 1
    assert there.taken == frames


def test_a_frame_that_is_too_long_ends_the_channel_before_it_is_kept() -> None:
    end = End(most=10)
    end.data_received(HEAD.pack(10, Kind.CALL, 1) + b"x" * 10 + HEAD.pack(11, Kind.CALL, 2))
    assert end.taken == [(Kind.CALL, 1, b"x" * 10)]
    assert end.pipe.aborted


def test_nothing_is_sent_to_an_end_that_is_gone() -> None:
    end = End()
    end.connection_lost(None)
    end.send(Kind.PING)
    end.close()
    end.abort()
    assert (end.over, bytes(end.pipe.sent), end.pipe.aborted) == (1, b"", False)


@given(st.sampled_from(["GET", "POST", "PATCH"]), LINES, LINES, st.binary(max_size=500))
def test_a_call_is_what_was_sent(method: str, path: str, query: str, body: bytes) -> None:
    assert unpack_call(pack_call(method, path, query, body)) == (method, path, query, body)


@pytest.mark.parametrize(
    "content", [b"", b"\x03", b"\x03\x00\x10\x00\x00GET/", b"\x02\x00\x00\x00\x00\xff\xff"]
)
def test_what_is_no_call_is_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        unpack_call(content)


@given(st.binary(max_size=500), st.booleans())
def test_a_reply_is_what_was_answered(body: bytes, last: bool) -> None:
    for headers in ({}, {"Retry-After": "2", "Allow": "GET,POST"}):
        reply = Reply(503, body, headers, last)
        assert unpack_reply(pack_reply(reply)) == reply


def test_a_refusal_is_what_was_told_and_its_path_can_be_shown() -> None:
    told = Told("Malformed", 400, "no such \udc80", None, "GET", "/a\udcff" + "b" * 300, ("r", "t", "s"))
    assert unpack_told(pack_told(told)).path == "/a?" + "b" * 253
    assert unpack_told(pack_told(told)).story == ("r", "t", "s")
    for content in (b"", b"{}", b"[]", b"\xff", b"[" * 5000):
        with pytest.raises(Malformed):
            unpack_told(content)
