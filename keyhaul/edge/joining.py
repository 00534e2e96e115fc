"""Messages to one neighbour: what is ready at the same moment shares one POST, and nothing waits for company.

At most so many messages are unanswered at once, in however few POSTs; one that finds a place goes in the next
turn of the loop, with all others that are ready by then. Each has an answer of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from keyhaul.messages import bundle

Sent = tuple[int, bytes]
"""Status and body of an answer."""


class Waiting:
    """One message until it is answered."""

    __slots__ = ("answer", "body", "left")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.answer: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self.left = False  # for the neighbour

    def told(self, status: int, body: bytes) -> None:
        """What the neighbour says of it."""
        if not self.answer.done():
            self.answer.set_result((status, body))

    def failed(self, error: Exception) -> None:
        """No answer came."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def stayed(self) -> None:
        """Its patience is over."""
        if not self.left:
            self.failed(TimeoutError())


Carry = Callable[[Sequence[Waiting]], Awaitable[None]]
"""Sends messages and tells each its answer; what it raises is told to those that have none."""


class Joined:
    """See the module docstring. `most`: messages unanswered at once; `patience`: seconds to wait for that."""

    def __init__(self, carry: Carry, most: int, patience: float) -> None:
        self._carry = carry
        self._free = most
        self._patience = patience
        self._waiting: deque[Waiting] = deque()
        self._due = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def post(self, body: bytes) -> Sent:
        """Send one message once. Raises TimeoutError if its turn does not come, else what kept the answer."""
        waiting = Waiting(body)
        self._waiting.append(waiting)
        self._soon()
        timer = asyncio.get_running_loop().call_later(self._patience, waiting.stayed)
        try:
            return await waiting.answer
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _soon(self) -> None:
        if not self._due and self._waiting and self._free:
            self._due = True
            # Messages of many requests: none's story.
            asyncio.get_running_loop().call_soon(self._go, context=contextvars.Context())

    def _go(self) -> None:
        self._due = False
        while lot := self._next():
            task = asyncio.get_running_loop().create_task(self._send(lot), name="messages to a neighbour")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[Waiting]:
        """What goes in one POST."""
        lot: list[Waiting] = []
        size = 0
        while self._waiting and self._free:
            first = self._waiting[0]
            if not first.answer.done():  # else nobody waits for it any more
                size += len(first.body)
                if lot and not bundle.room(len(lot) + 1, size):
                    break
                self._free -= 1
                first.left = True
                first.answer.add_done_callback(self._answered)
                lot.append(first)
            self._waiting.popleft()
        return lot

    def _answered(self, _: object) -> None:
        self._free += 1
        self._soon()

    async def _send(self, lot: Sequence[Waiting]) -> None:
        error: Exception = ConnectionAbortedError("given up")
        try:
            await self._carry(lot)
        except Exception as raised:  # noqa: BLE001  whoever waits is told
            error = raised
        finally:
            for each in lot:
                each.failed(error)
