"""A node of a testbed that cheats where it relays. No command leads here and no configuration switches it on.

    python -m keyhaul.cli.byzantine --config DIR/nodes/NAME/node.toml --attack flip

Only a testbed starts it (`keyhaul testbed up --cheat NAME=flip`), and it refuses a node that is not part
of one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from keyhaul.cli import serve
from keyhaul.config import NodeConfig
from keyhaul.errors import ConfigError, KeyhaulError
from keyhaul.node import Node
from keyhaul.testbed.faults import Attack, turn
from keyhaul.testbed.pidfile import PidFile

log = structlog.get_logger("keyhaul.byzantine")


def main(words: Sequence[str]) -> int:
    """Run until SIGTERM; 2 for a mistake in the arguments, 1 for a node that cannot or may not start."""
    parser = argparse.ArgumentParser(prog="keyhaul.cli.byzantine", description="A testbed's cheating node.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--attack", type=Attack, required=True, choices=list(Attack))
    given = parser.parse_args(words)
    try:
        _only_in_a_testbed(given.config)
        return serve.run(given.config, lambda settings: _Byzantine(settings, given.attack))
    except KeyhaulError as error:
        print(f"keyhaul: {error}", file=sys.stderr)
        return 1


def _only_in_a_testbed(file: Path) -> None:
    """A running testbed holds the pid file two directories above its nodes."""
    testbed = file.resolve().parents[2]
    if not (testbed / "network.toml").is_file() or not PidFile(testbed / "testbed.pid").holder():
        raise ConfigError(f"{file}: not a node of a running testbed", "run an honest node: keyhaul serve")


class _Byzantine(Node):
    """A node whose relay cheats; as origin and destination it is honest."""

    def __init__(self, settings: NodeConfig, attack: Attack) -> None:
        super().__init__(settings)
        self._attack = attack

    def _build_relay(self) -> None:
        super()._build_relay()
        turn(self.relay, self._attack)
        log.warning("this node cheats", attack=self._attack.value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
