"""One asyncio lock per row, held in sorted order, forgotten as soon as nobody holds or wants it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from keyhaul.keys import Ref


class RefLocks:
    """Locks by Ref within one event loop.

    A set of locks is always taken in the same order, so two holders never wait for each other. They
    are not re-entrant: a task that asks again for a ref it holds waits for ever. Waiters are served
    first come, first served.
    """

    def __init__(self) -> None:
        # A ref is locked while it has an entry; the entry lists who waits for it.
        self._waiting: dict[Ref, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        """How many refs are locked now."""
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self, refs: Iterable[Ref]) -> AsyncIterator[None]:
        """Hold the locks of all `refs`; a cancelled wait gives back what it had."""
        wanted = set(refs)
        taken: list[Ref] = []
        try:
            if self._waiting.keys().isdisjoint(wanted):  # all at once, so in no order
                self._waiting.update((ref, deque()) for ref in wanted)
                taken.extend(wanted)
            else:
                for ref in sorted(wanted, key=_order):
                    await self._take(ref)
                    taken.append(ref)
            yield
        finally:
            for ref in taken:
                self._hand_over(ref)

    async def _take(self, ref: Ref) -> None:
        waiting = self._waiting.get(ref)
        if waiting is None:
            self._waiting[ref] = deque()
            return
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                waiting.remove(turn)
            else:  # the lock was handed to us in the very tick in which we were cancelled
                self._hand_over(ref)
            raise

    def _hand_over(self, ref: Ref) -> None:
        waiting = self._waiting[ref]
        for turn in waiting:
            if not turn.done():
                waiting.remove(turn)
                turn.set_result(None)
                return
        # Those left, if any, were cancelled and are about to remove themselves from the deque.
        del self._waiting[ref]


def _order(ref: Ref) -> tuple[int, str]:
    """The order of refs themselves, without a call for every comparison."""
    return ref.key_id.int, ref.leg
