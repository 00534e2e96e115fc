"""The chaos campaign itself: wires do what they say, applications note the truth, a small run holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from keyhaul.errors import KeyNotFound, PeerUnreachable, Unavailable
from keyhaul.keys import Secret
from keyhaul.messages.etsi014 import Delivered
from keyhaul.testbed.chaos.campaign import Plan, run
from keyhaul.testbed.chaos.faults import FAULTS, build_shim
from keyhaul.testbed.chaos.people import People
from keyhaul.testbed.chaos.wires import Wires
from keyhaul.testbed.chaos.wiring import Wire
from keyhaul.testbed.history import History
from keyhaul.testbed.invariants import check
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e

BITS = bytes(range(32))


# ---------------------------------------------------------------------- wires


@asynccontextmanager
async def echo(wires: Wires) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection from `a` to `b`, which sends everything back."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = await wires.between("a", "b", *server.sockets[0].getsockname()[:2])
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        await wires.close()


async def there_and_back(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], what: bytes = b"x" * 100_000
) -> float:
    reader, writer = connection
    loop = asyncio.get_running_loop()
    start = loop.time()
    writer.write(what)
    assert await reader.readexactly(len(what)) == what
    return loop.time() - start


def test_a_wire_carries_everything_in_order_and_takes_its_time() -> None:
    async def story() -> None:
        wires = Wires(random.Random(1))
        async with echo(wires) as connection:
            await there_and_back(connection, random.Random(2).randbytes(300_000))
            wires.set("a", "b", Wire(delay=0.05))
            assert await there_and_back(connection, b"ping") >= 0.1
            wires.set("b", "a", Wire(rate=8_000_000))
            assert await there_and_back(connection) >= 0.1  # 100 kB each way at 1 MB/s
            wires.set("a", "b", Wire(loss=1.0))
            assert await there_and_back(connection, b"ping") >= 0.4

    asyncio.run(story())


def test_a_cut_wire_is_silent_and_goes_on_where_it_was() -> None:
    async def story() -> None:
        wires = Wires()
        async with echo(wires) as connection:
            await there_and_back(connection)
            assert wires.cut(["a"]) == [("a", "b")]
            waiting = asyncio.ensure_future(there_and_back(connection))
            done, _ = await asyncio.wait((waiting,), timeout=0.2)
            assert not done
            wires.set("a", "b", Wire())
            await waiting

    asyncio.run(story())


def test_a_side_that_hangs_up_is_told_to_the_other() -> None:
    async def story() -> None:
        wires = Wires()
        async with echo(wires) as (reader, writer):
            writer.write(b"last words")
            writer.write_eof()
            assert await reader.read() == b"last words"
        with pytest.raises(KeyError):
            wires.set("a", "z", Wire())

    asyncio.run(story())


# ---------------------------------------------------------------------- applications


STATE = {
    "saes": [
        {"id": "m", "node": "n1", "sae_url": "https://x", "cert": "c", "key": "k", "ca": "a"},
        {"id": "s", "node": "n2", "sae_url": "https://y", "cert": "c", "key": "k", "ca": "a"},
    ]
}


class Answers:
    """What a node says, one after another; errors are raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [*answers]

    async def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def get_key(self, slave: str, number: int = 1) -> Any:
        return await self._next()

    async def fetch_key(self, master: str, key_ids: list[UUID]) -> Any:
        return await self._next()

    async def close(self) -> None:
        pass


def people(master: Answers, slave: Answers) -> People:
    made = People(STATE, History(lambda: 0.0), [("m", "s")])
    made._clients = {"m": master, "s": slave}  # type: ignore[dict-item]
    return made


def key(number: int, bits: bytes = BITS) -> Delivered:
    return Delivered(UUID(int=number), Secret(bits))


async def once(made: People, seed: int = 0) -> bool:
    return await made._ask(made.pairs[0], 1, random.Random(seed))


def verbs(made: People) -> list[str]:
    return [event.verb for event in made.history if event.verb != "home"]


def test_what_applications_meet_is_noted_as_it_was() -> None:
    async def story() -> None:
        made = people(
            Answers([key(1)], Unavailable("dry"), PeerUnreachable("gone"), PeerUnreachable("no", sent=0)),
            Answers(Unavailable("busy"), [key(1)]),
        )
        assert await once(made, seed=0)  # this seed fetches at once
        assert made.pairs[0].kept == [UUID(int=1)], "a 503 leaves the key where it is"
        assert not await once(made)
        assert not await once(made)
        assert not await once(made)
        await made.collect(5.0)
        assert made.pairs[0].kept == []
        ends = ["asked", "got", "fetching", "refused", "asked", "refused", "asked", "cut", "asked", "refused"]
        assert verbs(made) == [*ends, "fetching", "fetched"]
        tally = made.tallies["calm", "m", "s"]
        assert (tally.served, tally.refused, tally.unanswered) == (1, 2, 1)
        assert check(made.history) == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("fetched", "broken"),
    [([key(1, bytes(32))], 1), (KeyNotFound("no such key"), 4)],
)
def test_a_changed_or_lost_key_is_found(fetched: Any, broken: int) -> None:
    async def story() -> None:
        made = people(Answers([key(1)]), Answers(fetched))
        await once(made, seed=0)
        assert [violation.number for violation in check(made.history)] == [broken]

    asyncio.run(story())


