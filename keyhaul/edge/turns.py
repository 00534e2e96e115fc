"""Puts the rules of keyhaul.admission before the ports: calls wait for their turn, or get a 503 to retry."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import structlog

from keyhaul.admission import Admission, Turn
from keyhaul.errors import KeyhaulError
from keyhaul.keys import Row
from keyhaul.messages.etsi014 import Order

RECOUNT_EVERY = 10.0  # seconds, while a neighbour is refused for its rows

log = structlog.get_logger("keyhaul.edge")


class Turns:
    """Admission in an event loop. `now` is in seconds and never goes back."""

    def __init__(self, admission: Admission, now: Callable[[], float]) -> None:
        self.admission = admission
        self._now = now

    def call(self, sae: str) -> None:
        """One call of an SAE. Raises Busy."""
        self.admission.call(sae, self._now())

    def message(self, peer: str) -> None:
        """One message of a neighbour. Raises Busy."""
        self.admission.message(peer, self._now())

    @contextlib.asynccontextmanager
    async def turn(self, order: Order) -> AsyncIterator[None]:
        """The time in which an order is worked on. Raises Busy if its turn does not come."""
        ready: asyncio.Future[None] | None = None

        def start() -> None:
            if ready is not None and not ready.done():
                ready.set_result(None)

        bits = order.number * order.size
        turn = self.admission.enter(order.master, order.targets[0], bits, self._now(), start)
        try:
            if not turn.admitted:
                ready = asyncio.get_running_loop().create_future()
                await self._wait(turn, ready)
            yield
        finally:
            self.admission.gate.leave(turn)

    async def _wait(self, turn: Turn, ready: asyncio.Future[None]) -> None:
        await asyncio.wait((ready,), timeout=self.admission.rules.patience)
        if not turn.admitted:
            raise self.admission.out_of_patience()


class _Rows(Protocol):
    async def unfinished(self) -> list[Row]: ...
    async def deliverable(self) -> list[Row]: ...


class Holdings:
    """Keeps the number of rows a neighbour has here from above: counted at the start, and anew only when
    somebody is refused for it, for counting reads every row."""

    def __init__(self, admission: Admission, ledger: _Rows) -> None:
        self._admission = admission
        self._ledger = ledger

    async def run(self) -> None:
        """Count at the start, and whenever somebody was refused for it, until cancelled."""
        due = True
        while True:
            if due:
                try:
                    await self.count()
                except KeyhaulError as error:
                    log.warning("rows not counted; tried again later", cause=error.cause)
            await asyncio.sleep(RECOUNT_EVERY)
            due = self._admission.crowded

    async def count(self) -> None:
        """Once."""
        since = self._admission.mark()
        rows = [*await self._ledger.unfinished(), *await self._ledger.deliverable()]
        self._admission.recount(Counter(row.upstream for row in rows if row.upstream is not None), since)
