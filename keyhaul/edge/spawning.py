"""Starts a worker with nothing but two sockets, and speaks with it until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from keyhaul.edge.frames import NUMBER, Channel, Kind
from keyhaul.errors import Malformed, Unavailable

PROGRAM = Path(__file__).parents[1] / "cli" / "front.py"
PATIENCE = 60.0  # seconds until a worker must be ready
MISSES = 2  # pings in a row without an answer, after which a worker is ended
_KEPT = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OPENSSL_CONF", "OPENSSL_MODULES")
"""What of the environment a worker gets: the rest may say where secrets lie."""

log = structlog.get_logger("keyhaul.edge")


@dataclass(slots=True)
class Visitor:
    """A connection that a worker serves; `surplus` if its client has too many."""

    caller: str | None = None
    surplus: bool = False


class Owner(Protocol):
    """Who is told what a worker says."""

    def take(self, end: WorkerEnd, kind: int, number: int, content: bytes) -> None:
        """A frame about a connection. Raises Malformed."""

    def ended(self, end: WorkerEnd) -> None:
        """The worker is gone."""


class WorkerEnd(Channel):
    """The node's end of the channel to one worker, its door, and the process."""

    def __init__(self, owner: Owner, door: socket.socket, most: int) -> None:
        super().__init__(most)
        loop = asyncio.get_running_loop()
        self.visitors: dict[int, Visitor] = {}
        self.shaking: dict[int, asyncio.Future[None]] = {}
        self.process: Process | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self._owner = owner
        self._door = door
        self._giving = asyncio.Lock()
        self._missed = 0  # pings without an answer
        self._over = loop.create_future()

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    def take(self, kind: int, number: int, content: bytes) -> None:
        """One frame; a worker that says what none says is ended."""
        try:
            if kind == Kind.READY:
                self.ready.set_result(None)
            elif kind == Kind.PONG:
                self._missed = 0
            else:
                if kind != Kind.FAILED:
                    self._owner.take(self, kind, number, content)
                if kind in (Kind.SHAKEN, Kind.FAILED):
                    self._shaken(number, kind == Kind.SHAKEN)
        except (Malformed, ValueError, TypeError, asyncio.InvalidStateError) as error:
            log.error("a worker speaks nonsense and is ended", pid=self.pid, error=type(error).__name__)
            self.abort()

    def ended(self) -> None:
        """The worker is gone, or is to go."""
        asyncio.get_running_loop().remove_writer(self._door.fileno())
        self._door.close()
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("it ended"))
        for number in [*self.shaking]:
            self._shaken(number, well=False)
        self._owner.ended(self)
        if not self._over.done():
            self._over.set_result(None)

    def _shaken(self, number: int, well: bool) -> None:
        done = self.shaking.pop(number, None)
        if done is None or done.done():
            return
        if well:
            done.set_result(None)
        else:
            done.set_exception(ConnectionAbortedError("the handshake failed"))

    async def give(self, connection: socket.socket, number: int) -> None:
        """Hand a connection over and wait for its handshake. Raises OSError if that fails."""
        self.shaking[number] = done = asyncio.get_running_loop().create_future()
        try:
            async with self._giving:
                while not done.done() and not self._passed(connection, number):
                    await self._room(done)
            connection.close()
            await done
        finally:
            self.shaking.pop(number, None)
            if done.done() and not done.cancelled():
                done.exception()  # seen, even if something else was raised

    async def _room(self, done: asyncio.Future[None]) -> None:
        """Until the door takes more, or the worker is gone."""
        loop, descriptor = asyncio.get_running_loop(), self._door.fileno()
        room = loop.create_future()
        loop.add_writer(descriptor, _settle, room)
        try:
            await asyncio.wait({room, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._door.fileno() == descriptor:
                loop.remove_writer(descriptor)

    def _passed(self, connection: socket.socket, number: int) -> bool:
        try:
            socket.send_fds(self._door, [NUMBER.pack(number)], [connection.fileno()])
        except BlockingIOError:
            return False
        return True

    async def watch(self, every: float) -> int:
        """Wait until the worker has ended; one that does not answer any more is ended. Its exit code."""
        while not self._over.done():
            self._missed += 1
            self.send(Kind.PING)
            await asyncio.wait({self._over}, timeout=every)
            if self._missed >= MISSES and not self._over.done():
                log.error("a worker does not answer and is ended", pid=self.pid)
                self.abort()
        return await self._end()

    async def drain(self, patience: float) -> None:
        """Let it finish what it has, for at most so many seconds."""
        self.send(Kind.DRAIN)
        await asyncio.wait({self._over}, timeout=patience)
        self.abort()
        await self._end()

    async def discard(self) -> None:
        """It did not become ready, so nothing is owed to it."""
        self.abort()
        if self.process is not None:
            await self._end()

    async def _end(self) -> int:
        """Leave no process behind, and say with which code it ended.

        A stopped or mad one does not see that its channel is closed.
        """
        process = self.process
        assert process is not None
        try:
            async with asyncio.timeout(1.0):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return await process.wait()


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)


async def spawn(owner: Owner, told: bytes, *, most: int) -> WorkerEnd:
    """A worker that is ready. Raises Unavailable if it does not become so."""
    (channel, theirs), (door, their_door) = socket.socketpair(), socket.socketpair()
    door.setblocking(False)
    end = WorkerEnd(owner, door, most)
    try:
        with theirs, their_door:
            end.process = await _run(theirs.fileno(), their_door.fileno())
        await asyncio.get_running_loop().create_unix_connection(lambda: end, sock=channel)
        end.send(Kind.SETTINGS, 0, told)
        async with asyncio.timeout(PATIENCE):
            await end.ready
    except BaseException as error:
        for each in (channel, door):
            each.close()
        await end.discard()
        if isinstance(error, PermissionError):
            cause, remedy = (
                f"{sys.executable} may not be run by this node's user",
                "install it where that user reads",
            )
            raise Unavailable(f"a worker did not start: {cause}", remedy) from None
        if isinstance(error, OSError):  # time-outs are among them
            raise Unavailable(f"a worker did not start: {error}", "see the lines before in the log") from None
        raise
    return end


async def _run(channel: int, door: int) -> Process:
    """Nothing but numbers and paths of modules stands in its arguments."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(PROGRAM), _paths(), str(channel), str(door),
        stdin=DEVNULL, stdout=DEVNULL, pass_fds=(channel, door),
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
    )  # fmt: skip


def _paths() -> str:
    """Where this process finds its modules."""
    return json.dumps([os.path.abspath(path) for path in sys.path])
