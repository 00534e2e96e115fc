"""Agents as processes, with real nodes: keys reach programs at both ends, and nobody else gets in between."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from structlog.testing import capture_logs

from keyhaul.config.write import toml, write
from keyhaul.consumers.channel import Caller, Listening, decode
from keyhaul.consumers.exec import Exec
from keyhaul.consumers.port import AgreedKey
from keyhaul.consumers.programs import MOST_INPUT, run
from keyhaul.edge.tls import Credentials, Policy, client_context, equals_context
from keyhaul.errors import Malformed, PeerUnreachable, Refused, TimedOut, Unauthorized, Unavailable
from keyhaul.identity import sae_id
from keyhaul.keys import Secret
from keyhaul.pki import Files, Pki
from tests.agents import INITIATOR, RESPONDER, Agent, Network, agent, network
from tests.ports import held

pytestmark = pytest.mark.e2e

KEEP = """#!/bin/sh
# Keeps what it is told, as a program would: one file for each key, and what happened.
[ "$KEYHAUL_STEP" != install ] || { umask 077; cat > "$KEPT/$KEYHAUL_ROLE.$KEYHAUL_KEY_ID"; }
[ "$KEYHAUL_STEP" != drop ] || rm "$KEPT/$KEYHAUL_ROLE.$KEYHAUL_KEY_ID"
[ "$KEYHAUL_STEP" != lock ] || rm "$KEPT/$KEYHAUL_ROLE".*
echo "$KEYHAUL_STEP $KEYHAUL_PEER" >> "$KEPT/said.$KEYHAUL_ROLE"
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("net") / "net") as running:
        yield running


