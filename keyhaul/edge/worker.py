"""A worker: TLS, certificates and HTTP of the SAE port in a process that has no store and no keys of its own.

It gets accepted connections from the node through one pair of sockets, and hands calls to it through
another; both were open when it was started, and nobody can connect to them. When the node is gone, so is
the worker. What it refuses by itself (no HTTP, too large, too slow, no such path, no name in the
certificate) the node logs and counts.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import structlog

from keyhaul import story
from keyhaul.edge import sae, tls
from keyhaul.edge.accepting import Bounds, Traffic
from keyhaul.edge.calls import Call, Reply
from keyhaul.edge.connection import Connection, HttpCall
from keyhaul.edge.frames import NUMBER, Channel, Kind, Told, pack_call, pack_told, unpack_reply
from keyhaul.edge.refusing import Refusals
from keyhaul.edge.server import Port
from keyhaul.identity import sae_id

log = structlog.get_logger("keyhaul.edge")


def settings(credentials: tls.Credentials, policy: tls.Policy, bounds: Bounds) -> bytes:
    """What a worker is told first. Paths and numbers, no secret."""
    files = {"cert": str(credentials.cert), "key": str(credentials.key), "ca": str(credentials.ca)}
    times = {name: value for name, value in asdict(bounds).items() if name != "crowd"}
    return msgspec.json.encode({"files": files, "policy": policy.value, "bounds": times})


class Front(Port):
    """The SAE port of one worker. Limits of connections are the node's to keep, so it has none."""

    def __init__(self, told: dict[str, Any], channel: NodeEnd) -> None:
        files = tls.Credentials(**{name: Path(path) for name, path in told["files"].items()})
        self.tls = tls.server_context(files, tls.Policy(told["policy"]))
        super().__init__("sae", self.forward, sae.render, sae_id, self.tls, Bounds(**told["bounds"]))
        self._channel = channel
        self.refusals = _Reported(channel)

    async def forward(self, call: Call) -> Reply:
        """One call, answered by the node."""
        assert isinstance(call, HttpCall)
        sae.find(call.method, call.path)
        body = await call.body() if call.method == "POST" else b""
        content = pack_call(call.method, call.path, call.parameters, body)
        return unpack_reply(await self._channel.ask(call.connection.number, content))

    def met(self, connection: Connection) -> None:
        """A connection has its handshake behind it."""
        self._channel.send(Kind.SHAKEN, connection.number)

    def named(self, connection: Connection, caller: str) -> None:
        """Whose connection it is: the one word about identity that the node gets."""
        self._channel.send(Kind.NAMED, connection.number, caller.encode())

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._channel.send(Kind.GONE, connection.number)
        self._channel.forget(connection.number)


class _Reported(Refusals):
    """Refusals that the node logs and counts."""

    def __init__(self, channel: NodeEnd) -> None:
        super().__init__("sae", Traffic(), lambda event, **fields: None)
        self._channel = channel

    def cut_off(self, caller: str | None, method: str, path: str) -> None:
        """The node sees it by itself."""

    def told(self, reason: str, status: int, cause: str, caller: str | None, method: str, path: str) -> None:
        now = story.current() or story.new()
        ids = (now.request, now.context.trace, now.context.span)
        told = Told(reason, status, cause, caller, method, path, ids)
        self._channel.send(Kind.REFUSED, 0, pack_told(told))


class NodeEnd(Channel):
    """The worker's end of the channel. Without the node there is nothing left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.drain = asyncio.Event()
        self.front: Front | None = None
        self._asked: dict[int, asyncio.Future[bytes]] = {}

    async def ask(self, number: int, content: bytes) -> bytes:
        """The node's reply to a call. Raises ConnectionError if the client goes away meanwhile."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.send(Kind.CALL, number, content)
        return await answer

    def forget(self, number: int) -> None:
        """Nobody waits for a reply on this connection any more."""
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionResetError("the client is gone"))

    def take(self, kind: int, number: int, content: bytes) -> None:
        """One frame of the node."""
        if kind == Kind.REPLY:
            answer = self._asked.pop(number, None)
            if answer is not None and not answer.done():
                answer.set_result(content)
        elif kind == Kind.SETTINGS:
            self.settings.set_result(msgspec.json.decode(content))
        elif kind == Kind.RELOAD and self.front is not None:
            for cause in tls.reload({"sae port of a worker": self.front.tls}).refused:
                log.error("not reloaded", cause=cause)
        elif kind == Kind.PING:
            self.send(Kind.PONG)
        elif kind == Kind.DRAIN:
            self.drain.set()

    def ended(self) -> None:
        """At once, without a goodbye to clients: what they asked for will never be answered."""
        os._exit(0)


class _Door:
    """Where accepted connections come in."""

    def __init__(self, listener: socket.socket, front: Front, node: NodeEnd) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._front = front
        self._node = node
        self._greetings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener.fileno(), self._enter)

    def close(self) -> None:
        """Nobody comes in any more, and handshakes under way end."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for task in self._greetings:
            task.cancel()

    def _enter(self) -> None:
        try:
            content, descriptors, _, _ = socket.recv_fds(self._listener, NUMBER.size, 1)
        except OSError:  # nobody there after all
            return
        if not content:
            self._loop.remove_reader(self._listener.fileno())
            return
        (number,) = NUMBER.unpack(content)
        if not descriptors:  # the process has too many open already
            self._node.send(Kind.FAILED, number)
            return
        connection = socket.socket(fileno=descriptors[0])
        connection.setblocking(False)
        task = self._loop.create_task(self._greet(connection, number), name="handshake")
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket, number: int) -> None:
        try:
            await self._front.greet(connection, number)
        except OSError:  # ssl.SSLError and time-outs are among them
            connection.close()
            self._node.send(Kind.FAILED, number)


async def serve(channel: socket.socket, door: socket.socket) -> None:
    """Until the node says so, or is gone. Raises ConfigError for certificates that do not load."""
    node = NodeEnd()
    await asyncio.get_running_loop().create_unix_connection(lambda: node, sock=channel)
    front = node.front = Front(await node.settings, node)
    await front.start()
    entrance = _Door(door, front, node)
    gc.freeze()  # as the node does, see keyhaul.daemon
    gc.set_threshold(20_000, 20, 20)
    node.send(Kind.READY)
    await node.drain.wait()
    entrance.close()
    await front.close()
    node.close()  # then `ended`
    await asyncio.Event().wait()
