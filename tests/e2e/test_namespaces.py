"""Real namespaces and the fabric: packets go where they may, as the wires say, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keyhaul.errors import ConfigError
from keyhaul.testbed.chaos import campaign
from keyhaul.testbed.chaos.namespaces import Namespace, enter, obstacle
from keyhaul.testbed.chaos.packets import Packets
from keyhaul.testbed.chaos.wiring import Wire
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e
WHY = obstacle()
needed = pytest.mark.skipif(bool(WHY), reason=f"no namespaces here: {WHY}")

LINE = named("line-3")
PATIENCE = 0.5  # seconds after which silence counts as silence


@contextlib.asynccontextmanager
async def network(folder: Path) -> AsyncIterator[Packets]:
    made = await Packets.open(LINE, folder)
    try:
        yield made
    finally:
        await made.close()


async def inside(place: Namespace, host: str, port: int) -> socket.socket:
    """A TCP connection out of a namespace; its thread ends, the socket stays where it was made."""

    def connect() -> socket.socket:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(place.descriptor)
        try:
            return socket.create_connection((host, port), timeout=60.0)
        finally:
            enter(home)
            os.close(home)

    found = await asyncio.to_thread(connect)
    found.setblocking(False)
    return found


@contextlib.asynccontextmanager
async def echo(made: Packets, source: str, target: str) -> AsyncIterator[socket.socket]:
    """A connection between two nodes whose far end sends everything back."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()

    place = made.places[target]
    listener = await asyncio.to_thread(place.listening)
    port = listener.getsockname()[1]
    async with await asyncio.start_server(answer, sock=listener):
        with await inside(made.places[source], place.address, port) as connection:
            yield connection


async def there_and_back(connection: socket.socket, size: int = 100) -> float:
    """Seconds that all of it takes; one byte before, because packets may overtake word of a new wire."""
    if size > 1:
        await there_and_back(connection, 1)
    loop = asyncio.get_running_loop()
    start, what, got = loop.time(), os.urandom(size), b""
    sending = asyncio.ensure_future(loop.sock_sendall(connection, what))
    while len(got) < size:
        got += await loop.sock_recv(connection, 65_536)
    await sending
    assert got == what
    return loop.time() - start


@needed
def test_packets_take_the_time_that_the_wire_takes(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as made, echo(made, "n1", "n2") as connection:
            await there_and_back(connection, 200_000)
            made.set("n1", "n2", Wire(delay=0.05))
            assert await there_and_back(connection) >= 0.1
            made.set("n2", "n1", Wire(rate=4_000_000))
            assert await there_and_back(connection, 200_000) >= 0.4  # 1.6 Mbit at 4 Mbit/s, without headers
            made.set("n1", "n2", Wire(loss=0.2))
            await there_and_back(connection, 20_000)  # TCP sends again what was lost

    asyncio.run(story())


@needed
def test_a_cut_is_silence_and_what_was_sent_meanwhile_arrives_afterwards(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as made, echo(made, "n1", "n2") as connection:
            await there_and_back(connection)
            assert made.cut(["n1"]) == [("n1", "n2")]
            waiting = asyncio.ensure_future(there_and_back(connection))
            done, _ = await asyncio.wait((waiting,), timeout=PATIENCE)
            assert not done
            async with echo(made, "n2", "n3") as other:
                await there_and_back(other)
            made.set_all(Wire())
            await waiting

    asyncio.run(story())


@needed
def test_only_neighbours_reach_each_other_and_nobody_reaches_this_machine(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as made:
            with socket.create_server(("127.0.0.1", 0)) as ours, pytest.raises(OSError):
                await inside(made.places["n1"], "127.0.0.1", ours.getsockname()[1])
            far = made.places["n3"]
            listener = await asyncio.to_thread(far.listening)
            trying = asyncio.ensure_future(inside(made.places["n1"], far.address, listener.getsockname()[1]))
            done, _ = await asyncio.wait((trying,), timeout=PATIENCE)
            assert not done, "n1 and n3 are no neighbours"
            with pytest.raises(KeyError):
                made.set("n1", "n3", Wire())
            listener.close()
            made._wires[frozenset(("n1", "n3"))] = Wire()
            made.set("n1", "n3", Wire())  # the thread that waits is refused now, and ends
            with pytest.raises(OSError):
                await trying

    asyncio.run(story())


HOLDER = """
import asyncio, sys
from pathlib import Path
from keyhaul.testbed.chaos.packets import Packets
from keyhaul.testbed.topology import named

async def main():
    made = await Packets.open(named("line-3"), Path(sys.argv[1]))
    print(made._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@needed
def test_nothing_is_left_when_the_process_that_made_it_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    fabric = os.pidfd_open(int(holder.stdout.readline()))
    spaces = {os.readlink(f"/proc/{holder.pid}/fd/{each}") for each in os.listdir(f"/proc/{holder.pid}/fd")}
    assert sum(each.startswith("net:[") or each == "/dev/net/tun" for each in spaces) >= 3
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()

    async def gone() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(fabric, ended.set)
        async with asyncio.timeout(60.0):
            await ended.wait()
        loop.remove_reader(fabric)

    asyncio.run(gone())
    os.close(fabric)
    assert "fabric" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


def test_who_may_not_make_them_is_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it is asked for, not silently something else."""
    monkeypatch.setattr(campaign, "obstacle", lambda: "Operation not permitted (unshare): run as root")

    async def story() -> None:
        plan = campaign.Plan(kills=0, faults=(), network="namespaces")
        with pytest.raises(ConfigError, match="run as root"):
            await campaign.run(LINE, tmp_path / "net", plan, lambda _: None)

    asyncio.run(story())


def test_the_reason_names_the_call_that_was_refused() -> None:
    """In a user namespace without a mapping there is no privilege; where none can be made, none is needed."""
    script = "from keyhaul.testbed.chaos.namespaces import obstacle; print(obstacle())"
    command = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", sys.executable, "-c", script]
    if os.getuid() != 0:
        command = [sys.executable, "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        pytest.skip(f"cannot become another user here: {said.stderr.splitlines()[-1:]}")
    assert "run as root" in said.stdout
