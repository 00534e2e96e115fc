"""The monitoring port: `/live`, `/ready`, `/metrics`, in plain HTTP, on the loopback unless told otherwise.

Whoever reaches it may read it: there is nothing secret in it, but names of neighbours and how busy a node
is. It takes no request with a body and changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from keyhaul.errors import KeyhaulError
from keyhaul.monitor import health
from keyhaul.monitor.instruments import Instruments
from keyhaul.monitor.metrics import Metrics

PATIENCE = 10.0  # seconds of an idle connection

log = structlog.get_logger("keyhaul.monitor")


class Monitor:
    """One listener. `instruments` is None while the node starts: alive, and not ready."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.instruments: Instruments | None = None
        self._scraping = asyncio.Lock()
        application = web.Application(client_max_size=1024, middlewares=[_plain])
        application.router.add_get("/live", self.live)
        application.router.add_get("/ready", self.ready)
        application.router.add_get("/metrics", self.page)
        self._runner = web.AppRunner(application, access_log=None, keepalive_timeout=PATIENCE)

    async def open(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which belongs to the monitor from now on."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()

    async def live(self, request: web.Request) -> web.Response:
        """200 as long as the event loop turns: whoever gets no answer may restart the node."""
        return _json(200, {"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """200 if applications can be served, else 503; in both cases with reasons and warnings."""
        if self.instruments is None:
            return _answer(["the node starts"], [])
        reading = await self.instruments.reading()
        now = time.time()
        return _answer(health.reasons(reading, now), health.warnings(reading, now))

    async def page(self, request: web.Request) -> web.Response:
        """All metrics, in Prometheus' text format."""
        if self.instruments is None:
            return _answer(["the node starts"], [])
        async with self._scraping:  # one reading at a time, however many scrape
            reading = await self.instruments.reading()
            ready = not health.reasons(reading, time.time())
            body = self.metrics.page({**reading, "ready": ready})
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(reasons: Sequence[str], warnings: Sequence[str]) -> web.Response:
    ready = not reasons
    return _json(200 if ready else 503, {"ready": ready, "reasons": reasons, "warnings": warnings})


def _json(status: int, body: object) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=msgspec.json.encode(body) + b"\n", headers=headers)


@web.middleware
async def _plain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What cannot be read now is a 503 with the cause, not a broken connection."""
    try:
        return await handler(request)
    except KeyhaulError as error:
        log.warning("monitoring cannot read the node", cause=error.cause)
        return _answer([error.cause], [])
