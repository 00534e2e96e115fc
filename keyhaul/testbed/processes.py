"""One process of a testbed: started with its log and sockets, awaited until ready, stopped for certain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from keyhaul.errors import Unavailable

LAUNCH = Path(__file__).with_name("launch.py")
POLL = 0.02
"""Seconds between looks at a ready file; a fraction of what any process needs to start."""

GRACE = 30.0
"""Seconds a process has after SIGTERM before SIGKILL."""

_TAIL = 12  # lines of its log that the error of a failed process shows


class Process:
    """`command` is the program; it creates the file `ready` when it serves. Output goes to `log` (0600).

    `environment` is added to ours; `namespace` is a descriptor of the network namespace it lives in.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        ready: Path,
        environment: Mapping[str, str] | None = None,
        namespace: int | None = None,
    ) -> None:
        self.name = name
        self._command = [*command]
        self._environment = {**os.environ, **(environment or {})}
        self._namespace = namespace
        self._log = log
        self._ready = ready
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._child.pid if self.running and self._child else 0

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    async def start(self, sockets: Mapping[str, socket.socket | int] | None = None) -> None:
        """Start it, with listening sockets by name, or other descriptors. The caller keeps its own copies."""
        self._ready.unlink(missing_ok=True)
        sockets = sockets or {}
        numbers = [each if isinstance(each, int) else each.fileno() for each in sockets.values()]
        namespace = [] if self._namespace is None else [self._namespace]
        head = [sys.executable, "-S", "-E", str(LAUNCH), str(os.getpid())]
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._child = await asyncio.create_subprocess_exec(
                *head,
                ":".join(sockets),
                ",".join(map(str, numbers)),
                "".join(map(str, namespace)),
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[*numbers, *namespace],
                env=self._environment,
                start_new_session=True,  # a Ctrl-C is for the testbed, which stops them in order
            )
        finally:
            os.close(log)

    async def until_ready(self, patience: float) -> None:
        """Wait for the ready file, at most `patience` seconds. Raises Unavailable with the end of the log."""
        give_up = asyncio.get_running_loop().time() + patience
        while not self._ready.exists():
            if not self.running:
                raise self.failure("ended before it was ready")
            if asyncio.get_running_loop().time() > give_up:
                raise self.failure(f"was not ready after {patience:g} s")
            await asyncio.sleep(POLL)

    async def wait(self) -> int:
        """The exit code, when it has ended; negative for a signal."""
        return await self._child.wait() if self._child else 0

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if that is not enough; returns when it is gone."""
        if self._child is None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE):
                await self._child.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, without any chance to tidy up; returns when it is gone."""
        self.signal(signal.SIGKILL)
        await self.wait()

    def signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.running and self._child is not None:
            self._child.send_signal(number)

    def failure(self, what: str) -> Unavailable:
        """An error about this process that shows the end of its log."""
        return Unavailable(f"{self.name} {what}\n{self.tail()}", f"see {self._log}")

    def tail(self) -> str:
        """The last lines of its log, indented."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-_TAIL:]
        except OSError:
            lines = []
        return "\n".join(f"    {line}" for line in lines) or "    (its log is empty)"


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket; port 0 is one that the system picks."""
    return socket.create_server((host, port), backlog=1024)


def rebound(port: int) -> socket.socket:
    """A listening socket on a port that was ours before; raises OSError if somebody else has it now."""
    return socket.create_server(("127.0.0.1", port), backlog=1024)
