"""The doctor on a real network: nothing to say about a sound one, and of each mistake its cause and cure."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keyhaul import config
from keyhaul.doctor import Finding, examine, neighbour, plain, worst
from keyhaul.pki import Lifetimes, Pki
from keyhaul.testbed.chaos.faults import turn
from keyhaul.testbed.layout import HOSTS
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def network(folder: Path) -> AsyncIterator[Testbed]:
    """Two nodes and the pair of devices between them."""
    async with Testbed(named("line-2").with_devices("instant"), folder / "net", restart=False) as testbed:
        yield testbed


def of(found: list[Finding], what: str) -> Finding:
    return next(each for each in found if what in each.what)


def files(testbed: Testbed) -> tuple[Path, Path]:
    first, second = (node.name for node in testbed.topology.nodes)
    return testbed.layout.node_file(first), testbed.layout.node_file(second)


def test_a_sound_network_and_then_everything_that_breaks_in_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            first, _ = files(testbed)
            name = testbed.topology.nodes[1].name
            await all_is_well(first, name)
            await keys_cross(testbed, first, name)
            await a_dry_device_is_said(testbed, first)
            await an_expired_neighbour_is_said(testbed, first, name)
            await testbed.kill(name)
            found = await examine(first)
            assert of(found, f"{name}: TCP").state == "failed"
            assert "runs" in of(found, f"{name}: TCP").next_step
            assert of(found, "device at").state == "ok", "one thing that is broken hides no other"

    asyncio.run(story())


async def all_is_well(file: Path, peer: str) -> None:
    found = await examine(file)
    assert [each for each in found if each.state == "failed"] == []
    for what in ("certificate of the sae port", "store", "device at"):
        assert of(found, what).state == "ok", of(found, what)
    steps = [each.what.removeprefix(f"{peer}: ") for each in found if each.what.startswith(f"{peer}: ")]
    assert steps == ["name", "TCP", "TLS", "certificate", "identity", "clock", "versions"]
    assert "MLKEM" in of(found, f"{peer}: TLS").seen.upper()


async def keys_cross(testbed: Testbed, file: Path, peer: str) -> None:
    state = testbed.state()
    node = next(each for each in state["nodes"] if each["name"] != peer)
    admin = state["admin"]
    words = ["federation", "test", peer, "--config", str(file), "--url", node["admin_url"], "--json"]
    words += ["--cert", admin["cert"], "--key", admin["key"], "--cacert", admin["ca"]]
    said = json.loads((await keyhaul(*words)).stdout)
    key = next(each for each in said["findings"] if "test key" in each["what"])
    assert key["state"] == "ok", key
    assert "trusted" in key["seen"]
    without = await keyhaul("federation", "test", peer, "--config", str(file))
    assert without.returncode == 0
    assert "skipped" in without.stdout
    unknown = await keyhaul("federation", "test", "nobody", "--config", str(file))
    assert unknown.returncode == 2
    assert peer in unknown.stderr


async def keyhaul(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keyhaul.cli", *words]
    return await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    )


async def a_dry_device_is_said(testbed: Testbed, file: Path) -> None:
    spot = next(each for each in testbed.layout.spots if each.node == testbed.topology.nodes[0].name)
    await turn(testbed, spot.name, {"dry": 1})
    dry = of(await examine(file), "device at")
    assert (dry.state, dry.seen.split()[0]) == ("failed", "0")
    await turn(testbed, spot.name, {"dry": 0})


async def an_expired_neighbour_is_said(testbed: Testbed, file: Path, peer: str) -> None:
    node = testbed.topology.nodes[1]
    past = Lifetimes(leaf=1, start=datetime.now(UTC) - timedelta(days=3))
    pki = Pki.open(testbed.directory / "pki", lifetimes=past, overwrite=True)
    await asyncio.to_thread(pki.node, node.domain, node.name, HOSTS)
    await testbed.restart(node.name)
    found = of(await examine(file), f"{peer}: TLS")
    assert found.state == "failed"
    assert "renew" in found.next_step
    good = Pki.open(testbed.directory / "pki", overwrite=True)
    await asyncio.to_thread(good.node, node.domain, node.name, HOSTS)
    await testbed.restart(node.name)
    assert of(await examine(file), f"{peer}: TLS").state == "ok"


# ---------------------------------------------------------------------- mistakes in the configuration


Change = Callable[[str, str], str]


@pytest.mark.parametrize(
    ("change", "step", "advice"),
    [
        (lambda text, url: text.replace(url, "https://no-such-host.invalid:1"), "name", "DNS"),
        (lambda text, url: text.replace(url, "https://127.0.0.1:1"), "TCP", "firewall"),
    ],
)
def test_a_neighbour_that_is_not_there(tmp_path: Path, change: Change, step: str, advice: str) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            file, _ = files(testbed)
            url = config.load(file).peers[0].url
            file.write_text(change(file.read_text(), url))
            settings = config.load(file)
            found = await neighbour(settings, settings.peers[0])
            assert found[-1].state == "failed"
            assert found[-1].what.endswith(step)
            assert advice in found[-1].next_step

    asyncio.run(story())


def test_strange_anchors_and_swapped_names(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            file, _ = files(testbed)
            settings = config.load(file)
            strangers = Pki.create(tmp_path / "strangers", ["elsewhere"])
            anchors = settings.listeners.node.ca
            original = anchors.read_bytes()
            shutil.copy(strangers.directory / "node-anchors.pem", anchors)
            found = await neighbour(settings, settings.peers[0])
            assert found[-1].what.endswith("TLS")
            assert "anchors" in found[-1].next_step
            anchors.write_bytes(original)
            ours = testbed.state()["nodes"][0]["node_url"]
            file.write_text(file.read_text().replace(settings.peers[0].url, ours))
            settings = config.load(file)
            found = await neighbour(settings, settings.peers[0])
            assert found[-1].what.endswith("identity")
            assert f"is {settings.name}" in found[-1].seen

    asyncio.run(story())


def test_a_configuration_that_does_not_load_ends_the_examination(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('name = "a"\nnonsense = 1\n')
    found = asyncio.run(examine(file))
    assert worst(found) == "failed"
    assert found[-1].state == "skipped"
    assert all(each.next_step for each in found)
    answer = subprocess.run(
        [sys.executable, "-m", "keyhaul.cli", "doctor", "--config", str(file), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert json.loads(answer.stdout) == plain(found)


def test_a_broken_root_secret_is_said_when_no_node_runs(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            file, _ = files(testbed)
            await testbed.kill(testbed.topology.nodes[0].name)
            good: Any = of(await examine(file), "root secret")
            assert good.state in ("ok", "warning")
            (file.parent / "root.credential").write_text("0" * 64)
            bad = of(await examine(file), "root secret")
            assert bad.state == "failed"
            assert bad.next_step

    asyncio.run(story())
