"""One source, read ahead: raw samples are tested, conditioned to full entropy, and wait in a bounded buffer.

A source that cannot be reached is asked again, with growing pauses; it passes the start-up test anew before
it counts. One that fails a health test is out for good: its buffer is wiped and only an operator brings
it back, by replacing it.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import math
from typing import Any

import structlog

from keyhaul.entropy.health import STARTUP, Finding, Health
from keyhaul.entropy.sources import Source
from keyhaul.errors import KeyhaulError

BLOCK = 64  # bytes of one conditioned block, the output of SHA-512
SURPLUS = 64  # bits of input entropy above the output's, for full entropy (SP 800-90C)
CHUNK = 4096  # bytes asked from a source at once
FIRST_PAUSE, LAST_PAUSE = 0.2, 30.0  # seconds

log = structlog.get_logger("keyhaul.entropy")


class Stage(enum.StrEnum):
    """Where a source stands."""

    STARTING = "starting"
    GOOD = "good"
    UNREACHABLE = "unreachable"
    FAILED = "failed"


class Feed:
    """Runs as a task of its owner (`run`) and is emptied from the event loop (`take`), without a lock.

    `capacity` is in bytes. It grows to the largest request seen, which the policy of the port bounds;
    otherwise such a request could never be served.
    """

    def __init__(self, source: Source, capacity: int) -> None:
        self.source = source
        self.stage = Stage.STARTING
        self.cause = ""
        self.settled = asyncio.Event()  # the start-up test is over, or something went wrong
        self.bytes_read = 0  # raw
        self.failures = 0
        self._capacity = capacity
        self._ready = bytearray()  # conditioned
        self._raw = bytearray()  # tested, not conditioned yet
        self._health = Health(source.min_entropy)
        self._raw_block = math.ceil((BLOCK * 8 + SURPLUS) / source.min_entropy)  # bytes
        self._room = asyncio.Event()
        self._room.set()

    @property
    def ready(self) -> int:
        """Bytes that could be taken now."""
        return len(self._ready)

    @property
    def out(self) -> bool:
        """Whether it cannot refill its buffer now."""
        return self.stage in (Stage.UNREACHABLE, Stage.FAILED)

    def holds(self, length: int) -> bool:
        """Whether `length` bytes are there; if not, it will read until they are."""
        self._capacity = max(self._capacity, length)
        self._refill()
        return len(self._ready) >= length

    def take(self, length: int) -> bytes:
        """Bytes that are used once: they leave the buffer, and their place is overwritten."""
        taken = bytes(self._ready[:length])
        self._ready[:length] = bytes(length)
        del self._ready[:length]
        self._refill()
        return taken

    def _refill(self) -> None:
        """Ask for more when a quarter is gone, not for every key: a request to a QRNG may have a price."""
        if len(self._ready) * 4 <= self._capacity * 3:
            self._room.set()

    def status(self) -> dict[str, Any]:
        """For operators: never bits."""
        return {
            "name": self.source.name,
            "kind": self.source.kind,
            "state": self.stage.value,
            "min_entropy": self.source.min_entropy,
            "bytes_read": self.bytes_read,
            "bytes_ready": len(self._ready),
            "failures": self.failures,
            "last_cause": self.cause,
        }

    async def run(self) -> None:
        """Read until cancelled or out for good."""
        try:
            await self._follow()
        except Exception as bug:  # noqa: BLE001  the root of a task: a library's surprise is a failed source
            self._fail(f"reading failed ({type(bug).__name__})")
        finally:
            self._wipe()
            await self.source.close()

    async def _follow(self) -> None:
        pause = FIRST_PAUSE
        while self.stage is not Stage.FAILED:
            await self._room.wait()
            try:
                samples = await self.source.read(self._wanted())
            except KeyhaulError as error:
                if error.details.get("final"):
                    self._fail(error.cause)
                    return
                self._lose(error)
                await asyncio.sleep(max(pause, float(error.details.get("pause", 0))))
                pause = min(pause * 2, LAST_PAUSE)
            else:
                self._take_in(samples)
                pause = FIRST_PAUSE

    def _wanted(self) -> int:
        """Raw bytes that would fill the buffer, or end the start-up test, at most a chunk."""
        blocks = math.ceil((self._capacity - len(self._ready)) / BLOCK)
        starting = STARTUP - self._health.seen
        return max(1, min(CHUNK, max(blocks * self._raw_block - len(self._raw), starting)))

    def _take_in(self, samples: bytes) -> None:
        """Test first: not a byte of a chunk is used before all of it has passed (4.3, 4.4)."""
        self.bytes_read += len(samples)
        finding = self._health.check(samples)
        if finding is not None:
            self._fail(finding)
            return
        self._raw += samples
        if not self._health.started:
            return
        if self.stage is not Stage.GOOD:
            log.info("entropy source in use", source=self.source.name, kind=self.source.kind)
            self.stage = Stage.GOOD
        self._condition()
        self.settled.set()

    def _condition(self) -> None:
        """SHA-512, a vetted conditioning component (SP 800-90B 3.1.5.1), over enough samples for a block."""
        while len(self._raw) >= self._raw_block and len(self._ready) < self._capacity:
            self._ready += hashlib.sha512(self._raw[: self._raw_block]).digest()
            del self._raw[: self._raw_block]
        if len(self._ready) >= self._capacity:
            self._raw.clear()  # what a source gives beyond what it was asked for is not hoarded
            self._room.clear()

    def _lose(self, error: KeyhaulError) -> None:
        """Not reachable: what is buffered was good and stays; what comes next is tested from the start."""
        if self.stage is not Stage.UNREACHABLE:
            log.error("entropy source out", source=self.source.name, cause=error.cause)
        self.stage = Stage.UNREACHABLE
        self.cause = error.cause
        self.failures += 1
        self._raw.clear()
        self._health = Health(self.source.min_entropy)
        self.settled.set()

    def _fail(self, cause: Finding | str) -> None:
        self.stage = Stage.FAILED
        self.cause = str(cause)
        self.failures += 1
        self._wipe()
        self.settled.set()
        log.error(
            "entropy source failed and is out until replaced", source=self.source.name, cause=self.cause
        )

    def _wipe(self) -> None:
        """What came shortly before a failure is no better than what failed."""
        for buffer in (self._ready, self._raw):
            buffer[:] = bytes(len(buffer))
            buffer.clear()


class Running:
    """A feed and its task."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._task = asyncio.create_task(feed.run(), name=f"entropy {feed.source.name}")

    async def stop(self) -> None:
        """Cancel, and wait until the source is closed."""
        self._task.cancel()
        await asyncio.wait((self._task,))
