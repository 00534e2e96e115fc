"""Relays are blind: nothing of a key is in their memory, stores, logs or on the wire. Needs root to look."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keyhaul.edge.client import Received
from keyhaul.errors import Unavailable
from keyhaul.testbed import scan
from keyhaul.testbed.faults import Attack
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.scan import Needles, Wire
from keyhaul.testbed.topology import Topology, named
from tests.e2e.test_testbed import KEYHAUL, sae

pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")
pytestmark = pytest.mark.e2e
NUMBER = 48  # keys a scheme
KEYS = [secrets.token_bytes(32) for _ in range(3)]


def forbidden() -> str:
    """Why this user cannot look, if so."""
    try:
        with Wire([1]):
            list(scan.memory(os.getpid(), Needles([bytes(range(16))])))
    except Unavailable as error:
        return str(error)
    return ""


may_look = pytest.mark.skipif(bool(forbidden()), reason=f"not allowed: {forbidden()}")


# ---------------------------------------------------------------------- the scan itself


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("hidden", [0, 1, 2])
def test_every_form_is_found_wherever_it_lies(before: int, hidden: int) -> None:
    key = KEYS[hidden]
    around = base64.b64encode(b"x" * before + key + b"and more")
    forms = {
        "raw": key,
        "hex": key.hex().encode(),
        "HEX": key.hex().upper().encode(),
        f"base64+{before % 3}": around,
    }
    for form, text in forms.items():
        for at in (0, 1, 4094, 4095):
            hits = set(Needles(KEYS).find(bytes(at) + text + bytes(3), "here"))
            assert scan.Hit(hidden, form, "here") in hits, (form, at)
            assert {hit.key for hit in hits} == {hidden}


def test_a_key_with_a_bit_less_is_not_found() -> None:
    broken = bytes([KEYS[0][0] ^ 1]) + KEYS[0][1:]
    for data in (b"", b"x", broken, broken.hex().encode(), base64.b64encode(broken), KEYS[0][:-1]):
        assert not list(Needles(KEYS).find(data, "here"))


def test_files_are_searched_however_deep_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_text(f"key={KEYS[1].hex()}")
    assert list(scan.files(tmp_path, Needles(KEYS))) == [scan.Hit(1, "hex", "file log")]


@may_look
def test_memory_of_a_process_is_searched_to_its_ends() -> None:
    program = (
        "import sys; first = bytes.fromhex(sys.argv[1]); many = bytearray(64 << 20);"
        "many[-len(first):] = first; sys.argv[1] = ''; print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, KEYS[2].hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    hits = {hit.form for hit in scan.memory(child.pid, Needles(KEYS))}
    said = list(scan.files(Path(f"/proc/{child.pid}/cmdline"), Needles(KEYS)))
    child.communicate(b"")
    assert "raw" in hits
    assert said == [scan.Hit(2, "hex", "file cmdline")]
    with pytest.raises(Unavailable):
        list(scan.memory(child.pid, Needles(KEYS)))


@may_look
def test_the_recording_holds_what_was_sent_in_pieces() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            Wire([port]) as wire,
            socket.create_connection(("127.0.0.1", port)) as sender,
            server.accept()[0] as receiver,
        ):
            for piece in (KEYS[0][:5], KEYS[0][5:20], KEYS[0][20:]):
                sender.sendall(piece)
                assert receiver.recv(len(piece), socket.MSG_WAITALL)
    assert wire.lost == 0
    (data,) = [each for each in wire.streams() if each]
    assert data == KEYS[0]
    assert [hit.form for hit in Needles(KEYS).find(data, "wire")] == ["raw"]


# ---------------------------------------------------------------------- networks


async def deliver(state: dict[str, Any], ends: tuple[str, str], scheme: str) -> list[Received]:
    """Keys from end to end, compared."""
    master, slave = ends
    async with sae(state, master) as one, sae(state, slave) as other:
        keys = await one.get_key(slave, NUMBER, mandatory=[{"keyhaul_scheme": scheme}])
        for at, same in enumerate(await other.fetch_key(master, [key.key_id for key in keys])):
            assert same.bits.same_as(keys[at].bits)
    return keys


def relays_of(topology: Topology) -> list[str]:
    return [node.name for node in topology.nodes][1:-1]


async def scanned(testbed: Testbed, ends: tuple[str, str], scheme: str) -> dict[str, set[int]]:
    """Which keys are found where, after NUMBER were delivered: by node, and on the wire."""
    state = testbed.state()
    ports = [int(node["node_url"].rpartition(":")[2]) for node in state["nodes"]]
    with Wire(ports) as wire:
        keys = await deliver(state, ends, scheme)
        bits = [key.bits.reveal() for key in keys]
        findings = await asyncio.to_thread(scan.testbed, state, testbed.directory, bits)
    assert (wire.lost, wire.packets > 20) == (0, True)
    needles = Needles(bits)
    found = {finding.node: set(finding.keys) for finding in findings}
    found["wire"] = {hit.key for data in wire.streams() for hit in needles.find(data, "wire")}
    assert all("memory" in place for each in findings for place in each.places), "no file has a key"
    return found


@may_look
@pytest.mark.parametrize("name", ["tecnalia", "galicia-basque"])
def test_relays_that_keep_all_they_see_have_no_bit_of_a_masked_or_blind_key(
    name: str, tmp_path: Path
) -> None:
    """Hoarding relays: what they decrypt and every pad stays in their memory, so that the scan can see it."""
    topology = named(name).with_devices("instant")
    relays = relays_of(topology)
    ends = (f"sae-{topology.nodes[0].name}", f"sae-{topology.nodes[-1].name}")
    assert {ends[0], ends[1]} <= {each for node in topology.nodes for each in node.saes}

    async def scene() -> None:
        cheats = dict.fromkeys(relays, Attack.LISTEN)
        settings = {"schemes": {"blind": {"enabled": True, "rerandomise": True}}}
        async with Testbed(topology, tmp_path / "testbed", cheats=cheats, settings=settings) as testbed:
            every = set(range(NUMBER))
            trusted = await scanned(testbed, ends, "trusted")
            assert {relay: trusted[relay] for relay in relays} == dict.fromkeys(relays, every)
            assert trusted["wire"] == set(), "TLS and envelopes hide them even so"
            for scheme in ("masked", "blind", "blind-fresh"):
                found = await scanned(testbed, ends, scheme)
                assert [relay for relay in relays if found[relay]] == []
                assert found["wire"] == set()
                # The origin has wiped its own; what is left in freed memory is overwritten in time.
                assert found[topology.nodes[0].name], "where they may be, they are found"

    asyncio.run(scene())


@may_look
def test_the_command_tells_and_its_exit_code_says_whether_a_relay_has_keys(tmp_path: Path) -> None:
    async def scene() -> None:
        cheats = {"n2": Attack.LISTEN}
        async with Testbed(named("line-3"), tmp_path / "testbed", cheats=cheats) as testbed:
            words = [*KEYHAUL, "testbed", "scan", "sae-n1", "sae-n3", "--dir", str(testbed.directory)]
            for scheme, code, keys in (("masked", 0, 0), ("trusted", 1, 4)):
                command = [*words, "--scheme", scheme, "--number", "4", "--json"]
                done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
                assert done.returncode == code, done.stderr
                told = json.loads(done.stdout)
                (relay,) = [node for node in told["nodes"] if node["relay"]]
                assert (relay["node"], relay["keys"]) == ("n2", keys)

    asyncio.run(scene())
