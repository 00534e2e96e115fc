"""What tests of entropy share: a FIFO that somebody fills, and waiting for what is to come."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 180.0  # seconds until a hung test fails


def stuck(length: int) -> bytes:
    """A generator whose diode has died."""
    return bytes(length)


class Pump:
    """A vendor's program: keeps a FIFO full of what `make` gives, as long as somebody reads."""

    def __init__(self, path: Path, make: Callable[[int], bytes] = os.urandom) -> None:
        self.path = path
        self.make = make
        self.given = bytearray()
        os.mkfifo(path)
        # read and write: opening does not wait for a reader, and a reader may come and go
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_writer(self._descriptor, self._write)

    def _write(self) -> None:
        chunk = self.make(1024)
        with contextlib.suppress(BlockingIOError):
            self.given += chunk[: os.write(self._descriptor, chunk)]

    def close(self) -> None:
        """Stop, and take the FIFO away."""
        asyncio.get_running_loop().remove_writer(self._descriptor)
        os.close(self._descriptor)
        self.path.unlink()


@contextlib.contextmanager
def pumped(path: Path, make: Callable[[int], bytes] = os.urandom) -> Iterator[Pump]:
    pump = Pump(path, make)
    try:
        yield pump
    finally:
        pump.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
