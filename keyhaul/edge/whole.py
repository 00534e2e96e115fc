"""A reply as HTTP/1.1, written in one piece: what aiohttp would send, for less.

aiohttp prepares headers in a dictionary of its own for every answer and writes them field by field. The
answers to calls differ in status, date, length, body, and a few headers of refusals.
"""

from __future__ import annotations

import functools
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from keyhaul.edge.calls import Reply

# no-store: answers hold keys, or say something about them, and no cache on the way may keep that
HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store", "Server": "keyhaul"}


def written(reply: Reply) -> bytes:
    """All of a reply. Whoever sends the last one of a connection has to end it, too."""
    start = _start(int(time.time()), reply.status)
    if reply.headers or reply.last:
        more = {**reply.headers, "Connection": "close"} if reply.last else reply.headers
        start += "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode()
    return b"%bContent-Length: %d\r\n\r\n%b" % (start, len(reply.body), reply.body)


def answer(reply: Reply, request: web.BaseRequest) -> web.StreamResponse:
    """A reply to a request that aiohttp has read."""
    stays = request.version == HttpVersion11 and request.keep_alive and not reply.last
    return Whole(reply) if stays and request.method != "HEAD" else http(reply)


def http(reply: Reply) -> web.Response:
    """A reply as aiohttp sends it, with a word about the connection."""
    response = web.Response(
        status=reply.status, body=reply.body, headers=CIMultiDict({**HEADERS, **reply.headers})
    )
    if reply.last:
        response.force_close()
    return response


class Whole(web.StreamResponse):
    """A reply after which the connection stays open, as HTTP/1.1 has it without a word."""

    def __init__(self, reply: Reply) -> None:
        # Not the base's: it makes what is never looked at here.
        self._status = reply.status
        self._reply = reply
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Remember who asked; nothing is sent before `write_eof`."""
        self._req = request

    async def write_eof(self, data: Any = b"") -> None:
        """Send all of it. Raises ConnectionError if nobody is there any more."""
        assert self._req is not None
        writer, self._eof_sent = self._req.writer, True
        await writer.write(written(self._reply))
        await writer.drain()


@functools.lru_cache(16)
def _start(second: int, status: int) -> bytes:
    """Everything that answers with this status have in common in this second of Unix time."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    return "\r\n".join([*lines, f"Date: {formatdate(second, usegmt=True)}", ""]).encode()
