"""Keys that applications received are looked for where none may be: files, logs, arguments and errors.

Every place that was searched becomes an event `held`: with the digest of a key that lay there, which breaks
a promise, or without a digest where nothing was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keyhaul.testbed.history import History
from keyhaul.testbed.scan import Hit, Needles, files


def search(
    history: History, state: Mapping[str, Any], directory: Path, keys: Sequence[bytes], errors: Iterable[str]
) -> int:
    """Look for `keys` and note what was seen; the number of keys found somewhere. Blocks.

    `state` is what testbed.json says, `errors` what applications were told. Files are a node's folder (store,
    keys, audit log), its log, and its arguments and environment. Raises OSError if one cannot be read.
    """
    needles = Needles(keys)
    found: set[int] = set()
    for node in state["nodes"]:
        name, process = node["name"], Path(f"/proc/{node['pid']}")
        places = [directory / "nodes" / name, directory / "logs" / f"{name}.log"]
        if node["pid"]:
            places += [process / "cmdline", process / "environ"]
        hits = [hit for place in places if place.exists() for hit in files(place, needles)]
        found |= _note(history, name, "files", hits, keys)
    told = "\n".join(sorted(errors)).encode()
    return len(found | _note(history, "everybody", "errors", needles.find(told, "errors"), keys))


def _note(history: History, who: str, where: str, hits: Iterable[Hit], keys: Sequence[bytes]) -> set[int]:
    seen = {(hit.key, f"{hit.form} in {hit.place}") for hit in hits}
    for key, place in sorted(seen):
        history.note(who, "held", digest=history.digest(keys[key]), text=place)
    if not seen:
        history.note(who, "held", text=where)
    return {key for key, _ in seen}
