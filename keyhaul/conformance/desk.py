"""The tester's own KME port: takes what the KME under test sends, answers as a probe wishes, remembers all.

It accepts transfers and voids with 202 and then acknowledges them, as a good neighbour does; `plan` holds
other answers for the next calls. Bodies are kept as they came.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from keyhaul.conformance.judge020 import ACK, EXT_KEYS, VOID, ack_fault

MAX_BODY = 16 * 1024 * 1024  # bytes
DROP = 0
"""In a plan: hang up instead of answering."""


@dataclass(frozen=True, slots=True)
class Received:
    """One call of the KME under test, and what it was answered."""

    path: str
    body: bytes = field(repr=False)
    answered: int

    def value(self) -> Any:
        """The body as Python, None if it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def names(self, key_id: str) -> bool:
        """Whether the call is about this key."""
        return key_id in self.body.decode(errors="replace").lower()


Acknowledge = Callable[[dict[str, Any], str], None]
"""Told a transfer or void that was accepted, and its path, to acknowledge it."""


class Desk:
    """One listener. `plan` maps a path to the status codes of the next calls; then 202, or 200 for acks.

    `hold` delays every answer until it is set. With `silent` nothing is acknowledged.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.received: list[Received] = []
        self.statuses: dict[str, list[str]] = defaultdict(list)
        self.faults: list[str] = []
        self.plan: dict[str, deque[int]] = defaultdict(deque)
        self.hold = asyncio.Event()
        self.hold.set()
        self.silent = False
        self.acknowledge: Acknowledge = lambda body, path: None
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def callback(self) -> str:
        """Where acknowledgements for us go."""
        return self.origin + ACK

    async def open(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen; the port that was taken. Raises OSError."""
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=context).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening."""
        self.hold.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def reset(self) -> None:
        """Be a good neighbour again, whatever the last probe wanted."""
        self.plan.clear()
        self.hold.set()
        self.silent = False

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        planned = self.plan[request.path]
        status = planned.popleft() if planned else _USUAL.get(request.path, 404)
        call = Received(request.path, body, status)
        await self._note(call)
        await self.hold.wait()
        if status == DROP:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if status == 202 and not self.silent and isinstance(value := call.value(), dict):
            self.acknowledge(value, request.path)
        return web.Response(status=status, content_type="application/json")

    async def _note(self, call: Received) -> None:
        self.received.append(call)
        if call.path == ACK:
            value = call.value()
            if fault := ack_fault(value):
                self.faults.append(fault)
            elif call.answered == 200:
                for container in value:
                    for item in container["key_id_container"]:
                        self.statuses[item["key_id"].lower()].append(container["ack_status"])
        async with self._news:
            self._news.notify_all()

    async def until(self, ready: Callable[[], Any]) -> Any:
        """Wait until `ready` gives something true, looked at after every call that came in."""
        async with self._news:
            return await self._news.wait_for(ready)

    def calls(self, path: str, key_id: str) -> list[Received]:
        """All calls to one path about one key."""
        return [call for call in self.received if call.path == path and call.names(key_id)]


_USUAL = {EXT_KEYS: 202, VOID: 202, ACK: 200}
