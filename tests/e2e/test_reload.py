"""Real nodes take over another configuration while they run: neighbours come and go, and keys follow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyhaul.config.write import toml
from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyhaulError, Unavailable
from keyhaul.pki import Pki
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import client, credentials, eventually, keyhaul, lines

pytestmark = pytest.mark.e2e

Tables = dict[str, Any]


def rewrite(file: Path, change: Callable[[Tables], None]) -> None:
    tables = tomllib.loads(file.read_text())
    change(tables)
    file.write_text(toml(tables))


def without_third(tables: Tables) -> None:
    """The network as if there were no n3."""
    tables["nodes"].pop("n3")
    tables["links"] = [link for link in tables["links"] if "n3" not in (link["a"], link["b"])]
    tables["saes"].pop("sae-n3")


def no_peer_third(tables: Tables) -> None:
    tables["peers"] = [peer for peer in tables["peers"] if peer["name"] != "n3"]


async def reloaded(testbed: Testbed, node: str) -> dict[str, Any]:
    """By SIGHUP; what the log then says."""
    before = len(lines(testbed, node))
    os.kill(testbed.pid(node), signal.SIGHUP)
    said: list[dict[str, Any]] = await eventually(
        lambda: [line for line in lines(testbed, node)[before:] if "reloaded" in line["event"]]
    )
    return said[0]


async def key_through(testbed: Testbed, master: str, slave: str) -> str:
    """One key there and fetched, as soon as the nodes have found each other."""
    async with client(testbed, f"sae-{master}") as one, client(testbed, f"sae-{slave}") as other:
        async with asyncio.timeout(120):
            while True:
                try:
                    (key,) = await one.get_key(f"sae-{slave}")
                    break
                except Unavailable:
                    continue
        (copy,) = await other.fetch_key(f"sae-{master}", [key.key_id])
        assert key.bits.same_as(copy.bits)
        return str(key.key_id)


async def refused(testbed: Testbed, master: str, slave: str, size: int = 256) -> KeyhaulError:
    entry = next(each for each in testbed.state()["saes"] if each["id"] == f"sae-{master}")
    tls = client_context(credentials(entry), Policy.COMPATIBLE)
    async with SaeClient(entry["sae_url"], tls, patience=0.0) as one:
        with pytest.raises(KeyhaulError) as raised:
            await one.get_key(f"sae-{slave}", size=size)
    return raised.value


def test_a_third_node_comes_to_a_running_pair_and_goes_again(tmp_path: Path) -> None:
    asyncio.run(third_node(tmp_path / "net"))


async def third_node(directory: Path) -> None:
    async with Testbed(
        named("line-3"), directory, settings={"delivery": {"pool": 4, "request_timeout": 5}}
    ) as testbed:
        network, files = directory / "network.toml", {n: testbed.layout.node_file(n) for n in ("n1", "n2")}
        whole = {file: file.read_text() for file in (network, *files.values())}
        shared = directory / "pair.toml"
        shared.write_text(network.read_text())
        rewrite(shared, without_third)
        for name, file in files.items():
            rewrite(file, lambda tables: tables.update(network={"file": str(shared)}))
            rewrite(file, no_peer_third)
            await testbed.restart(name)
        await key_through(testbed, "n1", "n2")
        assert "no node of this network serves" in (await refused(testbed, "n1", "n3")).cause
        pids = {name: testbed.pid(name) for name in files}

        for file in files.values():
            file.write_text(whole[file])
        first = await reloaded(testbed, "n1")
        assert (first["changed"], first["kept_as_it_was"], first["needs_a_restart"]) == (["network"], [], [])
        second = await reloaded(testbed, "n2")
        assert second["changed"] == ["peer n3 added", "network"]
        key_id = await key_through(testbed, "n1", "n3")
        await key_through(testbed, "n3", "n1")
        trace = json.loads((await keyhaul("key", "trace", key_id, "--dir", str(directory), "--json")).stdout)
        assert {row["node"] for row in trace["rows"]} == {"n1", "n2", "n3"}

        await it_goes_again(testbed, shared, files)
        assert {name: testbed.pid(name) for name in files} == pids
        await key_through(testbed, "n1", "n2")
        for (
            file
        ) in files.values():  # and comes back, with the numbers and keys of its link still in the store
            file.write_text(whole[file])
            await reloaded(testbed, file.parent.name)
        await key_through(testbed, "n3", "n1")


async def it_goes_again(testbed: Testbed, shared: Path, files: dict[str, Path]) -> None:
    """Its neighbour refuses it at once, and keys that lay ready for it are given to nobody."""
    await key_through(testbed, "n1", "n3")
    for name, file in files.items():
        rewrite(file, lambda tables: tables.update(network={"file": str(shared)}))
        rewrite(file, no_peer_third)
        said = await reloaded(testbed, name)
        assert said["changed"] == (["peer n3 removed", "network"] if name == "n2" else ["network"])
    assert "no node of this network serves" in (await refused(testbed, "n1", "n3")).cause
    assert isinstance(await refused(testbed, "n3", "n1", 512), Unavailable)  # of a size that no pool has
    strangers = await eventually(
        lambda: [line for line in lines(testbed, "n2") if "n3 is not a neighbour" in str(line.get("cause"))]
    )
    assert strangers[0]["status"] == 401
    status = json.loads((await keyhaul("status", "--dir", str(testbed.directory), "--json")).stdout)
    near = next(each for each in status if each["name"] == "n2")
    assert [link["peer"] for link in near["links"]] == ["n1"]
    assert "n3" not in near["nodes_known"]


def test_a_broken_file_keeps_the_last_good_and_a_neighbour_may_move(tmp_path: Path) -> None:
    asyncio.run(last_good(tmp_path / "net"))


async def last_good(directory: Path) -> None:
    async with Testbed(
        named("line-2"), directory, settings={"delivery": {"pool": 2, "request_timeout": 5}}
    ) as testbed:
        file = testbed.layout.node_file("n1")
        whole = file.read_text()
        await key_through(testbed, "n1", "n2")
        words = ("--dir", str(directory), "--json")

        file.write_text(whole + "\n[[policy]]\nlabels = 7\n")
        assert "mistakes" in (await reloaded(testbed, "n1"))["event"]
        told = await keyhaul("reload", *words)
        assert (told.returncode, "last good" in told.stderr) == (0, True)  # n2 has nothing to complain of
        await key_through(testbed, "n1", "n2")

        rewrite_to(
            file, whole, lambda tables: tables["peers"][0].update(device={**device(), "cert": "gone.pem"})
        )
        said = await reloaded(testbed, "n1")
        assert "gone.pem" in str(said)
        await key_through(testbed, "n1", "n2")

        rewrite_to(file, whole, lambda tables: tables["peers"][0].update(url="https://127.0.0.1:9"))
        assert (await reloaded(testbed, "n1"))["changed"] == ["peer n2"]
        assert isinstance(await refused(testbed, "n1", "n2", 512), Unavailable)
        assert await eventually(
            lambda: [line for line in lines(testbed, "n1") if ":9" in str(line.get("cause"))]
        )
        file.write_text(whole)
        assert (await reloaded(testbed, "n1"))["changed"] == ["peer n2"]
        await key_through(testbed, "n1", "n2")

        await policy_and_restart(testbed, file, whole)


def device() -> Tables:
    return {"url": "https://127.0.0.1:9", "cert": "x", "key": "x", "ca": "x", "own_sae": "a", "peer_sae": "b"}


def rewrite_to(file: Path, whole: str, change: Callable[[Tables], None]) -> None:
    file.write_text(whole)
    rewrite(file, change)


async def policy_and_restart(testbed: Testbed, file: Path, whole: str) -> None:
    """A policy holds for keys that lie ready, too; what cannot be taken over is named."""
    async with client(testbed, "sae-n1") as master:
        async with asyncio.timeout(120):
            while (await master.status("sae-n2")).stored_key_count < 2:
                await asyncio.sleep(0.02)
    rule = [{"master": "sae-n1", "slave": "*", "labels": ["its-wire"]}]
    rewrite_to(file, whole, lambda tables: tables.update(policy=rule, log={"level": "DEBUG"}))
    said = await reloaded(testbed, "n1")
    assert said["changed"] == ["policy", "log"]
    problem = await refused(testbed, "n1", "n2")
    assert "its-wire" in problem.cause
    assert (
        json.loads((await keyhaul("log", "level", "--dir", str(testbed.directory), "--json")).stdout)["n1"][
            "level"
        ]
        == "DEBUG"
    )

    def elsewhere(tables: Tables) -> None:
        tables["store"]["file"] = "other.db"
        tables["listeners"]["sae"]["port"] = 1
        tables["delivery"]["ttl"] = 77.0

    rewrite_to(file, whole, elsewhere)
    said = await reloaded(testbed, "n1")
    assert said["needs_a_restart"] == ["listeners.sae.port", "store.file", "delivery.ttl"]
    assert said["changed"] == ["policy", "log"]
    await key_through(testbed, "n1", "n2")


def test_cas_of_ports_and_devices_are_taken_over_and_named(tmp_path: Path) -> None:
    asyncio.run(other_cas(tmp_path / "net"))


async def other_cas(directory: Path) -> None:
    """A second CA comes into the files of a running node's ports, and one of them goes again."""
    stranger = Pki.create(directory.parent / "stranger", ["lab"])
    guest = stranger.sae("lab", "sae-n1")
    pair = named("line-2").with_devices("instant")
    async with Testbed(pair, directory, settings={"delivery": {"pool": 2}}) as testbed:
        tables = tomllib.loads(testbed.layout.node_file("n1").read_text())
        entry = next(each for each in testbed.state()["saes"] if each["id"] == "sae-n1")
        files = {
            "sae": Path(tables["listeners"]["sae"]["ca"]),
            "admin": Path(tables["listeners"]["admin"]["ca"]),
            "device": Path(tables["peers"][0]["device"]["ca"]),
            "node": Path(tables["listeners"]["node"]["ca"]),
        }
        files = {role: testbed.layout.node_file("n1").parent / file for role, file in files.items()}
        before = {role: file.read_bytes() for role, file in files.items()}

        async def status() -> None:
            tls = client_context(Credentials(guest.cert, guest.key, Path(entry["ca"])), Policy.COMPATIBLE)
            async with SaeClient(entry["sae_url"], tls, patience=0.0) as one:
                await one.status("sae-n2")

        with pytest.raises(KeyhaulError):
            await status()
        for role in ("sae", "admin", "device"):
            files[role].write_bytes(before[role] + stranger.ca("lab", role).read_bytes())
        assert (await reloaded(testbed, "n1"))["changed"] == [
            "CAs that the sae port believes",
            "CAs that the admin port believes",
            "CAs believed towards the device of n2",
        ]
        await status()
        assert (await reloaded(testbed, "n1"))["changed"] == []
        files["sae"].write_bytes(before["sae"])
        assert (await reloaded(testbed, "n1"))["changed"] == ["CAs that the sae port believes"]
        with pytest.raises(KeyhaulError):
            await status()
        more = Pki.create(directory.parent / "more", ["elsewhere"]).ca("elsewhere", "node").read_bytes()
        files["node"].write_bytes(before["node"] + more)
        assert (await reloaded(testbed, "n1"))["changed"] == ["CAs of nodes that are believed"]
        await key_through(testbed, "n1", "n2")
