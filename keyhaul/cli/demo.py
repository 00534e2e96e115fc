"""`keyhaul demo`: a whole network, a key for every pair of applications, all compared bit by bit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.output import Json


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(demo)


def demo(
    topology: Annotated[str, typer.Argument(help="Which network; see `testbed up`.")] = "galicia-basque",
    as_json: Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the network running until Ctrl-C.")] = False,
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep files here; must be empty.")] = None,
) -> None:
    """Start a network, ask for a key at every application for every other, and compare the bits."""
    from keyhaul.testbed import demo as scene
    from keyhaul.testbed.topology import named

    raise typer.Exit(asyncio.run(scene.perform(named(topology), directory, as_json=as_json, keep=keep)))
