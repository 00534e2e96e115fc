"""`keyhaul chaos`: break a running network in every way there is, and check what it promised."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from keyhaul.cli import FAILED, INTERRUPTED
from keyhaul.cli.output import note, say, table
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.testbed.chaos.report import Outcome, Row

Kind = Literal["auto", "namespaces", "proxies"]


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(chaos)


def chaos(
    topology: Annotated[str, typer.Argument(help="Which network; see `testbed up`.")] = "galicia-basque",
    kills: Annotated[int, typer.Option(help="How many times a node is killed with SIGKILL.")] = 300,
    seconds: Annotated[float, typer.Option(help="How long each other fault lasts.")] = 8.0,
    only: Annotated[str, typer.Option(help="Only faults whose name contains this.")] = "",
    network: Annotated[str, typer.Option(help="What wires are: namespaces, proxies, or auto.")] = "auto",
    file: Annotated[Path | None, typer.Option("--json", help="Write the report there as JSON.")] = None,
    story: Annotated[Path | None, typer.Option("--history", help="Write the whole history there.")] = None,
) -> None:
    """Keep a network under load while wires, nodes, disks, devices and callers fail; check every promise.

    SIGTERM and Ctrl-C end the run; what was done until then is reported, and the exit code is 130.
    """
    from keyhaul.testbed.chaos import campaign
    from keyhaul.testbed.chaos.faults import FAULTS
    from keyhaul.testbed.interrupt import wished
    from keyhaul.testbed.topology import named

    faults = [fault for fault in FAULTS if only in fault.name]
    plan = campaign.Plan(fault=seconds, kills=kills, faults=faults, network=_kind(network))

    async def go(directory: Path) -> Outcome:
        with wished() as stop:
            return await campaign.run(named(topology), directory, plan, note, story, stop)

    with tempfile.TemporaryDirectory(prefix="keyhaul-chaos-") as folder:
        outcome = asyncio.run(go(Path(folder) / "net"))
    _show(outcome)
    if file is not None:
        command = (
            f"keyhaul chaos {topology} --kills {kills} --seconds {seconds:g} --network {outcome.network}"
        )
        if only:
            command += f" --only '{only}'"
        file.write_text(json.dumps(outcome.document(command), indent=1) + "\n")
        say(f"written to {file}")
    if not outcome.held:
        raise typer.Exit(FAILED)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)


def _kind(word: str) -> Kind:
    kinds: tuple[Kind, ...] = get_args(Kind)
    if word not in kinds:
        raise ConfigError(f"--network {word}: no such network", f"use {', '.join(kinds)}")
    return next(kind for kind in kinds if kind == word)


def _recovered(row: Row) -> str:
    if row.bound is None:
        return ""
    return f"{'never' if row.recovery is None else f'{row.recovery:.1f} s'} of {row.bound:.0f} s"


def _show(outcome: Outcome) -> None:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    table(
        "",
        ("while", "s", "asked", "served", "503", "no answer", "share", "share elsewhere", "recovered in"),
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
                row.note or _recovered(row),
            )
            for row in outcome.rows
        ],
    )
    if outcome.interrupted:
        say("interrupted: this is what was done until then")
    say(
        f"wires: {outcome.network or 'none yet'}; {outcome.kills} kills; {outcome.keys_got} keys "
        f"acknowledged, {outcome.keys_fetched} fetched, {outcome.never_fetched} not fetched at the end; "
        f"strangers asked {outcome.pried} times; {outcome.found} of {outcome.looked_for} keys found in "
        f"files and errors; {len(outcome.violations)} promises broken of those looked at "
        f"({outcome.promises}), {len(outcome.missed)} bounds missed"
    )
    for text in (*outcome.missed, *outcome.stories):
        say(text)
