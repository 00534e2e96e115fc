"""Which keys lie ready for which pair of SAEs. Pure bookkeeping.

The ledger is the truth; this index is rebuilt from it at start. A ref that is popped here may turn out
to be voided or expired there, and then simply does not come back. Keys come and go in blocks: those that
were made together and stand alike (see ports.Herd).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from keyhaul.keys import MASTER, Ref, Row, State


@dataclass(frozen=True, slots=True)
class Pool:
    """What makes two keys interchangeable: master, targets, and size in bits."""

    master: str
    targets: frozenset[str]
    size: int
    _hash: int = field(init=False, compare=False, repr=False)  # a request looks it up eight times

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.master, self.targets, self.size)))

    def __hash__(self) -> int:
        return self._hash


def pool_of(row: Row) -> Pool:
    return Pool(row.initiator, frozenset(row.targets), row.size)


class _Shelf:
    def __init__(self) -> None:
        self.blocks: deque[list[Ref]] = deque()
        self.by_name: dict[int, list[Ref]] = {}
        self.count = 0


class Shelves:
    """Confirmed keys that no master has, by pool, oldest first."""

    def __init__(self) -> None:
        self._shelves: dict[Pool, _Shelf] = {}

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._shelves)

    def offer(self, row: Row) -> bool:
        """Note a confirmed key of this origin that nobody waits for; False for any other row."""
        ready = row.state is State.DELIVERABLE and row.upstream is None and MASTER in row.waiting
        if ready:
            self.add(pool_of(row), [row.ref])
        return ready

    def add(self, pool: Pool, refs: Iterable[Ref]) -> None:
        """Keys that are ready from now on."""
        shelf = self._shelves.setdefault(pool, _Shelf())
        for ref in refs:
            name = ref.key_id.int >> 8
            block = shelf.by_name.get(name)
            if block is None:
                block = shelf.by_name[name] = []
                shelf.blocks.append(block)
            block.append(ref)
            shelf.count += 1

    def count(self, pool: Pool) -> int:
        """Keys ready now."""
        shelf = self._shelves.get(pool)
        return 0 if shelf is None else shelf.count

    def pop(self, pool: Pool, most: int | None = None) -> list[Ref]:
        """The oldest block; empty if there is none, or if it has more than `most` keys."""
        shelf = self._shelves.get(pool)
        while shelf is not None and shelf.blocks:
            if most is not None and len(shelf.blocks[0]) > most:
                return []
            block = shelf.blocks.popleft()
            if not block:
                continue
            del shelf.by_name[block[0].key_id.int >> 8]
            shelf.count -= len(block)
            if not shelf.count:
                del self._shelves[pool]
            return block
        return []

    def empty(self, pool: Pool) -> list[Ref]:
        """All that lies there; nothing afterwards."""
        shelf = self._shelves.pop(pool, None)
        return [] if shelf is None else [ref for block in shelf.blocks for ref in block]

    def remove(self, row: Row) -> bool:
        """A key that ended before a master took it; False if it does not lie here."""
        shelf = self._shelves.get(pool_of(row))
        name = row.ref.key_id.int >> 8
        block = shelf.by_name.get(name) if shelf is not None else None
        if shelf is None or block is None or row.ref not in block:
            return False
        block.remove(row.ref)
        shelf.count -= 1
        if not block:
            del shelf.by_name[name]
        if not shelf.count:
            del self._shelves[pool_of(row)]
        return True
