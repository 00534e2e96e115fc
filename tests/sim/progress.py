"""How far many storms have come, in a file, so that they can be gone on with after an interruption.

The file says which seeds were run, under which commits, in how many seconds, what happened in them, and which
broke a promise. It is replaced whole after every chunk of seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Bad:
    """A seed that broke a promise under `commit`. `mended`: the commit under which it keeps them all."""

    seed: int
    commit: str
    what: str
    mended: str = ""


@dataclass
class Progress:
    """`done`: ranges of seeds [first, end) that were run, in order, none touching the next."""

    file: Path | None
    commit: str
    done: list[tuple[int, int]] = field(default_factory=list)
    commits: Counter[str] = field(default_factory=Counter)  # commit -> seeds run under it
    seconds: float = 0.0  # of all runs together
    seen: Counter[str] = field(default_factory=Counter)
    bad: list[Bad] = field(default_factory=list)

    @property
    def broken(self) -> list[Bad]:
        """Seeds that break a promise still."""
        return [bad for bad in self.bad if not bad.mended]

    def left(self, wanted: range, chunk: int) -> Iterator[range]:
        """The seeds of `wanted` that were not run yet, in pieces of at most `chunk`."""
        at = wanted.start
        for first, end in [*self.done, (wanted.stop, wanted.stop)]:
            for start in range(at, min(first, wanted.stop), chunk):
                yield range(start, min(start + chunk, first, wanted.stop))
            at = max(at, end)

    def suspects(self) -> list[int]:
        """Seeds that broke a promise under another commit: worth another run."""
        return [bad.seed for bad in self.broken if bad.commit != self.commit]

    def note(self, seeds: range, seen: Counter[str], stories: list[tuple[int, str]]) -> None:
        """These seeds were run."""
        self._add(seeds.start, seeds.stop)
        self.commits[self.commit] += len(seeds)
        self.seen += seen
        self.bad += [Bad(seed, self.commit, _what(story)) for seed, story in stories]

    def again(self, seed: int, story: str | None) -> None:
        """A suspect was run once more; its story if it is bad still."""
        for bad in self.broken:
            if bad.seed == seed and story is None:
                bad.mended = self.commit
            elif bad.seed == seed and story is not None:
                bad.commit, bad.what = self.commit, _what(story)

    def _add(self, first: int, end: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, stop in sorted([*self.done, (first, end)]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        self.done = merged

    def save(self) -> None:
        if self.file is not None:
            draft = self.file.with_name(self.file.name + ".new")
            draft.write_text(json.dumps(self.figures(), indent=1) + "\n")
            draft.replace(self.file)

    def figures(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "seeds": sum(end - first for first, end in self.done),
            "done": self.done,
            "commits": dict(self.commits),
            "seconds": round(self.seconds, 1),
            "bad": [asdict(bad) for bad in self.bad],
            "seen": dict(sorted(self.seen.items())),
        }


def load(file: Path | None) -> Progress:
    """What the file says; nothing done yet if there is none. Raises ValueError if it cannot be read."""
    progress = Progress(file, commit())
    if file is None or not file.exists():
        return progress
    try:
        said = json.loads(file.read_text())
        progress.done = [(first, end) for first, end in said["done"]]
        progress.commits, progress.seen = Counter(said["commits"]), Counter(said["seen"])
        progress.seconds = float(said["seconds"])
        progress.bad = [Bad(**bad) for bad in said["bad"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not of this version ({error}); name another file") from None
    return progress


def commit() -> str:
    """The commit that is checked out; with a + where files were changed since."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def _what(story: str) -> str:
    """The line of a story that says what is broken."""
    lines = [line for line in story.splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else story
