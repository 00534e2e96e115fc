"""The SP 800-90B tests notice broken sources within the samples the standard promises, and nothing else."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import pytest

from keyhaul.entropy.health import (
    STARTUP,
    WINDOW,
    Finding,
    Health,
    proportion_cutoff,
    repetition_cutoff,
)


def first_finding(samples: bytes, min_entropy: float = 7.0, chunk: int = 100) -> Finding | None:
    """What the tests say to these samples, fed in pieces that do not fit their windows."""
    health = Health(min_entropy)
    for place in range(0, len(samples), chunk):
        if found := health.check(samples[place : place + chunk]):
            return found
    return None


@pytest.mark.parametrize(
    ("min_entropy", "exponent", "cutoff"),
    [(7, 30, 6), (7.9, 30, 5), (8, 30, 5), (0.5, 20, 41), (1, 20, 21), (1, 30, 31), (0.1, 30, 301)],
)
def test_repetition_cutoffs_follow_4_4_1(min_entropy: float, exponent: int, cutoff: int) -> None:
    assert repetition_cutoff(min_entropy, exponent) == cutoff


@pytest.mark.parametrize(
    ("min_entropy", "window", "exponent", "cutoff"),
    [
        (7, 512, 30, 22),
        (7.9, 512, 30, 17),
        (0.5, 512, 20, 410),
        (1, 512, 20, 311),
        (1, 1024, 20, 589),
        (0.01, 512, 30, 513),
    ],
)
def test_proportion_cutoffs_follow_4_4_2(min_entropy: float, window: int, exponent: int, cutoff: int) -> None:
    assert proportion_cutoff(min_entropy, window, exponent) == cutoff


@pytest.mark.parametrize("min_entropy", [0.5, 1, 3.3, 7, 8])
def test_proportion_cutoff_is_the_least_that_keeps_alpha(min_entropy: float) -> None:
    """Against the binomial distribution itself, summed without logarithms."""
    chance = 2.0**-min_entropy
    row = [1.0]
    for _ in range(WINDOW):
        row = [a * (1 - chance) + b * chance for a, b in zip([*row, 0.0], [0.0, *row], strict=True)]
    cutoff = proportion_cutoff(min_entropy)
    assert sum(row[cutoff:]) <= 2.0**-30 < sum(row[cutoff - 1 :])


def test_no_false_alarm_in_twenty_megabytes() -> None:
    """At 7 bits a sample; one who claims 8 gets a false alarm in 2^32 bytes, which is alpha and no more."""
    health = Health(7.0)
    for _ in range(20_000_000 // 4096 + 1):
        assert health.check(os.urandom(4096)) is None


@pytest.mark.parametrize("value", [0, 1, 170, 255])
@pytest.mark.parametrize("good", [0, 1, 99, 100, 101, 513, 5000])
def test_a_source_that_gets_stuck_is_noticed_at_the_sixth_equal_sample(value: int, good: int) -> None:
    before = random.Random(good).randbytes(good)
    if before.endswith(bytes([value])):
        before = before[:-1] + bytes([value ^ 1])
    found = first_finding(before + bytes([value]) * 200)
    assert found == Finding("repetition count", 6, 6, good + 6)


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 512, 4096])
def test_a_run_across_chunks_is_one_run(chunk: int) -> None:
    samples = bytes([1, 2, 3, 9, 9, 9, 9, 9, 9, 4])
    found = first_finding(samples, chunk=chunk)
    assert found is not None
    assert found.at == 9
    assert first_finding(bytes([1, 2, 3, 9, 9, 9, 9, 9, 4, 9]), chunk=chunk) is None


def biased() -> Iterator[int]:
    """One sample in eight is the same: 3 bits of min-entropy where 7 are claimed."""
    rng = random.Random(8)
    while True:
        yield 0 if rng.random() < 1 / 8 else rng.randrange(256)


def hex_text() -> Iterator[int]:
    rng = random.Random(16)
    while True:
        yield rng.choice(b"0123456789abcdef")


@pytest.mark.parametrize(
    ("samples", "most"),
    [
        (itertools.cycle(b"\x55\xaa"), WINDOW),
        (itertools.cycle(range(16)), WINDOW),
        (hex_text(), STARTUP),
        # the window's first sample is the frequent one in one window of eight
        (biased(), 60 * WINDOW),
    ],
    ids=["period-2", "period-16", "hex-text", "biased"],
)
def test_what_repeats_without_being_stuck_is_noticed_by_its_share(samples: Iterator[int], most: int) -> None:
    found = first_finding(bytes(itertools.islice(samples, 4 * most)))
    assert found is not None
    assert found.test == "adaptive proportion"
    assert found.at <= most


def test_the_share_is_counted_before_a_window_is_complete() -> None:
    health = Health(7.0)
    found = health.check(bytes(itertools.islice(itertools.cycle(b"\x01\x02"), 44)))
    assert found == Finding("adaptive proportion", 22, 22, 43)


def test_the_same_answer_twice_is_noticed() -> None:
    health, block = Health(7.0), os.urandom(1024)
    assert health.check(block) is None
    assert health.check(block) == Finding("same block", 2, 2, 2048)


def test_short_blocks_may_be_equal_by_chance() -> None:
    health = Health(7.0)
    assert health.check(b"\x07") is None
    assert health.check(b"\x07") is None


def test_a_counter_passes_for_health_is_not_entropy() -> None:
    """What the documentation warns of; if this fails, it has to be rewritten."""
    assert first_finding(bytes(range(256)) * 100) is None


def test_a_source_that_claims_little_may_repeat_more() -> None:
    assert first_finding(bytes(itertools.islice(hex_text(), 50_000)), min_entropy=3.0) is None


def test_start_up_needs_1024_samples() -> None:
    health = Health(7.0)
    health.check(os.urandom(STARTUP - 1))
    assert not health.started
    health.check(os.urandom(1))
    assert health.started


def test_findings_hold_no_sample() -> None:
    found = first_finding(b"\xc3" * 100)
    assert "195" not in str(found)
    assert "c3" not in repr(found).lower()
