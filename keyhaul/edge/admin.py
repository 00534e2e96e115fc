"""The operator's port: what this node is doing, in JSON, for a certificate of the admin CA. Never bits.

Two calls change something: another `[entropy]` table takes effect without a restart, and a test key is sent
to another node, where it expires unused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web

from keyhaul.edge.connection import caller_of, read_body
from keyhaul.errors import KeyhaulError, Malformed, Refused

Status = Callable[[], Awaitable[Mapping[str, Any]]]
Trace = Callable[[UUID], Awaitable[list[Mapping[str, Any]]]]
Replace = Callable[[Mapping[str, Any], str], Awaitable[Mapping[str, Any]]]
"""Takes a table and the operator's name; gives the status of what is in use now."""
Test = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Takes a node's name; gives the milliseconds that a test key took, and its trust statement."""

PREFIX = "/admin/v1"


class AdminApplication:
    """`status` and `trace` are asked on every request; nothing is cached here."""

    def __init__(
        self, status: Status, trace: Trace, entropy: Replace | None = None, test: Test | None = None
    ) -> None:
        self._status = status
        self._trace = trace
        self._entropy = entropy
        self._test = test

    def application(self) -> web.Application:
        """The routes of the admin port."""
        application = web.Application()
        application.router.add_get(f"{PREFIX}/status", self.status, allow_head=False)
        application.router.add_get(PREFIX + "/keys/{key_id}", self.key, allow_head=False)
        application.router.add_post(f"{PREFIX}/entropy", self.entropy)
        application.router.add_post(PREFIX + "/nodes/{node}/test", self.test)
        return application

    async def status(self, request: web.Request) -> web.Response:
        """Node, store, links, queues."""
        return answer(200, await self._status())

    async def key(self, request: web.Request) -> web.Response:
        """Every row this node has of one key: states, hops, times."""
        try:
            key_id = UUID(request.match_info["key_id"])
        except ValueError:
            raise Malformed("the key id is not a UUID", "copy it from the answer of enc_keys") from None
        rows = await self._trace(key_id)
        return answer(200, {"key_ID": str(key_id), "rows": rows})

    async def entropy(self, request: web.Request) -> web.Response:
        """Other entropy sources, until the next start: the `[entropy]` table as JSON.

        400 names every mistake; 503, and nothing has changed, if a new source does not work.
        """
        try:
            table = msgspec.json.decode(await read_body(request))
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            raise Malformed("the body is not a JSON object", "send the [entropy] table as JSON")
        if self._entropy is None:
            raise Refused("this node's entropy is fixed", "change its configuration and restart it")
        return answer(200, await self._entropy(table, caller_of(request)))

    async def test(self, request: web.Request) -> web.Response:
        """One real key to an SAE of another node: how long until its node confirmed it, under which trust.

        400 where no SAE is at one of the two nodes, 503 with the reason if the key did not arrive.
        """
        if self._test is None:
            raise Refused("this node sends no test keys")
        return answer(200, await self._test(request.match_info["node"]))


def render(error: KeyhaulError) -> web.Response:
    """Errors of this port as JSON."""
    return answer(error.status, {"message": error.cause, "next": error.remedy})


def answer(status: int, body: Any) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