@pytest.fixture
def program(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "keep"
    file.write_text(KEEP)
    file.chmod(0o700)
    (tmp_path / "kept").mkdir()
    return {"kind": "exec", "command": [str(file)]}


def kept(folder: Path, role: str) -> dict[str, bytes]:
    """Key ids and bits that a program has."""
    files = (folder / "kept").glob(f"{role}.*")
    return {file.name.partition(".")[2]: base64.b64decode(file.read_bytes()) for file in files}


def test_keys_reach_a_program_at_both_ends(two: Network, tmp_path: Path, program: dict[str, Any]) -> None:
    environment = {**os.environ, "KEPT": str(tmp_path / "kept")}
    with agent(tmp_path, two.settings(RESPONDER, program), **environment) as responder:
        settings = two.settings(INITIATOR, program, responder.url, interval=0.2)
        with agent(tmp_path, settings, **environment) as initiator:
            ids = [initiator.until("key settled")["key_id"] for _ in range(3)]
            assert [responder.until("key staged")["key_id"] for _ in range(3)] == ids
    here, there = kept(tmp_path, "initiator"), kept(tmp_path, "responder")
    assert len(set(ids)) == 3
    assert here == there
    ((_, bits),) = here.items()  # one that was settled before the end, and no other
    assert len(bits) == 32
    steps = (tmp_path / "kept" / "said.initiator").read_text().splitlines()
    assert steps[:5] == [f"{step} {RESPONDER}" for step in ("install", "install", "drop", "install", "drop")]
    seen = json.dumps([initiator.logs, responder.logs])
    assert not any(form in seen for form in (base64.b64encode(bits).decode(), bits.hex()))


def test_one_key_and_no_more(two: Network, tmp_path: Path, program: dict[str, Any]) -> None:
    environment = {**os.environ, "KEPT": str(tmp_path / "kept")}
    with agent(tmp_path, two.settings(RESPONDER, program), **environment) as responder:
        file = tmp_path / "once.toml"
        write(file, toml(two.settings(INITIATOR, program, responder.url)))
        words = [sys.executable, "-m", "keyhaul.cli", "agent", str(file), "--once", "--json"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        key_id = json.loads(done.stdout)["key_ID"]
        assert kept(tmp_path, "initiator") == kept(tmp_path, "responder")
        assert [*kept(tmp_path, "initiator")] == [key_id]


def test_no_key_for_too_long_locks_the_program(two: Network, tmp_path: Path, program: dict[str, Any]) -> None:
    environment = {**os.environ, "KEPT": str(tmp_path / "kept")}
    settings = two.settings(RESPONDER, program, max_age=4.0)  # longer than an agreement takes anywhere
    with agent(tmp_path, settings, **environment) as responder:
        url = responder.url
        with agent(
            tmp_path, two.settings(INITIATOR, program, url, interval=60.0, max_age=61.0), **environment
        ) as initiator:
            initiator.until("key settled")
        responder.until("key settled")
        responder.until("no new key for too long: locked until there is one")
        assert kept(tmp_path, "responder") == {}
        with agent(tmp_path, two.settings(INITIATOR, program, url), **environment) as initiator:
            key_id = initiator.until("key settled")["key_id"]
        assert key_id in kept(tmp_path, "initiator")
    assert "lock " + INITIATOR in (tmp_path / "kept" / "said.responder").read_text()


def test_an_initiator_that_starts_before_its_peer_waits_for_it(
    two: Network, tmp_path: Path, program: dict[str, Any]
) -> None:
    environment = {**os.environ, "KEPT": str(tmp_path / "kept")}
    with held() as port:
        settings = two.settings(INITIATOR, program, f"https://127.0.0.1:{port}")
        with agent(tmp_path, settings, **environment) as initiator:
            assert "cannot be reached" in initiator.until("no new key")["cause"]
            settings = two.settings(RESPONDER, program)
            settings["channel"]["listen"] = f"127.0.0.1:{port}"
            with agent(tmp_path, settings, **environment):
                initiator.until("key settled")
    assert len(kept(tmp_path, "initiator")) == 1


@pytest.mark.parametrize("killed", ["initiator", "responder"])
def test_after_a_kill_both_ends_agree_again(
    two: Network, tmp_path: Path, program: dict[str, Any], killed: str
) -> None:
    environment = {**os.environ, "KEPT": str(tmp_path / "kept")}
    with ExitStack() as stack:

        def start(settings: dict[str, Any]) -> Agent:
            return stack.enter_context(agent(tmp_path, settings, **environment))

        responder = start(two.settings(RESPONDER, program))
        ours = two.settings(INITIATOR, program, responder.url, interval=0.1)
        theirs = two.settings(RESPONDER, program)
        theirs["channel"]["listen"] = ours["channel"]["url"].removeprefix("https://")
        initiator = start(ours)
        initiator.until("key settled")
        if killed == "initiator":
            initiator.kill()
            initiator = start(ours)
        else:
            responder.kill()
            responder = start(theirs)
            responder.until("key staged")
        initiator.until("key settled")
        initiator.stop()
        here, there = kept(tmp_path, "initiator"), kept(tmp_path, "responder")
        newest = initiator.logs[-1]["key_id"]
        assert initiator.logs[-1]["event"] == "key settled"
        assert here[newest] == there[newest]


# ------------------------------------------------------------------ the channel


class Told:
    """A responder that remembers; `refuses` is raised instead."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, UUID, UUID | None]] = []
        self.refuses: Exception | None = None

    async def stage(self, key_id: UUID, in_use: UUID | None = None) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.steps.append(("stage", key_id, in_use))

    async def settle(self, key_id: UUID, in_use: UUID | None = None) -> None:
        self.steps.append(("settle", key_id, in_use))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("pki") / "pki", ["here", "there", "nowhere"])


@pytest.fixture(scope="module")
def ends(pki: Pki) -> tuple[Credentials, Credentials, Credentials]:
    """sae-a `here`, sae-b `there`, and sae-c `there` as well; each believes the other domain's SAE CA."""
    cas = {domain: pki.directory / domain / "ca" / "sae.pem" for domain in pki.domains}

    def of(files: Files, ca: Path) -> Credentials:
        return Credentials(files.cert, files.key, ca)

    return (
        of(pki.sae("here", "sae-a"), cas["there"]),
        of(pki.sae("there", "sae-b"), cas["here"]),
        of(pki.sae("there", "sae-c"), cas["here"]),
    )


def test_ids_travel_between_two_domains(ends: tuple[Credentials, ...]) -> None:
    async def story() -> None:
        told = Told()
        listening = Listening(ends[1], "sae-a", told)  # type: ignore[arg-type]
        caller = Caller(await listening.open("127.0.0.1", 0), ends[0], "sae-b")
        key_id, before = uuid4(), uuid4()
        await caller.tell("stage", key_id, before)
        await caller.tell("settle", key_id)
        assert told.steps == [("stage", key_id, before), ("settle", key_id, None)]
        for refusal, kind in ((Refused("gone"), Refused), (Unavailable("later"), Unavailable)):
            told.refuses = refusal
            with pytest.raises(kind, match=refusal.cause):
                await caller.tell("stage", key_id)
        await listening.close()

    asyncio.run(story())


def test_another_sae_is_turned_away_at_either_end(ends: tuple[Credentials, ...], pki: Pki) -> None:
    async def story() -> None:
        told = Told()
        a, b, c = ends
        listening = Listening(b, "sae-a", told)  # type: ignore[arg-type]
        url = await listening.open("127.0.0.1", 0)
        with capture_logs() as logs, pytest.raises(PeerUnreachable):
            await Caller(url, a, "sae-c").tell("stage", uuid4())  # the far end is not who it should be
        assert ("sae-b", "sae-c") in [(each.get("sae"), each.get("expected")) for each in logs]
        ca_of_b = Credentials(c.cert, c.key, pki.directory / "there" / "ca" / "sae.pem")
        with pytest.raises(PeerUnreachable):
            await Caller(url, ca_of_b, "sae-b").tell("stage", uuid4())  # a CA that is not believed there
        nowhere = pki.sae("nowhere", "sae-a")  # the right name, from another CA
        with pytest.raises(PeerUnreachable):
            await Caller(url, Credentials(nowhere.cert, nowhere.key, a.ca), "sae-b").tell("stage", uuid4())
        await listening.close()
        both = pki.directory / "both.pem"
        both.write_bytes(b"".join((pki.directory / d / "ca" / "sae.pem").read_bytes() for d in pki.domains))
        listening = Listening(Credentials(b.cert, b.key, both), "sae-a", told)  # type: ignore[arg-type]
        url = await listening.open("127.0.0.1", 0)
        with capture_logs() as logs, pytest.raises(PeerUnreachable):
            await Caller(url, ca_of_b, "sae-b").tell("stage", uuid4())  # a believed CA, another SAE
        assert ("sae-c", "sae-a") in [(each.get("sae"), each.get("expected")) for each in logs]
        assert told.steps == []
        await listening.close()

    asyncio.run(story())


def test_a_certificate_of_another_role_is_no_sae(ends: tuple[Credentials, ...], pki: Pki) -> None:
    """The port of a node shows a server certificate of the same CA: it does not pass for an SAE's."""

    async def story() -> None:
        port = pki.sae_port("there", "sae-b", ["127.0.0.1"])
        listening = Listening(Credentials(port.cert, port.key, ends[1].ca), "sae-a", Told())  # type: ignore[arg-type]
        url = await listening.open("127.0.0.1", 0)
        with pytest.raises(PeerUnreachable, match=r"purpose|verify"):
            await Caller(url, ends[0], "sae-b").tell("stage", uuid4())
        await listening.close()

    asyncio.run(story())


def test_an_ordinary_client_does_not_take_an_sae_for_a_server(ends: tuple[Credentials, ...]) -> None:
    """Only agents believe client certificates at the other end."""

    async def story() -> None:
        listening = Listening(ends[1], "sae-a", Told())  # type: ignore[arg-type]
        url = await listening.open("127.0.0.1", 0)
        host, _, port = url.removeprefix("https://").rpartition(":")
        with pytest.raises(OSError, match=r"purpose|verify"):
            await asyncio.open_connection(host, int(port), ssl=client_context(ends[0], Policy.PQ))
        await listening.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/keyhaul/agent/v1/stage", b"{}", 400),
        ("POST", "/keyhaul/agent/v1/stage", b'{"key_ID": 7}', 400),
        ("POST", "/keyhaul/agent/v1/stage", b"\xff", 400),
        ("POST", "/keyhaul/agent/v1/stage", b"x" * 5000, 400),
        ("POST", "/keyhaul/agent/v1/other", b"{}", 404),
        ("GET", "/keyhaul/agent/v1/stage", b"", 405),
    ],
)
def test_what_is_no_step_is_refused(
    ends: tuple[Credentials, ...], method: str, path: str, body: bytes, status: int
) -> None:
    def check(certificate: Any) -> None:
        if sae_id(certificate) != "sae-b":
            raise Unauthorized("somebody else")

    async def story() -> None:
        told = Told()
        listening = Listening(ends[1], "sae-a", told)  # type: ignore[arg-type]
        url = await listening.open("127.0.0.1", 0)
        context = equals_context(ends[0], check, server_side=False)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.request(method, url + path, data=body) as answer,
        ):
            assert answer.status == status
            assert (await answer.json())["cause"]
        assert told.steps == []
        await listening.close()

    asyncio.run(story())


