"""`keyhaul serve` with profiles that no node offers, for `keyhaul bench paper-b`; no command of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from keyhaul.cli import guarded, serve
from keyhaul.testbed.benchmarks.paper_b_nodes import take_part


def main(words: list[str]) -> int:
    """Serve as `keyhaul serve` does, with further schemes."""
    take_part(Path(words[words.index("--config") + 1]).parent.parent)
    return guarded(lambda: serve.main(words[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
