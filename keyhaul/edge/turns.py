"""Puts the rules of keyhaul.admission before the ports: calls wait for their turn, or get a 503 to retry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from keyhaul.admission import Admission
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

    def turn(self, order: Order) -> _Held:
        """The time in which an order is worked on. Raises Busy if its turn does not come."""
        return _Held(self.admission, order, self._now())


class _Held:
    """A context; a class, because a generator would cost more than everything else here."""

    __slots__ = ("_admission", "_now", "_order", "_ready", "_turn")

    def __init__(self, admission: Admission, order: Order, now: float) -> None:
        self._admission = admission
        self._order = order
        self._now = now
        self._ready: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        order = self._order
        self._turn = self._admission.enter(
            order.master, order.targets[0], order.number * order.size, self._now, self._start
        )
        if self._turn.admitted:
            return
        self._ready = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((self._ready,), timeout=self._admission.rules.patience)
            if not self._turn.admitted:
                raise self._admission.out_of_patience()
        except BaseException:
            self._admission.gate.leave(self._turn)
            raise

    def _start(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def __aexit__(self, *_: object) -> None:
        self._admission.gate.leave(self._turn)


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
