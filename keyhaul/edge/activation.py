"""Listening sockets handed over by whoever started us, as sd_listen_fds(3) describes."""

from __future__ import annotations

import os
import socket

from keyhaul.errors import ConfigError

_FIRST = 3  # SD_LISTEN_FDS_START


def inherited(names: frozenset[str]) -> dict[str, socket.socket]:
    """The sockets meant for this process, by name; none where LISTEN_PID names another.

    The variables are taken out of the environment so that no child can mistake them for its own. Raises
    ConfigError for a name not in `names`, or a descriptor that is no listening socket.
    """
    pid, count, titles = (os.environ.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES"))
    if not count or pid != str(os.getpid()):
        return {}
    given = titles.split(":")
    if not count.isdecimal() or len(given) != int(count) or len({*given}) != len(given) or {*given} - names:
        raise ConfigError(
            f"sockets were handed over as {titles!r}, {count} of them",
            f"name each with FileDescriptorName=, once: {', '.join(sorted(names))}",
        )
    return {name: _socket(_FIRST + place, name) for place, name in enumerate(given)}


def _socket(descriptor: int, name: str) -> socket.socket:
    try:
        found = socket.socket(fileno=descriptor)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    if not listens:
        raise ConfigError(f"descriptor {descriptor} ({name}) is no listening socket", "check the socket unit")
    found.set_inheritable(False)
    found.setblocking(False)
    return found
