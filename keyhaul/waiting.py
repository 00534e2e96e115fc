"""Who waits for which keys to be confirmed, and what became of them.

A request claims the keys it was made for: they are handed out in the commit that confirms them. What travels
behind them in the same message is for a pool, as is what nobody waits for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from keyhaul.keys import Ref, Row, State


class Wait:
    """Somebody waiting until all of some keys are confirmed, or one of them failed."""

    def __init__(self, refs: Sequence[Ref], claimed: int) -> None:
        """The first `claimed` keys are for a master that waits, the others for its pool."""
        self.claimed = frozenset(refs[:claimed])
        self.open = set(refs)
        self.failed: list[Row] = []
        self.doubted = False  # on some link the two ends may have had different material
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def good(self) -> bool:
        """Whether every key is held at the far end."""
        return not self.open and not self.failed

    def conclude(self, row: Row) -> None:
        """What became of one key."""
        self.open.discard(row.ref)
        if row.state in (State.FAILED, State.VOIDED, State.EXPIRED):
            self.failed.append(row)
        if (self.failed or not self.open) and not self.done.done():
            self.done.set_result(None)


class Waits:
    """Everybody who waits at one node."""

    def __init__(self) -> None:
        self._waits: dict[Ref, Wait] = {}

    @contextmanager
    def expecting(self, refs: Sequence[Ref], claimed: int = 0) -> Iterator[Wait]:
        """Wait for keys until the end of the block; `claimed`: see `Wait`."""
        wait = Wait(refs, claimed)
        self._waits.update((ref, wait) for ref in refs)
        try:
            yield wait
        finally:
            for ref in refs:
                self._waits.pop(ref, None)

    def claimed(self, ref: Ref) -> bool:
        """Whether a master waits for this very key."""
        wait = self._waits.get(ref)
        return wait is not None and ref in wait.claimed

    def doubted(self, refs: Iterable[Ref]) -> None:
        """On the way of these keys a message could not be opened."""
        for ref in refs:
            if ref in self._waits:
                self._waits[ref].doubted = True

    def conclude(self, row: Row) -> None:
        """What became of one key, for whoever waits for it."""
        if (wait := self._waits.get(row.ref)) is not None:
            wait.conclude(row)


class Load:
    """Keys on their way to a pool; whoever wants some waits until they have `landed`, or failed to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.arrived = False
        self.landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
