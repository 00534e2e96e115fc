"""Heads of requests that come again and again on one connection: what was read from them holds.

Applications send the same header with every call, so most calls need no parser. A head is remembered only
if it came whole, in one piece with its body, with nothing before it that was left over, and asks for nothing
but an answer on a connection that stays open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aiohttp import HttpVersion11
from aiohttp.http import RawRequestMessage

MOST = 4  # of one connection
LONGEST = 1024  # bytes
_END = b"\r\n\r\n"
_SPECIAL = ("Expect", "Content-Encoding", "Transfer-Encoding", "Upgrade")


class Head(NamedTuple):
    """What a handler may want to know; `parameters` is what stands behind the question mark, escaped."""

    method: str
    path: str
    parameters: str
    body: int  # bytes


class Heads:
    """Those of one connection. `aligned`: whether the next byte that comes is the first of a request."""

    __slots__ = ("_known", "aligned")

    def __init__(self) -> None:
        self.aligned = True
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of a request, if `data` is exactly that and the head was learned."""
        end = data.find(_END) + len(_END)
        head = self._known.get(data[:end])
        if head is None or len(data) != end + head.body:
            return None
        return head, data[end:]

    def learn(self, data: bytes, messages: Sequence[tuple[Any, Any]]) -> None:
        """What aiohttp's parser made of `data`, which came while all before was whole requests."""
        end, self.aligned = data.find(_END) + len(_END), False
        if len(messages) != 1:
            return
        message, payload = messages[0]
        if not isinstance(message, RawRequestMessage) or message.upgrade or not payload.is_eof():
            return
        length = message.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(data) != end + int(length):
            return
        self.aligned = True
        if end <= LONGEST and _plain(message):
            if len(self._known) >= MOST:
                self._known.clear()
            url = message.url
            self._known[data[:end]] = Head(message.method, url.raw_path, url.raw_query_string, int(length))


def _plain(message: Any) -> bool:
    """Whether a request asks for an answer, and for nothing about the connection."""
    return (
        message.method in ("GET", "POST")
        and message.version == HttpVersion11
        and not message.should_close
        and message.path.startswith("/")
        and not any(name in message.headers for name in _SPECIAL)
    )
