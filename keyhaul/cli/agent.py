"""`keyhaul agent`: put keys to use in WireGuard, strongSwan, TLS or any program, together with a peer's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.output import Json, document, say
from keyhaul.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(agent)


def agent(
    config: Annotated[Path, typer.Argument(help="The agent's TOML file.")],
    once: Annotated[bool, typer.Option("--once", help="Initiator: agree on one key, then end.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the file is right.")] = False,
    as_json: Json = False,
) -> None:
    """Keep a program in keys shared with another SAE, whose agent does the same at the other end."""
    from keyhaul.cli.serve import log_to_stderr
    from keyhaul.consumers import agent, settings

    found = settings.load(config)
    if check:
        document({"mistakes": []}) if as_json else say(f"{config} is right")
        return
    if once and found.role != "initiator":
        raise ConfigError(f"{config}: a responder waits for its peer", "use --once at the initiator's end")
    log_to_stderr()
    if not once:

        def ready(url: str) -> None:
            document({"role": found.role, "channel_url": url}) if as_json else say(f"{found.role}, {url}")

        asyncio.run(agent.serve(found, ready))
        return
    key_id = asyncio.run(agent.once(found))
    document({"key_ID": str(key_id)}) if as_json else say(str(key_id))
