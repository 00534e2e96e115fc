"""Whose turn it is among payers, on every level of them: neighbours first, behind each the applications.

Whatever is scarce at a node (device keys, one-time keys, messages under way) is given in rounds. A payer is a
path: an application of this node; or a neighbour, behind it the node where the keys began, and there the
application. What stands further inside is somebody's word, so it takes turns only within the turn of whoever
gave that word: a neighbour gains nothing by naming many applications. Pure rules; of those who do not wait
little is kept, and only while others on their level do.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Payer = tuple[Hashable, ...]
"""From the outside in. No payer is the beginning of another."""

NOBODY: Payer = ("",)
"""For what no application asked for."""

MOST_KEPT = 1024
"""Payers of one level of which is known what they took lately; others are as if they had not asked before."""

T = TypeVar("T")


def own(sae: str) -> Payer:
    """An application of this node; its certificate says which."""
    return (("application", sae),)


def behind(peer: str, origin: str, sae: str) -> Payer:
    """An application of another node, whose keys a neighbour hands on."""
    return (("neighbour", peer), origin, sae)


class _Level:
    """Payers beside each other. `order`: who waits, the next one first.

    Turns of the level are counted by what somebody gets who always waits: `now` so far. Whoever took fewer by
    more than `credit` is held to have taken just so many fewer, and nothing has to be kept of them.
    """

    __slots__ = ("_credit", "_favour", "_had", "_now", "order")

    def __init__(self, credit: int) -> None:
        self.order: OrderedDict[Payer, None] = OrderedDict()
        self._credit = credit
        self._had: OrderedDict[Payer, int] = OrderedDict()  # who was served last is at the end
        self._now = 0
        self._favour = True  # whether the next item goes to who took the fewest turns

    def offered(self) -> Iterator[tuple[Payer, bool]]:
        """Who might be next, the first one first, and whether that would be for the turns it did not take."""
        if self._credit and self._favour:
            least = min(self.order, key=self._taken)
            if self._taken(least) < self._now:
                yield least, True
        for payer in self.order:
            yield payer, False

    def serve(self, payer: Payer, favoured: bool) -> None:
        """A payer gets an item. In its turn it then comes last; what it gets as a favour costs no turn."""
        if not favoured:
            self.order.move_to_end(payer)
        if not self._credit:
            return
        taken = self._taken(payer)
        self._now = max(self._now, taken)
        self._favour = not favoured
        self._had[payer] = taken + 1
        self._had.move_to_end(payer)
        while len(self._had) > MOST_KEPT or next(iter(self._had.values())) <= self._now - self._credit:
            self._had.popitem(last=False)

    def _taken(self, payer: Payer) -> int:
        oldest = max(self._now - self._credit, 0)
        return max(self._had.get(payer, oldest), oldest)


class Rounds(Generic[T]):
    """Items that wait in the lines of their payers; on each level of payers one comes after the other.

    With a `credit` the turns that pass while a payer does not wait are not lost to it, up to so many: every
    second item on its level goes to whoever took the fewest turns, until it caught up. So who asks for less
    than its part seldom waits for it; who comes and goes gets no more than who always waits, but for the
    credit once; and on each level everybody has at least half its turns meanwhile.
    """

    def __init__(self, credit: int = 0) -> None:
        self._credit = credit
        self._lines: dict[Payer, deque[T]] = {}
        self._levels: dict[Payer, _Level] = {}  # behind each prefix
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, payer: Payer, item: T) -> None:
        """Wait at the end of the payer's line; a payer that did not wait comes last on its level."""
        line = self._lines.get(payer)
        if line is None:
            line = self._lines[payer] = deque()
            for depth in range(len(payer)):
                prefix = payer[:depth]
                if prefix not in self._levels:
                    self._levels[prefix] = _Level(self._credit)
                self._levels[prefix].order.setdefault(payer[: depth + 1])
        line.append(item)
        self._count += 1

    def turn(self, allowed: Callable[[Payer], bool] = lambda prefix: True) -> Payer | None:
        """The payer whose turn it is now; on each level it then comes last. None if nobody may.

        `allowed` is asked of the beginnings of payers, the outer ones first.
        """
        way = self._search((), allowed)
        if way is None:
            return None
        payer: Payer = ()
        for level, payer, favoured in way:
            level.serve(payer, favoured)
        return payer

    def _search(
        self, prefix: Payer, allowed: Callable[[Payer], bool]
    ) -> list[tuple[_Level, Payer, bool]] | None:
        if prefix in self._lines:
            return []
        if (level := self._levels.get(prefix)) is None:
            return None
        for inner, favoured in level.offered():
            if allowed(inner) and (rest := self._search(inner, allowed)) is not None:
                return [(level, inner, favoured), *rest]
        return None

    def head(self, payer: Payer) -> T:
        """The first item of a payer's line; it goes on waiting."""
        return self._lines[payer][0]

    def waits(self, payer: Payer) -> bool:
        return payer in self._lines

    def pop(self, payer: Payer) -> T:
        """The first item of a payer's line, which waits no longer."""
        item = self._lines[payer].popleft()
        self._left(payer)
        return item

    def remove(self, payer: Payer, item: T) -> None:
        """An item waits no longer; unknown ones are fine."""
        line = self._lines.get(payer, deque())
        for at, each in enumerate(line):
            if each is item:
                del line[at]
                self._left(payer)
                return

    def _left(self, payer: Payer) -> None:
        self._count -= 1
        if self._lines[payer]:
            return
        del self._lines[payer]
        for depth in reversed(range(len(payer))):
            level = self._levels[payer[:depth]]
            del level.order[payer[: depth + 1]]
            if level.order:
                return
            del self._levels[payer[:depth]]
