"""Who keeps a testbed running: a pid file that a reused process id cannot fool."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from keyhaul.config.write import write
from keyhaul.errors import Unavailable


class PidFile:
    """Holds `PID STARTTIME`; the start time (clock ticks since boot, proc_pid_stat(5)) makes it unique."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine = False

    def take(self) -> None:
        """Write our own."""
        write(self._path, f"{os.getpid()} {_born(os.getpid())}\n")
        self._mine = True

    def release(self) -> None:
        """Remove it if it is ours."""
        if self._mine:
            self._path.unlink(missing_ok=True)
            self._mine = False

    def holder(self) -> int | None:
        """The process that holds it, if that still runs."""
        try:
            pid, born = self._path.read_text().split()
            alive = _born(int(pid)) == born
        except (OSError, ValueError):
            return None
        return int(pid) if alive else None

    async def end_holder(self, patience: float) -> bool:
        """SIGTERM the holder and wait, at most `patience` seconds, until it is gone; False if there is none.

        Raises Unavailable if it does not end in time.
        """
        pid = self.holder()
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        give_up = asyncio.get_running_loop().time() + patience
        while self.holder() == pid:
            if asyncio.get_running_loop().time() > give_up:
                raise Unavailable(f"process {pid} still runs after {patience:g} s", f"kill -9 {pid}")
            await asyncio.sleep(0.02)
        return True


def _born(pid: int) -> str:
    """Start time of a process; raises OSError if it is not there, ValueError if it is a zombie."""
    # The second field is the program's name in parentheses and may hold anything, spaces included.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ValueError(f"process {pid} has ended")
    return fields[19]