def test_an_agent_that_does_not_answer_in_time_is_given_up(ends: tuple[Credentials, ...]) -> None:
    async def story() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(4096):
                pass
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((TimedOut, PeerUnreachable)):
            await Caller(f"https://127.0.0.1:{port}", ends[0], "sae-b", 0.05).tell("stage", uuid4())
        server.close()
        await asyncio.gather(*(each for each in asyncio.all_tasks() if each is not asyncio.current_task()))

    asyncio.run(story())


# ------------------------------------------------------------------ programs


def test_a_key_is_on_standard_input_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "look"
    file.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "said = sys.stdin.buffer.read()\n"
        "assert said, 'nothing came'\n"
        "assert said.strip() not in open('/proc/self/environ', 'rb').read()\n"
        "assert said.strip() not in open('/proc/self/cmdline', 'rb').read()\n"
        f"open({str(tmp_path / 'got')!r}, 'wb').write(said)\n"
    )
    file.chmod(0o700)
    key = AgreedKey(uuid4(), Secret(os.urandom(32)))
    for encoding, form in (("hex", key.bits.reveal().hex().encode() + b"\n"), ("raw", key.bits.reveal())):
        program = Exec([str(file)], peer="p", role="initiator", encoding=encoding)  # type: ignore[arg-type]
        asyncio.run(program.install(key))
        assert (tmp_path / "got").read_bytes() == form


