"""Writes the audit log: off the event loop, in batches with one fsync each, and never two versions of a line.

    note      hand a line over and go on
    record    the same, and wait until it is on disk

If the disk takes no more, the file is cut back to its last whole line, lines wait in memory, and every
further call tries again. With `required`, `record` and `ready` raise meanwhile: no key is delivered that
is not in the log. Without it, lines beyond `MOST_WAITING` are dropped, counted, and said to be missing in
the first line after.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from keyhaul.audit import chain
from keyhaul.audit.chain import Head, Signer
from keyhaul.config.write import write
from keyhaul.errors import Malformed, SealError, Unavailable

MOST_WAITING = 20_000  # lines held in memory while the disk takes none
ROTATE_BYTES = 64 * 2**20
_TAIL = 64 * 1024  # bytes; the longest line, a checkpoint, has 5 kB

log = structlog.get_logger("keyhaul.audit")


class _Line(NamedTuple):
    at: float
    event: str
    fields: dict[str, Any]


class AuditLog:
    """One file, written by one process. Open it with `open`, end it with `close`.

    `lines`, `dropped` and `failures` count since the start; `trouble` says why the last write failed.
    """

    def __init__(
        self,
        file: Path,
        signer: Signer,
        *,
        required: bool = False,
        rotate_bytes: int = ROTATE_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.file = file
        self.required = required
        self.head = Head()
        self.anchored = Head()
        self.lines = self.dropped = self.failures = 0
        self.trouble = ""
        self._signer = signer
        self._rotate_bytes = rotate_bytes
        self._now = now
        self._descriptor = -1
        self._size = 0
        self._missing = 0  # dropped since the last line
        self._waiting: deque[_Line] = deque()
        self._noted = self._stored = 0  # lines handed over, and of those on disk
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "keyhaul-audit")

    # ------------------------------------------------------------------ open and close

    async def open(self, expected: Head | None = None) -> None:
        """Go on after the last line of the file, or make it. `expected` is what the store remembers.

        Raises SealError if the file's end is not a whole line, or if it is older than `expected`.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open, expected)
        if self._size == 0:
            self.note(chain.CONTINUED if self.head.n else chain.BEGIN, node=self._signer.name)

    def _open(self, expected: Head | None) -> None:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.file, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size
            self.head = self._last()
        except OSError as error:
            raise SealError(
                f"{self.file}: {error.strerror}", "check [audit] file and its directory"
            ) from None
        except Malformed:
            raise SealError(f"{self.file} is no audit log", "keep it, and name another file") from None
        if expected is None or not expected.n:
            return
        if self._size == 0:
            log.warning("the audit log was moved away; a new file goes on with it", line=expected.n + 1)
            self.head = self.anchored = expected
        elif self.head.n < expected.n:
            raise SealError(
                f"{self.file} ends with line {self.head.n}, but line {expected.n} was written: "
                "lines were removed from its end, or an old copy was put back",
                "find out who did it and keep the file; then move it away to begin a new one",
            )

    def _last(self) -> Head:
        """The head the file ends with; half a line at its end, which nobody was told of, goes."""
        if not self._size:
            return Head()
        tail = os.pread(self._descriptor, _TAIL, max(0, self._size - _TAIL))
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            self._size -= len(tail) - len(whole)
            os.ftruncate(self._descriptor, self._size)
        if not whole:
            return Head()
        line = whole[:-1].rpartition(b"\n")[2]
        return Head(chain.read(line)["n"], chain.digest(line))

    async def close(self) -> None:
        """Write what waits, and close the file."""
        with contextlib.suppress(Unavailable):
            await self._written()
        self._thread.shutdown(wait=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # ------------------------------------------------------------------ lines

    def note(self, event: str, **fields: Any) -> None:
        """Put a line into the queue; values are strings, numbers, or lists of them, and never secret."""
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            self._missing += 1
        else:
            self._waiting.append(_Line(self._now(), event, fields))
            self._noted += 1
        self._flush()

    async def record(self, event: str, **fields: Any) -> None:
        """Put a line into the queue and return when it is on disk. Raises Unavailable if `required`."""
        self.note(event, **fields)
        await self._written()

    async def ready(self) -> None:
        """Raises Unavailable if the log is `required` and cannot be written; tries once more before."""
        if self.trouble:
            await self._written()

    async def _written(self) -> None:
        """Wait until everything noted so far is on disk, or the disk said no."""
        if self._noted > self._stored:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self._noted, waiter))
            self._flush()
            await waiter
        if self.trouble and self.required:
            raise Unavailable(
                f"the audit log cannot be written ({self.trouble}), and it is required",
                "free the disk of the audit log; the node goes on by itself",
            )

    def _flush(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._write_all(), name="audit")

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [*self._waiting]
            self._waiting.clear()
            missing, self._missing = self._missing, 0
            try:
                await loop.run_in_executor(self._thread, self._write, batch, missing)
            except OSError as error:
                self._waiting.extendleft(reversed(batch))
                self._missing += missing
                self._failed(error)
                self._wake(self._noted)
                return
            if self.trouble:
                log.warning("the audit log is written again", file=str(self.file))
            self.trouble = ""
            self._stored += len(batch)
            self._wake(self._stored)

    def _wake(self, until: int) -> None:
        while self._waiters and self._waiters[0][0] <= until:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        if not self.trouble:
            log.error("ALARM: the audit log cannot be written", file=str(self.file), cause=error.strerror)
        self.trouble = error.strerror or "unknown error"

    # ------------------------------------------------------------------ the writing thread

    def _write(self, batch: list[_Line], missing: int) -> None:
        if self._size > self._rotate_bytes:
            self._rotate()
        head, parts = self.head, []
        if missing:
            line, head = chain.make(head, batch[0].at, "lines_missing", {"number": missing})
            parts.append(line)
        for entry in batch:
            line, head = chain.make(head, entry.at, entry.event, entry.fields)
            parts.append(line)
        self._append(b"".join(parts))
        self.lines += head.n - self.head.n
        self.head = head

    def _append(self, text: bytes) -> None:
        """All of it on disk, or nothing of it in the file."""
        try:
            _write_out(self._descriptor, text)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(text)

    def _rotate(self) -> None:
        """`FILE` becomes `FILE.<number of its last line>`; the new one goes on with the chain."""
        fresh = self.file.with_name(self.file.name + ".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        line, head = chain.checkpoint(self.head, self._now(), self._signer, chain.CONTINUED)
        try:
            _write_out(descriptor, line)
            with contextlib.suppress(FileExistsError):  # of an attempt that failed after this
                os.link(self.file, self.file.with_name(f"{self.file.name}.{self.head.n:012d}"))
            fresh.replace(self.file)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size, self.head = descriptor, len(line), head

    # ------------------------------------------------------------------ anchors

    async def checkpoint(self) -> Head | None:
        """Sign how far the log came, if it came further; returns what the store should remember.

        Raises Unavailable as `record` does.
        """
        await self._written()
        if self.head == self.anchored or self.trouble:
            return None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._sign)
        except OSError as error:
            self._failed(error)
            return None
        self.anchored = self.head
        return self.head

    def _sign(self) -> None:
        line, head = chain.checkpoint(self.head, self._now(), self._signer)
        self._append(line)
        self.head = head
        write(self.file.with_name(self.file.name + ".head"), head.text() + "\n")

    async def tail(self, most: int) -> list[dict[str, Any]]:
        """The last lines of the file, oldest first, without hashes and signatures. Raises Unavailable."""
        try:
            text, cut = await asyncio.to_thread(self._end)
        except OSError as error:
            raise Unavailable(
                f"the audit log cannot be read ({error.strerror})", "check its disk and its owner"
            ) from None
        lines = text[: text.rfind(b"\n") + 1].splitlines()[cut:]
        return [_shown(line) for line in lines[-most:]] if most > 0 else []

    def _end(self) -> tuple[bytes, int]:
        """The end of the file, and how many lines at its beginning are not whole."""
        with self.file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return file.read(_TAIL), int(size > _TAIL)

    def summary(self) -> dict[str, Any]:
        """For operators: how far it is, and what is wrong with it."""
        return {
            "file": str(self.file),
            "required": self.required,
            "head": self.head.text(),
            "anchored": self.anchored.text(),
            "lines": self.lines,
            "waiting": len(self._waiting),
            "dropped": self.dropped,
            "failures": self.failures,
            "trouble": self.trouble,
        }


def _write_out(descriptor: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _shown(line: bytes) -> dict[str, Any]:
    """A line for people; one that is not as it was written, `keyhaul audit verify` has to judge."""
    try:
        values = chain.read(line)
    except Malformed:
        return {"n": 0, "at": "", "event": "a line that cannot be read"}
    return {name: value for name, value in values.items() if name not in ("prev", "signature")}
