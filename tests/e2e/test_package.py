"""What a user installs: sdist and wheel as built here hold everything, and the wheel works on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PARTS = (".ci", "bench", "docs", "keyhaul", "packaging", "scripts", "tests")
DATA = (
    "keyhaul/py.typed",
    "keyhaul/dashboard/static/index.html",
    "keyhaul/testbed/chaos/baddisk.c",
    "keyhaul/testbed/topologies/galicia-basque.toml",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel, made as `make package` makes them."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, str(ROOT / "packaging" / "build.py"), str(out))
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def fresh(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a new environment with the wheel; what it depends on is borrowed from here."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        str(built[1]),
    )
    (packages,) = (home / "lib").glob("python3*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return home / "bin"


def test_the_sdist_is_the_whole_project(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    below = [file for part in PARTS for file in (ROOT / part).rglob("*") if _of_the_project(file)]
    expected = {str(file.relative_to(ROOT)) for file in [*below, *ROOT.glob("*.lock"), *ROOT.glob("*.md")]}
    expected |= {
        "LICENSE",
        "Makefile",
        "MANIFEST.in",
        "mkdocs.yml",
        "pyproject.toml",
        "tests/e2e/powerloss.c",
    }
    assert expected - inside == set()


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(f.relative_to(ROOT)) for f in (ROOT / "keyhaul").rglob("*") if _of_the_project(f)}
    assert inside == expected
    assert set(DATA) <= inside


def test_the_wheel_runs_without_the_tree(fresh: Path, tmp_path: Path) -> None:
    where = _run(str(fresh / "python"), "-c", "import keyhaul; print(keyhaul.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(fresh.parent)
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert _run(str(fresh / "keyhaul"), "version", cwd=tmp_path) == f"keyhaul {release}\n"
    usage = " ".join(_run(str(fresh / "keyhaul"), "--help", cwd=tmp_path).split())
    assert "testbed up" in usage


def test_the_wheel_starts_a_network_that_it_ships(fresh: Path, tmp_path: Path) -> None:
    answer = json.loads(_run(str(fresh / "keyhaul"), "demo", "tecnalia", "--json", cwd=tmp_path))
    assert answer["agree"] == answer["pairs"] == 20


def test_the_dashboard_of_the_wheel_is_that_of_the_tree(fresh: Path, tmp_path: Path) -> None:
    code = "import sys; from importlib import resources; " + (
        "print(resources.files('keyhaul.dashboard').joinpath('static', sys.argv[1]).read_text(), end='')"
    )
    for file in (ROOT / "keyhaul" / "dashboard" / "static").iterdir():
        assert _run(str(fresh / "python"), "-c", code, file.name, cwd=tmp_path) == file.read_text()


def _of_the_project(file: Path) -> bool:
    """No directory, and nothing that running leaves behind."""
    return file.is_file() and "__pycache__" not in file.parts and "results" not in file.parts


def _run(*words: str, cwd: Path = ROOT) -> str:
    """stdout of a command that has to succeed; Python takes nothing from the directory or the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
