"""The statistics of paper A's tables and figures, from latencies in seconds; pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from keyhaul.testbed.benchmarks.report import percentile

Answers = Mapping[str, Sequence[Any]]
"""Of one task: `begun`, `took` and `status` of each request."""


def answered(found: Answers) -> list[float]:
    """The latencies of the requests that got keys, in their order."""
    return [took for took, status in zip(found["took"], found["status"], strict=True) if status == 200]


def rates(latencies: Sequence[float], bits: int = 256) -> list[float]:
    """Bits/s of each request."""
    return [bits / latency for latency in latencies]


@dataclass(frozen=True, slots=True)
class DelayRow:
    """A row of Table IV, in ms; None where there are too few samples."""

    jitter_median: float | None
    jitter_95: float | None
    rolling_95: float | None
    latency_median: float | None


def delay_row(runs: Sequence[Sequence[float]], window: int) -> DelayRow:
    """Table IV from the latencies of several uninterrupted runs; jitter is the step from one to the next."""
    steps = [abs(b - a) * 1e3 for run in runs for a, b in pairwise(run)]
    rolling = [spread * 1e3 for run in runs for _, spread in moving(run, window)]
    everything = [latency * 1e3 for run in runs for latency in run]
    return DelayRow(
        statistics.median(steps) if steps else None,
        percentile(sorted(steps), 95) if steps else None,
        percentile(sorted(rolling), 95) if rolling else None,
        statistics.median(everything) if everything else None,
    )


def moving(values: Sequence[float], window: int) -> list[tuple[float, float]]:
    """Mean and standard deviation of the sample over a sliding window, for each whole window."""
    slices = [values[at : at + window] for at in range(len(values) - window + 1)]
    return [(statistics.fmean(each), statistics.stdev(each) if window > 1 else 0.0) for each in slices]


METRICS = ("keys a request", "concurrency", "error rate", "mean key rate", "95 % key rate", "median delay")


def metrics(number: int, concurrency: int, found: Answers, bits: int = 256) -> tuple[float, ...]:
    """One row behind the correlations of Figure 8, in the order of METRICS; rates in bits/s, delay in s."""
    good = answered(found)
    each = sorted(rates(good, bits * number))
    failed = 1 - len(good) / len(found["status"])
    if not good:
        return (number, concurrency, failed, math.nan, math.nan, math.nan)
    return (
        number,
        concurrency,
        failed,
        statistics.fmean(each),
        percentile(each, 95),
        statistics.median(good),
    )


def correlations(rows: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Pearson's r between all columns; None where a column does not vary."""
    columns = list(zip(*rows, strict=True))
    return [[_correlation(one, other) for other in columns] for one in columns]


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    both = [(a, b) for a, b in zip(one, other, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(both) < 3 or any(len({pair[side] for pair in both}) < 2 for side in (0, 1)):
        return None
    return statistics.correlation([a for a, _ in both], [b for _, b in both])
