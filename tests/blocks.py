"""The blocks of code in the documentation: found, run as a reader runs them, compared with what is shown.

A block stands in a page of Markdown between fences. `<!-- not run: why -->` on the line above one says why no
test can run it; its commands are then looked at word by word, so that what it names exists.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = ("sh", "python")
README_REASONS = {  # the first page a person sees has no remarks in it: they stand here
    "make demo": ("the second is what runs this test; tests/e2e/test_package.py runs a demonstration"),
    ".venv/bin/keyhaul dashboard --dir D": (
        "these take from a minute to hours, and each has tests of its own"
    ),
}
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<why>[^\n]+?) -->\n)?"
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)(?P=fence)$",
    re.M | re.S,
)
PATIENCE = 300.0  # seconds until a block that never ends fails the test
ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
BACKGROUND = re.compile(r" &\s*(#.*)?$")
KNOWN = frozenset(
    [
        "cd",
        "chown",
        "curl",
        "export",
        "git",
        "grep",
        "head",
        "helm",
        "install",
        "journalctl",
        "mkdir",
        "mv",
        "podman",
        "podman-compose",
        "printf",
        "sed",
        "systemctl",
        "systemd-creds",
        "systemd-run",
        "useradd",
    ]
)
"""Programs that a block may call without being run by a test: readers have them, or know them."""


@dataclass(frozen=True)
class Block:
    """One block: where it is, what it is, and why it is not run, if so."""

    page: str
    line: int
    language: str
    code: str
    why: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Step:
    """One block to run, and what has to be printed by it."""

    language: str
    code: str
    expected: str


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])


def blocks(text: str, page: str = "") -> list[Block]:
    """The blocks of one page, in their order."""
    return [
        Block(
            page,
            text.count("\n", 0, found.start("fence")) + 1,
            found["language"],
            textwrap.dedent(found["code"]),
            found["why"] or _reason(page, found["code"]),
        )
        for found in FENCE.finditer(text)
    ]


def _reason(page: str, code: str) -> str:
    return README_REASONS.get(re.split(r"  |\n", code)[0], "") if page == "README.md" else ""


def prepared(page: str) -> Path | None:
    """The script that makes what the blocks of a page need first; None for a page that is not run."""
    script = (ROOT / "tests" / "pages" / page).with_suffix(".sh")
    return script if script.exists() else None


def steps(text: str, page: str = "") -> list[Step]:
    """What is to be run of a page, each with the `text` block that follows it."""
    found = blocks(text, page)
    after = [*found, Block("", 0, "", "", "")][1:]
    return [
        Step(block.language, block.code, shown.code if shown.language == "text" else "")
        for block, shown in zip(found, after, strict=True)
        if block.language in RUN and not block.why
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
    """Runs steps in one directory; variables last from block to block, `&` runs on until the end.

    `KEY_ID` as a word of its own stands for the key id that was printed last.
    """

    home: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    key_id: str = "KEY_ID"

    def run(self, step: Step) -> str:
        """What the step printed; of a line that goes on running, its first line."""
        if step.language == "python":
            return self._ended([sys.executable, "-c", step.code])
        assert step.language == "sh", step
        alone = re.search(r"(?<!\S)KEY_ID(?!\S)", step.code) or any(
            map(BACKGROUND.search, step.code.splitlines())
        )
        return "".join(map(self._line, lines(step.code) if alone else [step.code]))

    def _line(self, code: str) -> str:
        code = re.sub(r"(?<!\S)KEY_ID(?!\S)", self.key_id, code)
        if found := BACKGROUND.search(code):
            return self._begun(code[: found.start()])
        kept = "set -aeuo pipefail; [ ! -e .kept ] || . ./.kept; unset OLDPWD\n"
        output = self._ended(["bash", "-c", f"{kept}{code}\nexport -p > .kept"])
        for self.key_id in ID.findall(output)[-1:]:
            pass
        return output

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


def lines(code: str) -> list[str]:
    """The lines of a block, joined where a backslash says so."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def unknown(block: Block) -> Iterator[str]:
    """What a block that is not run names and nobody has: a command, an option, a target, a file."""
    for line in lines(re.sub(r"^\$ ", "", block.code, flags=re.M)):
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.wordchars += "=%:@+,…{}[]"
        words: list[str] = []
        for word in [*reader, ";"]:
            if set(word) <= set("&|;()"):
                yield from _unknown(words)
                words = []
            else:
                words.append(word)


def _unknown(words: Sequence[str]) -> Iterator[str]:
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "sudo"):
        words = words[1:]
    if not words:
        return
    program, rest = re.sub(r"^(\.venv|/opt/keyhaul)/bin/", "", words[0]), words[1:]
    if program == "keyhaul":
        yield from _misused(rest)
    elif program == "make":
        there = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
        yield from (f"make {word}" for word in rest if "=" not in word and word not in there)
    elif program == "pytest":
        yield from (word for word in rest if "/" in word and not (ROOT / word).exists())
    elif not (
        program in KNOWN or (ROOT / program).is_file() or (Path(sys.executable).parent / program).exists()
    ):
        yield program


def _misused(words: Sequence[str]) -> Iterator[str]:
    """Parse a command line of keyhaul as it would be, without running it."""
    import typer.main
    from typer._click.exceptions import ClickException
    from typer.exceptions import Exit

    from keyhaul.cli.app import app

    command, rest = typer.main.get_command(app), list(words)
    while isinstance(command, typer.core.TyperGroup) and rest and not rest[0].startswith("-"):
        if (below := command.commands.get(rest[0])) is None:
            yield f"keyhaul {' '.join(words)}: there is no {rest[0]}"
            return
        command, rest = below, rest[1:]
    try:
        command.make_context("keyhaul", rest)
    except Exit:
        return  # --help
    except ClickException as wrong:
        yield f"keyhaul {' '.join(words)}: {wrong.format_message()}"
