"""Two network namespaces joined by a wire, for tests of programs that protect what crosses it. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


def call(*words: str, given: str = "") -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@contextmanager
def wired(ends: dict[str, str]) -> Iterator[None]:
    """Makes both namespaces, named with their addresses on the wire, and removes them in the end."""
    first, second = ends
    with ExitStack() as stack:
        for name in ends:
            call("ip", "netns", "add", name)
            stack.callback(call, "ip", "netns", "del", name)
        peer = ["type", "veth", "peer", "name", "v0", "netns", second]
        call("ip", "link", "add", "v0", "netns", first, *peer)
        for name, address in ends.items():
            call("ip", "-n", name, "address", "add", f"{address}/24", "dev", "v0")
            call("ip", "-n", name, "link", "set", "v0", "up")
        yield
