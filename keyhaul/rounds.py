"""Whose turn it is among payers, on every level of them: neighbours first, behind each the applications.

Whatever is scarce at a node (device keys, one-time keys, messages under way) is given in rounds. A payer is a
path: an application of this node; or a neighbour, behind it the node where the keys began, and there the
application. What stands further inside is somebody's word, so it takes turns only within the turn of whoever
gave that word: a neighbour gains nothing by naming many applications. Pure rules; of those who do not wait
nothing is kept.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Payer = tuple[Hashable, ...]
"""From the outside in. No payer is the beginning of another."""

NOBODY: Payer = ("",)
"""For what no application asked for."""

T = TypeVar("T")


def own(sae: str) -> Payer:
    """An application of this node; its certificate says which."""
    return (("application", sae),)


def behind(peer: str, origin: str, sae: str) -> Payer:
    """An application of another node, whose keys a neighbour hands on."""
    return (("neighbour", peer), origin, sae)


class Rounds(Generic[T]):
    """Items that wait in the lines of their payers; on each level of payers one comes after the other."""

    def __init__(self) -> None:
        self._lines: dict[Payer, deque[T]] = {}
        self._levels: dict[Payer, OrderedDict[Payer, None]] = {}  # who comes next behind each prefix
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, payer: Payer, item: T) -> None:
        """Wait at the end of the payer's line; a payer that did not wait comes last on its level."""
        line = self._lines.get(payer)
        if line is None:
            line = self._lines[payer] = deque()
            for depth in range(len(payer)):
                self._levels.setdefault(payer[:depth], OrderedDict()).setdefault(payer[: depth + 1])
        line.append(item)
        self._count += 1

    def turn(self, allowed: Callable[[Payer], bool] = lambda prefix: True) -> Payer | None:
        """The payer whose turn it is now; on each level it then comes last. None if nobody may.

        `allowed` is asked of the beginnings of payers, the outer ones first.
        """
        found = self._search((), allowed)
        if found is not None:
            for depth in range(len(found)):
                self._levels[found[:depth]].move_to_end(found[: depth + 1])
        return found

    def _search(self, prefix: Payer, allowed: Callable[[Payer], bool]) -> Payer | None:
        if prefix in self._lines:
            return prefix
        for inner in self._levels.get(prefix, ()):
            if allowed(inner) and (found := self._search(inner, allowed)) is not None:
                return found
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
            del level[payer[: depth + 1]]
            if level:
                return
            del self._levels[payer[:depth]]
