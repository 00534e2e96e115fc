"""What a running node takes over of a changed configuration, and what only a restart can change. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from keyhaul.config import NodeConfig

TAKEN_OVER = ("peers", "network", "policy", "limits", "admission", "log")
"""Parts of a configuration that a reload takes over; the rest needs a restart."""


@dataclass(slots=True)
class Outcome:
    """What changed; what could not be loaded and stays as it was, with the cause; what needs a restart."""

    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, list[str]]:
        return {
            "changed": self.changed,
            "kept_as_it_was": self.kept,
            "needs_a_restart": self.restart,
        }


def differences(old: NodeConfig, new: NodeConfig) -> tuple[list[str], list[str]]:
    """Parts that a reload takes over, and settings, such as `store.file`, that need a restart."""
    taken = [name for name in TAKEN_OVER if getattr(old, name) != getattr(new, name)]
    left = [name for name in _different(old, new) if name.partition(".")[0] not in TAKEN_OVER]
    return taken, left


def _different(old: Any, new: Any, above: str = "") -> Iterator[str]:
    for each in fields(old):
        here, there = getattr(old, each.name), getattr(new, each.name)
        if here == there:
            continue
        if is_dataclass(here) and type(here) is type(there):
            yield from _different(here, there, f"{above}{each.name}.")
        else:
            yield f"{above}{each.name}"
