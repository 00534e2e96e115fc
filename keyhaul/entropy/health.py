"""The continuous health tests of NIST SP 800-90B 4.4 on raw samples of one byte; pure.

They notice that a source has broken down: stuck, strongly biased, repeating, or giving text. They do not
measure entropy: a counter, or a pseudo-random generator with a known seed, passes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

ALPHA_EXPONENT = 30
"""False alarms happen with probability 2^-30 per test; 2^-20, the least strict choice of 4.4, is too often
at megabytes a second."""

WINDOW = 512
"""Samples in one window of the adaptive proportion test, for samples that are not binary (4.4.2)."""

STARTUP = 1024
"""Samples that must pass both tests before the first is used (4.3)."""

_BLOCK = 32  # bytes; shorter blocks are not compared: they could be equal by chance


@dataclass(frozen=True, slots=True)
class Finding:
    """Which test failed, `at` which sample, counted from 1. Holds no sample."""

    test: str
    count: int
    cutoff: int
    at: int

    def __str__(self) -> str:
        return f"{self.test} test: {self.count} reached the cut-off {self.cutoff} at sample {self.at}"


def repetition_cutoff(min_entropy: float, exponent: int = ALPHA_EXPONENT) -> int:
    """Equal samples in a row that fail the test, for `min_entropy` bits a sample and alpha 2^-exponent."""
    return 1 + math.ceil(exponent / min_entropy)


def proportion_cutoff(min_entropy: float, window: int = WINDOW, exponent: int = ALPHA_EXPONENT) -> int:
    """Occurrences of a window's first sample that fail the test: 1 + critbinom(W, 2^-H, 1 - alpha).

    The upper tail is summed from its small end, where nothing is lost to rounding. Where even a constant
    source is likelier than alpha (very small `min_entropy`), the answer is past the window, never reached.
    """
    chance = 2.0**-min_entropy
    hit, miss = math.log(chance), math.log1p(-chance)
    tail, count = 0.0, window
    while count >= 0:
        ways = math.lgamma(window + 1) - math.lgamma(count + 1) - math.lgamma(window - count + 1)
        tail += math.exp(ways + count * hit + (window - count) * miss)
        if tail > 2.0**-exponent:
            break
        count -= 1
    return 1 + count


class Health:
    """The tests of one source, which claims `min_entropy` bits per sample (more than 0, at most 8).

    Beside the two tests of 4.4, a block of at least 32 samples that equals the one before fails: a cache
    between us and the source gives perfectly random bytes, again and again.
    """

    def __init__(self, min_entropy: float) -> None:
        self.repetition = repetition_cutoff(min_entropy)
        self.proportion = proportion_cutoff(min_entropy)
        self.seen = 0  # samples that passed
        self._tail = b""  # the last samples, as many as a run may have
        self._window = b""  # the samples of the window under way
        self._digest = b""  # of the last block

    @property
    def started(self) -> bool:
        """Whether the start-up test is over (4.3)."""
        return self.seen >= STARTUP

    def check(self, samples: bytes) -> Finding | None:
        """Test the next samples, in the order in which the source gave them. None: they may be used."""
        found = (
            self._repetition_count(samples) or self._adaptive_proportion(samples) or self._same_block(samples)
        )
        self.seen += len(samples)
        return found

    def _repetition_count(self, samples: bytes) -> Finding | None:
        """4.4.1. A run of n equal samples is n - 1 zeros in the XOR of neighbours."""
        joined = self._tail + samples
        value = int.from_bytes(joined)
        neighbours = (value ^ (value >> 8)).to_bytes(len(joined))[1:]
        place = neighbours.find(bytes(self.repetition - 1))
        if place >= 0:
            at = self.seen - len(self._tail) + place + self.repetition
            return Finding("repetition count", self.repetition, self.repetition, at)
        self._tail = joined[-(self.repetition - 1) :]
        return None

    def _adaptive_proportion(self, samples: bytes) -> Finding | None:
        """4.4.2. The last window is counted although it is not complete: its samples will be used."""
        joined = self._window + samples
        start = self.seen - len(self._window)
        place = 0
        while place < len(joined):
            window = joined[place : place + WINDOW]
            if window.count(window[0]) >= self.proportion:
                at = start + place + _nth(window, self.proportion)
                return Finding("adaptive proportion", self.proportion, self.proportion, at)
            place += WINDOW
        self._window = joined[len(joined) - len(joined) % WINDOW :]
        return None

    def _same_block(self, samples: bytes) -> Finding | None:
        if len(samples) < _BLOCK:
            return None
        before, self._digest = self._digest, hashlib.sha256(samples).digest()
        return Finding("same block", 2, 2, self.seen + len(samples)) if before == self._digest else None


def _nth(window: bytes, number: int) -> int:
    """Where the first sample of a window occurs for the `number`th time, counted from 1."""
    place = -1
    for _ in range(number):
        place = window.index(window[0], place + 1)
    return place + 1
