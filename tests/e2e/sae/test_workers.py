"""Workers of the SAE port: limits hold over all of them, none takes a key with it, none tells a secret.

What the port does for applications is tested with and without a worker in test_sae_port and test_sae_hostile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from cryptography import x509

from keyhaul.admission import Admission, Rules
from keyhaul.edge import spawning, tls, workers
from keyhaul.edge.accepting import Bounds, Crowd
from keyhaul.edge.client import SaeClient
from keyhaul.edge.frames import HEAD, Kind
from keyhaul.errors import KeyhaulError, KeyNotFound, PeerUnreachable, Unavailable
from keyhaul.keys import Secret
from keyhaul.pki import Pki
from keyhaul.story import mark
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_admission import asked
from tests.e2e.test_promises import operator
from tests.northbound import MASTER, SLAVE, STRANGER, Cast, Slow, Stage, segment, stage

pytestmark = pytest.mark.e2e


def pids(here: Stage) -> list[int]:
    return [each["pid"] for each in here.port.summary()["running"]]


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------- limits


def test_connections_are_shared_out_and_counted_over_all_workers(cast: Cast) -> None:
    async def scene() -> None:
        bounds = Bounds(crowd=Crowd(per_client=3, connections=5))
        async with stage(cast, bounds=bounds, workers=2) as here, contextlib.AsyncExitStack() as stack:
            pipes = [await stack.enter_async_context(here.connection(MASTER)) for _ in range(4)]
            assert [await asked(pipe) for pipe in pipes] == [(200, None)] * 3 + [(503, "2")]
            assert await pipes[3][0].read() == b"", "the surplus connection stays open"
            await until(lambda: here.port.traffic.connections == 3)
            assert sorted(each["connections"] for each in here.port.summary()["running"]) == [1, 2]
            others = [await stack.enter_async_context(here.connection(SLAVE)) for _ in range(2)]
            assert [await asked(pipe) for pipe in others] == [(200, None)] * 2
            with pytest.raises(OSError):
                await here.get(STRANGER, f"{segment(SLAVE)}/status")
            assert here.port.traffic.turned_away == 1
            others[0][1].close()
            await until(lambda: here.port.traffic.connections == 4)
            assert (await here.get(STRANGER, f"{segment(SLAVE)}/status")).status == 200
            assert here.port.traffic.refusals == {"Busy": 1}

    asyncio.run(scene())


def test_unfinished_handshakes_count_while_a_worker_has_them(cast: Cast) -> None:
    async def scene() -> None:
        bounds = Bounds(crowd=Crowd(per_address=3), handshake=3.0)
        async with stage(cast, bounds=bounds, workers=2) as here:
            silent = [await asyncio.open_connection(*here.address) for _ in range(3)]
            await until(lambda: here.port.traffic.handshakes == 3)
            with pytest.raises(OSError):
                await here.get(MASTER, f"{segment(SLAVE)}/status")
            await until(lambda: here.port.traffic.handshakes == 0)
            assert (await here.get(MASTER, f"{segment(SLAVE)}/status")).status == 200
            assert here.port.traffic.handshakes_failed == 3
            for _, writer in silent:
                writer.close()

    asyncio.run(scene())


def test_the_rate_of_an_application_is_one_over_all_workers(cast: Cast) -> None:
    async def scene() -> None:
        slow = Admission(Rules(sae_requests=0.001, burst=5000.0))  # five calls, and no more for a long time
        async with stage(cast, workers=2, admission=slow) as here, contextlib.AsyncExitStack() as stack:
            pipes = [await stack.enter_async_context(here.connection(MASTER)) for _ in range(4)]
            await asyncio.gather(*(asked(pipe) for pipe in pipes))
            assert len([each for each in here.port.summary()["running"] if each["connections"] == 2]) == 2
            answers = [(await asked(pipe))[0] for pipe in pipes]
            assert answers == [200, 503, 503, 503]

    asyncio.run(scene())


def test_refusals_of_node_and_worker_are_logged_here_and_carry_the_id_of_their_lines(
    cast: Cast, logs: list[Any]
) -> None:
    marks: list[dict[str, Any]] = []
    structlog.get_config()["processors"].insert(0, lambda *line: marks.append(mark(*line)) or line[2])

    async def scene() -> list[str]:
        async with stage(cast, workers=1) as here:
            answers = [
                await here.post(MASTER, f"{SLAVE}/enc_keys", {"number": 0}),  # refused by the node
                await here.post(MASTER, f"{SLAVE}/enc_keys", b"", Content_Encoding="gzip"),  # by the worker
                await here.get(MASTER, f"{SLAVE}/nothing"),
            ]
            assert [answer.status for answer in answers] == [400, 400, 404]
            await until(lambda: here.port.traffic.answers == {400: 2, 404: 1})
            return [answer.headers["x-request-id"] for answer in answers]

    ids = asyncio.run(scene())
    assert [line["request"] for line in marks if line["event"] == "request refused"] == ids
    assert [line["sae"] for line in logs if line["event"] == "request refused"] == [MASTER] * 3


# ---------------------------------------------------------------------- workers that end


def test_a_worker_that_is_killed_costs_its_own_connections_and_nothing_else(
    cast: Cast, logs: list[Any]
) -> None:
    async def scene() -> None:
        kernel, audit = Slow(), Counter[str]()

        def note(event: str, **_: Any) -> None:
            audit[event] += 1

        async with (
            stage(cast, workers=2, kernel=kernel, note=note) as here,
            contextlib.AsyncExitStack() as stack,
        ):
            pipes = []
            for _ in range(2):
                pipes.append(await stack.enter_async_context(here.connection(MASTER)))
                await asked(pipes[-1])
            first, second = (next(iter(end.visitors)) for end in here.port._ends)
            victim = pids(here)[0]
            lost, kept = pipes if first < second else pipes[::-1]
            ask = f"GET /api/v1/keys/{SLAVE}/enc_keys HTTP/1.1\r\nHost: localhost\r\n\r\n"
            lost[1].write(ask.encode())
            await kernel.entered.wait()
            os.kill(victim, signal.SIGKILL)
            assert await lost[0].read() == b"", "the client is left hanging"
            assert await asked(kept) == (200, None)
            await until(lambda: here.port.restarts == 1 and len(pids(here)) == 2)
            assert victim not in pids(here)
            assert audit == {"worker_ended": 1}
            # The call went on as it does for any client that left in the middle of it.
            kernel.go.set()
            await until(lambda: len(kernel.orders) == 1)
            assert here.port.traffic.connections == 1
            for _ in range(4):
                pipe = await stack.enter_async_context(here.connection(SLAVE))
                assert await asked(pipe) == (200, None)

    asyncio.run(scene())
    assert [entry["code"] for entry in logs if entry["event"].startswith("a worker ended")] == [-9]


def test_a_worker_that_hangs_is_replaced(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PING_EVERY", 1.0)

    async def scene() -> None:
        async with stage(cast, workers=1) as here:
            (victim,) = pids(here)
            os.kill(victim, signal.SIGSTOP)
            await until(lambda: victim not in pids(here))
            monkeypatch.setattr(workers, "PING_EVERY", 60.0)  # the next one may be slow
            await until(lambda: pids(here))
            assert not Path(f"/proc/{victim}").exists()
            assert (await here.get(MASTER, f"{segment(SLAVE)}/status")).status == 200

    asyncio.run(scene())


@pytest.mark.parametrize(
    "frame",
    [
        HEAD.pack(0, 99, 1),
        HEAD.pack(0, Kind.CALL, 1),
        HEAD.pack(2**31, Kind.CALL, 1),
        HEAD.pack(1, Kind.REFUSED, 0) + b"x",
        HEAD.pack(2, Kind.REFUSED, 0) + b"{}",
        HEAD.pack(0, Kind.READY, 0),
    ],
)
def test_a_worker_that_speaks_nonsense_is_ended(cast: Cast, frame: bytes) -> None:
    async def scene() -> None:
        async with stage(cast, workers=1) as here:
            (victim,) = pids(here)
            here.port._ends[0].data_received(frame)
            await until(lambda: pids(here) not in ([], [victim]))
            assert (await here.get(MASTER, f"{segment(SLAVE)}/status")).status == 200

    asyncio.run(scene())


def test_a_worker_that_cannot_start_is_an_error_and_leaves_no_process(
    tmp_path: Path, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "worker.py"
    program.write_text("raise SystemExit(7)\n")
    monkeypatch.setattr(spawning, "PROGRAM", program)

    async def scene() -> None:
        with pytest.raises(Unavailable, match="a worker did not start"):
            async with stage(cast, workers=2):
                pass

    asyncio.run(scene())


def test_a_hundred_connections_at_once_all_get_in(cast: Cast) -> None:
    async def scene() -> None:
        async with stage(cast, workers=2) as here:
            answers = await asyncio.gather(
                *(here.get(MASTER, f"{segment(SLAVE)}/enc_keys") for _ in range(100))
            )
            assert Counter(answer.status for answer in answers) == {200: 100}
            ids = {key["key_ID"] for answer in answers for key in answer.json["keys"]}
            assert len(ids) == 100

    asyncio.run(scene())


# ---------------------------------------------------------------------- real nodes


@dataclass
class Tally:
    """Two applications, and what they saw: keys that came, fetches whose answer was lost, keys fetched."""

    near: dict[str, Any]
    far: dict[str, Any]
    held: dict[UUID, Secret] = field(default_factory=dict)
    fetched: Counter[UUID] = field(default_factory=Counter)
    unanswered: set[UUID] = field(default_factory=set)
    broken: int = 0

    async def use(self, stop: asyncio.Event) -> None:
        """Ask and fetch; a broken connection is one that a killed worker had."""
        async with client(self.near) as master, client(self.far) as slave:
            while not stop.is_set():
                try:
                    keys = await master.get_key(self.far["id"], 2)
                except KeyhaulError:
                    self.broken += 1
                    continue
                self.held |= {key.key_id: key.bits for key in keys}
                await self._take(slave, [key.key_id for key in keys])

    async def _take(self, slave: SaeClient, ids: list[UUID]) -> None:
        try:
            same = await slave.fetch_key(self.near["id"], ids)
        except PeerUnreachable:
            self.unanswered |= set(ids)
            return
        for key in same:
            self.fetched[key.key_id] += 1
            assert key.bits.same_as(self.held[key.key_id])

    async def check(self) -> None:
        """Each was delivered once, or lost with its answer as when a client left; none is there still."""
        async with client(self.far) as slave:
            for key_id in [*self.unanswered]:
                if await still_there(slave, self.near["id"], key_id):
                    self.fetched[key_id] += 1
                    self.unanswered.remove(key_id)
            for key_id in self.held:
                assert self.fetched[key_id] == (key_id not in self.unanswered)
                assert not await still_there(slave, self.near["id"], key_id)


def client(sae: dict[str, Any]) -> SaeClient:
    return SaeClient(sae["sae_url"], credentials(sae))


@contextlib.asynccontextmanager
async def network(directory: Path) -> AsyncIterator[Testbed]:
    topology = named("line-2").with_devices("instant")
    async with Testbed(topology, directory / "net", settings={"workers": 2}) as testbed:
        yield testbed


def credentials(sae: dict[str, Any]) -> ssl.SSLContext:
    files = tls.Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    return tls.client_context(files, tls.Policy.COMPATIBLE)


async def working(testbed: Testbed, node: str) -> list[int]:
    running = (await operator(testbed.state(), node, "status"))["workers"]["running"]
    return [each["pid"] for each in running]


def test_killing_workers_under_load_loses_and_doubles_no_key(tmp_path: Path) -> None:
    async def scene() -> None:
        async with network(tmp_path) as testbed:
            saes = {each["node"]: each for each in testbed.state()["saes"]}
            tally, stop = Tally(saes["n1"], saes["n2"]), asyncio.Event()
            users = [asyncio.ensure_future(tally.use(stop)) for _ in range(6)]
            for node in ("n1", "n2", "n1", "n2"):
                enough = len(tally.held) + 30
                await until(lambda enough=enough: len(tally.held) >= enough)
                victim = (await working(testbed, node))[0]
                os.kill(victim, signal.SIGKILL)
                async with asyncio.timeout(60):
                    while len(now := await working(testbed, node)) < 2 or victim in now:
                        await asyncio.sleep(0.02)
            stop.set()
            await asyncio.gather(*users)
            await tally.check()
            assert sum(tally.fetched.values()) > 100
            assert tally.broken + len(tally.unanswered) > 0, "no worker had anything under way"

    asyncio.run(scene())


async def still_there(slave: SaeClient, master: str, key_id: UUID) -> bool:
    try:
        await slave.fetch_key(master, [key_id])
    except KeyNotFound:
        return False
    return True


async def shown(url: str, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that the port shows."""
    host, port = url.removeprefix("https://").rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
    certificate = tls.peer_certificate(writer.transport)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return certificate.serial_number


