"""Schemes side by side in one run: what a hop, an origin and a destination take, and what travels.

`trusted`, `masked` and `blind` through the interface the relay uses, and the hop of the paper in dense
form (unpack 256 coefficients a key, add q/2 modulo q, pack), which `blind` replaces by an XOR. Tags are
in all three; pads and the pair's secret are ready made. Medians of single calls on one thread: the
ratios are what to look at.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from uuid import UUID

from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair, Scheme
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import COEFFICIENTS, DENSE
from keyhaul.schemes.blind import Blind
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.seal import Seal
from keyhaul.schemes.trusted import Trusted
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.stage import Say

KEY_BITS = 256
NOW = 0.0
PAIR = Pair(b"pair id of 16 B.", Secret(bytes(range(32))))


def context_of(scheme: str, number: int) -> Context:
    ids = tuple(UUID(int=at) for at in range(number))
    route = ("vigo", "santiago", "bilbao")
    return Context(scheme, "vigo", "bilbao", "sae-a", ("sae-b",), ids, KEY_BITS, 0, route, ())


def timed(step: Callable[[], object], rounds: int) -> list[float]:
    """Microseconds of each of `rounds` calls."""
    step()
    figures = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        figures.append((time.perf_counter() - start) * 1e6)
    return figures


def journey(report: Report, scheme: Scheme, number: int, rounds: int) -> None:
    """Origin, hop, destination, body and pad of one scheme for one batch of `number` keys."""
    source = random.Random(number)  # noqa: S311 - keys for a stop-watch, used nowhere
    keys = [Secret(source.randbytes(KEY_BITS // 8)) for _ in range(number)]
    context = context_of(scheme.name, number)
    payload = scheme.originate(keys, context, PAIR)
    length = scheme.pad_bytes(payload)
    one, other = source.randbytes(length), source.randbytes(length)
    under = scheme.transit(payload, None, one)
    name = f"{scheme.name}, {number} key{'s' if number > 1 else ''}:"
    report.add(
        f"{name} origin", timed(lambda: scheme.originate(keys, context, PAIR), max(5, rounds // 10)), "us"
    )
    report.add(f"{name} hop", timed(lambda: scheme.transit(under, one, other), rounds), "us")
    report.add(
        f"{name} destination",
        timed(lambda: scheme.deliver(payload, context, PAIR), max(5, rounds // 10)),
        "us",
    )
    report.add(f"{name} body", [len(payload.body)], "B")
    report.add(f"{name} pad", [length], "B", note=f"{length / (number * KEY_BITS // 8):.3g} x the key bits")


def published_hop(report: Report, number: int, rounds: int) -> None:
    """The hop in dense form modulo q, for up to four keys in one ciphertext."""
    count = number * KEY_BITS
    source = random.Random(number)  # noqa: S311 - keys for a stop-watch, used nowhere
    first = dense.pack(dense.unpack(bytes(DENSE.polynomial_bytes), COEFFICIENTS, DENSE)[:count], DENSE)
    pads = dense.bits_of(source.randbytes(count // 8))

    def hop() -> bytes:
        return dense.pack(dense.add_plain(dense.unpack(first, count, DENSE), pads, DENSE), DENSE)

    name = f"paper's hop in dense form, {number} key{'s' if number > 1 else ''}"
    report.add(name, timed(hop, rounds), "us", note=f"{len(first) + DENSE.polynomial_bytes} B")


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    rounds = 200 if quick else 2_000
    bfv = Seal()
    ring = KeyRing(bfv)
    ring.activate(ring.prepare(NOW))
    schemes: list[Scheme] = [Trusted(), Masked(), Blind(bfv, lambda _: ring.announced(NOW), ring.own)]
    for number in (1, 4, 128):
        say(f"{number} keys at once")
        for scheme in schemes:
            journey(report, scheme, number, rounds)
        if number <= 4:
            published_hop(report, number, rounds)
    report.add("new BFV key pair", timed(bfv.generate, max(5, rounds // 10)), "us")
