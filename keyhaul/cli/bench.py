"""`keyhaul bench NAME`: measure this program on this machine, every figure with unit and sample count."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli import INTERRUPTED
from keyhaul.cli.output import note, say, table
from keyhaul.errors import ConfigError

NAMES = ("hops", "north", "store", "rest")


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(bench)


def bench(
    name: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(NAMES)}.")],
    file: Annotated[Path | None, typer.Option("--json", help="Write all figures there as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples: to see that it works.")] = False,
) -> None:
    """Run one benchmark on a network of its own and show its figures."""
    from keyhaul.testbed.benchmarks import hops, north, rest, store
    from keyhaul.testbed.benchmarks.report import HEADS, Report
    from keyhaul.testbed.interrupt import Interruptible

    runs = dict(zip(NAMES, (hops.run, north.run, store.run, rest.run), strict=True))
    if name not in runs:
        raise ConfigError(f"there is no benchmark {name!r}", f"use one of {', '.join(NAMES)}")
    options = (" --quick" if quick else "") + (f" --json {file}" if file else "")
    report = Report(name, f"keyhaul bench {name}{options}")

    async def measure() -> bool:
        with Interruptible() as wish:
            await runs[name](report, quick=quick, say=note)
        return wish.came

    if asyncio.run(measure()):
        raise typer.Exit(INTERRUPTED)
    table(f"{name}: {report.command}", HEADS, report.rows())
    if file is not None:
        report.save(file)
        say(f"written to {file}")
