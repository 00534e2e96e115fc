"""Benchmarks on a real network: the tasks of the load generator, and a run that is interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from keyhaul.errors import ConfigError
from keyhaul.testbed.benchmarks.stage import Generator, Stage, stage
from keyhaul.testbed.crowd import Crowd
from keyhaul.testbed.topology import Link, Node, Topology, generate

pytestmark = pytest.mark.e2e

PAIR = Topology(
    "pair",
    "two nodes, one quantum link",
    (Node("near", "lab", ("sae-near",)), Node("far", "lab", ("sae-far",))),
    (Link("near", "far", "qkd", devices=("instant", "instant")),),
)


def quiet(_: str) -> None:
    """Progress is not looked at."""


async def on_stage(work: Any, settings: dict[str, Any] | None = None) -> None:
    async with stage(PAIR, settings=settings or {}, say=quiet) as on, Generator() as generator:
        await work(on, generator)


def task(on: Stage, kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "near": on.saes["sae-near"], "far": on.saes["sae-far"], "patience": 60.0, **more}


def test_every_key_of_every_kind_of_task_is_compared_at_the_far_end() -> None:
    async def work(on: Stage, generator: Generator) -> None:
        before = on.node_bytes()
        row = await generator.ask(task(on, "sequence", requests=5, number=2))
        assert row["status"] == [200] * 5
        assert all(took > 0 for took in row["took"])
        assert row["begun"] == sorted(row["begun"])
        crowd = await generator.ask(task(on, "burst", concurrency=10, rounds=2, number=1, pause=0.0))
        assert crowd["status"] == [200] * 20
        assert crowd["rounds"] == [10, 20]
        trip = await generator.ask(task(on, "journey", rounds=3) | {"far": [on.saes["sae-far"]]})
        assert len(trip["enc"][0]) == len(trip["whole"][0]) == 3
        assert all(whole > enc for enc, whole in zip(trip["enc"][0], trip["whole"][0], strict=True))
        assert trip["different"] == 0
        assert on.node_bytes() > before
        assert await on.device_bits() > 0
        assert await generator.ask(task(on, "held")) == {"same": 30, "different": 0, "missing": 0}
        assert await generator.ask(task(on, "held")) == {"same": 0, "different": 0, "missing": 0}

    asyncio.run(on_stage(work))


@pytest.mark.parametrize("scheme", [None, "trusted"])
def test_a_closed_loop_compares_what_it_fetches(scheme: str | None) -> None:
    async def work(on: Stage, generator: Generator) -> None:
        asked = task(on, "pairs", concurrency=3, number=2, seconds=0.3, scheme=scheme)
        found = await generator.ask(asked | {"master": "sae-near", "slave": "sae-far"})
        assert found["refused"] == {}
        assert found["keys"] == 2 * len(found["enc"]) == 2 * len(found["dec"]) > 0
        assert found["different"] == 0
        empty = {side: {**asked[side], "url": on.bare_url} for side in ("near", "far")}
        nothing = await generator.ask(asked | empty | {"master": "2", "slave": "2", "scheme": None})
        assert nothing["keys"] == 2 * len(nothing["enc"]) > 0
        assert (nothing["different"], nothing["refused"]) == (0, {})

    asyncio.run(on_stage(work))


def test_a_loop_counts_what_is_refused() -> None:
    async def work(on: Stage, generator: Generator) -> None:
        asked = task(on, "pairs", concurrency=2, number=1, seconds=0.1, scheme="no-such-scheme")
        found = await generator.ask(asked | {"master": "sae-near", "slave": "sae-far"})
        assert found["keys"] == 0
        assert set(found["refused"]) == {"400"}

    asyncio.run(on_stage(work))


def test_what_a_node_refuses_is_counted_and_not_compared() -> None:
    async def work(on: Stage, generator: Generator) -> None:
        found = await generator.ask(task(on, "sequence", requests=2, number=9))
        assert found["status"] == [400, 400]
        assert await generator.ask(task(on, "held")) == {"same": 0, "different": 0, "missing": 0}

    asyncio.run(on_stage(work, {"limits": {"max_key_per_request": 8}}))


def test_an_interrupted_run_leaves_nothing_behind_but_its_journal(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "keyhaul.cli", "bench", "paper-a", "--quick", "--json", "a.json"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("[3/"):
            break
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) > 32, "two networks of eight nodes and eight devices, and their load generators"
    child.send_signal(signal.SIGTERM)
    rest = child.stderr.read()
    child.stderr.close()
    assert child.wait(120) == 130
    assert "the same command goes on" in rest
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    head, *units = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert head["benchmark"] == "paper-a"
    assert [unit["unit"] for unit in units[:2]] == ["default: pair 1 2", "paper-a: pair 1 2"]
    assert {each.name for each in tmp_path.iterdir()} == {"a.jsonl"}, "no key material is left on disk"


def test_nodes_that_share_processes_deliver_like_others(tmp_path: Path) -> None:
    async def work() -> list[int]:
        async with (
            Crowd(generate("line", 24), tmp_path / "crowd", processes=2) as crowd,
            Generator() as generator,
        ):
            saes = [{**sae, "url": sae["sae_url"]} for sae in crowd.state()["saes"]]
            found = await generator.ask(
                {"kind": "crowd", "pairs": [saes[:2], saes[:4:3]], "number": 2, "seconds": 0.2}
            )
            assert found["refused"] == {}
            assert found["keys"] == 2 * len(found["enc"]) >= 4
            assert found["different"] == 0
            assert len(crowd.node_pids()) == 2
            assert crowd.pid("n01") == crowd.pid("n03") != crowd.pid("n02") != 0
            with pytest.raises(ConfigError, match="shares its process"):
                await crowd.kill("n01")
            return crowd.node_pids()

    assert not [pid for pid in asyncio.run(work()) if psutil.pid_exists(pid)]
