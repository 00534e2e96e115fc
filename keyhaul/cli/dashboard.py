"""`keyhaul dashboard`: the network on one page, for one person at this machine."""

from __future__ import annotations

import asyncio
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhaul.cli import access
from keyhaul.cli.output import Json, document, say

if TYPE_CHECKING:
    from keyhaul.dashboard.federated import FederatedSource


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(dashboard)


def dashboard(
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    directory: access.Directory = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser at once.")] = False,
    as_json: Json = False,
) -> None:
    """Show a node, or a whole testbed with the knobs of its devices, in the browser, until Ctrl-C.

    The address printed holds a token that lets in whoever opens it first, within five minutes.
    """
    asyncio.run(
        _keep_open(_source(directory, access.one(directory, url, cert, key, ca)), port, browser, as_json)
    )


def _source(directory: Path | None, target: access.Access | None) -> FederatedSource:
    from keyhaul.dashboard.federated import Door, FederatedSource, of_testbed
    from keyhaul.edge.tls import Credentials

    if target is None:
        assert directory is not None
        return of_testbed(access.testbed(directory))
    return FederatedSource([Door(target.name, target.url, Credentials(target.cert, target.key, target.ca))])


async def _keep_open(source: FederatedSource, port: int, browser: bool, as_json: bool) -> None:
    from keyhaul.dashboard.door import LocalDoor
    from keyhaul.testbed.interrupt import Interruptible

    with Interruptible():
        async with source, LocalDoor(source, port) as door:
            await source.network()  # says at once if nobody answers
            if as_json:
                document({"url": door.invitation})
            else:
                say(f"open, once: {door.invitation}")
            if browser:
                await asyncio.to_thread(webbrowser.open, door.invitation)
            await asyncio.Event().wait()
