"""The `[pool]` table: how many keys are relayed ahead of demand, and who comes first.

[pool]
most = 4096
pairs = [{ master = "sae-a", slave = "sae-b", least = 32, priority = true }]
"""

from __future__ import annotations

from typing import Literal

from keyhaul.config.reader import Section
from keyhaul.pools import Pair, Rules


def read_pools(table: Section) -> Rules:
    """What the table says; mistakes are reported to its file."""
    plain = Rules()
    most = table.integer("most", plain.most, high=1_000_000)
    pairs: dict[tuple[str, str], Pair] = {}
    for section in table.sections("pairs"):
        names = (section.text("master"), section.text("slave"))
        if names in pairs:
            section.report("slave", f"{names[0]} and {names[1]} stand in [pool] twice", "write one table")
        pairs[names] = _pair(section)
    rules = Rules(
        most=most,
        idle=table.number("idle", plain.idle, low=1.0, high=31_536_000.0),
        share=table.number("share", plain.share, low=0.0, high=1.0),
        pairs=pairs,
    )
    table.done()
    return rules


def read_level(table: Section, default: int | Literal["auto"]) -> int | Literal["auto"]:
    """`pool` of [delivery]: a number of keys, or "auto"."""
    if table.is_text("pool"):
        table.choice("pool", ("auto",))
        return "auto"
    return table.integer("pool", high=1_000_000) if "pool" in table else default


def _pair(section: Section) -> Pair:
    plain = Pair()
    pair = Pair(
        weight=section.number("weight", plain.weight, low=0.001, high=1000.0),
        least=section.integer("least", plain.least, high=1_000_000),
        most=section.integer("most", high=1_000_000) if "most" in section else None,
        priority=section.flag("priority", plain.priority),
    )
    if pair.most is not None and pair.most < pair.least:
        section.report("most", "most is smaller than least", "give at least as much as least")
    section.done()
    return pair
