"""Reads `[admission]`: who may cost a node how much."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from keyhaul.admission import Rules
from keyhaul.config.reader import Section


def read_admission(table: Section) -> Rules:
    """The rules, or the defaults with every mistake reported."""
    values: dict[str, Any] = {}
    for field in fields(Rules):
        default = cast(Any, field.default)
        if field.name == "priority":
            values["priority"] = frozenset(table.texts("priority"))
        elif field.name in ("share", "reserved", "queue", "queue_per_sae"):
            continue
        elif isinstance(default, float):
            values[field.name] = table.number(field.name, default, low=0.01)
        else:
            values[field.name] = table.integer(field.name, default, low=1)
    plain = Rules()
    values["share"] = table.number("share", plain.share, low=0.01, high=1)
    values["reserved"] = table.integer("reserved", min(plain.reserved, values["slots"] // 2))
    values["queue"] = table.integer("queue", plain.queue)
    values["queue_per_sae"] = table.integer("queue_per_sae", plain.queue_per_sae)
    rules = Rules(**values)
    if rules.reserved >= rules.slots:
        table.report(
            "reserved", f"reserved = {rules.reserved} leaves no slot to others", "give less than slots"
        )
    table.done()
    return rules
