"""`keyhaul log level`: how much a running node writes to its log, for a while or for good."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from keyhaul.cli import access, asking
from keyhaul.cli.output import Json, document, say
from keyhaul.errors import ConfigError

app = typer.Typer(help="The log of a running node: level.", no_args_is_help=True, rich_markup_mode=None)

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@app.callback()
def _group() -> None:
    """The log of a running node: level."""  # a group of one command would swallow its name without this


@app.command()
def level(
    level: Annotated[str, typer.Argument(help="DEBUG, INFO, WARNING or ERROR; without: say which.")] = "",
    span: Annotated[str, typer.Option("--for", help="For how long: 90s, 10m or 2h.")] = "",
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    directory: access.Directory = None,
    as_json: Json = False,
) -> None:
    """Say or set the level of the log. Without --for it holds until the next start or reload."""
    targets = asking.targets(directory, url, cert, key, ca)
    if level:
        wanted = {"level": level.upper(), "seconds": _seconds(span) if span else None}
        found = asking.ask(targets, "log", "PUT", wanted)
    elif span:
        raise ConfigError("--for needs a level", "say which: keyhaul log level DEBUG --for 10m")
    else:
        found = asking.ask(targets, "log")
    if as_json:
        document({name: answer for name, answer in found} if directory else found[0][1])
        return
    for name, answer in found:
        say(_line(name, answer))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise ConfigError(f"{text!r} is no time", "use seconds, minutes or hours: 90s, 10m, 2h")
    return float(found[1]) * _UNITS[found[2]]


def _line(name: str, answer: dict[str, Any]) -> str:
    if answer["seconds_left"] is None:
        return f"{name}: {answer['level']}"
    return f"{name}: {answer['level']} for {answer['seconds_left']:.0f} s more, then {answer['usual']}"
