"""Takes from this process what could carry key bits out of it: core dumps, tracers, loose file modes."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_PR_SET_DUMPABLE = 4  # prctl(2)


def harden() -> list[str]:
    """Apply what the system permits; returns what it did not, in words for the log."""
    missing = []
    os.umask(0o077)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        missing.append(f"core dumps could not be switched off ({error})")
    if sys.platform == "linux":
        # Not dumpable: no core file even through a pipe handler, no ptrace by the same user.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            missing.append(f"the process stays traceable ({os.strerror(ctypes.get_errno())})")
    else:
        missing.append("the process stays traceable (only Linux has prctl)")
    return missing
