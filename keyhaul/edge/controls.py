"""What operators ask of a running node and change in it, over its admin port: ways, log, configuration.

Whoever may come to the port may do it; the log and the audit log say who changed something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from keyhaul.edge.admin import PREFIX, answer
from keyhaul.edge.connection import caller_of, read_body
from keyhaul.errors import ConfigError, Malformed, Refused
from keyhaul.explaining import Avoid, parted

MOST_LINES = 500  # of the audit log in one answer


class Controls(Protocol):
    """What the node does about it; `operator` is the name in the caller's certificate."""

    async def reload(self, operator: str) -> Mapping[str, Any]:
        """Read configuration and certificates again: what changed, stayed as it was, needs a restart.

        Raises ConfigError, and nothing has changed, for a configuration with mistakes.
        """

    async def route(
        self, source: str, destination: str, avoid: Avoid, labels: Sequence[str]
    ) -> Mapping[str, Any]:
        """Which way keys go between two nodes or applications, and why. Raises Malformed, NoSuchTarget."""

    async def audit_tail(self, most: int) -> Sequence[Mapping[str, Any]]:
        """The last lines of the audit log, oldest first. Raises Unavailable."""

    def log_level(self) -> Mapping[str, Any]:
        """The level in force, for how long, and the one after it."""

    def use_log_level(self, level: str, seconds: float | None, operator: str) -> Mapping[str, Any]:
        """Another level, for some seconds or for good. Raises Malformed."""


class _Level(msgspec.Struct, forbid_unknown_fields=True):
    level: str
    seconds: float | None = None


class ControlPages:
    """`add_to` the application of the admin port."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls

    def add_to(self, application: web.Application) -> None:
        """The routes."""
        application.router.add_post(f"{PREFIX}/reload", self.reload)
        application.router.add_get(f"{PREFIX}/route", self.route, allow_head=False)
        application.router.add_get(f"{PREFIX}/audit", self.audit, allow_head=False)
        application.router.add_get(f"{PREFIX}/log", self.log_level, allow_head=False)
        application.router.add_put(f"{PREFIX}/log", self.use_log_level)

    async def reload(self, request: web.Request) -> web.Response:
        """As SIGHUP does; 400 with every mistake, and the last good configuration stays in force."""
        try:
            return answer(200, await self._controls.reload(caller_of(request)))
        except ConfigError as error:
            raise Refused(
                f"not reloaded, the last good configuration stays: {error.cause}", error.remedy
            ) from None

    async def route(self, request: web.Request) -> web.Response:
        """`?from=a&to=b&without=c&without=d|e&label=its-wire`: the way, its reasons, the other ways."""
        query = request.query
        if "from" not in query or "to" not in query:
            raise Malformed("a route needs `from` and `to`", "name two nodes or two SAEs")
        avoid = frozenset(parted(text) for text in query.getall("without", []))
        labels = query.getall("label", [])
        return answer(200, await self._controls.route(query["from"], query["to"], avoid, labels))

    async def audit(self, request: web.Request) -> web.Response:
        """`?most=50`: the last lines of the audit log."""
        text = request.query.get("most", "50")
        if not text.isdecimal() or not 1 <= int(text[:4]) <= MOST_LINES:
            raise Malformed("`most` is no number of lines", f"ask for 1 to {MOST_LINES}")
        return answer(200, {"lines": await self._controls.audit_tail(int(text[:4]))})

    async def log_level(self, request: web.Request) -> web.Response:
        """Which lines are written now."""
        return answer(200, self._controls.log_level())

    async def use_log_level(self, request: web.Request) -> web.Response:
        """`{"level": "DEBUG", "seconds": 600}`; without seconds until the next start or reload."""
        try:
            wanted = msgspec.json.decode(await read_body(request), type=_Level)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            text = "the body is no JSON object with a level, and seconds if it is for a while"
            raise Malformed(text, 'send {"level": "DEBUG", "seconds": 600}') from None
        operator = caller_of(request)
        return answer(200, self._controls.use_log_level(wanted.level, wanted.seconds, operator))
