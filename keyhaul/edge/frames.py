"""What a node and its workers say to each other: frames over a pair of sockets that nobody else can reach.

    4 bytes length of the content │ 1 byte kind │ 8 bytes number of the connection │ content

A connection has one call under way at a time (HTTP/1.1), so its number is also that of the call. Numbers
are given once in the life of a node. Both ends run the same program, so there are no versions.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast

import msgspec

from keyhaul.edge.calls import Reply
from keyhaul.errors import Malformed

HEAD = struct.Struct(">IBQ")
NUMBER = struct.Struct(">Q")
_CALL = struct.Struct(">BHH")
_REPLY = struct.Struct(">H?H")
AROUND = 65_536
"""Bytes of a frame besides a body, at most: aiohttp refuses longer request lines."""


class Kind(enum.IntEnum):
    """Of a frame; the first five go to a worker, the others come from one."""

    SETTINGS = 1
    """JSON: the first frame."""
    REPLY = 2
    RELOAD = 3
    DRAIN = 4
    PING = 5
    READY = 6
    PONG = 7
    SHAKEN = 8
    """The handshake of a connection is done."""
    FAILED = 9
    """It failed, and the connection is gone."""
    NAMED = 10
    """Whose certificate the connection has; comes once, before its first call."""
    CALL = 11
    REFUSED = 12
    """JSON: a call that the worker itself refused."""
    GONE = 13
    """A connection is over."""


class Channel(asyncio.Protocol, ABC):
    """One end. `take` gets every frame in its order, `ended` is called once, when the other end is gone.

    `most` bounds the content of a frame in bytes; a longer one ends the channel.
    """

    def __init__(self, most: int = 2**32 - 1) -> None:
        self._most = most
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at, end = 0, len(received)
        while end - at >= HEAD.size:
            length, kind, number = HEAD.unpack_from(received, at)
            if length > self._most:
                self.abort()
                return
            if end - at < HEAD.size + length:
                break
            at += HEAD.size
            content = bytes(received[at : at + length])
            at += length
            self.take(kind, number, content)
        del received[:at]

    def connection_lost(self, problem: Exception | None) -> None:
        self._transport = None
        self.ended()

    def send(self, kind: Kind, number: int = 0, content: bytes = b"") -> None:
        """Frames of one turn of the loop leave together. Nothing happens if the other end is gone."""
        if self._transport is None:
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting += (HEAD.pack(len(content), kind, number), content)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()

    def close(self) -> None:
        """Hang up once everything is written."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    @abstractmethod
    def take(self, kind: int, number: int, content: bytes) -> None:
        """One frame."""

    @abstractmethod
    def ended(self) -> None:
        """The other end is gone, or `abort` was called."""


class Told(msgspec.Struct, frozen=True):
    """A call that a worker refused by itself; `story` is request, trace and span."""

    reason: str
    status: int
    cause: str
    caller: str | None
    method: str
    path: str
    story: tuple[str, str, str]


def pack_told(told: Told) -> bytes:
    """For `Kind.REFUSED`. What is not UTF-8 is shown with question marks."""
    shown = {name: _shown(getattr(told, name)) for name in ("cause", "method", "path")}
    return msgspec.json.encode(msgspec.structs.replace(told, **shown))


def unpack_told(content: bytes) -> Told:
    """Raises Malformed."""
    try:
        return msgspec.json.decode(content, type=Told)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Malformed("a worker's frame is no refusal") from None


def pack_call(method: str, path: str, query: str, body: bytes) -> bytes:
    """A call without its caller, who is named once for a connection."""
    verb, where, behind = method.encode(), _octets(path), _octets(query)
    return b"".join((_CALL.pack(len(verb), len(where), len(behind)), verb, where, behind, body))


def unpack_call(content: bytes) -> tuple[str, str, str, bytes]:
    """Method, path, query, body. Raises Malformed."""
    try:
        verb, where, behind = _CALL.unpack_from(content)
        at = _CALL.size
        method = content[at : (at := at + verb)].decode()
        path = content[at : (at := at + where)].decode("utf-8", "surrogateescape")
        query = content[at : (at := at + behind)].decode("utf-8", "surrogateescape")
    except (struct.error, UnicodeDecodeError):
        raise Malformed("a worker's frame is not a call") from None
    if at > len(content):
        raise Malformed("a worker's frame is not a call")
    return method, path, query, content[at:]


def pack_reply(reply: Reply) -> bytes:
    """For `Kind.REPLY`."""
    lines = "".join(f"{name}:{value}\n" for name, value in reply.headers.items()).encode()
    return _REPLY.pack(reply.status, reply.last, len(lines)) + lines + reply.body


def unpack_reply(content: bytes) -> Reply:
    """The reply in such a frame."""
    status, last, length = _REPLY.unpack_from(content)
    lines = content[_REPLY.size : _REPLY.size + length].decode().splitlines() if length else ()
    headers: Mapping[str, str] = dict(line.split(":", 1) for line in lines)
    return Reply(status, content[_REPLY.size + length :], headers, last)


def _octets(text: str) -> bytes:
    """What came over the wire: aiohttp keeps bytes that are not UTF-8 as surrogates."""
    return text.encode("utf-8", "surrogateescape")


def _shown(text: str) -> str:
    return text[:256].encode(errors="replace").decode()
