"""`keyhaul config check`: everything that is wrong with a configuration, each with file, line and remedy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.output import Json, document, say

app = typer.Typer(help="Configuration files: check.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Configuration files: check."""


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A node's TOML file.")], as_json: Json = False) -> None:
    """Check a node's configuration and the certificates it names; exit code 1 if something must change."""
    from keyhaul.config import check as find_mistakes

    found = find_mistakes(file)
    errors = [mistake for mistake in found if not mistake.warning]
    if as_json:
        document({"ok": not errors, "mistakes": [{**asdict(each), "file": str(each.file)} for each in found]})
    else:
        for mistake in found:
            say(str(mistake))
        warnings = len(found) - len(errors)
        say(f"{file}: {'in order' if not errors else f'{len(errors)} to correct'}, {warnings} warning(s)")
    raise typer.Exit(1 if errors else 0)
