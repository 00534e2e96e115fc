"""The planting of bugs itself: every entry fits the code, what does not fit says so, a patch is applied."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mutants.__main__ import ALL_TESTS, ROOT, Hunt, Unplantable, alter, apply, hunt, patched, table
from tests.mutants.bugs import BUGS, Bug


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "keyhaul", tmp_path / "keyhaul", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "keyhaul"


def test_there_are_bugs_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(BUGS) >= 15
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_fits_the_code_and_leaves_it_readable(bug: Bug, package: Path) -> None:
    before = (package / bug.file).read_text()
    alter(bug, package)
    after = (package / bug.file).read_text()
    assert after != before
    compile(after, bug.file, "exec")
    for test in bug.tests:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()


@pytest.mark.parametrize("broken", [False, True])
def test_a_score_counts_only_where_nothing_is_found_when_nothing_is_planted(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hunted(name: str, *_: object) -> Hunt:
        return Hunt(name, broken or name != "nothing", "it breaks", "", 0.0)

    monkeypatch.setattr("tests.mutants.__main__.hunt", hunted)
    assert table(BUGS[:2], 1) == int(broken)


def test_where_a_patch_is_looked_for_all_tests_can_be_read_and_those_of_pages_pass() -> None:
    """Else they would catch everything: a patch that changes nothing, too."""

    def nothing(folder: Path) -> None:
        with (folder / "keyhaul" / "errors.py").open("a") as file:
            file.write("# a remark\n")

    result = hunt("nothing", nothing, 0, ("--collect-only", *ALL_TESTS))
    assert not result.caught, result.how
    result = hunt("nothing", nothing, 0, ("tests/unit/test_docs.py", "tests/unit/test_agent_settings.py"))
    assert not result.caught, result.how


@pytest.mark.parametrize(
    ("how", "control", "code"),
    [
        ("storm 3, promise 4: lost", True, 0),
        ("tests/unit/test_x.py::test_y[1]", False, 0),
        ("tests/unit/test_x.py::test_y[1]", True, 1),
        ("", False, 1),
    ],
)
def test_a_patch_is_not_caught_by_what_fails_without_it(
    how: str, control: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hunted(name: str, plant: object, seeds: int, tests: list[str], *_: object) -> Hunt:
        if name == "nothing":
            assert tests == ["tests/unit/test_x.py::test_y"]
            return Hunt(name, control, "", "", 0.0)
        return Hunt(name, bool(how), how or "NOT CAUGHT", "", 0.0)

    monkeypatch.setattr("tests.mutants.__main__.hunt", hunted)
    assert patched(Path("my.diff")) == code


@pytest.mark.parametrize("old", ["this line was written anew", "\n"])
def test_a_bug_that_fits_nowhere_or_in_several_places_is_refused(old: str, package: Path) -> None:
    with pytest.raises(Unplantable, match=r"places like .*write it anew"):
        alter(Bug("moved", "origin.py", old, ""), package)


def test_a_file_that_is_gone_is_refused(package: Path) -> None:
    with pytest.raises(Unplantable, match=r"gone\.py has 0 places"):
        alter(Bug("gone", "gone.py", "x", "y"), package)


def test_somebodys_patch_is_applied_and_a_stale_one_refused(package: Path, tmp_path: Path) -> None:
    changed = tmp_path / "b" / "keyhaul"
    shutil.copytree(package, changed)
    alter(BUGS[0], changed)
    command = ["git", "diff", "--no-index", "--", f"keyhaul/{BUGS[0].file}", f"b/keyhaul/{BUGS[0].file}"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    patch = tmp_path / "bug.diff"
    patch.write_text(text.replace("b/b/keyhaul", "b/keyhaul"))
    apply(patch, tmp_path)
    assert BUGS[0].new in (package / BUGS[0].file).read_text()
    with pytest.raises(Unplantable, match="does not apply"):
        apply(patch, tmp_path)
