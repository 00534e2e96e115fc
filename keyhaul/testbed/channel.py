"""The classical channel of a linked pair: small authenticated requests between the two devices, never bits.

Mutual TLS both ways; a device serves `/pair/*` only to the certificate of its own peer. Where the peer
listens is read from the peer's ready file, again after every failure, so that a restarted peer is found.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from keyhaul.errors import PeerUnreachable, Unauthorized
from keyhaul.testbed.http import CALLER, parse
from keyhaul.testbed.pair import Announcement, End, Keeper, Level, Line, Mirror, Order

_T = TypeVar("_T")

TIMEOUT = 5.0
"""Seconds one request over the channel may take."""


class Ready(msgspec.Struct):
    """What a device writes when it serves: its name, where, and its process id."""

    name: str
    url: str
    pid: int


class PeerChannel:
    """Requests to the other end. Every failure is PeerUnreachable: the pair cannot act alone."""

    def __init__(self, ready: Path, tls: ssl.SSLContext) -> None:
        self._ready = ready
        self._tls = tls
        self._url = ""
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, verb: str, message: msgspec.Struct, answer: type[_T]) -> _T:
        """POST `message` to the peer's `/pair/<verb>` and decode what it answers."""
        try:
            async with self._open().post(
                f"{self._where()}/pair/{verb}",
                data=msgspec.json.encode(message),
                ssl=self._tls,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                if response.status != 200:
                    raise PeerUnreachable(f"the other device of the pair refused: status {response.status}")
            return msgspec.json.decode(body, type=answer)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            self._url = ""
            raise PeerUnreachable(
                f"the other device of the pair does not answer ({type(error).__name__})"
            ) from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT)
            self._session = aiohttp.ClientSession(
                timeout=timeout, headers={"Content-Type": "application/json"}
            )
        return self._session

    def _where(self) -> str:
        if not self._url:
            self._url = msgspec.json.decode(self._ready.read_bytes(), type=Ready).url
        return self._url


class PairRoutes:
    """What one end serves to the other."""

    def __init__(self, end: End, peer: str) -> None:
        self._end = end
        self._peer = peer

    def routes(self) -> list[web.RouteDef]:
        """Paths of the classical channel; the keeper and the mirror serve different ones."""
        routes = [web.post("/pair/line", self.line), web.post("/pair/level", self.level)]
        if isinstance(self._end, Keeper):
            routes.append(web.post("/pair/reserve", self.reserve))
        else:
            routes.append(web.post("/pair/announce", self.announce))
        return routes

    async def line(self, request: web.Request) -> web.Response:
        """The far end's faults; heard even while the channel is cut, because the testbed sets them."""
        self._end.disturbed(await self._read(request, Line))
        return _json(self._known())

    async def level(self, request: web.Request) -> web.Response:
        """The account, for the mirror."""
        await self._read(request, Line)
        self._uncut()
        return _json(self._known())

    async def reserve(self, request: web.Request) -> web.Response:
        """The mirror wants bits."""
        order = await self._read(request, Order)
        self._uncut()
        assert isinstance(self._end, Keeper)
        return _json(self._end.serve(order))

    async def announce(self, request: web.Request) -> web.Response:
        """The keeper took bits."""
        announcement = await self._read(request, Announcement)
        self._uncut()
        assert isinstance(self._end, Mirror)
        self._end.announced(announcement)
        return _json(Level())

    async def _read(self, request: web.Request, kind: type[Any]) -> Any:
        if request[CALLER] != self._peer:
            raise Unauthorized("only the other device of the pair may do this")
        return parse(await request.read(), kind)

    def _uncut(self) -> None:
        if self._end.cut:
            raise PeerUnreachable("the classical channel of the pair is down")

    def _known(self) -> Level:
        return self._end.account() if isinstance(self._end, Keeper) else Level()


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
