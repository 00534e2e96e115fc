"""Takes from this process what could carry key bits out of it: core dumps, tracers, swap, loose file modes,
and rights it does not need.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import sys
from pathlib import Path

from keyhaul.errors import ConfigError

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38  # prctl(2)
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # mlockall(2)
_ROOM = 256 * 2**20
"""Bytes that must be free beside what is in use, or locked memory could push out everything else."""


def harden() -> list[str]:
    """Apply what the system permits; returns what it did not, in words for the log."""
    missing = []
    os.umask(0o077)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        missing.append(f"core dumps could not be switched off ({error})")
    if sys.platform != "linux":
        return [*missing, "the process stays traceable (only Linux has prctl)"]
    # Not dumpable: no core file even through a pipe handler, no ptrace by the same user.
    missing += _prctl(_PR_SET_DUMPABLE, 0, "the process stays traceable")
    missing += _prctl(_PR_SET_NO_NEW_PRIVS, 1, "programs it starts may gain rights")
    return missing + _lock_memory()


def drop_privileges(user: str) -> None:
    """Go on as another user, for ever. Only root can; anybody else must be that user already.

    What was opened before stays open. Raises ConfigError.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"user = {user!r}: there is no such user here", "make it, or correct it") from None
    if os.geteuid() != 0:
        if os.geteuid() != entry.pw_uid:
            cause = f"user = {user!r}, but the node was started as uid {os.geteuid()}"
            raise ConfigError(cause, "start it as root, or as that user")
        return
    os.initgroups(user, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if entry.pw_uid != 0 and 0 in os.getresuid():
        raise ConfigError(f"the rights of root could not be given up for {user!r}", "use User= of systemd")
    # The kernel has set it anew with the user.
    _prctl(_PR_SET_DUMPABLE, 0, "")


def _prctl(option: int, value: int, missing: str) -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) == 0:
        return []
    return [f"{missing} ({os.strerror(ctypes.get_errno())})"]


def _lock_memory() -> list[str]:
    """Keep everything out of swap, where there is any and enough memory for it."""
    if not _swaps():
        return []
    if (free := _free()) < _ROOM:
        return [f"memory is not locked: only {free >> 20} MiB are free, so switch swap off or encrypt it"]
    if os.geteuid() == 0:
        limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        with contextlib.suppress(OSError, ValueError):
            # Else the first allocation after the rights are dropped would fail.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        # With less, allocations fail as soon as the limit is reached.
        return ["memory is not locked: set LimitMEMLOCK=infinity, or switch swap off or encrypt it"]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return [f"memory is not locked ({os.strerror(ctypes.get_errno())})"]
    return []


def _swaps(table: Path = Path("/proc/swaps")) -> bool:
    """Whether this system can write memory to a disk; assumed where it does not tell."""
    try:
        return len(table.read_text().splitlines()) > 1
    except OSError:
        return True


def _free(information: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes that can still be had, of the machine and of the control group's limit."""
    available = 0
    try:
        for line in information.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = group.read_text().strip()
        if limit.isdecimal():
            used = int(group.with_name("memory.current").read_text())
            available = min(available, int(limit) - used)
    except (OSError, ValueError, IndexError):
        pass
    return available