def test_a_program_that_fails_says_why_but_never_the_secret() -> None:
    async def story() -> None:
        with pytest.raises(Unavailable, match="exit code 3, no such tunnel"):
            await run(["sh", "-c", "echo no such tunnel >&2; exit 3"], b"secret\n")
        with pytest.raises(Unavailable) as caught:
            await run(["sh", "-c", "echo bad key: $(cat) >&2; exit 1"], b"secret\n")
        assert "secret" not in str(caught.value)
        with pytest.raises(Unavailable, match="cannot be started"):
            await run(["/nonexistent"])
        with pytest.raises(Unavailable, match="too much"):
            await run(["cat"], bytes(MOST_INPUT + 1))
        assert await run(["cat"], b"x" * MOST_INPUT) == "x" * MOST_INPUT

    asyncio.run(story())


def test_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    async def story() -> None:
        with pytest.raises(Unavailable, match="did not end"):
            await run(["sh", "-c", f"echo $$ > {file}; exec sleep 1000"], patience=2.0)

    asyncio.run(story())
    assert not Path(f"/proc/{file.read_text().strip()}").exists()


def test_standard_input_can_be_opened_by_name() -> None:
    """As `wg set ... preshared-key /dev/stdin` does; a socket could not."""
    assert asyncio.run(run(["cat", "/dev/stdin"], b"key\n")) == "key\n"
    assert shutil.which("stat")
    mode = asyncio.run(run([sys.executable, "-c", "import os; print(os.fstat(0).st_mode)"], b"key"))
    assert stat.S_ISFIFO(int(mode))


def test_malformed_is_an_error_of_its_own() -> None:
    with pytest.raises(Malformed):
        decode(b"[]")
