"""Our own nodes under the probes: `keyhaul conformance` finds nothing, and leaves nothing untried."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import read

pytestmark = pytest.mark.e2e

TOPOLOGY = """
[[nodes]]
name = "west"
saes = ["sae-west"]
[[nodes]]
name = "middle"
[[nodes]]
name = "east"
saes = ["sae-east", "app/2 #?%ñ", "sae-guest"]
[[links]]
a = "west"
b = "middle"
kind = "qkd"
devices = ["instant", "instant"]
[[links]]
a = "middle"
b = "east"
kind = "pqc"
"""


async def keyhaul(*words: str) -> tuple[int, str, str]:
    """The command as a person runs it: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyhaul.cli",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def verdicts(out: str, verdict: str) -> list[Any]:
    return [each for each in json.loads(out)["probes"] if each["verdict"] == verdict]


@pytest.mark.parametrize("workers", [0, 2])
def test_014_every_rule_holds_across_three_nodes(tmp_path: Path, workers: int) -> None:
    (tmp_path / "three.toml").write_text(TOPOLOGY)

    async def story() -> None:
        topology, directory = read(tmp_path / "three.toml"), tmp_path / "testbed"
        settings = {"workers": workers}
        async with Testbed(topology, directory, restart=False, settings=settings) as testbed:
            people = ["--master", "sae-west", "--slave", "app/2 #?%ñ"]
            more = ["--additional", "sae-east", "--stranger", "sae-guest"]
            place = ["--dir", str(testbed.directory)]
            code, out, err = await keyhaul("conformance", "014", *place, *people, *more, "--json")
            assert verdicts(out, "fail") == []
            assert verdicts(out, "not run") == []
            assert code == 0, err
            assert json.loads(out)["passed"] == len(json.loads(out)["probes"]) > 35
            await by_files(testbed.state())

    asyncio.run(story())


async def by_files(state: dict[str, Any]) -> None:
    """Without a testbed's directory, as somebody probes a KME of another maker."""
    saes = {each["id"]: each for each in state["saes"]}
    west, east = saes["sae-west"], saes["sae-east"]
    who = ["--master", west["cert"], "--slave", f"sae-east={east['cert']},{east['key']}"]
    urls = [west["sae_url"], east["sae_url"]]
    code, out, err = await keyhaul(
        "conformance", "014", *urls, *who, "--cacert", west["ca"], "--only", "same-bits", "--only", "stranger"
    )
    assert code == 0, err
    assert "1 passed, 0 failed, 1 not run" in out
    code, out, err = await keyhaul("conformance", "014", urls[0], *who, "--cacert", west["ca"], "--json")
    assert code == 1, err  # the slave's keys are not at the master's node
    assert "same-bits" in {each["name"] for each in verdicts(out, "fail")}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["https://127.0.0.1:1", "--master", "nowhere.pem", "--slave", "nowhere.pem", "--cacert", "ca.pem"],
        ["--master", "a", "--slave", "b"],
        ["https://127.0.0.1:1", "--only", "no-such-probe", "--master", __file__, "--slave", __file__],
    ],
)
def test_misuse_is_said(words: list[str]) -> None:
    code, out, err = asyncio.run(keyhaul("conformance", "014", *words))
    assert code == 2
    assert out == ""
    assert err.startswith("keyhaul: ")
