"""SIGTERM and SIGINT end the current task in order, once, and count as a wish rather than as a failure."""

from __future__ import annotations

import asyncio
import signal
from types import TracebackType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
