"""The policy against fixed pools and none, on the same simulated hour: counts, the same on every machine."""

from __future__ import annotations

from functools import cache

import pytest

from keyhaul.testbed.benchmarks.pools import AT_ONCE, PATH, POLICIES, SUPPLIES, Outcome, World

QUARTER = 900.0  # seconds


@cache
def outcome(policy: str, supply: str) -> Outcome:
    return World(POLICIES[policy], SUPPLIES[supply], seed=1, end=QUARTER).run()


def requests(found: Outcome) -> int:
    return len(found.waits) + found.failures


def hits(policy: str, supply: str) -> float:
    found = outcome(policy, supply)
    return found.waits.count(AT_ONCE) / requests(found)


def test_all_policies_see_the_same_requests_and_the_same_seed_gives_the_same_counts() -> None:
    assert len({requests(outcome(policy, "ample supply")) for policy in POLICIES}) == 1
    again = World(POLICIES["adaptive"], SUPPLIES["scarce supply"], seed=1, end=QUARTER).run()
    assert again == outcome("adaptive", "scarce supply")


def test_with_ample_supply_it_waits_no_longer_than_large_pools_and_wastes_no_more_than_small_ones() -> None:
    adaptive, ample = outcome("adaptive", "ample supply"), "ample supply"
    assert outcome("on demand", ample).wait(0.5) == pytest.approx(PATH)
    assert adaptive.wait(0.5) == AT_ONCE
    assert 1 - hits("adaptive", ample) < (1 - hits("fixed 16", ample)) / 2
    assert hits("adaptive", ample) > 0.97
    assert adaptive.wasted < outcome("fixed 128", ample).wasted / 2
    assert adaptive.messages < outcome("fixed 16", ample).messages / 2
    assert adaptive.wasted < outcome("fixed 1024", ample).wasted / 10


def test_with_scarce_supply_it_fails_nobody_and_leaves_others_what_they_had() -> None:
    scarce = "scarce supply"
    adaptive, none, large = (outcome(name, scarce) for name in ("adaptive", "on demand", "fixed 1024"))
    assert (adaptive.failures, none.failures) == (0, 0)
    assert large.failures > requests(large) / 10
    assert adaptive.held_up < outcome("fixed 16", scarce).held_up
    assert outcome("fixed 1024", scarce).held_up > 10 * adaptive.held_up
    assert hits("adaptive", scarce) > 0.5
    assert outcome("fixed 128", scarce).failures > 0
