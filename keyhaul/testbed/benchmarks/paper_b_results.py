"""What a run of `keyhaul bench paper-b` found, and its goals as ratios within that run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from keyhaul.testbed.benchmarks.paper_b_noise import Point
from keyhaul.testbed.benchmarks.paper_b_ways import (
    DENSE_,
    EPOCH,
    FRESH,
    HOP,
    INITIAL,
    LEAN,
    MASKED,
    MODULO,
    PAPER,
    PROFILES,
    Case,
    Found,
)
from keyhaul.testbed.benchmarks.report import Report

PUBLISHED_BYTES = 347_360
"""Middle of the 347,316 to 347,400 bytes that the configuration gives; the paper says 347 kilobytes."""

ONE, BATCH = Case(1, 256), Case(128, 256)


@dataclass(slots=True)
class Run:
    """Everything one run measured. `journeys`: seconds of a request, by (profile, number of keys)."""

    found: dict[tuple[str, Case], Found] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    noise: dict[str, list[Point]] = field(default_factory=dict)
    journeys: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    refused: dict[tuple[str, int], str] = field(default_factory=dict)
    zeros: list[float] = field(default_factory=list)
    """Seconds that an encryption of zero takes, made ahead of `re-randomised`."""

    @property
    def cases(self) -> list[Case]:
        return sorted({case for _, case in self.found}, key=lambda case: (case.number, case.size))

    def profiles(self, case: Case, step: str = INITIAL) -> list[str]:
        """Those that have a figure for a step, in the order of the report."""
        return [name for name in PROFILES if step in self._of(name, case).seconds]

    def median(self, profile: str, case: Case, step: str) -> float:
        """Seconds per key."""
        return statistics.median(self._of(profile, case).seconds[step]) / case.number

    def processor(self, profile: str, case: Case, step: str) -> float:
        """Processor seconds per key."""
        return statistics.median(self._of(profile, case).processor[step]) / case.number

    def payload(self, profile: str, case: Case) -> float:
        """Bytes per key."""
        return statistics.median(self._of(profile, case).payload) / case.number

    def pad_bits(self, profile: str, case: Case) -> float:
        """Bits of every link on the way, per key."""
        return 8 * self._of(profile, case).pad / case.number

    def _of(self, profile: str, case: Case) -> Found:
        return self.found.get((profile, case), Found())


def goals(report: Report, run: Run) -> None:
    """Each goal of the comparison as a figure with its bound; what could not be measured is left out."""
    paper = run.found.get((PAPER, ONE))
    if paper is None:
        return
    off = [100 * abs(size - PUBLISHED_BYTES) / PUBLISHED_BYTES for size in paper.payload]
    report.add("paper: payload, off the published 347 kB", off, "%", most=0.5)
    report.add("paper: payload", paper.payload, "B")
    goals_of_hops = (
        (LEAN, 20),
        (DENSE_, 250),
        (FRESH, 20),
        (MODULO, 250),
        (MASKED, 1000),
        (EPOCH, 1000),
    )
    for profile, least in goals_of_hops:
        _ratio(report, run, f"hop in processor time, paper / {profile}", profile, ONE, least)
    for profile in (DENSE_, MODULO):
        _ratio(report, run, f"hop in processor time, a key of 128, paper / {profile}", profile, BATCH, 1000)
    sizes = (
        (LEAN, ONE, 20, "one key"),
        (DENSE_, ONE, 85, "one key"),
        (FRESH, ONE, 20, "one key, first and last of four links"),
        (MODULO, ONE, 85, "one key"),
        (MASKED, ONE, 70, "a lone first key with its signature"),
        (MASKED, BATCH, 200, "per key of a batch with its signature"),
        (EPOCH, ONE, 200, "one key, signed once an epoch"),
    )
    for profile, case, least, words in sizes:
        if (profile, case) in run.found:
            ratio = run.payload(PAPER, ONE) / run.payload(profile, case)
            report.add(f"payload, paper / {profile}: {words}", [ratio], "x", least=least)


def figures(report: Report, run: Run) -> None:
    """Hops and journeys as they were measured, for every profile that runs here."""
    for case in (ONE, BATCH):
        for profile in run.profiles(case, HOP):
            samples = [1e6 * each / case.number for each in run.found[profile, case].processor[HOP]]
            note = f"processor time a key; by the clock {1e6 * run.median(profile, case, HOP):,.3g}"
            report.add(f"hop, {profile}, {case}", samples, "us", note=note)
    if run.zeros:
        report.add("an encryption of zero, made ahead", [1e6 * each for each in run.zeros], "us")
    for (profile, number), seconds in run.journeys.items():
        name = f"enc_keys over four links, {profile}, {keys(number)}"
        report.add(name, [1e3 * each for each in seconds], "ms")


def keys(number: int) -> str:
    """`1 key`, `2 keys`."""
    return f"{number} key{'s' if number > 1 else ''}"


def _ratio(report: Report, run: Run, name: str, profile: str, case: Case, least: float) -> None:
    """How much less processor time a key's hop takes than the paper's, turn by turn.

    By the clock the paper's long hop would lose more to other programs on the machine than a short one.
    """
    other = run.found.get((profile, case), Found())
    if HOP not in other.seconds:
        return
    paper = run.found[PAPER, case]
    clock = _turn_by_turn(paper.seconds[HOP], other.seconds[HOP])
    note = f"by the clock {statistics.median(clock):,.0f}"
    ratios = _turn_by_turn(paper.processor[HOP], other.processor[HOP])
    report.add(name, ratios, "x", least=least, note=note)


def _turn_by_turn(paper: Sequence[float], other: Sequence[float]) -> list[float]:
    """The paper's only sample of each turn over the median of the other's samples in that turn."""
    each = len(other) // len(paper)
    return [sample / statistics.median(other[at * each : (at + 1) * each]) for at, sample in enumerate(paper)]


def data(run: Run) -> dict[str, object]:
    """What the pictures were drawn from; times in seconds."""
    return {
        "cases": {
            f"{name}, {case}": {
                "payload bytes": found.payload,
                "pad bytes": found.pad,
                "seconds": {step: statistics.median(each) for step, each in found.seconds.items()},
                "processor seconds": {
                    step: statistics.median(each) for step, each in found.processor.items()
                },
                "samples": {step: len(each) for step, each in found.seconds.items()},
            }
            for (name, case), found in run.found.items()
        },
        "noise": {
            name: [[point.hops, point.largest, point.limit] for point in points]
            for name, points in run.noise.items()
        },
        "journeys": {f"{name}, {keys(number)}": seconds for (name, number), seconds in run.journeys.items()},
        "unavailable": run.missing,
        "not delivered": {f"{name}, {keys(number)}": why for (name, number), why in run.refused.items()},
    }
