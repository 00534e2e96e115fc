"""The SAE port served by workers: the node accepts and decides, they do TLS and HTTP on other cores.

The node keeps the listening sockets, counts every connection against its limits before a worker sees it,
and gives it to the worker with the fewest. Calls come back as frames, are answered by the same application
as without workers, and are logged and counted here. A worker that ends takes its connections with it;
calls it had handed over go on, as they do for any client that went away, and another worker takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from keyhaul import story
from keyhaul.edge.accepting import Acceptor, Bounds, Traffic
from keyhaul.edge.calls import Call, Reply, lists
from keyhaul.edge.frames import AROUND, Kind, Told, pack_reply, unpack_call, unpack_told
from keyhaul.edge.refusing import Note, Refusals
from keyhaul.edge.server import named
from keyhaul.edge.spawning import Visitor, WorkerEnd, spawn
from keyhaul.errors import KeyhaulError, Malformed, Unavailable
from keyhaul.messages.tracecontext import TraceContext

SPARE = 3.0  # seconds a worker gets to end, besides the grace of its requests
PING_EVERY = 10.0  # seconds; a worker that has not answered the last one by the next is ended
AGAIN_FIRST, AGAIN_MOST = (
    0.05,
    5.0,
)  # seconds until a dead worker is replaced, doubled each time it dies young
YOUNG = 30.0  # seconds

log = structlog.get_logger("keyhaul.edge")


class Answers(Protocol):
    """What calls are handed to."""

    async def reply(self, call: Call) -> Reply:
        """Raises errors of keyhaul.errors."""


@dataclass(frozen=True, slots=True)
class HandedCall:
    """A `Call` whose HTTP was read by a worker."""

    caller: str
    method: str
    path: str
    parameters: str
    content: bytes

    def query(self) -> Mapping[str, Sequence[str]]:
        """The parameters, unescaped as aiohttp does it."""
        return lists(self.parameters)

    async def body(self) -> bytes:
        """It was bounded where it was read."""
        return self.content


class Workers:
    """A port like `server.Port`, with `number` workers. `told` is what each is told first."""

    def __init__(
        self,
        number: int,
        answers: Answers,
        render: Callable[[KeyhaulError], Reply],
        told: bytes,
        bounds: Bounds,
        *,
        note: Note = lambda event, **fields: None,
    ) -> None:
        self.bounds = bounds
        self.traffic = Traffic()
        self.refusals = Refusals("sae", self.traffic, note)
        self.restarts = 0
        self._note = note
        self._number = number
        self._answers = answers
        self._render = render
        self._told = told
        self._numbers = itertools.count(1)
        self._ends: list[WorkerEnd] = []
        self._some = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._calls: dict[asyncio.Task[None], HandedCall] = {}
        self._acceptors: list[Acceptor] = []

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Start the workers, then serve on these bound sockets, which belong to the port from now on.

        Raises Unavailable if a worker does not start.
        """
        started = await asyncio.gather(*(self._start() for _ in range(self._number)), return_exceptions=True)
        self._keepers = [
            asyncio.get_running_loop().create_task(self._keep(end), name="worker")
            for end in started
            if isinstance(end, WorkerEnd)
        ]
        for failed in started:
            if isinstance(failed, BaseException):
                await self.close()
                for listener in sockets:
                    listener.close()
                raise failed
        for listener in sockets:
            self._acceptors.append(Acceptor(listener, self._hand, self.bounds.crowd, self.traffic))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of every listener."""
        return [acceptor.listener.getsockname()[:2] for acceptor in self._acceptors]

    def reload(self) -> None:
        """Have every worker read its certificates again, for new connections."""
        for end in self._ends:
            end.send(Kind.RELOAD)

    def summary(self) -> dict[str, Any]:
        """For operators."""
        return {
            "restarts": self.restarts,
            "running": [{"pid": end.pid, "connections": len(end.visitors)} for end in self._ends],
        }

    async def close(self) -> None:
        """Stop listening, let requests in progress finish for at most `grace` seconds, end the workers.

        One log line says which did not.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.bounds.grace
        for acceptor in self._acceptors:
            await acceptor.close()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(end.drain(self.bounds.grace + SPARE) for end in [*self._ends]))
        if self._calls:  # of clients that went away, or were let down
            _, late = await asyncio.wait(self._calls, timeout=max(0.0, until - loop.time()))
            for task in late:
                call = self._calls[task]
                self.refusals.cut_off(call.caller, call.method, call.path)
                task.cancel()
        self.refusals.tell_cut_off()
        self._acceptors.clear()

    # ------------------------------------------------------------------ workers come and go

    async def _start(self) -> WorkerEnd:
        end = await spawn(self, self._told, most=self.bounds.body + AROUND)
        self._ends.append(end)
        self._some.set()
        return end

    async def _keep(self, end: WorkerEnd) -> None:
        loop, pause = asyncio.get_running_loop(), AGAIN_FIRST
        while True:
            started = loop.time()
            code = await end.watch(PING_EVERY)
            log.error("a worker ended; another takes its place", pid=end.pid, code=code)
            self._note("worker_ended", pid=end.pid, code=code)
            if loop.time() - started > YOUNG:
                pause = AGAIN_FIRST
            self.restarts += 1
            while True:
                await asyncio.sleep(pause)
                pause = min(2 * pause, AGAIN_MOST)
                try:
                    end = await self._start()
                    break
                except (OSError, Unavailable) as error:
                    log.error("a worker does not start; tried again later", cause=str(error))

    def ended(self, end: WorkerEnd) -> None:
        """A worker is gone, and all of its connections with it."""
        if end in self._ends:
            self._ends.remove(end)
        if not self._ends:
            self._some.clear()
        for number in [*end.visitors]:
            self._gone(end, number)

    # ------------------------------------------------------------------ connections

    async def _hand(self, connection: socket.socket) -> None:
        """Give a connection to the worker with the fewest. Raises OSError if there is no handshake."""
        async with asyncio.timeout(self.bounds.handshake + SPARE):
            while not self._ends:
                await self._some.wait()
            end = min(self._ends, key=lambda each: len(each.visitors) + len(each.shaking))
            await end.give(connection, next(self._numbers))

    def take(self, end: WorkerEnd, kind: int, number: int, content: bytes) -> None:
        """One frame of a worker about a connection. Raises Malformed for what no worker says."""
        visitor = end.visitors.get(number)
        if kind == Kind.CALL and visitor is not None and visitor.caller is not None:
            call = HandedCall(visitor.caller, *unpack_call(content))
            task = asyncio.get_running_loop().create_task(self._serve(end, number, visitor, call))
            self._calls[task] = call
            task.add_done_callback(self._calls.pop)
        elif kind == Kind.SHAKEN and visitor is None:
            end.visitors[number] = Visitor()
            self.traffic.met()
        elif kind == Kind.NAMED and visitor is not None and visitor.caller is None:
            visitor.caller = content.decode()
            visitor.surplus = not self.traffic.named(visitor.caller, self.bounds.crowd)
        elif kind == Kind.GONE:
            self._gone(end, number)
        elif kind == Kind.REFUSED:
            self._refused(unpack_told(content))
        else:
            raise Malformed("a worker's frame is out of place")

    def _refused(self, told: Told) -> None:
        """A worker refused a call by itself, and told its client the request id of the story."""
        request, trace, span = told.story
        with story.told(story.Story(request, TraceContext(trace, span, sampled=False))):
            self.refusals.told(told.reason, told.status, told.cause, told.caller, told.method, told.path)

    def _gone(self, end: WorkerEnd, number: int) -> None:
        visitor = end.visitors.pop(number, None)
        if visitor is not None:
            self.traffic.lost(visitor.caller)

    # ------------------------------------------------------------------ calls

    async def _serve(self, end: WorkerEnd, number: int, visitor: Visitor, call: HandedCall) -> None:
        story.begin()
        try:
            if visitor.surplus:
                raise self.bounds.crowd.surplus()
            reply = await self._answers.reply(call)
            self.traffic.answers[reply.status] += 1
        except Exception as bug:  # noqa: BLE001  the root of a request: the port must stay up
            error = self.refusals.shown(bug)
            reply = self._render(error)
            reply = replace(reply, headers={**reply.headers, **named()}, last=visitor.surplus)
            self.refusals.tell(error, reply.status, call.caller, call.method, call.path)
        end.send(Kind.REPLY, number, pack_reply(reply))
