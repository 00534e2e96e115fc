"""Takes connections off a listening socket: never more at once than the port bears, in total and per address.

What cannot be borne is closed before a handshake is spent on it. Who has finished the handshake belongs to
the port; until then a stranger costs one of `handshakes` for at most the handshake's time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import structlog

from keyhaul.admission import Rules
from keyhaul.errors import Busy

OUT_OF_DESCRIPTORS = 0.1  # seconds until accept is tried again when the system refuses

log = structlog.get_logger("keyhaul.edge")


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many may come at once: `connections` at the port, `per_client` with one certificate, `handshakes`
    that are not finished, `per_address` of them from one host."""

    connections: int = 4096
    per_client: int = 1024
    handshakes: int = 1024
    per_address: int = 512

    @classmethod
    def of(cls, rules: Rules) -> Self:
        """As a node's `[admission]` says."""
        return cls(
            rules.connections, rules.connections_per_client, rules.handshakes, rules.handshakes_per_address
        )

    def surplus(self) -> Busy:
        """The answer to a client that has more connections than it may."""
        return Busy("connections", f"this client has more than {self.per_client} connections", 2)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one caller may cost: `body` in bytes, the rest in seconds.

    `idle` runs from the opening of a connection, or from its last answer, until the next request's header
    is complete; so it also ends connections that send their header drop by drop. `body_time` is for one
    whole body; a sender that was refused before its end may go on for `linger`, so that it can read the
    answer. On closing, requests in progress get `grace` to finish. `crowd`: how many connections.
    """

    body: int = 1024 * 1024
    crowd: Crowd = field(default_factory=Crowd)
    handshake: float = 10.0
    idle: float = 60.0
    body_time: float = 15.0
    linger: float = 2.0
    grace: float = 10.0


@dataclass(slots=True)
class Traffic:
    """What a port sees, for operators: numbers since the start, and how many connections there are now."""

    connections: int = 0
    handshakes: int = 0
    opened: int = 0
    turned_away: int = 0
    handshakes_failed: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # by the class of the error
    clients: Counter[str] = field(default_factory=Counter)

    def met(self) -> None:
        """A connection has its handshake behind it."""
        self.connections += 1
        self.opened += 1

    def named(self, caller: str, crowd: Crowd) -> bool:
        """Whose connection it is; whether that client may have it."""
        self.clients[caller] += 1
        return self.clients[caller] <= crowd.per_client

    def lost(self, caller: str | None) -> None:
        """A connection is gone."""
        self.connections -= 1
        if caller is not None:
            self.clients[caller] -= 1
            if not self.clients[caller]:
                del self.clients[caller]


Greet = Callable[[socket.socket], Awaitable[None]]
"""Shakes hands on a new connection, which is the greeter's from then on. Raises OSError if that fails."""


class Acceptor:
    """One listening socket, served until `close`."""

    def __init__(self, listener: socket.socket, greet: Greet, crowd: Crowd, traffic: Traffic) -> None:
        listener.setblocking(False)
        self.listener = listener
        self._shake = greet
        self._crowd = crowd
        self._traffic = traffic
        self._greetings: set[asyncio.Task[None]] = set()
        self._addresses: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="accept")

    async def close(self) -> None:
        """Stop listening; handshakes under way end, finished connections stay."""
        for task in (self._task, *self._greetings):
            task.cancel()
        await asyncio.gather(self._task, *self._greetings, return_exceptions=True)
        self.listener.close()

    async def _run(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self.listener)
            except OSError as error:  # such as EMFILE; connections wait in the kernel meanwhile
                log.warning("no connection can be accepted", cause=error.strerror)
                await asyncio.sleep(OUT_OF_DESCRIPTORS)
                continue
            host = str(address[0])
            if not self._has_room(host):
                self._traffic.turned_away += 1
                connection.close()
                continue
            self._traffic.handshakes += 1
            self._addresses[host] += 1
            task = self._loop.create_task(self._greet(connection, host), name="handshake")
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    def _has_room(self, host: str) -> bool:
        traffic, crowd = self._traffic, self._crowd
        return (
            traffic.connections + traffic.handshakes < crowd.connections
            and traffic.handshakes < crowd.handshakes
            and self._addresses[host] < crowd.per_address
        )

    async def _greet(self, connection: socket.socket, host: str) -> None:
        try:
            with contextlib.suppress(OSError):  # what the system lacks here is no reason to hang up
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._shake(connection)
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError and time-outs are among them
            connection.close()
            self._traffic.handshakes_failed += 1
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._traffic.handshakes -= 1
            self._addresses[host] -= 1
            if not self._addresses[host]:
                del self._addresses[host]
