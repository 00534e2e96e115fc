"""`keyhaul backup` and `keyhaul restore`: a node's store, key slots and configuration, nothing in clear."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.output import Json, document, say


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(backup)
    app.command()(restore)


def backup(
    directory: Annotated[Path, typer.Argument(help="Where the backup goes; new or empty.")],
    config: Annotated[Path, typer.Option(help="The node's TOML file.")],
    as_json: Json = False,
) -> None:
    """Back a node up, running or not; opens the store as the node does, so it needs the same key slot."""
    from keyhaul.backups import back_up
    from keyhaul.config import load

    manifest = back_up(load(config), directory)
    if as_json:
        document(manifest)
        return
    say(f"{directory}: node {manifest['node']}, incarnation {manifest['incarnation'][:8]}")
    for name in manifest["sha256"]:
        say(f"  {name}")
    say("  not in it: certificates and their keys, and what opens the key slot; keep them elsewhere")


def restore(
    directory: Annotated[Path, typer.Argument(help="A backup.")],
    config: Annotated[Path, typer.Option(help="The node's TOML file; taken from the backup if missing.")],
    replace: Annotated[bool, typer.Option(help="Set aside the store that is there.")] = False,
    rebase_counter: Annotated[
        bool, typer.Option(help="Make the store count from where the TPM's counter is now.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a backup in place of a node that does not run; keys it held are expired, none is met twice."""
    from keyhaul.backups import restore as put_back

    done = put_back(directory, config, replace=replace, rebase_counter=rebase_counter)
    if as_json:
        document({**asdict(done.renewal), "aside": [*map(str, done.aside)], "warnings": done.warnings})
        return
    found = done.renewal
    say(f"restored under incarnation {found.incarnation[:8]}")
    say(f"  expired: {found.keys} keys; dropped: {found.messages} messages; erased: {found.items} items")
    for path in done.aside:
        say(f"  set aside: {path}")
    for warning in done.warnings:
        say(f"  warning: {warning}")
