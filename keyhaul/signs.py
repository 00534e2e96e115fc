"""Signs of life: whoever rests because a neighbour did not answer goes on soon after it was heard from."""

from __future__ import annotations

import asyncio

LEAST = 0.25
"""Seconds that a rest lasts at least: a neighbour may be heard and not be reached."""


class Sign:
    """What one neighbour gives by being heard from."""

    def __init__(self) -> None:
        self._given = 0
        self._event = asyncio.Event()

    def give(self) -> None:
        """The neighbour was heard from now."""
        self._given += 1
        self._event.set()
        self._event.clear()

    async def rest(self, seconds: float) -> bool:
        """Wait so many seconds, or `LEAST` if a sign is given meanwhile; whether one was."""
        before = self._given
        await asyncio.sleep(min(seconds, LEAST))
        if self._given == before and seconds > LEAST:
            try:
                async with asyncio.timeout(seconds - LEAST):
                    await self._event.wait()
            except TimeoutError:
                return False
        return self._given != before
