"""What the fabric does to a packet, told the time: nothing overtakes, nothing passes that may not."""

from __future__ import annotations

import random

import pytest

from keyhaul.testbed.chaos.fabric import QUEUE, Paths
from keyhaul.testbed.chaos.wiring import Wire

WAY, BACK = ("a", "b"), ("b", "a")


def paths(wire: Wire, seed: int = 1) -> Paths:
    made = Paths(random.Random(seed))
    made.set("a", "b", wire)
    return made


@pytest.mark.parametrize("way", [WAY, BACK])
def test_a_plain_wire_is_immediate_and_a_long_one_takes_its_time(way: tuple[str, str]) -> None:
    assert paths(Wire()).due(way, 1500, 5.0) == 5.0
    assert paths(Wire(delay=0.02)).due(way, 1500, 5.0) == pytest.approx(5.02)


@pytest.mark.parametrize("wire", [Wire(up=False), Wire(loss=1.0)])
def test_a_cut_or_hopeless_wire_carries_nothing(wire: Wire) -> None:
    made = paths(wire)
    assert [made.due(WAY, 100, time / 10) for time in range(50)] == [None] * 50
    made.set("b", "a", Wire())
    assert made.due(WAY, 100, 9.0) == 9.0


def test_who_is_no_neighbour_is_not_reached() -> None:
    made = paths(Wire())
    assert made.due(("a", "c"), 100, 0.0) is None
    assert made.due(("a", "a"), 100, 0.0) is None


def test_loss_is_a_share_of_packets() -> None:
    made = paths(Wire(loss=0.2))
    lost = sum(made.due(WAY, 100, 0.0) is None for _ in range(10_000))
    assert 1_800 < lost < 2_200


def test_jitter_stays_in_its_bounds_and_nothing_overtakes() -> None:
    made = paths(Wire(delay=0.02, jitter=0.01))
    last = 0.0
    for number in range(1_000):
        now = number / 1_000
        arrival = made.due(WAY, 100, now)
        assert arrival is not None
        assert arrival >= last
        assert now + 0.01 <= arrival <= now + 0.03 + 1e-9
        last = arrival


def test_a_slow_wire_sends_one_after_another_and_drops_what_would_wait_too_long() -> None:
    """12 kbit packets at 120 kbit/s take 0.1 s each; 0.2 s may wait."""
    made = paths(Wire(rate=120_000))
    arrivals = [made.due(WAY, 1500, 0.0) for _ in range(6)]
    assert [each for each in arrivals if each is not None] == pytest.approx([0.1, 0.2, 0.3])
    assert arrivals[3:] == [None, None, None]
    assert made.due(BACK, 1500, 0.0) == pytest.approx(0.1), "each direction has its own"
    assert made.due(WAY, 1500, 0.3 - QUEUE + 1e-6) == pytest.approx(0.4)
