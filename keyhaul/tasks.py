"""A node's background tasks and its clock: nothing fails unseen, and stopping waits for everybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import structlog

from keyhaul.errors import KeyhaulError

log = structlog.get_logger("keyhaul.node")


class WallClock:
    """Unix time."""

    def now(self) -> float:
        return time.time()


class Tasks:
    """Background tasks that are never lost: a failure is logged, and stopping waits for all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._hand = ThreadPoolExecutor(1, "aside")

    def aside(self, work: Callable[[], None]) -> None:
        """Do `work` in another thread when its turn comes. May be called in any thread."""
        if not self._stopped:
            self._hand.submit(work).add_done_callback(self._done)

    def _done(self, work: Future[None]) -> None:
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("work aside failed", error=type(error).__name__)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` on its own; after `stop` it is dropped, for the disk remembers what is owed."""
        if self._stopped:
            work.close()
            return
        self.start(work, name)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """As `spawn`, for work that may have to be cancelled before the end."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            cause = error.cause if isinstance(error, KeyhaulError) else ""
            log.error("background task failed", task=task.get_name(), error=type(error).__name__, cause=cause)

    async def stop(self) -> None:
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._hand.shutdown, cancel_futures=True)
