"""A supply of one-time key material that is made ahead and used once; who waits is served in turns.

Scarce items are dealt out one at a time, in rounds over all payers (`keyhaul.rounds`), and put aside until
somebody has all that it needs. So what a payer gets does not depend on how much it asks for at once: a large
request keeps nobody waiting until it is complete, not even the small requests of the same payer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyhaul.errors import InsufficientKey
from keyhaul.rounds import NOBODY, Payer, Rounds

CREDIT = 64
"""Items that a payer may have left to others and gets sooner when it asks again."""

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class _Taker(Generic[Item]):
    number: int
    items: asyncio.Future[list[Item]]


class Supply(Generic[Item]):
    """Items wait for takers, or takers for items.

    Takers are served in rounds over payers and sizes, and in their order where both are the same, so that
    no payer takes a dry link for itself.

    `low` and `high` are numbers of items: below `low` the supply calls for more, up to `high`.
    """

    def __init__(self, what: str, low: int, high: int) -> None:
        self._what = what
        self._low = low
        self._high = high
        self._items: deque[Item] = deque()
        self._waiting: Rounds[_Taker[Item]] = Rounds(CREDIT)
        self._aside: dict[Payer, list[Item]] = {}  # fewer than the first of a line needs
        self._asked = 0  # items that takers wait for, without those put aside
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
        for aside in self._aside.values():
            self._asked += len(aside)
            self._items.extend(aside)
        self._aside.clear()
        items = self._pop(len(self._items))
        self._call()
        return items

    async def take(self, number: int, patience: float, payer: Payer = NOBODY) -> list[Item]:
        """`number` items at once; waits at most `patience` seconds. Raises InsufficientKey."""
        if not len(self._waiting) and len(self._items) >= number:
            items = self._pop(number)
            self._call()
            return items
        taker: _Taker[Item] = _Taker(number, asyncio.get_running_loop().create_future())
        line = (*payer, number)
        self._waiting.push(line, taker)
        self._asked += number
        self._serve()
        try:
            done, _ = await asyncio.wait((taker.items,), timeout=max(patience, 0.0))
        except asyncio.CancelledError:
            self._leave(line, taker)
            raise
        if done:
            return taker.items.result()
        self._leave(line, taker)
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
        """Deal out what there is, one item a turn."""
        while self._items and (line := self._waiting.turn()) is not None:
            aside = self._aside.setdefault(line, [])
            aside.append(self._items.popleft())
            self._asked -= 1
            if len(aside) == self._waiting.head(line).number:
                self._waiting.pop(line).items.set_result(self._aside.pop(line))
        self._call()

    def _leave(self, line: Payer, taker: _Taker[Item]) -> None:
        """A taker goes away: what was meant for it goes to whoever is behind it, or back."""
        back: list[Item] = []
        if taker.items.done():
            back = taker.items.result()
        else:
            self._waiting.remove(line, taker)
            self._asked -= taker.number
            if not self._waiting.waits(line):
                back = self._aside.pop(line, [])
                self._asked += len(back)
        self._items.extendleft(reversed(back))
        self._serve()

    def _pop(self, number: int) -> list[Item]:
        return [self._items.popleft() for _ in range(number)]

    def _call(self) -> None:
        if len(self._items) < self._low or len(self._waiting):
            self.wanted.set()
        else:
            self.wanted.clear()
