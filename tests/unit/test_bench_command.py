"""`keyhaul bench`: every name is a benchmark, told of and made by `make bench`; reports say what is met."""

from __future__ import annotations

import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from keyhaul.cli import MISUSED, app, bench, guarded
from keyhaul.testbed.benchmarks.report import Report, percentile

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_name_is_a_benchmark(name: str) -> None:
    run = import_module(f"keyhaul.testbed.benchmarks.{name.replace('-', '_')}").run
    assert inspect.iscoroutinefunction(run)
    assert list(inspect.signature(run).parameters) == ["report", "quick", "say"]


def test_names_stand_in_the_readme_and_in_the_makefile() -> None:
    table = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "bench" / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(bench.NAMES)
    (made,) = re.findall(r"for name in ([a-z -]+);", (ROOT / "Makefile").read_text())
    assert sorted(made.split()) == sorted(bench.NAMES)


def test_an_unknown_name_is_misuse_and_lists_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app.run(["bench", "nothing"])) == MISUSED
    said = capsys.readouterr().err
    assert all(name in said for name in bench.NAMES)


def test_a_place_that_takes_no_file_is_misuse_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "nowhere", tmp_path / "file"):
        assert guarded(lambda at=place: app.run(["bench", "rest", "--json", str(at / "x.json")])) == MISUSED
        said = " ".join(capsys.readouterr().err.split())
        assert "nothing can be written" in said


def test_a_report_knows_what_is_met() -> None:
    report = Report("name", "keyhaul bench name")
    report.add("small <enough>", [1.0, 2.0, 3.0], "ms", most=2)
    report.add("large", [1.0], "/s", least=2)
    report.add("free", [7.0], "")
    assert [figure.met for figure in report.figures] == [True, False, None]
    root = Xml.fromstring(report.page().html())
    assert [cell.text for cell in root.iter("td") if (cell.text or "").startswith(("✓", "✗"))] == [
        "✓ met",
        "✗ not met",
    ]
    assert root.findtext("body/main/p/code") == "keyhaul bench name"
    document = json.loads(json.dumps(report.document()))
    assert [figure["samples"] for figure in document["figures"]] == [3, 1, 1]
    assert "data" not in document


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 5), (95, 10), (100, 10)])
def test_percentiles_are_samples(percent: int, value: int) -> None:
    assert percentile(range(1, 11), percent) == value
