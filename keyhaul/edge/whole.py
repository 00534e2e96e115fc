"""An answer of the application's port, written as HTTP/1.1 in one piece: what aiohttp would send, for less.

aiohttp prepares headers in a dictionary of its own for every answer and writes them field by field. The
answers of this port differ in date, length and body alone.
"""

from __future__ import annotations

import functools
import time
from email.utils import formatdate
from typing import Any

from aiohttp import HttpVersion11, web

# no-store: answers hold keys, or say something about them, and no cache on the way may keep that
HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store", "Server": "keyhaul"}


def fits(request: web.BaseRequest) -> bool:
    """Whether the answer needs no word about the connection: it stays open, as HTTP/1.1 has it."""
    return request.version == HttpVersion11 and request.keep_alive and request.method != "HEAD"


class Whole(web.StreamResponse):
    """Status 200 with a body of JSON, for a request that `fits`."""

    def __init__(self, body: bytes) -> None:
        # Not the base's: it makes what is never looked at here.
        self._status = 200
        self._whole = body
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Remember who asked; nothing is sent before `write_eof`."""
        self._req = request

    async def write_eof(self, data: Any = b"") -> None:
        """Send all of it. Raises ConnectionError if nobody is there any more."""
        assert self._req is not None
        writer, self._eof_sent = self._req.writer, True
        await writer.write(b"%b%d\r\n\r\n%b" % (_start(int(time.time())), len(self._whole), self._whole))
        await writer.drain()


@functools.lru_cache(1)
def _start(second: int) -> bytes:
    """Everything up to the length, in this second of Unix time."""
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in HEADERS.items())]
    return "\r\n".join([*lines, f"Date: {formatdate(second, usegmt=True)}", "Content-Length: "]).encode()
