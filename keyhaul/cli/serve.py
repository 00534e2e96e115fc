"""`keyhaul serve`: one node until SIGTERM or SIGINT, logging to stderr, one JSON object a line."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from keyhaul.config import NodeConfig
    from keyhaul.node import Node


def main(words: Sequence[str]) -> int:
    """Parse the arguments of `serve` and run the node; a wrong argument leaves with exit code 2."""
    parser = argparse.ArgumentParser(prog="keyhaul serve", description="Run one node.")
    parser.add_argument("--config", type=Path, required=True, help="the node's TOML file")
    parser.add_argument("--json", action="store_true", help="errors as JSON (the log always is)")
    return run(parser.parse_args(words).config)


def run(file: Path, make: Callable[[NodeConfig], Node] | None = None) -> int:
    """Run the node of a configuration file. Raises ConfigError or SealError if it cannot start."""
    # structlog imports rich for its colours where it can find it: 60 ms and 6 MiB in every node for nothing.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    import_without_system_anchors("aiohttp")
    import uvloop

    from keyhaul.config import Listeners, load
    from keyhaul.daemon import serve
    from keyhaul.edge.activation import inherited
    from keyhaul.node import Node

    log_to_stderr()
    sockets = inherited(frozenset(each.name for each in dataclasses.fields(Listeners)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(load(file), sockets=sockets, make=make or Node))
    return 0


def import_without_system_anchors(name: str) -> None:
    """aiohttp makes a TLS context when it is imported, with every CA the system trusts: 2 MiB nobody uses.

    A node's own contexts trust the files its configuration names.
    """
    variables = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {variable: os.environ.get(variable) for variable in variables}
    os.environ.update(dict.fromkeys(variables, os.devnull))
    importlib.import_module(name)
    for variable, value in before.items():
        if value is None:
            del os.environ[variable]
        else:
            os.environ[variable] = value


def log_to_stderr() -> None:
    """One JSON object a line, for daemons; what our TLS tells `logging` comes out like the rest."""
    import logging

    import structlog

    from keyhaul import story
    from keyhaul.cli.journal import Journal
    from keyhaul.logs import levels

    processors: list[Any] = [
        levels,
        story.mark,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors,
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Journal(sys.stderr.fileno()))),
        cache_logger_on_first_use=True,
    )

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            structlog.get_logger(record.name).log(record.levelno, record.getMessage())

    ours = logging.getLogger("keyhaul")
    ours.addHandler(Told())
    ours.propagate = False
