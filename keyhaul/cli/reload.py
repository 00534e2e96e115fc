"""`keyhaul reload`: a running node reads its configuration and certificates again."""

from __future__ import annotations

import typer

from keyhaul.cli import access, asking
from keyhaul.cli.output import Json, document, say

_TITLES = {
    "changed": "changed",
    "kept_as_it_was": "stays as it was",
    "needs_a_restart": "needs a restart",
}


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(reload)


def reload(
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    directory: access.Directory = None,
    as_json: Json = False,
) -> None:
    """Have a node read its configuration and certificates again; says what changed.

    A configuration with mistakes is refused with all of them, and the last good one stays in force.
    """
    found = asking.ask(asking.targets(directory, url, cert, key, ca), "reload", "POST")
    if as_json:
        document(dict(found) if directory else found[0][1])
    else:
        for name, answer in found:
            for part, title in _TITLES.items():
                for each in answer[part]:
                    say(f"{name}: {title}: {each}")
            if not any(answer[part] for part in _TITLES):
                say(f"{name}: nothing is different")
    if any(answer["kept_as_it_was"] for _, answer in found):
        raise typer.Exit(1)
