"""Starts a program with a secret on its standard input: never in an argument, a variable or a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence

from keyhaul.consumers.port import unusable

MOST_INPUT = 4096  # bytes: a pipe takes this much without a reader (pipe(7)), so writing never waits
MOST_SAID = 200  # characters of what a program says, for the log


async def run(
    command: Sequence[str],
    given: bytes = b"",
    *,
    patience: float = 10.0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What it printed on standard output. `given` goes to its input, `environment` is added to ours.

    Raises Unavailable if it cannot be started, fails, or takes longer than `patience` seconds; then it is
    killed. What it said is shown, without `given`.
    """
    if len(given) > MOST_INPUT:
        raise unusable(command[0], f"{len(given)} bytes are too much for its input")
    # A pipe of our own: asyncio would make a socket, which nobody can open as /dev/stdin.
    reading, writing = os.pipe()
    try:
        os.write(writing, given)
    finally:
        os.close(writing)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=reading,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        raise unusable(command[0], f"cannot be started ({error.strerror})") from None
    finally:
        os.close(reading)
    try:
        async with asyncio.timeout(patience):
            out, err = await process.communicate()
    except TimeoutError:
        raise unusable(command[0], f"did not end within {patience:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise unusable(command[0], f"exit code {process.returncode}{_words(err, given)}")
    return out.decode(errors="replace")


def _words(said: bytes, given: bytes) -> str:
    """The last line of what it said, unless the secret is in it."""
    lines = said.decode(errors="replace").strip().splitlines()
    if not lines or (given.strip() and given.strip() in said):
        return ""
    return f", {lines[-1][:MOST_SAID]}"
