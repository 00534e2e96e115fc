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


class Pools:
    """`level`: keys to keep ready for every pool that was asked for once."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._ready: defaultdict[Pool, deque[Ref]] = defaultdict(deque)

    def offer(self, row: Row) -> bool:
        """Note a confirmed key of this origin that nobody waits for; False for any other row."""
        ready = row.state is State.DELIVERABLE and row.upstream is None and MASTER in row.waiting
        if ready:
            self._ready[pool_of(row)].append(row.ref)
        return ready

    def count(self, pool: Pool) -> int:
        """Keys ready now."""
        return len(self._ready[pool]) if pool in self._ready else 0

    def summary(self) -> list[dict[str, Any]]:
        """Every pool that holds keys, for operators; sizes in bits."""
        return [
            {"master": pool.master, "targets": sorted(pool.targets), "size": pool.size, "ready": len(refs)}
            for pool, refs in self._ready.items()
            if refs
        ]

    def pop(self, pool: Pool, number: int) -> list[Ref]:
        """The oldest `number` keys, or none at all if there are fewer."""
        if self.count(pool) < number:
            return []
        queue = self._ready[pool]
        return [queue.popleft() for _ in range(number)]

    def put_back(self, pool: Pool, refs: Iterable[Ref]) -> None:
        """Keys that were popped and not used, in their order."""
        self._ready[pool].extendleft(reversed(list(refs)))

    def lacking(self, pool: Pool) -> int:
        """How many keys would fill this pool."""
        return max(0, self.level - self.count(pool))

    def low(self, pool: Pool) -> bool:
        """Whether it is worth filling: keys travel in batches, so not for every one that left."""
        return self.count(pool) * 4 < self.level * 3
