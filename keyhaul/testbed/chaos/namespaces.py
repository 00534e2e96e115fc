"""Network namespaces without names: one a node, joined to nothing but a TUN interface, gone with their users.

A namespace is held by descriptors alone (namespaces(7)), so it vanishes with the last process that has one,
however that process ends; nothing has to be removed afterwards. Making one needs CAP_SYS_ADMIN, which root
has, and everybody in a user namespace of his own: `unshare -Ur keyhaul chaos …`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000  # sched.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_IFF_UP = 0x1
_INTERFACE, _NETMASK = "fabric", "255.255.255.0"

_T = TypeVar("_T")


class Namespace:
    """One namespace whose TUN interface has `address`. Raises OSError where there may be none.

    What the interface sends can be read from `tun`, a packet at a time, and what is written there arrives.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.descriptor, self.tun = _apart(lambda: _furnished(address))

    def listening(self, port: int = 0) -> socket.socket:
        """A listening socket in the namespace, on a port that the system picks unless one is given."""

        def listen() -> socket.socket:
            enter(self.descriptor)
            return socket.create_server((self.address, port), backlog=1024)

        return _apart(listen)

    def close(self) -> None:
        """Let go of it; processes inside keep it."""
        os.close(self.descriptor)
        os.close(self.tun)


def enter(descriptor: int) -> None:
    """Move the calling thread into a namespace; raises OSError."""
    _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns")


def obstacle() -> str:
    """Why this process cannot make namespaces; empty where it can."""
    try:
        Namespace("10.77.0.1").close()
    except OSError as problem:
        if problem.errno in (errno.EPERM, errno.EACCES):
            return f"{problem.strerror} ({problem.filename}): run as root, or by `unshare -Ur`"
        if problem.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return f"{problem.strerror}: {problem.filename}; the kernel needs CONFIG_TUN and CONFIG_NET_NS"
        return f"{problem.strerror} ({problem.filename})"
    return ""


def _furnished(address: str) -> tuple[int, int]:
    """A new namespace for this thread, with its interfaces up: descriptors of the namespace and the TUN."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
            fcntl.ioctl(control, _SIOCSIFADDR, _request(_INTERFACE, address))
            fcntl.ioctl(control, _SIOCSIFNETMASK, _request(_INTERFACE, _NETMASK))
            for name in (_INTERFACE, "lo"):
                _up(control, name)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), tun
    except OSError:
        os.close(tun)
        raise


def _request(name: str, address: str) -> bytes:
    """`struct ifreq` with an address, netdevice(7)."""
    return struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))


def _up(control: socket.socket, name: str) -> None:
    request = struct.pack("16sH22x", name.encode(), 0)
    (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))


def _apart(work: Callable[[], _T]) -> _T:
    """In a thread that ends afterwards, for a namespace belongs to a thread, and ours stays where it is."""
    results: list[_T] = []
    failures: list[OSError] = []

    def run() -> None:
        try:
            results.append(work())
        except OSError as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _check(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)


_libc = ctypes.CDLL(None, use_errno=True)
