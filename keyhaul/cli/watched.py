"""`keyhaul serve` with its steps timed, for `keyhaul bench hops`; not a command of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from keyhaul.cli import guarded, serve
from keyhaul.config.write import write
from keyhaul.testbed.benchmarks.watched import FILE, Event, watch


def main(words: list[str]) -> int:
    """Serve as `keyhaul serve` does, then write what was seen."""
    events: list[Event] = []
    watch(events)
    try:
        return guarded(lambda: serve.main(words[1:]))
    finally:
        folder = Path(words[words.index("--config") + 1]).parent
        write(folder / FILE, json.dumps(events))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
