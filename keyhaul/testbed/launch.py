"""Becomes another program that cannot outlive its parent, with listening sockets as systemd hands them over.

    python -S launch.py PARENT_PID NAME:NAME FD,FD NAMESPACE_FD COMMAND …

Run by path and without site packages, because it stands in front of every process of a testbed. The sockets
follow sd_listen_fds(3): descriptors from 3 on, and LISTEN_PID, which only the process itself can know.
Where a network namespace is given, the program lives in it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); it survives execve(2)
_FIRST = 3  # SD_LISTEN_FDS_START
_CLONE_NEWNET = 0x40000000  # setns(2)


def main(argv: list[str]) -> None:
    """Replace this process; returns only if the parent is gone already."""
    parent, names, numbers, namespace, *command = argv
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        return  # it died before the call above could know it
    if namespace:
        if libc.setns(int(namespace), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "the namespace cannot be entered")
        os.close(int(namespace))
    if numbers:
        _place([int(number) for number in numbers.split(",")])
        os.environ.update(
            LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(numbers.count(",") + 1), LISTEN_FDNAMES=names
        )
    os.execv(command[0], command)  # noqa: S606 - the parent chose the command, no shell is involved


def _place(descriptors: list[int]) -> None:
    """Move them to 3, 4, … by way of high numbers, because the ranges may overlap."""
    above = max(64, _FIRST + len(descriptors))
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for place, descriptor in enumerate(high, _FIRST):
        os.dup2(descriptor, place, inheritable=True)
        os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
