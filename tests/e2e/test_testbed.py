"""A whole network of real processes: keys agree, a killed node comes back, nothing is left running."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import ConfigError, Unavailable
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e

KEYHAUL = [sys.executable, "-m", "keyhaul.cli"]
PATIENCE = 180.0  # seconds until a hung process fails a test


@asynccontextmanager
async def sae(state: dict[str, Any], name: str, patience: float = PATIENCE) -> AsyncIterator[SaeClient]:
    """One application of a testbed; after 503 it asks again for `patience` seconds."""
    found = next(each for each in state["saes"] if each["id"] == name)
    files = Credentials(Path(found["cert"]), Path(found["key"]), Path(found["ca"]))
    tls = client_context(files, Policy.COMPATIBLE)
    async with SaeClient(found["sae_url"], tls, patience=patience) as client:
        yield client


async def exchange(state: dict[str, Any], master: str, slave: str) -> None:
    """One key from end to end, compared."""
    async with sae(state, master) as one, sae(state, slave) as other:
        (sent,) = await one.get_key(slave)
        (received,) = await other.fetch_key(master, [sent.key_id])
        assert sent.bits.same_as(received.bits)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_keys_agree_and_a_killed_node_serves_again_on_its_ports(tmp_path: Path) -> None:
    before = children()

    async def scene() -> None:
        async with Testbed(named("line-3"), tmp_path / "testbed") as testbed:
            state = json.loads((tmp_path / "testbed" / "testbed.json").read_text())
            assert state == testbed.state()
            await exchange(state, "sae-n1", "sae-n3")
            await testbed.kill("n2")
            assert testbed.pid("n2") == 0
            await testbed.restart("n2")
            after = testbed.state()
            assert [node["node_url"] for node in after["nodes"]] == [
                node["node_url"] for node in state["nodes"]
            ]
            assert after["nodes"][1]["pid"] != state["nodes"][1]["pid"]
            await exchange(after, "sae-n3", "sae-n1")

    asyncio.run(scene())
    assert children() <= before
    assert not (tmp_path / "testbed" / "testbed.pid").exists()


def test_testbed_json_names_files_that_exist_and_open_processes(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Testbed(named("ring-3"), tmp_path / "testbed", restart=False) as testbed:
            state = testbed.state()
            assert set(state) == {"topology", "ca", "admin", "nodes", "saes", "devices", "links"}
            files = [state["admin"], *state["saes"]]
            for path in [each[name] for each in files for name in ("cert", "key", "ca")]:
                assert Path(path).is_absolute()
                assert Path(path).is_file()
            for process in state["nodes"] + state["devices"]:
                assert psutil.pid_exists(process["pid"])
            assert len(state["devices"]) == 2 * sum(link["kind"] == "qkd" for link in state["links"])
            for log in (tmp_path / "testbed" / "logs").iterdir():
                assert log.stat().st_mode & 0o077 == 0
            with pytest.raises(ConfigError):
                await Testbed(named("line-2"), tmp_path / "testbed").start()

    asyncio.run(scene())


def test_a_node_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    before = children()

    async def scene() -> None:
        testbed = Testbed(named("line-2"), tmp_path / "testbed", settings={"extension_pen": 65000})
        original = testbed.layout.write_nodes

        def spoiled(*arguments: Any) -> None:
            original(*arguments)
            root = testbed.layout.node_folder("n2") / "keyhaul.db"
            root.write_bytes(b"not a database" * 1000)

        testbed.layout.write_nodes = spoiled  # type: ignore[method-assign]
        with pytest.raises(Unavailable) as caught:
            async with testbed:
                pass
        assert "n2 ended before it was ready" in caught.value.cause
        assert "keyhaul: " in caught.value.cause

    asyncio.run(scene())
    assert children() <= before


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`keyhaul testbed up line-2` in a process of its own, serving."""
    directory = tmp_path / "testbed"
    command = [*KEYHAUL, "testbed", "up", "line-2", "--dir", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "line-2 is up" in line
    yield process, directory
    process.kill()
    process.wait()
    process.stdout.close()


def pids(directory: Path) -> list[int]:
    state = json.loads((directory / "testbed.json").read_text())
    return [each["pid"] for each in state["nodes"] + state["devices"]]


def ended(handles: list[int]) -> bool:
    """Whether all these processes end in time."""
    done = all(select.select([handle], [], [], PATIENCE)[0] for handle in handles)
    for handle in handles:
        os.close(handle)
    return done


def test_a_key_by_hand_its_trace_the_status_and_down(
    up: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, directory = up
    handles = [os.pidfd_open(pid) for pid in pids(directory)]
    key_file = tmp_path / "key.json"
    by_dir = ("--dir", str(directory))
    shown = ask("sae", "get", "sae-n2", "--as", "sae-n1", "--to", str(key_file), *by_dir)
    key_id = shown["key_IDs"][0]["key_ID"]
    assert key_file.stat().st_mode & 0o777 == 0o600
    sent = json.loads(key_file.read_text())["keys"][0]
    fetched = ask("sae", "fetch", "sae-n1", key_id, "--as", "sae-n2", *by_dir)["keys"][0]
    assert fetched["key"] == sent["key"]
    assert ask("sae", "status", "sae-n2", "--as", "sae-n1", "--json", *by_dir)["slave_SAE_ID"] == "sae-n2"
    trace = ask("key", "trace", key_id, "--json", *by_dir)
    assert {row["node"] for row in trace["rows"]} == {"n1", "n2"}
    assert sent["key"] not in json.dumps(trace)
    assert [node["name"] for node in ask("status", "--json", *by_dir)] == ["n1", "n2"]
    assert ask("testbed", "down", "--json", *by_dir) == {"ended": True}
    assert process.wait(PATIENCE) == 0
    assert ended(handles)


def test_a_second_fetch_is_refused_in_the_words_of_the_standard(
    up: tuple[subprocess.Popen[str], Path],
) -> None:
    by_dir = ("--dir", str(up[1]))
    key_id = ask("sae", "get", "sae-n2", "--as", "sae-n1", *by_dir)["keys"][0]["key_ID"]
    words = ["sae", "fetch", "sae-n1", key_id, "--as", "sae-n2", *by_dir]
    ask(*words)
    again = subprocess.run([*KEYHAUL, *words], capture_output=True, text=True)
    assert again.returncode == 1
    assert "one or more keys specified are not found on KME" in again.stderr
    assert "Traceback" not in again.stderr


def test_nothing_outlives_a_killed_testbed(up: tuple[subprocess.Popen[str], Path]) -> None:
    process, directory = up
    handles = [os.pidfd_open(pid) for pid in pids(directory)]
    process.kill()
    assert ended(handles)


def test_a_node_killed_from_outside_is_started_again(up: tuple[subprocess.Popen[str], Path]) -> None:
    process, directory = up
    first = pids(directory)
    os.kill(first[0], signal.SIGKILL)
    asyncio.run(asyncio.wait_for(changed(directory, first[0]), PATIENCE))
    asyncio.run(exchange(json.loads((directory / "testbed.json").read_text()), "sae-n1", "sae-n2"))
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0


def test_a_killed_device_is_started_again_where_it_was(
    up: tuple[subprocess.Popen[str], Path],
) -> None:
    process, directory = up
    first = devices(directory)
    name, (pid, _) = next(iter(first.items()))
    os.kill(pid, signal.SIGKILL)
    asyncio.run(asyncio.wait_for(replaced(directory, name, pid), PATIENCE))
    assert {each: url for each, (_, url) in devices(directory).items()} == {
        each: url for each, (_, url) in first.items()
    }
    asyncio.run(exchange(json.loads((directory / "testbed.json").read_text()), "sae-n1", "sae-n2"))
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0


def devices(directory: Path) -> dict[str, tuple[int, str]]:
    state = json.loads((directory / "testbed.json").read_text())
    return {each["name"]: (each["pid"], each["url"]) for each in state["devices"]}


async def replaced(directory: Path, device: str, old: int) -> None:
    while devices(directory)[device][0] in (0, old):
        await asyncio.sleep(0.02)


async def changed(directory: Path, old: int) -> None:
    while old in pids(directory):
        await asyncio.sleep(0.02)


def test_the_demonstration_compares_every_pair_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([*KEYHAUL, "demo", "line-3", "--json"], capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["pairs"], answer["agree"]) == (0, 6, 6)
    assert {result["path"] for result in answer["results"]} >= {"n1=n2-n3", "n3-n2=n1"}
    for result in answer["results"]:
        assert result["scheme"]
        assert result["wire"]
        assert result["relays"]
    schemes = {each["scheme"]: each for each in answer["schemes"]}
    assert set(schemes) == {"trusted", "masked"}, "this network did not enable blind"
    for name, can in (("trusted", "none"), ("masked", "computational")):
        told = schemes[name]
        assert (told["agree"], told["relays"], told["neighbour"]) == (True, can, can)
        assert ("relay-blind" in told["labels"]) == (name == "masked")


def test_the_network_of_paper_b_relays_under_scheme_blind(tmp_path: Path) -> None:
    pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")
    done = subprocess.run([*KEYHAUL, "demo", "tecnalia", "--json"], capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["pairs"], answer["agree"], answer["left_out"]) == (0, 20, 20, "")
    assert {result["scheme"] for result in answer["results"]} == {"blind"}
    assert [(each["scheme"], each["agree"]) for each in answer["schemes"]] == [
        ("trusted", True),
        ("masked", True),
        ("blind", True),
    ]
    assert answer["schemes"][2]["labels"].split() == ["pq", "qkd", "relay-blind"]


def ask(*words: str) -> Any:
    """A command that must work, and its JSON."""
    done = subprocess.run([*KEYHAUL, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
