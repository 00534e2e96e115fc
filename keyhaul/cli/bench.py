"""`keyhaul bench NAME`: measure this program on this machine, every figure with unit and sample count."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli import INTERRUPTED
from keyhaul.cli.output import note, say, table
from keyhaul.errors import ConfigError

NAMES = ("hops", "north", "store", "rest", "blind", "paper-a", "paper-b", "load", "scale", "pools", "workers")
"""Each is a module of `keyhaul.testbed.benchmarks`, with `run(report, quick=, say=)`."""


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(bench)


def bench(
    name: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(NAMES)}.")],
    file: Annotated[Path | None, typer.Option("--json", help="Write all figures there as JSON.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report with pictures there.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples: to see that it works.")] = False,
) -> None:
    """Run one benchmark on a network of its own and show its figures."""
    from keyhaul.testbed.benchmarks.report import HEADS, Report
    from keyhaul.testbed.interrupt import Interruptible

    if name not in NAMES:
        raise ConfigError(f"there is no benchmark {name!r}", f"use one of {', '.join(NAMES)}")
    for to in (file, html):
        if to is not None and not os.access(to.absolute().parent, os.W_OK | os.X_OK):
            raise ConfigError(f"nothing can be written to {to.absolute().parent}", "make that folder first")
    run = import_module(f"keyhaul.testbed.benchmarks.{name.replace('-', '_')}").run
    options = [" --quick"] * quick + [
        f" {word} {to}" for word, to in (("--json", file), ("--html", html)) if to
    ]
    report = Report(name, f"keyhaul bench {name}{''.join(options)}")
    if file is not None:
        report.journal = file.with_suffix(".jsonl")

    async def measure() -> bool:
        with Interruptible() as wish:
            await run(report, quick=quick, say=note)
        return wish.came

    if asyncio.run(measure()):
        if report.journal is not None and report.journal.exists():
            note(f"what is measured so far is in {report.journal}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    table(f"{name}: {report.command}", HEADS, report.rows())
    if file is not None:
        report.save(file)
        say(f"written to {file}")
    if html is not None:
        report.page().save(html)
        say(f"written to {html}")
    if report.journal is not None:
        report.journal.unlink(missing_ok=True)  # the run is complete, its figures are shown
