"""Reads `[skip]`: which SAE each system id of SKIP stands for."""

from __future__ import annotations

from keyhaul.config import model
from keyhaul.config.reader import Section


def read_skip(root: Section) -> model.SkipConfig:
    """The table of system ids, empty where every SAE id is one; mistakes are reported to its file."""
    table = root.section("skip", required=False)
    named = table.section("systems", required=False)
    table.done()
    systems = {name: named.text(name) for name in named.names()}
    for name, sae in systems.items():
        if not name or set(name) & set("*?[]"):
            named.report(name, f"{name!r} is no system ID", "use a name without * ? [ ]")
        if list(systems.values()).count(sae) > 1:
            named.report(name, f"{sae!r} has two system IDs", "give every SAE one")
    return model.SkipConfig(systems)
