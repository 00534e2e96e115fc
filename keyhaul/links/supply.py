"""A supply of one-time key material that is made ahead and used once; who waits is served in turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyhaul.admission import FairQueue
from keyhaul.errors import InsufficientKey

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class _Taker(Generic[Item]):
    number: int
    items: asyncio.Future[list[Item]]


class Supply(Generic[Item]):
    """Items wait for takers, or takers for items.

    Takers are served in turns between payers (the SAEs or neighbours that need the items), and in their
    order under each, so that no payer takes a dry link for itself.

    `low` and `high` are numbers of items: below `low` the supply calls for more, up to `high`.
    """

    def __init__(self, what: str, low: int, high: int) -> None:
        self._what = what
        self._low = low
        self._high = high
        self._items: deque[Item] = deque()
        self._waiting: FairQueue[_Taker[Item]] = FairQueue()
        self._asked = 0  # items that takers wait for
        self.trouble: str = ""  # why the last refill failed; shown to whoever waits in vain
        self.wanted = asyncio.Event()
        self._call()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def shortage(self) -> int:
        """How many items would fill the supply to `high` and serve everyone who waits."""
        return max(0, self._high - len(self._items)) + self._asked

    def add(self, items: Iterable[Item]) -> None:
        """New items, or unused ones that come back."""
        self._items.extend(items)
        self.trouble = ""
        self._serve()

    def drain(self) -> list[Item]:
        """Everything that is ready, for somebody who has a reason not to let it be used."""
        items = self._pop(len(self._items))
        self._call()
        return items

    async def take(self, number: int, patience: float, payer: str = "") -> list[Item]:
        """`number` items at once; waits at most `patience` seconds. Raises InsufficientKey."""
        if not len(self._waiting) and len(self._items) >= number:
            items = self._pop(number)
            self._call()
            return items
        taker: _Taker[Item] = _Taker(number, asyncio.get_running_loop().create_future())
        self._waiting.push(payer, number, taker)
        self._asked += number
        self._call()
        try:
            done, _ = await asyncio.wait((taker.items,), timeout=max(patience, 0.0))
        except asyncio.CancelledError:
            self._leave(payer, taker)
            raise
        if done:
            return taker.items.result()
        self._leave(payer, taker)
        raise InsufficientKey(
            f"{self._what}: {number} needed, {len(self._items)} there",
            self.trouble or "ask again when the link has produced more",
        )

    def spare(self, number: int, leave: int) -> list[Item]:
        """`number` items if `leave` stay and nobody waits. Raises InsufficientKey, at once."""
        if len(self._waiting) or len(self._items) - leave < number:
            raise InsufficientKey(
                f"{self._what}: {number} needed beside {leave} that stay, {len(self._items)} there",
                "it is tried again when the link has more",
            )
        items = self._pop(number)
        self._call()
        return items

    def _serve(self) -> None:
        """Hand items to those whose turn it is as far as they reach."""
        while (turn := self._waiting.first()) is not None and len(self._items) >= turn[1].number:
            taker = self._waiting.pop(turn[0])
            self._asked -= taker.number
            taker.items.set_result(self._pop(taker.number))
        self._call()

    def _leave(self, payer: str, taker: _Taker[Item]) -> None:
        """A taker goes away: what it was handed in this very tick goes back, whoever is behind moves up."""
        if taker.items.done():
            self._items.extendleft(reversed(taker.items.result()))
        else:
            self._waiting.remove(payer, taker)
            self._asked -= taker.number
        self._serve()

    def _pop(self, number: int) -> list[Item]:
        return [self._items.popleft() for _ in range(number)]

    def _call(self) -> None:
        if len(self._items) < self._low or len(self._waiting):
            self.wanted.set()
        else:
            self.wanted.clear()
