"""`keyhaul testbed up`, `scan`, `compose` and `down`: a whole network of real processes on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhaul.cli.compose import compose
from keyhaul.cli.output import Json, document, note, say
from keyhaul.cli.scan import scan
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.testbed.faults import Attack
    from keyhaul.testbed.network import Testbed

app = typer.Typer(
    help="Test networks on this machine: up, scan, compose, down.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Directory = Annotated[Path, typer.Option("--dir", help="Where the testbed keeps its files.")]

_DOWN_PATIENCE = 90.0  # seconds; nodes and then devices have their grace


@app.command()
def up(
    topology: Annotated[
        str,
        typer.Argument(
            help="galicia-basque, galicia-basque-star, tecnalia, line-N, ring-N, mesh-N, random-N, FILE.toml."
        ),
    ],
    directory: Directory,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Let dead nodes stay dead.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove an earlier testbed from there.")] = False,
    devices: Annotated[str, typer.Option(help="Device preset for all links, such as `instant`.")] = "",
    cheat: Annotated[
        list[str] | None, typer.Option(help="NODE=ATTACK: a relay that cheats, such as n2=flip.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a network and keep it running until SIGTERM or Ctrl-C; addresses are in DIR/testbed.json."""
    from keyhaul.testbed.network import Testbed, remove
    from keyhaul.testbed.topology import named

    shape = named(topology)
    if fresh:
        remove(directory)
    testbed = Testbed(
        shape.with_devices(devices) if devices else shape,
        directory,
        restart=not no_restart,
        cheats=_cheats(cheat or []),
        progress=note,
    )
    asyncio.run(_keep_up(testbed, as_json))


def _cheats(words: list[str]) -> dict[str, Attack]:
    from keyhaul.testbed.faults import Attack

    found = {}
    for word in words:
        node, _, attack = word.partition("=")
        if attack not in list(Attack):
            raise ConfigError(f"--cheat {word}: no such attack", f"use NODE={'|'.join(Attack)}")
        found[node] = Attack(attack)
    return found


async def _keep_up(testbed: Testbed, as_json: bool) -> None:
    from keyhaul.testbed.interrupt import Interruptible

    with Interruptible():
        async with testbed:
            if as_json:
                document(testbed.state())
            else:
                where = testbed.directory / "testbed.json"
                say(f"{testbed.topology.name} is up; {where} tells where everything is")
            await asyncio.Event().wait()


app.command(name="scan")(scan)
app.command(name="compose")(compose)


@app.command()
def down(directory: Directory, as_json: Json = False) -> None:
    """End the network that runs in a directory, and wait until it is gone."""
    from keyhaul.testbed.pidfile import PidFile

    ended = asyncio.run(PidFile(directory / "testbed.pid").end_holder(_DOWN_PATIENCE))
    if as_json:
        document({"ended": ended})
    else:
        say(f"the testbed in {directory} has ended" if ended else f"no testbed runs in {directory}")
