"""The `keyhaul` command. Exit codes: 0 it worked, 1 it did not, 2 it was asked wrongly.

`serve` is looked at first and starts without the parts that only a person at a terminal needs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from keyhaul.errors import ConfigError, KeyhaulError

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script; always leaves by SystemExit."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.exit(guarded(lambda: _run(words), as_json="--json" in words))


def guarded(run: Callable[[], int], *, as_json: bool = False) -> int:
    """Run a command; an error becomes one message on stderr, cause and next step, and an exit code."""
    try:
        return run()
    except KeyhaulError as error:
        if as_json:
            said = {
                "error": type(error).__name__,
                "cause": error.cause,
                "next": error.remedy,
                **error.details,
            }
            sys.stderr.write(json.dumps(said) + "\n")
        else:
            sys.stderr.write(f"keyhaul: {error}\n")
        return MISUSED if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()
        return FAILED


def _run(words: list[str]) -> int:
    if words[:1] == ["serve"] and not {"-h", "--help"} & {*words}:
        from keyhaul.cli import serve

        return serve.main(words[1:])
    from keyhaul.cli.app import run

    return run(words)
