"""What operators change on running nodes: the level of the log, for a while; and the story it then tells."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e


async def keyhaul(*words: str) -> subprocess.CompletedProcess[str]:
    """One command of the operator, beside the nodes."""
    command = [sys.executable, "-m", "keyhaul.cli", *words]
    return await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    )


def credentials(entry: dict[str, Any]) -> Credentials:
    return Credentials(Path(entry["cert"]), Path(entry["key"]), Path(entry["ca"]))


def client(testbed: Testbed, sae: str) -> SaeClient:
    entry = next(each for each in testbed.state()["saes"] if each["id"] == sae)
    return SaeClient(entry["sae_url"], client_context(credentials(entry), Policy.COMPATIBLE), patience=30.0)


def lines(testbed: Testbed, node: str) -> list[dict[str, Any]]:
    """The whole log so far; its last line may be half written."""
    text = testbed.layout.log_file(node).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


async def eventually(fits: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := fits()):
            await asyncio.sleep(0.02)
    return found


def test_the_story_of_one_request_is_told_by_every_node_while_somebody_wants_it(tmp_path: Path) -> None:
    asyncio.run(story(tmp_path / "net"))


async def story(directory: Path) -> None:
    settings = {"delivery": {"pool": 0}}
    async with Testbed(named("line-3"), directory, settings=settings) as testbed:
        async with client(testbed, "sae-n1") as master, client(testbed, "sae-n3") as slave:
            await master.get_key("sae-n3")
            assert not any(
                line["level"] == "debug" for node in ("n1", "n2", "n3") for line in lines(testbed, node)
            )
            said = await keyhaul("log", "level", "debug", "--for", "10m", "--dir", str(directory), "--json")
            assert said.returncode == 0, said.stderr
            told = json.loads(said.stdout)
            assert {name: each["level"] for name, each in told.items()} == dict.fromkeys(
                ("n1", "n2", "n3"), "DEBUG"
            )

            (key,) = await master.get_key("sae-n3")
            await slave.fetch_key("sae-n1", [key.key_id])
            key_id = str(key.key_id)
            asked = await eventually(lambda: of_key(testbed, "n1", "keys given", key_id))
            mine = [line for line in lines(testbed, "n1") if line.get("request") == asked["request"]]
            assert {"keys asked for", "keys leave", "keys given"} <= {line["event"] for line in mine}
            assert {line["trace"] for line in mine} == {asked["trace"]}
            relayed = await eventually(lambda: of_key(testbed, "n2", "keys passed on", key_id))
            held = await eventually(lambda: of_key(testbed, "n3", "keys held for their application", key_id))
            settled = await eventually(lambda: of_key(testbed, "n1", "acknowledged", key_id))
            assert {asked["trace"]} == {each["trace"] for each in (relayed, held, settled)}
            assert len({each["request"] for each in (asked, relayed, held, settled)}) == 4
            fetched = await eventually(lambda: of_key(testbed, "n3", "keys fetched", key_id))
            assert fetched["trace"] != asked["trace"]  # another request, of another application
            for node in ("n1", "n2", "n3"):
                assert key.bits.reveal().hex() not in testbed.layout.log_file(node).read_text()

        await a_refusal_names_its_request(testbed)
        await it_ends_by_itself(testbed)
        await nonsense_is_refused(testbed)


def of_key(testbed: Testbed, node: str, event: str, key_id: str) -> dict[str, Any] | None:
    found = [line for line in lines(testbed, node) if line["event"] == event and line.get("key_id") == key_id]
    return found[0] if found else None


async def a_refusal_names_its_request(testbed: Testbed) -> None:
    """Who is refused gets an id to ask the operator about."""
    entry = next(each for each in testbed.state()["saes"] if each["id"] == "sae-n1")
    tls = client_context(credentials(entry), Policy.COMPATIBLE)
    async with aiohttp.ClientSession() as session:
        url = f"{entry['sae_url']}/api/v1/keys/nobody/enc_keys"
        async with session.get(url, ssl=tls) as answer:
            assert answer.status == 400
            asked = answer.headers["X-Request-ID"]
    found = await eventually(
        lambda: [line for line in lines(testbed, "n1") if line.get("request") == asked and "status" in line]
    )
    assert found[0]["event"] == "request refused"
    assert "nobody" in found[0]["cause"]


async def it_ends_by_itself(testbed: Testbed) -> None:
    words = ("--dir", str(testbed.directory), "--json")
    said = await keyhaul("log", "level", "ERROR", "--for", "0.2s", *words)
    assert said.returncode == 0
    async with asyncio.timeout(120):
        while True:
            told = json.loads((await keyhaul("log", "level", *words)).stdout)
            if all(
                each == {"level": "INFO", "seconds_left": None, "usual": "INFO"} for each in told.values()
            ):
                break
    changes = [line for line in lines(testbed, "n2") if line["event"] == "the log level is another now"]
    assert [(line["now"], line["operator"]) for line in changes] == [("DEBUG", "testbed-operator")]


async def nonsense_is_refused(testbed: Testbed) -> None:
    words = ("--dir", str(testbed.directory))
    assert (await keyhaul("log", "level", "LOUD", *words)).returncode == 1
    assert (await keyhaul("log", "level", "DEBUG", "--for", "soon", *words)).returncode == 2
    assert (await keyhaul("log", "level", "--for", "10m", *words)).returncode == 2
    node, admin = testbed.state()["nodes"][0], testbed.state()["admin"]
    tls = client_context(credentials(admin), Policy.COMPATIBLE)
    async with aiohttp.ClientSession() as session:
        for body in (
            b"",
            b"[]",
            b"{}",
            b'{"level": 7}',
            b'{"level": "INFO", "for": 7}',
            b"[" * 5000,
            b"\xff",
        ):
            async with session.put(f"{node['admin_url']}/admin/v1/log", data=body, ssl=tls) as answer:
                assert answer.status == 400
                assert (await answer.json())["next"]


def test_ways_are_explained_by_running_nodes_and_from_a_file(tmp_path: Path) -> None:
    asyncio.run(ways(tmp_path / "net"))


async def ways(directory: Path) -> None:
    rule = [{"master": "sae-n1", "slave": "sae-n3", "labels": ["its-wire"]}]
    settings = {"policy": rule, "audit": {"file": "audit.log"}}
    async with Testbed(named("ring-4"), directory, settings=settings) as testbed:
        where = ("--dir", str(directory))
        said = await keyhaul("route", "explain", "n1", "n3", *where)
        assert said.returncode == 0, said.stderr
        assert "other ways:" in said.stdout
        told = json.loads((await keyhaul("route", "explain", "n2", "n4", *where, "--json")).stdout)
        assert (told["hops"][0], told["hops"][-1], told["as_seen_by"]) == ("n2", "n4", "n2")
        assert all(link["cost"] and link["labels"] for link in told["links"])
        over, *_ = told["hops"][1:-1]
        there = json.loads(
            (await keyhaul("route", "explain", "n2", "n4", "--without", over, *where, "--json")).stdout
        )
        assert there["hops"]
        assert over not in there["hops"]
        gone = await keyhaul(
            "route", "explain", "n2", "n4", "--without", over, "--without", there["hops"][1], *where
        )
        assert gone.returncode == 1
        assert "no route" in gone.stdout

        # Between two applications their policy counts, and the node itself refuses what no way has.
        lacking = await keyhaul("route", "explain", "sae-n1", "sae-n3", *where, "--json")
        assert lacking.returncode == 1
        found = json.loads(lacking.stdout)
        assert found["demanded"] == ["its-wire"]
        assert "its-wire" in found["problem"]
        assert any(link["lacks"] == ["its-wire"] for link in found["links"])
        file = testbed.layout.node_file("n2")
        offline = await keyhaul("route", "explain", "n2", "n4", "--config", str(file), "--json")
        assert offline.returncode == 0, offline.stderr
        assert json.loads(offline.stdout)["hops"] == told["hops"]
        assert (await keyhaul("route", "explain", "n1", "nowhere", *where)).returncode == 1
        await the_end_of_the_audit_log(testbed)


async def the_end_of_the_audit_log(testbed: Testbed) -> None:
    node, admin = testbed.state()["nodes"][0], testbed.state()["admin"]
    tls = client_context(credentials(admin), Policy.COMPATIBLE)
    async with aiohttp.ClientSession() as session:
        base = f"{node['admin_url']}/admin/v1/"
        async with session.get(f"{base}audit?most=3", ssl=tls) as answer:
            found = (await answer.json())["lines"]
        assert 1 <= len(found) <= 3
        assert [line["n"] for line in found] == sorted(line["n"] for line in found)
        assert not any({"prev", "signature"} & line.keys() for line in found)
        for path in ("audit?most=0", "audit?most=x", "route?from=n1", "route?from=n1&to=n2&label=shiny"):
            async with session.get(base + path, ssl=tls) as answer:
                assert answer.status == 400, path
                assert (await answer.json())["next"]
