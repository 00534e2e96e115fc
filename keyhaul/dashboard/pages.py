"""The page and its data over HTTP, for any `Source`; the port around it decides who may come in.

Paths start with `/dashboard/`. Nothing is loaded from elsewhere and no script or style stands in the page
itself, so the content security policy can forbid both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from importlib import resources
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web

from keyhaul.dashboard.source import Source
from keyhaul.errors import KeyhaulError, Malformed, Refused, TimedOut, TooLarge
from keyhaul.explaining import parted

PREFIX = "/dashboard"
EVERY = 1.0  # seconds between two snapshots of the event stream
LARGEST_BODY = 4096  # bytes of a knobs request
BODY_TIME = 5.0  # seconds that such a body may take
AUDIT_LINES, MOST_AUDIT_LINES = 50, 500
MAX_WATCHERS = 32  # event streams at once

_FILES = {
    "": ("index.html", "text/html"),
    "app.js": ("app.js", "text/javascript"),
    "map.js": ("map.js", "text/javascript"),
    "states.js": ("states.js", "text/javascript"),
    "panels.js": ("panels.js", "text/javascript"),
    "style.css": ("style.css", "text/css"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDED = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Pages:
    """`add_to` an application; `close` ends the event streams, which would otherwise outlive their port."""

    def __init__(self, source: Source, every: float = EVERY) -> None:
        self._source = source
        self._every = every
        self._closing = asyncio.Event()
        self._watchers = 0

    def add_to(self, application: web.Application) -> None:
        """The routes, and a way from `/` to the page."""
        router = application.router
        router.add_get("/", self.enter, allow_head=False)
        router.add_get(PREFIX, self.enter, allow_head=False)
        router.add_get(PREFIX + "/{file:[a-z.]*}", self.file, allow_head=False)
        router.add_get(PREFIX + "/api/network", self.network, allow_head=False)
        router.add_get(PREFIX + "/api/snapshot", self.snapshot, allow_head=False)
        router.add_get(PREFIX + "/api/events", self.events, allow_head=False)
        router.add_get(PREFIX + "/api/route", self.route, allow_head=False)
        router.add_get(PREFIX + "/api/audit", self.audit, allow_head=False)
        router.add_get(PREFIX + "/api/keys/{key_id}", self.trace, allow_head=False)
        router.add_post(PREFIX + "/api/keys", self.send)
        router.add_get(PREFIX + "/api/devices", self.devices, allow_head=False)
        router.add_put(PREFIX + "/api/devices/{device}", self.turn)
        application.on_shutdown.append(self._close)

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    async def enter(self, request: web.Request) -> web.Response:
        """Whoever comes by the front door is shown to the page."""
        return web.Response(status=302, headers={"Location": f"{PREFIX}/", **_GUARDED})

    async def file(self, request: web.Request) -> web.Response:
        """The page, its scripts and its style."""
        found = _FILES.get(request.match_info["file"])
        if found is None:
            missing = Refused("this path does not exist here", f"the page is at {PREFIX}/")
            missing.status = 404
            raise missing
        name, kind = found
        body = resources.files("keyhaul.dashboard").joinpath("static", name).read_bytes()
        return web.Response(body=body, headers={**_GUARDED, "Content-Type": f"{kind}; charset=utf-8"})

    async def network(self, request: web.Request) -> web.Response:
        """Nodes, links, SAEs, positions."""
        return _json(await self._source.network())

    async def snapshot(self, request: web.Request) -> web.Response:
        """How everything stands now."""
        return _json(await self._source.snapshot())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events until the reader or the port goes: a snapshot a second.

        Before the first one, and whenever it has become another, an event `network`.
        """
        if self._watchers >= MAX_WATCHERS:
            busy = Refused("too many pages are open", "close one")
            busy.status = 503
            raise busy
        answer = web.StreamResponse(headers={**_GUARDED, "Content-Type": "text/event-stream"})
        self._watchers += 1
        try:
            await answer.prepare(request)
            with contextlib.suppress(ConnectionError):
                shown = b""
                while not self._closing.is_set():
                    snapshot = await self._source.snapshot()
                    network = await self._network()
                    if network not in (b"", shown):
                        await answer.write(b"event: network\ndata: " + network + b"\n\n")
                        shown = network
                    await answer.write(b"data: " + msgspec.json.encode(snapshot) + b"\n\n")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), self._every)
        finally:
            self._watchers -= 1
        return answer

    async def _network(self) -> bytes:
        """The network as JSON; nothing while nobody can tell it."""
        with contextlib.suppress(KeyhaulError):
            return msgspec.json.encode(await self._source.network())
        return b""

    async def route(self, request: web.Request) -> web.Response:
        """`?from=a&to=b&avoid=c&avoid=d|e`: the way from a to b without node c and link d-e."""
        query = request.query
        if "from" not in query or "to" not in query:
            raise Malformed("a route needs `from` and `to`", "name two nodes")
        avoid = frozenset(parted(text) for text in query.getall("avoid", []))
        return _json(await self._source.route(query["from"], query["to"], avoid))

    async def audit(self, request: web.Request) -> web.Response:
        """`?most=50`: the last lines of the audit log, of every node asked."""
        text = request.query.get("most", str(AUDIT_LINES))
        if not text.isdecimal() or not 1 <= int(text[:4]) <= MOST_AUDIT_LINES:
            raise Malformed("`most` is no number of lines", f"ask for 1 to {MOST_AUDIT_LINES}")
        return _json({"lines": await self._source.audit(int(text[:4]))})

    async def trace(self, request: web.Request) -> web.Response:
        """The story of one key, from every node asked."""
        try:
            key_id = UUID(request.match_info["key_id"])
        except ValueError:
            raise Malformed("the key id is not a UUID", "copy it from the answer of enc_keys") from None
        rows = await self._source.trace(key_id)
        return _json({"key_ID": str(key_id), "rows": rows})

    async def send(self, request: web.Request) -> web.Response:
        """`{"from": a, "to": b}`: one key between applications of two nodes, in a testbed."""
        try:
            ends = msgspec.json.decode(await _body(request), type=dict[str, str])
            source, destination = ends["from"], ends["to"]
        except (msgspec.MsgspecError, RecursionError, KeyError):
            raise Malformed("the body does not name two nodes", 'send {"from": "a", "to": "b"}') from None
        return _json(await self._source.send(source, destination))

    async def devices(self, request: web.Request) -> web.Response:
        """Simulated devices and their knobs."""
        return _json({"devices": await self._source.devices()})

    async def turn(self, request: web.Request) -> web.Response:
        """Turn the knobs named in a JSON object."""
        try:
            knobs = msgspec.json.decode(await _body(request), type=dict[str, bool | float])
        except (msgspec.MsgspecError, RecursionError):
            raise Malformed("the body is no JSON object of knobs", 'send {"cut": true}') from None
        return _json(await self._source.turn(request.match_info["device"], knobs))


def render(error: KeyhaulError) -> web.Response:
    """An error as JSON, as the admin port has it."""
    return _json({"message": error.cause, "next": error.remedy}, error.status)


async def _body(request: web.Request) -> bytes:
    """A small body that comes soon. Raises TooLarge and TimedOut."""
    try:
        async with asyncio.timeout(BODY_TIME):
            body = await request.content.read(LARGEST_BODY + 1)
            while len(body) <= LARGEST_BODY and not request.content.at_eof():
                body += await request.content.read(LARGEST_BODY + 1 - len(body))
    except TimeoutError:
        raise TimedOut("the body did not arrive in time", "send it again") from None
    if len(body) > LARGEST_BODY:
        raise TooLarge(f"the body is larger than {LARGEST_BODY} bytes", "send only the knobs to turn")
    return body


def _json(body: Mapping[str, Any], status: int = 200) -> web.Response:
    headers = {**_GUARDED, "Content-Type": "application/json"}
    return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)