# ---------------------------------------------------------------------- the campaign


def test_every_fault_is_healed_even_when_the_run_is_broken_off(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a fault: nothing stays cut, and nothing keeps running."""

    async def story() -> None:
        plan = Plan(calm=0.1, fault=3600.0, kills=0, faults=FAULTS[3:4], network="proxies")
        said: list[str] = []
        begun = asyncio.Event()

        def say(text: str) -> None:
            said.append(text)
            if text == FAULTS[3].name:
                begun.set()

        running = asyncio.ensure_future(run(named("line-2"), tmp_path / "net", plan, say))
        await asyncio.wait_for(begun.wait(), 120.0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not (tmp_path / "net" / "testbed.pid").exists()

    asyncio.run(story())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_while_nodes_are_killed_reports_what_it_did(
    number: signal.Signals, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "keyhaul.cli", "chaos", "line-2", "--kills", "100000"]
    command += ["--only", "nothing", "--json", str(report), "--history", str(tmp_path / "history")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert running.stdout is not None
    for line in running.stderr:
        if " of 100000 kills; " in line:
            assert "0 promises broken" in line
            break
    children = [int(pid) for pid in _children(running.pid)]
    assert len(children) >= 3, "two devices and two nodes, of which one may be dead just now"
    running.send_signal(number)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 130, out
    assert "interrupted" in out
    document = json.loads(report.read_text())
    assert document["interrupted"] is True
    assert document["kills"] >= 20
    assert document["keys_acknowledged"] > 0
    assert document["violations"] == []
    assert document["phases"][-1]["note"] == "interrupted"
    assert (tmp_path / "history").stat().st_size > 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def test_a_small_campaign_keeps_every_promise(tmp_path: Path) -> None:
    async def story() -> None:
        wanted = (
            "partition into halves",
            "disk full",
            "fsync fails with EIO",
            "device dry",
            "greedy application",
        )
        faults = [fault for fault in FAULTS if fault.name in wanted]
        faults.append(replace(FAULTS[0], name="never", reason=lambda world: "not to be had here"))
        plan = Plan(calm=0.5, fault=2.0, kills=4, faults=faults, recovery=10.0)
        outcome = await run(named("line-3"), tmp_path / "net", plan, lambda _: None, tmp_path / "history")
        assert outcome.violations == [], outcome.stories
        assert [text for text in outcome.missed if not text.startswith("greedy")] == []
        assert outcome.never_fetched == 0
        assert outcome.kills == 4
        assert outcome.pried > 0, "nobody tried to get a key of others"
        assert (outcome.looked_for > 20, outcome.found) == (True, 0)
        assert {1, 2, 3, 4, 8, 9, 12} <= set(outcome.promises)
        phases = {row.phase: row for row in outcome.rows}
        assert set(phases) == {"calm before", *wanted, "never", "4 x kill -9", "calm after"}
        assert (phases["never"].share, phases["never"].note) == (None, "skipped: not to be had here")
        assert (
            phases["calm after"].share or 0
        ) > 0.9  # a slow machine is late now and then; promise 12 is strict
        for name in wanted:
            assert phases[name].bound is not None, f"nothing says when {name} has to be recovered from"
        greedy = phases["greedy application"]
        assert greedy.floor == 0.99
        assert greedy.share_untouched is not None
        assert greedy.share != greedy.share_untouched or greedy.share == 1.0, "its own requests count apart"
        assert len(outcome.document("here")["phases"]) == len(outcome.rows)
        assert (tmp_path / "history").stat().st_size > 0

    asyncio.run(story())


def test_the_shim_fails_a_disk_only_when_told_and_as_told(tmp_path: Path) -> None:
    environment = build_shim(tmp_path)
    if not environment:
        pytest.skip("no C compiler here: install gcc")

    async def story() -> None:
        script = (
            "import os, sys\nfd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\nos.fsync(fd)\n"
            "put = (lambda fd: os.write(fd, b'x')), lambda fd: os.pwrite(fd, b'x', 9)\n"
            "calls = os.fsync, os.fdatasync, *put\n"
            "for how in 'FN':\n"
            "    os.rename(f'{sys.argv[2]}/{how}', f'{sys.argv[2]}/{os.getpid()}')\n"
            "    for call in calls:\n"
            "        try:\n            call(fd)\n        except OSError as error:\n"
            "            print(how, error.errno, flush=True)\n"
            "    os.unlink(f'{sys.argv[2]}/{os.getpid()}')\n"
            "[call(fd) for call in calls]\nprint('well')\n"
        )
        for how in "FN":
            (tmp_path / how).write_text(how)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            str(tmp_path / "file"),
            str(tmp_path),
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await child.communicate()
        assert said.decode().split("\n") == ["F 5", "F 5", "N 28", "N 28", "well", ""]

    asyncio.run(story())
