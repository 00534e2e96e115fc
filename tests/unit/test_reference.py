"""The reference pages hold every command, option, metric, error and vector that the code has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keyhaul import errors
from keyhaul.monitor.metrics import Metrics
from tests.unit.test_docs import DOCS, script
from tests.unit.test_monitor import reading

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script("commands", monkeypatch)
    return script("reference", monkeypatch)


def test_every_command_and_option_that_help_shows_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.command_page()
    for words in ([], ["testbed", "up"], ["serve"], ["federation", "test"], ["conformance", "020"]):
        shown = subprocess.run(
            [sys.executable, "-m", "keyhaul.cli", *words, "--help"],
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        _, _, part = page.partition(f"\n## {' '.join(['keyhaul', *words])}\n")
        part = part.partition("\n## ")[0]
        assert part, words
        options = {word.strip(",") for word in shown.split() if word.startswith("--")} - {"--help"}
        assert [option for option in options if f"`{option}" not in part and option not in part] == []
    named = {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")}
    epilog = _help_of_all().partition("All commands: ")[2].partition(".")[0]
    assert {f"keyhaul {' '.join(name.split())}" for name in epilog.split(",")} <= named


def _help_of_all() -> str:
    from keyhaul.cli.app import app

    return app.info.epilog or ""


def test_every_metric_of_a_node_is_in_the_reference_with_its_labels(reference: ModuleType) -> None:
    told = {name: labels for name, _, labels, _ in reference.metrics()}
    scraped = Metrics().page(reading()).decode()
    seen = 0
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            name = next(n for n in (sample.name, family.name, f"{family.name}_total") if n in told)
            ours = {label for label in sample.labels if label not in ("le", "quantile")}
            assert ours == set(told[name]) or name == "keyhaul_node_info", sample
            seen += 1
    assert seen > 50
    assert all(f"`{name}`" in reference.metric_page() for name in told)


def test_every_error_is_explained_with_what_it_becomes(reference: ModuleType) -> None:
    page = reference.error_page()
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.KeyhaulError) and cls is not errors.KeyhaulError:
            assert f"`{name}`" in page, name
    assert "| `NoRoute` | 503, Retry-After 10 s | 503 key-routing-error | no path of links" in page
    assert "`one or more keys specified are not found on KME`" in page


def test_an_error_nobody_explains_stops_the_build(
    reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "__doc__", (errors.__doc__ or "").replace("NoRoute", "NoRoad"))
    with pytest.raises(ValueError, match="NoRoute"):
        reference.error_page()


def test_every_vector_is_listed_with_what_it_has_to_give(reference: ModuleType) -> None:
    page = reference.vector_page()
    files = list((DOCS.parent / "tests" / "vectors").rglob("*.txt"))
    assert len(files) > 50
    for file in files:
        expect = file.read_text().partition("\n")[0].removeprefix("expect: ")
        assert f"[{file.stem}](../../{file.relative_to(ROOT)}) | {expect} |" in page
