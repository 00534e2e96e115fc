"""`keyhaul serve` with a stop-watch around the steps of a key: for benchmarks, never for production.

    python -m keyhaul.cli.watched serve --config node.toml

The steps are wrapped from outside, so a node that is not watched does not pay for it. On leaving, every
step is written beside the configuration as (step, begin, end), in seconds of the machine's monotonic
clock, which all processes share.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

FILE = "steps.json"

Event = tuple[str, float, float]


def steps() -> list[tuple[type[Any], str, str]]:
    """What is watched: class, method, and what the step is called in a table."""
    from keyhaul.edge.posting import HttpPeers
    from keyhaul.edge.sae import SaeApplication
    from keyhaul.letters import Letters
    from keyhaul.links.sealed import SealedGrant, SealedLink
    from keyhaul.origin import Origin
    from keyhaul.pairing import Pairing
    from keyhaul.relay import Relay
    from keyhaul.schemes.trusted import Trusted
    from keyhaul.settlement import Settlement
    from keyhaul.stores.engine import Engine
    from keyhaul.stores.sqlcipher import SqlcipherLedger

    return [
        (SaeApplication, "_request", "014 request, all of it"),
        (Origin, "request", "kernel: request"),
        (Relay, "dispatch", "origin: dispatch"),
        (Trusted, "originate", "scheme: originate"),
        (Trusted, "deliver", "scheme: deliver"),
        (Pairing, "incoming", "pair secret: look up"),
        (SealedLink, "grant", "link: grant (number, one-time key, encapsulate)"),
        (SealedGrant, "seal", "link: seal"),
        (SealedLink, "open", "link: open (look up, decapsulate, decrypt)"),
        (Relay, "envelope", "envelope, all of it"),
        (Settlement, "acknowledge", "settle an acknowledgement, all of it"),
        (Letters, "seal", "acknowledgement: seal"),
        (HttpPeers, "post", "HTTP post until answered"),
        (SqlcipherLedger, "_commit", "commit, as a step waits for it"),
        (Engine, "_commit", "commit, in the writer thread"),
    ]


def watch(events: list[Event]) -> None:
    """Put the stop-watch around all steps."""
    for owner, method, step in steps():
        setattr(owner, method, _timed(getattr(owner, method), step, events))


def _timed(call: Callable[..., Any], step: str, events: list[Event]) -> Callable[..., Any]:
    clock = time.perf_counter
    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def waiting(*arguments: Any, **named: Any) -> Any:
            begun = clock()
            try:
                return await call(*arguments, **named)
            finally:
                events.append((step, begun, clock()))

        return waiting

    @functools.wraps(call)
    def direct(*arguments: Any, **named: Any) -> Any:
        begun = clock()
        try:
            return call(*arguments, **named)
        finally:
            events.append((step, begun, clock()))

    return direct
