"""TCP proxies between nodes, on loopback and without privileges: delay, jitter, loss, rate, cut.

A proxy sees a byte stream, not packets: what is lost on a real wire is sent again by TCP, so `loss` is the
share of pieces that come later by one retransmission time-out. A cut wire neither delivers nor resets:
both sides find silence, as behind a dead router, and connections made meanwhile hang in the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

from keyhaul.testbed.chaos.wiring import Wire, Wiring

RETRANSMISSION = 0.2  # seconds, Linux's smallest time-out
PIECE = 16_384  # bytes read at once
BACKLOG = 1024 * 1024  # bytes on their way before the sender is slowed down


class Wires(Wiring):
    """Wires for whichever of two neighbours connects. Use it in one event loop."""

    kind = "proxies"

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__()
        self._rng = rng or random.Random()  # noqa: S311 (weather, not a key)
        self._risen: dict[frozenset[str], asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def between(self, node: str, far: str, host: str, port: int) -> tuple[str, int]:
        """The address under which `node` reaches `far`, which listens on `host` and `port`."""
        pair = frozenset((node, far))
        self._wires.setdefault(pair, Wire())
        self._risen.setdefault(pair, asyncio.Event()).set()

        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await self._join(pair, reader, writer, host, port)

        server = await asyncio.start_server(join, "127.0.0.1", 0)
        self._servers.append(server)
        address: tuple[str, int] = server.sockets[0].getsockname()[:2]
        return address

    def _changed(self, a: str, b: str, wire: Wire) -> None:
        risen = self._risen[frozenset((a, b))]
        if wire.up:
            risen.set()
        else:
            risen.clear()

    async def close(self) -> None:
        """No more wires; what was on them is lost."""
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join(
        self,
        pair: frozenset[str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        host: str,
        port: int,
    ) -> None:
        with contextlib.closing(writer):
            await self._risen[pair].wait()
            try:
                far_reader, far_writer = await asyncio.open_connection(host, port)
            except OSError:
                return
            with contextlib.closing(far_writer):
                directions = (self._carry(pair, reader, far_writer), self._carry(pair, far_reader, writer))
                tasks = [asyncio.ensure_future(each) for each in directions]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(
        self, pair: frozenset[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One direction of one connection: pieces leave in their order, each when its time has come."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(BACKLOG // PIECE)

        async def deliver() -> None:
            while True:
                due, piece = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._risen[pair].wait()
                if not piece:
                    with contextlib.suppress(OSError, RuntimeError):
                        writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()

        delivering = asyncio.ensure_future(deliver())
        try:
            free = 0.0
            while not delivering.done():
                piece = await reader.read(PIECE)
                due, free = self._due(pair, len(piece), loop.time(), free)
                await queue.put((due, piece))
                if not piece:
                    break
            await delivering
        except OSError:
            pass  # one of the two sides hung up; the other is told by the closing of its writer
        finally:
            delivering.cancel()

    def _due(self, pair: frozenset[str], size: int, now: float, free: float) -> tuple[float, float]:
        """When a piece that came `now` arrives, and when the wire is free for the next one."""
        wire = self._wires[pair]
        start = max(now, free)
        free = start + size * 8 / wire.rate if wire.rate else start
        due = free + max(0.0, wire.delay + self._rng.uniform(-wire.jitter, wire.jitter))
        if wire.loss and self._rng.random() < wire.loss:
            due += RETRANSMISSION
        return due, free
