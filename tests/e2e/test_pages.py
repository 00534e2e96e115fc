"""The documentation does what it says: blocks of code are run in order, and what they show is what comes.

A page is run in a directory of its own if `tests/pages` has a script of its name, after that script; what
stands beside that as Python goes before its blocks of Python. `$SHARED` is the directory of a running testbed
for all pages that name it, galicia-basque with devices without delay.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.blocks import ROOT, Shell, Step, fits, pages, prepared, steps

pytestmark = pytest.mark.e2e
PAGES = [str(page.relative_to(ROOT)) for page in pages() if prepared(str(page.relative_to(ROOT)))]
PROGRAMS = ("curl", "jq")  # of a reader's machine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("shared")
    words = ["keyhaul", "testbed", "up", "galicia-basque", "--devices", "instant", "--dir", "D"]
    shell = Shell(home)
    try:
        assert shell.run(Step("sh", f"{' '.join(words)} &\n", "")).startswith("galicia-basque is up")
        yield home / "D"
    finally:
        shell.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_does_what_the_page_shows(
    page: str, shell: Shell, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    script = prepared(page)
    assert script is not None
    before, first = script.read_text(), script.with_suffix(".py")
    text = (ROOT / page).read_text()
    if missing := [name for name in PROGRAMS if name in text and shutil.which(name) is None]:
        pytest.skip(f"{page} needs {' and '.join(missing)}")
    if "SHARED" in before:
        monkeypatch.setenv("SHARED", str(request.getfixturevalue("shared")))
    todo = steps(text, page)
    assert todo
    shell.run(Step("sh", before, ""))
    for step in todo:
        if step.language == "python" and first.exists():
            step = replace(step, code=first.read_text() + step.code)
        output = shell.run(step)
        if step.expected:
            assert fits(step.expected, output), f"{step.code}\nshows:\n{step.expected}\nprinted:\n{output}"


def test_the_tutorial_shows_what_comes() -> None:
    todo = steps((ROOT / "docs" / "tutorial.md").read_text())
    assert {step.language for step in todo} == {"sh", "python"}
    assert sum(bool(step.expected) for step in todo) > len(todo) / 2
