"""The process of a worker (`workers = N`), started by a node and by nobody else; not a command of its own."""

from __future__ import annotations

import json
import signal
import socket
import sys


def main(words: list[str]) -> int:
    """Serve on two inherited sockets, given by number: the channel, and the door for connections."""
    channel, door = (socket.socket(fileno=int(word)) for word in words)
    # A terminal and systemd signal every process of the service; what a worker does, the node tells it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # see keyhaul.cli.serve
    from keyhaul.cli import guarded
    from keyhaul.hardening import harden

    missing = harden()
    return guarded(lambda: _serve(channel, door, missing), as_json=True)


def _serve(channel: socket.socket, door: socket.socket, missing: list[str]) -> int:
    import structlog
    import uvloop

    from keyhaul.cli.serve import import_without_system_anchors, log_to_stderr

    import_without_system_anchors("aiohttp")
    from keyhaul.edge.worker import serve

    log_to_stderr()
    for what in missing:
        structlog.get_logger("keyhaul.edge").warning("worker not hardened", what=what)
    uvloop.run(serve(channel, door))
    return 0


if __name__ == "__main__":
    # The node's own path, so that both run the same program; isolated mode has left out the environment's.
    sys.path[:] = json.loads(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
