"""Bytes that crossed the node ports of a testbed, as the kernel counts them: TLS, HTTP and retries included.

Linux tells about every TCP connection over a netlink socket (sock_diag(7)), which needs no rights for this.
Counted are the bytes that arrived at and left the listening side of each connection. What a connection had
sent when it was last looked at stays counted after its end; so look often where connections come and go.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator

NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DONE, _ERROR = 20, 3, 2  # message types of netlink
_REQUEST = struct.Struct("=IHHII BBBBI 48x")
_INFO = 2  # attribute INET_DIAG_INFO, a struct tcp_info
_PORT_AT = 16 + 4  # source port, in network order, behind the netlink header and four bytes of inet_diag_msg
_COOKIE_AT = 16 + 4 + 40  # behind ports, addresses and interface of struct inet_diag_sockid
_ATTRIBUTES_AT = 16 + 72
_COUNTERS_AT = 120  # bytes_acked and bytes_received in struct tcp_info


class Traffic:
    """Bytes in both directions over connections whose near end is one of `ports` on this machine."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = set(ports)
        self._seen: dict[bytes, int] = {}

    def total(self) -> int:
        """All bytes so far, as far as they have been seen."""
        self._seen.update((name, count) for port, name, count in _connections() if port in self._ports)
        return sum(self._seen.values())


def _connections() -> Iterator[tuple[int, bytes, int]]:
    """Local port, the kernel's name, and bytes of every TCP connection over IPv4."""
    dump = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
    states = 1 << 1  # established
    request = _REQUEST.pack(
        _REQUEST.size, _BY_FAMILY, dump, 1, 0, socket.AF_INET, 6, 1 << (_INFO - 1), 0, states
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asking:
        asking.send(request)
        while True:
            answer = memoryview(asking.recv(1 << 20))
            while answer:
                length, kind = struct.unpack_from("=IH", answer)
                if kind in (_DONE, _ERROR):
                    return
                yield _connection(answer[:length])
                answer = answer[(length + 3) & ~3 :]


def _connection(message: memoryview) -> tuple[int, bytes, int]:
    (port,) = struct.unpack_from("!H", message, _PORT_AT)
    name = bytes(message[_COOKIE_AT : _COOKIE_AT + 8])
    at = _ATTRIBUTES_AT
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INFO and length >= 4 + _COUNTERS_AT + 16:
            sent, received = struct.unpack_from("=QQ", message, at + 4 + _COUNTERS_AT)
            return port, name, sent + received
        at += max(4, (length + 3) & ~3)
    return port, name, 0
