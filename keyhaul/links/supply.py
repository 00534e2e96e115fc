"""A first-come, first-served supply of one-time things: key material that is made ahead and used once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from keyhaul.errors import InsufficientKey

Item = TypeVar("Item")


class Supply(Generic[Item]):
    """Items wait for takers, or takers for items; nobody overtakes.

    `low` and `high` are numbers of items: below `low` the supply calls for more, up to `high`.
    """

    def __init__(self, what: str, low: int, high: int) -> None:
        self._what = what
        self._low = low
        self._high = high
        self._items: deque[Item] = deque()
        self._waiting: deque[tuple[int, asyncio.Future[list[Item]]]] = deque()
        self.trouble: str = ""  # why the last refill failed; shown to whoever waits in vain
        self.wanted = asyncio.Event()
        self._call()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def shortage(self) -> int:
        """How many items would fill the supply to `high` and serve everyone who waits."""
        return max(0, self._high - len(self._items)) + sum(number for number, _ in self._waiting)

    def add(self, items: Iterable[Item]) -> None:
        """New items, or unused ones that come back."""
        self._items.extend(items)
        self.trouble = ""
        self._serve()

    async def take(self, number: int, patience: float) -> list[Item]:
        """`number` items at once; waits at most `patience` seconds. Raises InsufficientKey."""
        if not self._waiting and len(self._items) >= number:
            items = self._pop(number)
            self._call()
            return items
        waiter: asyncio.Future[list[Item]] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, waiter))
        self._call()
        try:
            done, _ = await asyncio.wait((waiter,), timeout=max(patience, 0.0))
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        if done:
            return waiter.result()
        self._leave(waiter)
        raise InsufficientKey(
            f"{self._what}: {number} needed, {len(self._items)} there",
            self.trouble or "ask again when the link has produced more",
        )

    def _serve(self) -> None:
        """Hand items to those in front as far as they reach."""
        while self._waiting and len(self._items) >= self._waiting[0][0]:
            number, waiter = self._waiting.popleft()
            waiter.set_result(self._pop(number))
        self._call()

    def _leave(self, waiter: asyncio.Future[list[Item]]) -> None:
        """A taker goes away: what it was handed in this very tick goes back, whoever is behind moves up."""
        if waiter.done():
            self._items.extendleft(reversed(waiter.result()))
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not waiter)
        self._serve()

    def _pop(self, number: int) -> list[Item]:
        return [self._items.popleft() for _ in range(number)]

    def _call(self) -> None:
        if len(self._items) < self._low or self._waiting:
            self.wanted.set()
        else:
            self.wanted.clear()
