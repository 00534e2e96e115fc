"""Real nodes that cheat: found out, gone around, and impossible to get by accident."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from keyhaul.errors import ConfigError, Unavailable
from keyhaul.testbed.faults import Attack
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import lines
from tests.e2e.test_testbed import KEYHAUL, ask, exchange, sae

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("attack", [Attack.SUBSTITUTE, Attack.PRETEND])
def test_a_cheat_on_the_only_way_gets_nobody_a_false_key(attack: Attack, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Testbed(named("line-3"), tmp_path / "testbed", cheats={"n2": attack}) as testbed:
            state = testbed.state()
            async with sae(state, "sae-n1", patience=0.0) as one:
                for _ in range(3):
                    with pytest.raises(Unavailable):
                        await one.get_key("sae-n3")
            await exchange(state, "sae-n2", "sae-n3")  # its own keys are honest

    asyncio.run(scene())
    said = (tmp_path / "testbed" / "logs" / "n1.log").read_text()
    assert ("false acknowledgement" in said) == (attack is Attack.PRETEND)
    refused = (tmp_path / "testbed" / "logs" / "n3.log").read_text()
    assert ("not what the origin sent" in refused) == (attack is Attack.SUBSTITUTE)


def test_a_cheat_is_gone_around_where_there_is_another_way(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Testbed(named("ring-4"), tmp_path / "testbed", cheats={"n2": Attack.FLIP}) as testbed:
            for _ in range(3):
                await exchange(testbed.state(), "sae-n1", "sae-n3")

    asyncio.run(scene())
    said = (tmp_path / "testbed" / "logs" / "n1.log").read_text()
    assert said.count("keys go another way") == 1, "the way that failed is avoided afterwards"


def test_the_trace_names_the_cheat_and_its_signature_binds_it(tmp_path: Path) -> None:
    """On a line of four, from the terminal: which of two relays was it?"""
    directory = tmp_path / "testbed"

    async def scene() -> None:
        async with Testbed(named("line-4"), directory, cheats={"n3": Attack.FLIP}) as testbed:
            async with sae(testbed.state(), "sae-n1", patience=0.0) as one:
                with pytest.raises(Unavailable):
                    await one.get_key("sae-n4")
            async with sae(testbed.state(), "sae-n1") as one:
                (honest,) = await one.get_key("sae-n2")
            said = [line for line in lines(testbed, "n4") if "not what the origin sent" in line["event"]]
            (key_id,) = {line["key_id"] for line in said}
            asked = await asyncio.to_thread(ask, "key", "trace", key_id, "--json", "--dir", str(directory))
            assert [each["suspects"] for each in asked["findings"]] == [["n2", "n3"]]
            assert {row["receipt"].partition(" ")[0] for row in asked["rows"]} == {"signed"}
            assert len(asked["rows"]) == 4
            fine = await asyncio.to_thread(
                ask, "key", "trace", str(honest.key_id), "--json", "--dir", str(directory)
            )
            assert [each["suspects"] for each in fine["findings"]] == [[]]
            words = [*KEYHAUL, "key", "trace", key_id, "--dir", str(directory)]
            shown = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True)
            assert "suspect: n2 or n3" in shown.stdout

    asyncio.run(scene())


def test_a_cheating_node_does_not_start_outside_a_testbed(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "nodes" / "n1"
    home.mkdir(parents=True)
    config = home / "node.toml"
    config.write_text("")
    command = [sys.executable, "-m", "keyhaul.cli.byzantine", "--config", str(config), "--attack", "flip"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not a node of a running testbed" in done.stderr
    (tmp_path / "deep" / "network.toml").write_text("")
    assert subprocess.run(command, capture_output=True).returncode == 1, "it has to be running"


def test_the_switch_is_the_testbeds_alone(tmp_path: Path) -> None:
    for words in (["--cheat", "n2=rob"], ["--cheat", "n9=flip"]):
        command = [*KEYHAUL, "testbed", "up", "line-3", "--dir", str(tmp_path / "t"), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
    with pytest.raises(ConfigError):
        Testbed(named("line-2"), tmp_path / "u", cheats={"n7": Attack.DROP})
    done = subprocess.run([*KEYHAUL, "serve", "--attack", "flip"], capture_output=True)
    assert done.returncode == 2
    probe = "import sys, keyhaul.cli.serve, keyhaul.node; print('keyhaul.testbed.faults' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True)
    assert done.stdout.strip() == b"False", "a node that serves does not even load the attacks"
