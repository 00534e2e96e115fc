"""How much of the log is written: a level, and another one for a while, changed while the node runs.

A process has one log, so it has one `levels`. It is also the first processor of structlog's chain: a line
below the level in force goes no further.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from keyhaul.errors import Malformed

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LONGEST = 86_400.0  # seconds another level may last
_RANK = {name.lower(): rank for rank, name in enumerate(LEVELS)} | {"critical": len(LEVELS)}


class Levels:
    """`usual` is the configuration's. `now` gives seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._usual = self._level = "INFO"
        self._rank = _RANK["info"]
        self._until: float | None = None

    def usually(self, level: str) -> None:
        """What is in force unless `use` says otherwise."""
        self._usual = level
        if self._until is None:
            self._take(level, None)

    def use(self, level: str, seconds: float | None = None) -> None:
        """Another level, for so many seconds; without a time until the next start or reload.

        Raises Malformed for a level nobody knows, or a time that is none.
        """
        if level not in LEVELS:
            raise Malformed(f"{level[:32]!r} is no log level", f"use one of {', '.join(LEVELS)}")
        if seconds is None:
            self._usual = level
            self._take(level, None)
            return
        if not 0 < seconds <= LONGEST:
            raise Malformed("the time is out of range", f"use more than 0 and at most {LONGEST:g} s")
        self._take(level, self._now() + seconds)

    def writes(self, method: str) -> bool:
        """Whether lines of a method (`debug`, `info` …) are written now."""
        if self._until is not None and self._now() >= self._until:
            self._take(self._usual, None)
        return _RANK.get(method, len(LEVELS)) >= self._rank

    def summary(self) -> dict[str, Any]:
        """The level in force; how many seconds it lasts, None: for good; and the one after it."""
        self.writes("debug")
        left = None if self._until is None else round(self._until - self._now(), 1)
        return {"level": self._level, "seconds_left": left, "usual": self._usual}

    def _take(self, level: str, until: float | None) -> None:
        self._level, self._rank, self._until = level, _RANK[level.lower()], until

    def __call__(self, _: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if not self.writes(method):
            raise structlog.DropEvent
        return event


levels = Levels()
