"""The documentation becomes a site without one warning: no link in it is dead, nothing comes from afar."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
NEEDS = "mkdocs-material is not installed: make site-tools (requirements-docs.lock)"


@pytest.fixture(autouse=True)
def tools() -> None:
    """Without its tools the test says what it lacks; `make test` installs them where it can."""
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocs") is None:
        pytest.skip(NEEDS)


def build(out: Path, tree: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict` as `make site` calls it: a warning is a failure."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=tree, env=environment, text=True, capture_output=True, check=False)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / "site" / page.relative_to(ROOT / "docs")).with_suffix(".html").exists(), page


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[gone](flow.md#no-such-heading)", "no such heading"),
        ("![a picture](https://example.org/a.png)", "loaded from elsewhere"),
    ],
)
def test_a_site_with_a_mistake_is_refused(line: str, said: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    # What other tests write meanwhile is left out, too.
    names = (".git", ".venv", "build", "dist", ".*_cache", "__pycache__", ".hypothesis", ".fuzz", "results")
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*names))
    page = tree / "docs" / "operations.md"
    page.write_text(f"{page.read_text()}\n{line}\n")
    done = build(tmp_path / "site", tree)
    assert done.returncode != 0
    assert said in done.stderr
