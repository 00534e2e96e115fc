"""Plant bugs and see whether they are caught: `python -m tests.mutants`, or `--patch FILE` for one of yours.

Each bug goes into a copy of the package in a folder of its own, where `tests.mutants.hunt` looks for it in a
process of its own. Exit code 0: all were caught; 1: one was not, or does not fit the code any more, or what
caught it fails with nothing planted as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.bugs import BUGS, Bug
from tests.mutants.hunt import CAUGHT, NO_TESTS

ROOT = Path(__file__).parents[2]
SEEDS_FOR_A_PATCH = 500
SEEDS_OF_CONTROL = 10
ALL_TESTS = ("tests/unit", "tests/contracts", "tests/vectors", "tests/sim")
LONGEST = 600.0  # seconds for one hunt; a bug that never comes to an end is caught by then
LONGEST_FOR_A_PATCH = 7200.0  # all storms and tests take minutes, on a slow machine many
COPIED = ("keyhaul", "docs", "packaging")  # whose scripts look for the package beside themselves
ENVIRONMENT = os.environ | {"KEYHAUL_SEEDS": "25"}  # for tests: storms are what is looked at before them


class Unplantable(Exception):
    """The change does not fit the code."""


@dataclass(frozen=True)
class Hunt:
    """What came of one bug. `how`: what caught it, in one line."""

    name: str
    caught: bool
    how: str
    story: str
    seconds: float


def alter(bug: Bug, package: Path) -> None:
    """Change one place of a copy of the package. Raises Unplantable."""
    path = package / bug.file
    text = path.read_text() if path.exists() else ""
    if text.count(bug.old) != 1:
        raise Unplantable(
            f"{bug.name}: {bug.file} has {text.count(bug.old)} places like {bug.old!r}; write it anew"
        )
    path.write_text(text.replace(bug.old, bug.new))
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def apply(patch: Path, folder: Path) -> None:
    """Apply somebody's patch to the copy. Raises Unplantable."""
    command = ["git", "apply", "--verbose", str(patch.resolve())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unplantable(f"{patch} does not apply:\n{done.stderr}")


def lay_out(folder: Path) -> None:
    """A copy of the package in an empty folder, with all beside it that tests read."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path in ROOT.iterdir():
        if path.name != ".git" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)


def hunt(
    name: str,
    plant: Callable[[Path], None],
    seeds: int,
    tests: Sequence[str],
    longest: float = LONGEST,
) -> Hunt:
    """Copy, plant, look. Raises Unplantable."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keyhaul-bug-") as made:
        folder = Path(made)
        lay_out(folder)
        plant(folder)
        command = [sys.executable, "-B", "-m", "tests.mutants.hunt", str(seeds), *tests]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=longest,
                env=ENVIRONMENT,
            )
        except subprocess.TimeoutExpired:
            return Hunt(name, True, "it never comes to an end", "", time.monotonic() - begun)
    lines = done.stdout.strip().splitlines() or ["it does not even run"]
    if done.returncode == NO_TESTS:
        raise Unplantable(f"{name}: there are no tests like {' '.join(tests)}; name others")
    caught = done.returncode != 0
    how = lines[-1] if done.returncode == CAUGHT else f"it breaks: {done.stderr.strip().splitlines()[-1:]}"
    return Hunt(name, caught, how if caught else "NOT CAUGHT", done.stderr, time.monotonic() - begun)


def table(bugs: Sequence[Bug], jobs: int) -> int:
    """Plant every bug of a table and print the score."""

    def one(bug: Bug) -> Hunt:
        return hunt(
            bug.name, lambda folder: alter(bug, folder / "keyhaul"), 0 if bug.tests else bug.seeds, bug.tests
        )

    begun = time.monotonic()
    for bug in bugs:
        if not _can_be_seen(bug):
            print(f"  skipped {bug.name}\n          {bug.needs} is not installed")
    bugs = [bug for bug in bugs if _can_be_seen(bug)]
    for bug in bugs:  # all of them fit, before the first takes its time
        with tempfile.TemporaryDirectory() as made:
            target = Path(made) / bug.file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "keyhaul" / bug.file, target)
            alter(bug, Path(made))
    with ThreadPoolExecutor(jobs) as pool:
        # What breaks by itself would catch every bug.
        named = sorted({test for bug in bugs for test in bug.tests})
        control = pool.submit(hunt, "nothing", lambda folder: None, SEEDS_OF_CONTROL, named)
        found = []
        for result in pool.map(one, bugs):
            print(
                f"  {'caught' if result.caught else 'MISSED'}  {result.name}\n          {result.how}",
                flush=True,
            )
            found.append(result.caught)
        sound = not control.result().caught
        if not sound:
            print(f"  UNSOUND  nothing is planted, and something is found\n          {control.result().how}")
    print(f"{sum(found)} of {len(found)} planted bugs caught, {time.monotonic() - begun:.0f} s")
    return 0 if sound and all(found) else 1


def patched(patch: Path) -> int:
    """Plant somebody's patch and tell what came of it."""
    result = hunt(
        str(patch),
        lambda folder: apply(patch, folder),
        SEEDS_FOR_A_PATCH,
        ALL_TESTS,
        LONGEST_FOR_A_PATCH,
    )
    print(result.story)
    print(f"{'caught by ' if result.caught else ''}{result.how}, {result.seconds:.0f} s")
    if result.caught and result.how.startswith("tests/"):
        # What fails by itself would catch every bug.
        test = result.how.partition("[")[0]
        if hunt("nothing", lambda folder: None, 0, [test]).caught:
            print(f"UNSOUND: nothing is planted, and {test} fails")
            return 1
    return 0 if result.caught else 1


def _can_be_seen(bug: Bug) -> bool:
    return not bug.needs or importlib.util.find_spec(bug.needs) is not None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--patch", type=Path, help="a patch against this checkout (git diff > FILE)")
    parser.add_argument("--only", help="bugs of the table whose names hold this text")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args()
    try:
        if options.patch is None:
            return table([bug for bug in BUGS if (options.only or "") in bug.name], options.jobs)
        return patched(options.patch)
    except Unplantable as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
