"""Every command of keyhaul as it is in the code: usage, what it does, arguments and options.

For the reference in the site (`docs/reference.py`) and for the man pages (`packaging/man.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer.main
from typer.core import TyperArgument, TyperGroup

from keyhaul.cli.app import app


@dataclass(frozen=True)
class Command:
    """One command, such as `keyhaul testbed up`; arguments and options are pairs of form and meaning."""

    name: str
    usage: str
    text: str
    arguments: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    below: tuple[str, ...]


def commands() -> list[Command]:
    """All of them, groups before what is in them, `keyhaul` itself first."""
    return list(_walk(typer.main.get_command(app), "keyhaul"))


def _walk(command: Any, name: str) -> Iterator[Command]:
    context = command.context_class(command, info_name=name)
    below = command.commands if isinstance(command, TyperGroup) else {}
    parameters = command.get_params(context)
    yield Command(
        name,
        f"{name} {' '.join(command.collect_usage_pieces(context))}",
        " ".join((command.help or "").split()),
        tuple(_said(each, context) for each in parameters if isinstance(each, TyperArgument)),
        tuple(_said(each, context) for each in parameters if not isinstance(each, TyperArgument)),
        tuple(sorted(below)),
    )
    for each in sorted(below):
        yield from _walk(below[each], f"{name} {each}")


def _said(parameter: Any, context: Any) -> tuple[str, str]:
    form, meaning = parameter.get_help_record(context)
    return form, " ".join(meaning.split())
