"""Lets one person at this machine in: plain HTTP on loopback, opened once by a token, then by a cookie.

The token is good for one visit and for a limited time. It buys a cookie that only this page gets back.
Requests whose Host is not ours (a foreign page that had its name point here) are refused, and so are
changes that another page sent the browser on.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from keyhaul.dashboard import pages
from keyhaul.dashboard.source import Source
from keyhaul.errors import KeyhaulError, Unauthorized

TOKEN_LIFE = 300.0  # seconds
COOKIE = "keyhaul_dashboard"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger("keyhaul.dashboard")


class LocalDoor:
    """`async with LocalDoor(source) as door: open(door.invitation)`; `port` 0 takes a free one."""

    def __init__(self, source: Source, port: int = 0) -> None:
        self._port = port
        self._token: str | None = secrets.token_urlsafe(32)
        self._until = time.monotonic() + TOKEN_LIFE
        self._session = secrets.token_urlsafe(32)
        application = web.Application(middlewares=[self._guard])
        pages.Pages(source).add_to(application)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> LocalDoor:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def origin(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def invitation(self) -> str:
        """The address to open, once. Whoever has it first is in."""
        return f"{self.origin}/?token={self._token}"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.host != f"127.0.0.1:{self._port}":
                raise Unauthorized("this page answers under its own address only", f"open {self.origin}")
            if request.method != "GET" and request.headers.get("Origin", self.origin) != self.origin:
                raise Unauthorized("another page may change nothing here", f"use {self.origin}")
            if "token" in request.query:
                return self._admit(request.query["token"])
            if not hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._session.encode()):
                raise Unauthorized(
                    "the token was used before, or is missing", "run `keyhaul dashboard` again for a new one"
                )
            return await handler(request)
        except KeyhaulError as error:
            return pages.render(error)
        except web.HTTPException:
            raise
        except Exception as bug:  # noqa: BLE001  the root of a request: the page must stay up
            log.error("the dashboard failed on a request", error=type(bug).__qualname__)
            return pages.render(KeyhaulError("the dashboard failed on this request", "try again"))

    def _admit(self, token: str) -> web.Response:
        known = self._token if time.monotonic() < self._until else None
        if known is None or not hmac.compare_digest(token.encode(), known.encode()):
            raise Unauthorized(
                "the token was used before, is too old or is wrong",
                "run `keyhaul dashboard` again for a new one",
            )
        self._token = None
        answer = web.Response(
            status=302, headers={"Location": f"{pages.PREFIX}/", "Cache-Control": "no-store"}
        )
        answer.set_cookie(COOKIE, self._session, path="/", httponly=True, samesite="Strict")
        return answer