def test_workers_are_hardened_reload_and_go_with_their_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYHAUL_SECRET_PLACE", "where-the-passphrase-lies")

    async def scene() -> None:
        async with network(tmp_path) as testbed:
            node = testbed.pid("n1")
            children = await working(testbed, "n1")
            for pid in children:
                check_hardened(pid, testbed.directory)
            await check_reload(testbed)
            for pid in children:  # as a terminal, or systemd, signals the whole group
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            assert await working(testbed, "n1") == children
            await testbed.kill("n1")
            await until(lambda: not any(alive(pid) for pid in children))
            await testbed.restart("n1")
            children = await working(testbed, "n1")
            assert testbed.pid("n1") != node
            os.kill(testbed.pid("n1"), signal.SIGTERM)
            await until(lambda: not any(alive(pid) for pid in children))
            log = testbed.layout.log_file("n1").read_text()
            assert "worker ended" not in log

    asyncio.run(scene())


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def check_hardened(pid: int, directory: Path) -> None:
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Umask:\t0077" in status
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0  # what is not dumpable belongs to root
    if os.geteuid() != 0:
        return  # nobody else may even look at the rest
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert str(directory).encode() not in words
    assert not re.search(rb"\.key\b", words)
    names = {pair.split(b"=")[0].decode() for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    assert names - {""} <= set(spawning._KEPT) | {"LC_CTYPE"}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            assert "keyhaul.db" not in os.readlink(link), "a worker has the store open"


async def check_reload(testbed: Testbed) -> None:
    sae = next(each for each in testbed.state()["saes"] if each["node"] == "n1")
    context = credentials(sae)
    before = {await shown(sae["sae_url"], context) for _ in range(4)}
    Pki.open(testbed.directory / "pki", overwrite=True).sae_port("lab", "n1", ("localhost", "127.0.0.1"))
    cert = testbed.config("n1").listeners.sae.cert
    fresh = x509.load_pem_x509_certificate(cert.read_bytes()).serial_number
    assert before == {before.copy().pop()} != {fresh}
    os.kill(testbed.pid("n1"), signal.SIGHUP)
    async with asyncio.timeout(60):
        while {await shown(sae["sae_url"], context) for _ in range(4)} != {fresh}:
            await asyncio.sleep(0.05)
