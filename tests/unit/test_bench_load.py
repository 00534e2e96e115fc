"""What `bench load` makes of its cells, and the bare handler's answers that it is measured against."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from keyhaul.testbed.benchmarks import bare, load
from keyhaul.testbed.benchmarks.asking import keys_of
from keyhaul.testbed.benchmarks.report import Report


def found(rate: float, number: int, **more: Any) -> dict[str, Any]:
    """One second of a loop."""
    pairs = int(rate)
    common = {"seconds": 1.0, "enc": [0.4 / rate] * pairs, "dec": [0.6 / rate] * pairs, "generator": 0.1}
    return {**common, "keys": pairs * number, "different": 0, "late": 0, "refused": {}, **more}


def result(cell: load.Cell, rate: float, ceiling: float = 4000.0, **more: Any) -> load.Result:
    drawn = int(rate) * 256
    return load.Result(cell, found(rate, cell.number, **more), found(ceiling, cell.number), 0.5, drawn, 1000)


def report(results: list[load.Result]) -> Report:
    made = Report("load", "keyhaul bench load")
    load._fill(made, results, ["trusted"])
    return made


def figure(made: Report, name: str) -> Any:
    return next(each for each in made.figures if each.name == name)


WARM = load.Cell(1, load.POOL, 16, 1)
FAR = load.Cell(7, load.POOL, 1, 1)


@pytest.mark.parametrize(("rate", "met"), [(1600, True), (1400, False)])
def test_pairs_a_second_have_their_bound_where_the_pool_is_warm(rate: float, met: bool) -> None:
    made = report([result(WARM, rate), result(load.Cell(1, "trusted", 16, 1), 10)])
    bounds = [each.met for each in made.figures if each.name == "  pairs of enc_keys and dec_keys"]
    assert bounds == [met, None]


@pytest.mark.parametrize(("rate", "met"), [(2000, True), (1000, False)])
def test_the_delay_far_away_is_bound_to_the_empty_handler(rate: float, met: bool) -> None:
    made = report([result(FAR, rate, ceiling=4000.0)])
    ratio = figure(made, "  enc_keys, x the empty handler")
    assert ratio.value == pytest.approx(4000 / rate)
    assert ratio.met is met


def test_cost_and_supply_are_per_key_and_per_link() -> None:
    made = report([result(load.Cell(7, "masked", 8, 16), 10)])
    assert figure(made, "  processor time a key, all nodes").value == pytest.approx(0.5e6 / 160)
    assert figure(made, "  device bits a key, all quantum links").value == pytest.approx(16)
    share = 10 * 256 / 4 / load.SUPPLY * 100  # seven hops of the line have four quantum links
    assert figure(made, "  of the device supply of a link").value == pytest.approx(share)


def test_wrong_and_refused_keys_are_said() -> None:
    made = report([result(WARM, 100, different=2, refused={"503": 3})])
    assert figure(made, "keys that differ at the far end, all cells").met is False
    assert figure(made, "requests that were refused, all cells").value == 3


def test_a_cell_without_any_answer_does_not_end_the_run() -> None:
    nothing = load.Result(
        WARM, found(1, 1, enc=[], dec=[], keys=0, refused={"503": 9}), found(9, 1), 0.1, 0, 0
    )
    made = report([nothing, result(FAR, 100)])
    assert any("no request was answered" in each.name for each in made.figures)
    assert Xml.fromstring(made.page().html()) is not None


def test_the_page_says_which_schemes_were_not_there() -> None:
    text = report([result(WARM, 100), result(FAR, 100)]).page().html()
    assert "Not offered by this network: masked, blind." in text
    assert Xml.fromstring(text) is not None


def test_quick_cells_are_a_part_of_the_kinds_of_a_full_run() -> None:
    quick, full = (list(load._cells(which, ["trusted", "masked"])) for which in (True, False))
    assert len(set(quick)) == len(quick) < len(set(full)) == len(full)
    for cells in (quick, full):
        assert {cell.scheme for cell in cells} == {load.POOL, "trusted", "masked"}
        assert {1, 7} <= {cell.hops for cell in cells}


@pytest.mark.parametrize("number", [1, 16, 32, 128])
def test_the_bare_handler_answers_with_as_many_keys_as_its_path_says(number: int) -> None:
    body = bare.ANSWERS.get(f"/api/v1/keys/{number}/enc_keys", bare.ANSWER)
    assert body == bare.ANSWERS.get(f"/api/v1/keys/{number}/dec_keys", bare.ANSWER)
    assert len(keys_of(body)) == number
    one = {"keys": [{"key_ID": "0" * 36, "key": "A" * 43 + "="}]}
    assert json.loads(bare.ANSWER) == one


LONG = """
import asyncio
import sys

from keyhaul.testbed.benchmarks import generator


async def long(task):
    await asyncio.sleep(0)
    return {"answer": "x" * task["bytes"]}


generator.KINDS["long"] = long
generator.serve(sys.stdin)
"""


def test_long_answers_of_the_generator_come_whole_where_python_is_told_not_to_buffer() -> None:
    async def story() -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            LONG,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            limit=2**24,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            for size in range(500_000, 1_000_000, 10_000):
                child.stdin.write(json.dumps({"kind": "long", "bytes": size}).encode() + b"\n")
                answer = await asyncio.wait_for(child.stdout.readline(), 60)
                assert len(json.loads(answer)["answer"]) == size
            child.stdin.close()
            assert await child.wait() == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    asyncio.run(story())
