"""The audit log of real nodes: every delivery and refusal is in it, and falsifying it is found."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyNotFound, Unavailable
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import eventually

pytestmark = pytest.mark.e2e


def client(state: dict[str, Any], name: str, patience: float = 0.0) -> SaeClient:
    sae = next(each for each in state["saes"] if each["id"] == name)
    files = Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    return SaeClient(sae["sae_url"], client_context(files, Policy.COMPATIBLE), patience=patience)


def verified(file: Path, *more: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "keyhaul.cli", "audit", "verify", str(file), *more, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or done.stderr)


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_everything_that_happened_to_a_key_is_written_down_and_falsifications_are_found(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "net"
    logs = {name: directory / "nodes" / name / "audit.log" for name in ("n1", "n2")}

    async def scene() -> dict[str, Any]:
        settings = {"audit": {"file": "audit.log", "required": True}}
        async with Testbed(named("line-2"), directory, settings=settings) as testbed:
            state = testbed.state()
            async with client(state, "sae-n1", 60.0) as master, client(state, "sae-n2") as slave:
                (key,) = await master.get_key("sae-n2")
                await slave.fetch_key("sae-n1", [key.key_id])
                with pytest.raises(KeyNotFound):
                    await slave.fetch_key("sae-n1", [key.key_id])
                for node in ("n1", "n2"):
                    await testbed.kill(node)
                    await testbed.restart(node)
                (again,) = await master.get_key("sae-n2")
            bits = [key.bits.reveal(), again.bits.reveal()]
            return {"ids": [str(key.key_id), str(again.key_id)], "bits": bits, "state": state}

    seen = asyncio.run(scene())
    cert = next((directory / "pki").rglob("n1.pem"), None)
    assert cert is not None
    for file in logs.values():
        code, report = verified(file)
        assert (code, report["uncovered"], report["missing"]) == (0, 0, 0), report
    near, far = events(logs["n1"]), events(logs["n2"])
    given = [line for line in near if line["event"] == "delivery"]
    assert [line["keys"] for line in given] == [[each] for each in seen["ids"]]
    assert {line["to"] for line in given} == {"sae-n1"}
    assert [line["keys"] for line in far if line["event"] == "delivery"] == [[seen["ids"][0]]]
    refused = [line for line in far if line["event"] == "refused" and line["role"] == "sae"]
    assert [(line["caller"], line["status"]) for line in refused] == [("sae-n2", 400)]
    assert [line["event"] for line in near].count("unsealed") == 2
    assert near[-1]["event"] == "checkpoint"
    assert near[-2]["event"] == "sealed"
    text = logs["n1"].read_bytes() + logs["n2"].read_bytes()
    for bits in seen["bits"]:
        assert bits.hex().encode() not in text
    falsify(logs["n1"])


def falsify(file: Path) -> None:
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"delivery"' in line)
    for wrong in (
        [*lines[:at], *lines[at + 1 :]],
        [*lines[:at], lines[at].replace(b"sae-n1", b"sae-n9"), *lines[at + 1 :]],
        [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        lines[:-1],
        lines[:at],
    ):
        file.write_bytes(b"".join(wrong))
        code, said = verified(file)
        assert code == 1, said
        assert said["error"] == "Refused"
    file.write_bytes(whole)
    assert verified(file)[0] == 0


@pytest.mark.parametrize("required", [True, False])
def test_a_full_disk_stops_keys_only_where_the_log_is_required(tmp_path: Path, required: bool) -> None:
    async def scene() -> None:
        settings = {"audit": {"file": "/dev/full", "required": required}}
        async with Testbed(named("line-2"), tmp_path / "net", settings=settings) as testbed:
            async with client(testbed.state(), "sae-n1") as master:
                if required:
                    with pytest.raises(Unavailable, match="audit log cannot be written"):
                        await master.get_key("sae-n2")
                else:
                    assert len(await master.get_key("sae-n2")) == 1
            alarm = "ALARM: the audit log cannot be written"
            await eventually(lambda: alarm in testbed.layout.log_file("n1").read_text())

    asyncio.run(scene())
