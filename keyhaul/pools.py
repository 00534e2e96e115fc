"""Keys relayed ahead of demand: which are ready, and how many a pair of SAEs lacks. Pure bookkeeping.

The ledger is the truth; this index is rebuilt from it at start. A ref that is popped here may turn out
to be voided or expired there, and then simply does not come back.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keyhaul.keys import MASTER, Ref, Row, State


@dataclass(frozen=True, slots=True)
class Pool:
    """What makes two keys interchangeable: master, targets, and size in bits."""

    master: str
    targets: frozenset[str]
    size: int


def pool_of(row: Row) -> Pool:
    return Pool(row.initiator, frozenset(row.targets), row.size)


LARGEST_BLOCK = 128


class Pools:
    """`level`: keys to keep ready for every pool that was asked for once.

    Keys come and go in blocks: those that were made together and stand alike (see ports.Herd).
    """

    def __init__(self, level: int) -> None:
        self.level = level
        self._ready: defaultdict[Pool, deque[list[Ref]]] = defaultdict(deque)
        self._counts: defaultdict[Pool, int] = defaultdict(int)

    @property
    def block(self) -> int:
        """How many keys should stand together: a crash may burn one such block, a quarter of a pool."""
        return max(1, min(LARGEST_BLOCK, self.level // 4))

    def offer(self, row: Row) -> bool:
        """Note a confirmed key of this origin that nobody waits for; False for any other row."""
        ready = row.state is State.DELIVERABLE and row.upstream is None and MASTER in row.waiting
        if ready:
            self.add(pool_of(row), [row.ref])
        return ready

    def add(self, pool: Pool, refs: Iterable[Ref]) -> None:
        """Keys that are ready from now on."""
        blocks = self._ready[pool]
        for ref in refs:
            if blocks and _mates(blocks[-1][-1], ref):
                blocks[-1].append(ref)
            else:
                blocks.append([ref])
            self._counts[pool] += 1

    def count(self, pool: Pool) -> int:
        """Keys ready now."""
        return self._counts.get(pool, 0)

    def summary(self) -> list[dict[str, Any]]:
        """Every pool that holds keys, for operators; sizes in bits."""
        return [
            {"master": pool.master, "targets": sorted(pool.targets), "size": pool.size, "ready": count}
            for pool, count in self._counts.items()
            if count
        ]

    def pop(self, pool: Pool) -> list[Ref]:
        """The oldest block; empty if there is none."""
        blocks = self._ready.get(pool)
        if not blocks:
            return []
        block = blocks.popleft()
        self._counts[pool] -= len(block)
        return block

    def lacking(self, pool: Pool) -> int:
        """How many keys would fill this pool."""
        return max(0, self.level - self.count(pool))

    def low(self, pool: Pool) -> bool:
        """Whether it is worth filling: keys travel in batches, so not for every one that left."""
        return self.count(pool) * 4 < self.level * 3


def _mates(one: Ref, other: Ref) -> bool:
    return one.key_id.int >> 8 == other.key_id.int >> 8 and one.leg == other.leg
