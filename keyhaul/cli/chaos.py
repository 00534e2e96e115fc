"""`keyhaul chaos`: break a running network in every way there is, and check what it promised."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhaul.cli import FAILED, INTERRUPTED
from keyhaul.cli.output import note, say, table

if TYPE_CHECKING:
    from keyhaul.testbed.chaos.campaign import Outcome


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(chaos)


def chaos(
    topology: Annotated[str, typer.Argument(help="Which network; see `testbed up`.")] = "galicia-basque",
    kills: Annotated[int, typer.Option(help="How many times a node is killed with SIGKILL.")] = 300,
    seconds: Annotated[float, typer.Option(help="How long each other fault lasts.")] = 8.0,
    only: Annotated[str, typer.Option(help="Only faults whose name contains this.")] = "",
    file: Annotated[Path | None, typer.Option("--json", help="Write the report there as JSON.")] = None,
    story: Annotated[Path | None, typer.Option("--history", help="Write the whole history there.")] = None,
) -> None:
    """Keep a network under load while wires, nodes, disks, devices and callers fail; check every promise."""
    from keyhaul.testbed.chaos import campaign
    from keyhaul.testbed.chaos.faults import FAULTS
    from keyhaul.testbed.interrupt import Interruptible
    from keyhaul.testbed.topology import named

    faults = [fault for fault in FAULTS if only in fault.name]
    plan = campaign.Plan(fault=seconds, kills=kills, faults=faults)
    outcomes: list[Outcome] = []

    async def go(directory: Path) -> bool:
        with Interruptible() as wish:
            outcomes.append(await campaign.run(named(topology), directory, plan, note, story))
        return wish.came

    with tempfile.TemporaryDirectory(prefix="keyhaul-chaos-") as folder:
        interrupted = asyncio.run(go(Path(folder) / "net"))
    if interrupted or not outcomes:
        raise typer.Exit(INTERRUPTED)
    _show(outcomes[0])
    if file is not None:
        command = f"keyhaul chaos {topology} --kills {kills} --seconds {seconds:g}"
        file.write_text(json.dumps(outcomes[0].document(command), indent=1) + "\n")
        say(f"written to {file}")
    if outcomes[0].violations or outcomes[0].never_fetched:
        raise typer.Exit(FAILED)


def _show(outcome: Outcome) -> None:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    table(
        "",
        ("while", "s", "asked", "served", "503", "no answer", "share", "share elsewhere", "recovered after"),
        [
            (
                row.phase,
                f"{row.seconds:.0f}",
                str(row.asked),
                str(row.served),
                str(row.deferred),
                str(row.unanswered),
                share(row.share),
                share(row.share_untouched),
                row.note or ("" if row.recovery is None else f"{row.recovery:.1f} s"),
            )
            for row in outcome.rows
        ],
    )
    say(
        f"{outcome.kills} kills; {outcome.keys_got} keys acknowledged, {outcome.keys_fetched} fetched, "
        f"{outcome.never_fetched} not to be had at the end; "
        f"{len(outcome.violations)} promises broken of those looked at ({outcome.promises})"
    )
    for text in outcome.stories:
        say(text)
