"""Paper B, section 6, once more: homomorphic relays as published beside what keyhaul makes of them.

Profiles take turns with every sample, so that a noisy machine hits all of them. What cannot run here
(OpenFHE, SEAL) is left out and the report says why.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from keyhaul.openfhe import OpenFhe
from keyhaul.schemes.seal_whole import SealWhole
from keyhaul.testbed.benchmarks import paper_b_network, paper_b_noise, paper_b_report
from keyhaul.testbed.benchmarks.paper_b_pairs import fresh_pairs
from keyhaul.testbed.benchmarks.paper_b_results import Run
from keyhaul.testbed.benchmarks.paper_b_ways import (
    DENSE_,
    INITIAL,
    LEAN,
    MODULO,
    PAPER,
    Case,
    Found,
    Way,
    timed,
    ways,
)
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.stage import Say

CALLS = 30  # samples of a step a round; the paper's profile gives one


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured. `rounds`: turns for 1 key and for many; `hops`: marks, `published` for paper."""

    rounds: tuple[int, int]
    hops: tuple[int, ...]
    published: tuple[int, ...]
    journeys: dict[int, int]


FULL = Amount((60, 5), (0, 1, 10, 100, 1_000, 10_000), (0, 1, 10, 100, 1_000, 10_000), {1: 30, 128: 10})
QUICK = Amount((8, 1), (0, 1, 10, 100, 1_000, 10_000), (0, 1, 10, 100), {1: 8, 128: 3})
CASES = tuple(Case(number, size) for number in (1, 128) for size in (128, 256))


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    amount, found, stop = QUICK if quick else FULL, Run(), threading.Event()
    try:
        await asyncio.to_thread(_alone, found, amount, say, stop)
    finally:
        stop.set()  # a thread cannot be cancelled
    await paper_b_network.measure(found, amount.journeys, say)
    paper_b_report.fill(report, found)


def _alone(found: Run, amount: Amount, say: Say, stop: threading.Event) -> None:
    """What needs no network, in this thread and in the worker of OpenFHE."""
    with fresh_pairs() as pairs:
        running, found.missing = ways(pairs)
        for case in CASES:
            say(f"{case}")
            for _ in range(amount.rounds[case.number > 1]):
                if stop.is_set():
                    return
                _turn(found, running, case)
    say("noise")
    _noise(found, amount.hops, amount.published)


def _turn(found: Run, running: dict[str, Way], case: Case) -> None:
    for name, way in running.items():
        calls = 1 if name == PAPER else CALLS
        way.measure(case, found.found.setdefault((name, case), Found()), calls)


def _noise(found: Run, hops: Sequence[int], published: Sequence[int]) -> None:
    if PAPER not in found.missing:
        fhe = OpenFhe()
        found.noise[PAPER] = paper_b_noise.published(published, fhe)
        fhe.close()
    if LEAN not in found.missing:
        bfv = SealWhole()
        made = Found()
        public, _ = bfv.generate()
        timed(lambda: bfv.zero(public), made, INITIAL, CALLS)
        found.zeros = made.seconds[INITIAL]
        found.noise[LEAN] = paper_b_noise.lean(hops, bfv)
        found.noise[MODULO] = paper_b_noise.modulo(hops, bfv)
        found.noise[DENSE_] = paper_b_noise.quartered(hops, bfv)
