"""`keyhaul doctor` and `keyhaul federation test`: what is wrong, and the line or command that mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhaul.cli import FAILED, access
from keyhaul.cli.output import Json, document, say
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.doctor import Finding

federation = typer.Typer(help="Other nodes: test.", no_args_is_help=True, rich_markup_mode=None)

Config = Annotated[Path, typer.Option("--config", help="The node's TOML file.")]
_MARKS = {"ok": "ok      ", "warning": "WARNING ", "failed": "FAILED  ", "skipped": "skipped "}


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(doctor)
    app.add_typer(federation, name="federation")


def doctor(config: Config, as_json: Json = False) -> None:
    """Check configuration, certificates, store, neighbours and devices; exit code 1 if something fails."""
    from keyhaul.doctor import examine

    _tell(asyncio.run(examine(config)), as_json)


@federation.callback()
def _group() -> None:
    """Other nodes: test."""


@federation.command(name="test")
def reach(
    peer: Annotated[str, typer.Argument(help="A neighbour's name, as in the configuration.")],
    config: Config,
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    as_json: Json = False,
) -> None:
    """Check the way to one neighbour, step by step, and with an operator's certificate send it a test key."""
    from keyhaul import config as configuration
    from keyhaul.doctor import Finding, neighbour

    settings = configuration.load(config)
    peers = {each.name: each for each in settings.peers}
    if peer not in peers:
        raise ConfigError(f"{config}: {peer} is no neighbour", f"use one of {', '.join(peers)}")
    found = asyncio.run(neighbour(settings, peers[peer]))
    if url or cert or key or ca:
        found.append(_test_key(peer, access.explicit(url, cert, key, ca)))
    else:
        advice = "give --url of this node's admin port, --cert, --key and --cacert"
        found.append(Finding("skipped", f"{peer}: test key", "no operator's certificate", advice))
    _tell(found, as_json)


def _test_key(peer: str, target: access.Access) -> Finding:
    from keyhaul.cli.asking import ask_one
    from keyhaul.doctor import Finding
    from keyhaul.errors import KeyhaulError

    answer = asyncio.run(ask_one(target, f"nodes/{peer}/test", method="POST"))
    if isinstance(answer, KeyhaulError):
        return Finding("failed", f"{peer}: test key", answer.cause, answer.remedy or "see this node's log")
    seen = f"confirmed by {peer} after {answer['milliseconds']:.0f} ms, scheme {answer['trust']['scheme']}"
    return Finding("ok", f"{peer}: test key", seen)


def _tell(found: Sequence[Finding], as_json: bool) -> None:
    from keyhaul.doctor import plain, worst

    if as_json:
        document(plain([*found]))
    else:
        for finding in found:
            say(f"{_MARKS[finding.state]} {finding.what}: {finding.seen}")
            if finding.next_step:
                say(f"          next: {finding.next_step}")
    if worst([*found]) == "failed":
        raise typer.Exit(FAILED)
