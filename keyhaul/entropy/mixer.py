"""The entropy of a node: the operating system's generator XOR every source that works, always.

Reading never waits. Sources are read ahead by their feeds; where none of them has enough, the policy says
whether the request is refused or the operating system serves alone, which the log and the status tell.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import structlog

from keyhaul.entropy.feed import Feed, Running, Stage
from keyhaul.entropy.sources import Source
from keyhaul.errors import Unavailable
from keyhaul.keys import Secret

OnFailure = Literal["fail-closed", "degrade-with-alarm"]

BUFFER = 65_536  # bytes of conditioned entropy held ready per source
SETTLE = 10.0  # seconds that new sources have for their start-up test
SOON, LATER = 2, 30  # seconds of Retry-After: a buffer that fills, a source that somebody must see to

log = structlog.get_logger("keyhaul.entropy")


class SystemEntropy:
    """The operating system's generator."""

    def read(self, length: int) -> Secret:
        """`length` bytes."""
        return Secret(os.urandom(length))


class MixedEntropy:
    """The `Entropy` port over replaceable sources; without any it is the operating system's generator.

    Several sources are redundant: each that has enough is mixed in, and the policy `on_failure` applies
    when none has. To be used on one event loop.
    """

    def __init__(self) -> None:
        self.on_failure: OnFailure = "fail-closed"
        self.bytes_served = 0
        self.bytes_alone = 0  # served by the operating system alone although there are sources
        self._running: tuple[Running, ...] = ()
        self._short = False  # in the state that the policy is for; logged when it begins and ends
        self._replacing = asyncio.Lock()

    def read(self, length: int) -> Secret:
        """`length` bytes. Raises Unavailable under `fail-closed` if no source has as many ready."""
        mixed = int.from_bytes(os.urandom(length))
        feeds = [each.feed for each in self._running]
        givers = [feed for feed in feeds if feed.holds(length)]
        if feeds and not givers:
            self._run_short(feeds, length)
        elif self._short:
            self._short = False
            log.info("entropy sources serve again")
        for feed in givers:
            # XOR keeps the best of both: a source that is known or chosen by somebody takes nothing away.
            mixed ^= int.from_bytes(feed.take(length))
        self.bytes_served += length
        return Secret(mixed.to_bytes(length))

    def start(self, sources: Sequence[Source], on_failure: OnFailure, buffer: int = BUFFER) -> None:
        """Begin to read these sources; once, at the start of a node. `buffer` in bytes per source."""
        self.on_failure = on_failure
        self._running = tuple(Running(Feed(source, buffer)) for source in sources)

    async def replace(
        self, sources: Sequence[Source], on_failure: OnFailure, buffer: int = BUFFER, settle: float = SETTLE
    ) -> None:
        """Put new sources in the place of all old ones, at once, after each passed its start-up test.

        Until then the old ones serve. Raises Unavailable if a new one does not pass within `settle`
        seconds; then everything is as before. The sources belong to this object in either case.
        """
        async with self._replacing:
            new = tuple(Running(Feed(source, buffer)) for source in sources)
            try:
                await _settled(new, settle)
            except BaseException:
                await _stop(new)
                raise
            old, self._running, self.on_failure = self._running, new, on_failure
            names = [each.feed.source.name for each in new]
            log.warning("entropy sources replaced", sources=names, on_failure=on_failure)
            await _stop(old)

    async def close(self) -> None:
        """Stop reading; what was buffered is wiped."""
        async with self._replacing:
            await _stop(self._running)

    def status(self) -> dict[str, Any]:
        """For operators: never bits. `state` is good, reduced (a source is out), or, when no source
        has a byte ready, degraded or closed by policy."""
        return {
            "state": self._state(),
            "on_failure": self.on_failure,
            "bytes_served": self.bytes_served,
            "bytes_from_system_alone": self.bytes_alone,
            "sources": [
                {
                    "name": "os",
                    "kind": "os",
                    "state": Stage.GOOD.value,
                    "bytes_read": self.bytes_served,
                    "failures": 0,
                    "last_cause": "",
                },
                *(each.feed.status() for each in self._running),
            ],
        }

    def _state(self) -> str:
        feeds = [each.feed for each in self._running]
        if feeds and not any(feed.ready for feed in feeds):
            return "closed" if self.on_failure == "fail-closed" else "degraded"
        return "reduced" if any(feed.out for feed in feeds) else "good"

    def _run_short(self, feeds: Sequence[Feed], length: int) -> None:
        """No source can serve: refuse, or let the operating system serve alone, by policy."""
        causes = "; ".join(f"{feed.source.name}: {_why(feed)}" for feed in feeds)
        if not self._short:
            self._short = True
            log.error("no entropy source can serve", on_failure=self.on_failure, cause=causes)
        if self.on_failure == "degrade-with-alarm":
            self.bytes_alone += length
            return
        # Applications are not told paths and addresses of devices; the log and the status are.
        states = "; ".join(f"{feed.source.name}: {_how(feed)}" for feed in feeds)
        refusal = Unavailable(
            f"no entropy source can serve ({states})",
            "ask again; if it lasts, have the operator repair or replace the source",
        )
        refusal.retry_after = LATER if all(feed.out for feed in feeds) else SOON
        raise refusal


def _how(feed: Feed) -> str:
    return "slower than the demand" if feed.stage is Stage.GOOD else feed.stage.value


def _why(feed: Feed) -> str:
    return f"{_how(feed)}, {feed.cause}" if feed.out else _how(feed)


async def _settled(running: Iterable[Running], patience: float) -> None:
    """Wait until all passed the start-up test. Raises Unavailable that names those that did not."""
    feeds = [each.feed for each in running]
    try:
        async with asyncio.timeout(patience):
            for feed in feeds:
                await feed.settled.wait()
    except TimeoutError:
        pass  # told below, with the others
    causes = "; ".join(f"{feed.source.name}: {_why(feed)}" for feed in feeds if feed.stage is not Stage.GOOD)
    if causes:
        raise Unavailable(
            f"the new entropy sources are not in use ({causes})",
            "repair or leave out what fails, and try again",
        )


async def _stop(running: Iterable[Running]) -> None:
    await asyncio.gather(*(each.stop() for each in running))
