"""One asyncio lock per row, held in sorted order, forgotten as soon as nobody holds or wants it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from keyhaul.keys import Ref


class RefLocks:
    """Locks by Ref within one event loop.

    A set of locks is always taken in the same order, so two holders never wait for each other. They
    are not re-entrant: a task that asks again for a ref it holds waits for ever. Waiters are served
    first come, first served.
    """

    def __init__(self) -> None:
        # A ref is locked while it has an entry; the entry lists who waits for it, if anybody does.
        self._waiting: dict[Ref, deque[asyncio.Future[None]] | None] = {}

    def __len__(self) -> int:
        """How many refs are locked now."""
        return len(self._waiting)

    def hold(self, refs: Iterable[Ref]) -> Held:
        """Hold the locks of all `refs`; a cancelled wait gives back what it had."""
        return Held(self, refs)

    async def take(self, refs: Iterable[Ref]) -> list[Ref]:
        """Take the locks of all `refs`, none twice; give them back with `release`."""
        wanted = dict.fromkeys(refs)
        if self._waiting.keys().isdisjoint(wanted):  # all at once, so in no order
            self._waiting.update(wanted)
            return list(wanted)
        taken: list[Ref] = []
        try:
            for ref in sorted(wanted, key=_order):
                await self._take(ref)
                taken.append(ref)
        except BaseException:
            self.release(taken)
            raise
        return taken

    def release(self, refs: Iterable[Ref]) -> None:
        """Give locks to whoever waits for them."""
        for ref in refs:
            self._hand_over(ref)

    async def _take(self, ref: Ref) -> None:
        if ref not in self._waiting:
            self._waiting[ref] = None
            return
        waiting = self._waiting[ref]
        if waiting is None:
            waiting = self._waiting[ref] = deque()
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
        for turn in waiting or ():
            if not turn.done():
                assert waiting is not None
                waiting.remove(turn)
                turn.set_result(None)
                return
        # Those left, if any, were cancelled and are about to remove themselves from the deque.
        del self._waiting[ref]


class Held:
    """A context that holds locks; a class, because a generator costs several times as much."""

    __slots__ = ("_locks", "_refs")

    def __init__(self, locks: RefLocks, refs: Iterable[Ref]) -> None:
        self._locks = locks
        self._refs = refs

    async def __aenter__(self) -> None:
        self._refs = await self._locks.take(self._refs)

    async def __aexit__(self, *_: object) -> None:
        self._locks.release(self._refs)


def _order(ref: Ref) -> tuple[int, str]:
    """The order of refs themselves, without a call for every comparison."""
    return ref.key_id.int, ref.leg
