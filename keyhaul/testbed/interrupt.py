"""SIGTERM and SIGINT end what runs in order, and count as a wish rather than as a failure."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_INSIST = 5.0  # seconds after which work that was told to end is told again

_T = TypeVar("_T")


@contextlib.contextmanager
def wished() -> Iterator[asyncio.Event]:
    """An event that the first signal sets; nothing is cancelled."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, _T], insist: float = _INSIST) -> _T | None:
    """What `work` returns; None if `stop` was set before, and then `work` has ended as well.

    Work that goes on in spite of that is cancelled again every `insist` seconds: a cancellation that arrives
    together with the result of `asyncio.wait_for` is lost in Python 3.11, and the work would go on for ever.
    """
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        ending.cancel()
        while not working.done():
            working.cancel()
            await asyncio.wait((working,), timeout=insist)
    if not working.cancelled() and (failure := working.exception()) is not None:
        raise failure
    return None


class Interruptible:
    """`with Interruptible() as wish: ...` leaves the block when a signal comes; `wish.came` tells.

    Only the first signal cancels: what the block does on its way out is not disturbed by impatience.
    """

    def __init__(self) -> None:
        self.came = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
        ours = self.came and kind is not None and issubclass(kind, asyncio.CancelledError)
        if ours and self._task is not None:
            self._task.uncancel()
        return ours

    def _end(self) -> None:
        if not self.came and self._task is not None:
            self.came = True
            self._task.cancel()
