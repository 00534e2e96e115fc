"""Where OpenFHE is looked for, and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from keyhaul.errors import Unsupported
from keyhaul.openfhe import OpenFhe, interpreters
from keyhaul.openfhe.install import install


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on it: no pyenv, no PATH, no environment of ours."""
    monkeypatch.delenv(interpreters.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o700)
    return path


def test_candidates_come_in_order_and_once(places: Path) -> None:
    on_path = program(places / "bin" / "python3.10")
    old = program(places / "pyenv" / "versions" / "3.10.4" / "bin" / "python")
    new = program(places / "pyenv" / "versions" / "3.10.13" / "bin" / "python")
    program(places / "pyenv" / "versions" / "3.11.7" / "bin" / "python")
    program(places / "pyenv" / "versions" / "3.10.13-something" / "bin" / "python")
    other = program(places / "pyenv" / "versions" / "3.12.1" / "bin" / "python")
    ours = program(interpreters.home() / "bin" / "python")
    assert interpreters.candidates() == [ours, new, old, on_path, other]
    assert ours.is_relative_to(places / "data")


def test_a_named_interpreter_is_the_only_one(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(places / "bin" / "python3.10")
    monkeypatch.setenv(interpreters.VARIABLE, "/opt/python")
    assert interpreters.candidates() == [Path("/opt/python")]


def test_without_the_variables_the_home_directory_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert interpreters.home() == tmp_path / ".local/share/keyhaul/openfhe"
    found = program(tmp_path / ".pyenv" / "versions" / "3.10.2" / "bin" / "python")
    assert next(interpreters.pythons("3.10")) == found


def test_where_there_is_none_the_reason_says_what_to_do(places: Path) -> None:
    with pytest.raises(Unsupported, match="tried: none: `make install-openfhe`"):
        OpenFhe()


def test_everything_that_was_tried_is_named(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = program(places / "bin" / "python3.10")
    ours = interpreters.home() / "bin" / "python"
    ours.parent.mkdir(parents=True)
    ours.symlink_to(sys.executable)
    with pytest.raises(Unsupported) as caught:
        OpenFhe()
    assert f"{ours} (" in str(caught.value)
    assert f"{shim} ({shim} does not load OpenFHE: the worker ended with code 1 while it started" in str(
        caught.value
    )
    monkeypatch.setenv(interpreters.VARIABLE, str(places / "nothing"))
    with pytest.raises(Unsupported, match="No such file"):
        OpenFhe()


@pytest.mark.parametrize("words", ["hello, world", "\\0\\0\\0\\4{{{{", "\\0\\0\\0\\2{}", ""])
def test_a_program_that_answers_something_else_is_no_worker(places: Path, words: str) -> None:
    other = places / "other"
    other.write_text(f"#!/bin/sh\nprintf '{words}'\n")
    other.chmod(0o700)
    with pytest.raises(Unsupported, match="while it started"):
        OpenFhe(python=other)


def test_nothing_is_installed_without_the_right_python(places: Path) -> None:
    with pytest.raises(Unsupported, match=r"no CPython 3\.10"):
        install(places / "some.lock")
    program(places / "bin" / "python3.10")  # a shim that refuses
    with pytest.raises(Unsupported, match=r"no CPython 3\.10"):
        install(places / "some.lock")
    assert not interpreters.home().exists()


def test_the_lock_names_every_package_with_its_hash() -> None:
    lines = (Path(__file__).parents[2] / "requirements-openfhe.lock").read_text().splitlines()
    packages = [line for line in lines if "==" in line]
    assert [line.partition("==")[0] for line in packages] == ["openfhe", "numpy"]
    assert sum("--hash=sha256:" in line for line in lines) >= len(packages)


def test_the_worker_needs_nothing_but_the_standard_library() -> None:
    """It runs under another interpreter, without keyhaul and without its dependencies."""
    import ast

    tree = ast.parse(
        (Path(interpreters.__file__).with_name("worker.py")).read_text(), feature_version=(3, 10)
    )
    names = [
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert names
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
