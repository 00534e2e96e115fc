"""Ports for programs that a test starts and that are told where to listen."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def held(port: int = 0) -> Iterator[int]:
    """A port of 127.0.0.1 that the system gives to nobody who does not ask for it by its number.

    Callers are refused until somebody listens; who sets SO_REUSEADDR, as servers do, may.
    """
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        mine.bind(("127.0.0.1", port))
        yield int(mine.getsockname()[1])
