"""The tutorial does what it says: its blocks are run in order, and what it shows is what comes."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LEFT_OUT = ("console", "toml")  # what is typed with a prompt, and a piece of a configuration
PATIENCE = 120.0  # seconds until a block that never ends fails the test


@dataclass(frozen=True)
class Step:
    """One block to run, and what has to be printed by it."""

    language: str
    code: str
    expected: str


def steps(page: str) -> list[Step]:
    """The blocks of a page to run, each with the `text` block that follows it."""
    blocks = [found for found in BLOCK.findall(page) if found[0] not in LEFT_OUT]
    after = [*blocks[1:], ("", "")]
    return [
        Step(language, code, shown if kind == "text" else "")
        for (language, code), (kind, shown) in zip(blocks, after, strict=True)
        if language != "text"
    ]


def fits(expected: str, output: str) -> bool:
    """`…` stands for anything within a line, and alone on a line for any lines."""
    lines = []
    for line in expected.splitlines(keepends=True):
        parts = map(re.escape, line.split("…"))
        lines.append(r"(?:.*\n)*?" if line == "…\n" else ".*".join(parts))
    return re.fullmatch("".join(lines), output) is not None


@dataclass
class Shell:
    """Runs steps in one directory; variables last from block to block, `&` runs on until the end."""

    home: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, step: Step) -> str:
        """What the step printed; of one that goes on running, its first line."""
        if step.language == "python":
            return self._ended([sys.executable, "-c", step.code])
        assert step.language == "sh", step
        if step.code.endswith("&\n"):
            return self._begun(step.code.removesuffix("&\n"))
        kept = "set -aeuo pipefail; [ ! -e .kept ] || . ./.kept; unset OLDPWD\n"
        return self._ended(["bash", "-c", f"{kept}{step.code}\nexport -p > .kept"])

    def _ended(self, words: list[str]) -> str:
        done = subprocess.run(
            words,
            cwd=self.home,
            env=self._environment(),
            text=True,
            timeout=PATIENCE,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{words[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _begun(self, line: str) -> str:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.home,
            env=self._environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.running.append(process)
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            assert waiting.select(PATIENCE), f"{line} says nothing"
        return process.stdout.readline()

    def _environment(self) -> dict[str, str]:
        here = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        commands = Path(sys.executable).parent
        return here | {"PATH": f"{commands}:{here['PATH']}", "COLUMNS": "120", "LC_ALL": "C.UTF-8"}

    def close(self) -> None:
        """End what still runs, and wait for it."""
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            with process:
                process.wait(PATIENCE)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path)
    try:
        yield opened
    finally:
        opened.close()


def test_every_block_does_what_the_page_shows(shell: Shell) -> None:
    todo = steps(PAGE.read_text())
    assert {step.language for step in todo} == {"sh", "python"}
    assert sum(bool(step.expected) for step in todo) > len(todo) / 2
    for step in todo:
        output = shell.run(step)
        assert fits(step.expected, output), f"{step.code}\nshows:\n{step.expected}\nprinted:\n{output}"


def test_a_block_that_fails_or_prints_something_else_is_noticed(shell: Shell) -> None:
    first, second, third = steps(
        "```sh\nA=1; echo 2\n```\n\n```text\n3\n```\n```sh\necho $A\n```\n```sh\nfalse\n```\n"
    )
    assert not fits(first.expected, shell.run(first))
    assert shell.run(second) == "1\n"
    with pytest.raises(AssertionError, match="false"):
        shell.run(third)
    with pytest.raises(AssertionError, match="ValueError: no"):
        shell.run(Step("python", "raise ValueError('no')", ""))


@pytest.mark.parametrize(
    ("expected", "output", "right"),
    [
        ("a … c\n", "a b c\n", True),
        ("a … c\n", "a b d\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nb\nc\n", False),
        ("a…\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("", "anything\n", False),
    ],
)
def test_dots_stand_for_what_differs_and_for_nothing_else(expected: str, output: str, right: bool) -> None:
    assert fits(expected, output) is right
