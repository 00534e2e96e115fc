"""How commands speak: a line or a table for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from keyhaul.config.write import write

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def say(text: str) -> None:
    """A line on stdout, at once: a program at the other end of a pipe may wait for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line on stderr: progress and warnings, never part of the answer."""
    sys.stderr.write(text + "\n")


def document(value: Any) -> None:
    """One JSON document on stdout."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for head in heads:
        drawn.add_column(head, overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    Console().print(drawn)


def private(path: Path, text: str) -> None:
    """Write what must not be read by others: mode 0600, whole or not at all."""
    write(path, text)
