"""The parts of `keyhaul bench paper-b` that need OpenFHE or a network."""

from __future__ import annotations

import asyncio

import pytest

from keyhaul.testbed.benchmarks import paper_b_network, paper_b_noise
from keyhaul.testbed.benchmarks.paper_b_results import Run
from keyhaul.testbed.benchmarks.paper_b_ways import FINAL, HOP, INITIAL, PAPER, STEPS, Case, Found, PaperWay
from tests.openfhe import needs_openfhe, worker

pytestmark = pytest.mark.e2e


def test_the_papers_configuration_is_measured_as_published() -> None:
    with worker("paper") as fhe:
        way, one, many = PaperWay(fhe), Found(), Found()
        way.measure(Case(1, 256), one, 2)
        way.measure(Case(3, 128), many, 1)
    assert set(one.seconds) == set(STEPS)
    assert all(len(each) == 2 for each in one.seconds.values())
    assert one.pad == 32
    assert all(abs(size - 347_360) < 1_700 for size in one.payload)
    assert set(many.seconds) == {INITIAL, HOP, FINAL}
    assert many.pad == 48
    assert abs(many.payload[0] - 3 * 347_360) < 5_100
    assert len(many.details[HOP]["gzip"]) == 3
    for step in STEPS:
        assert one.processor[step][0] > 0


def test_noise_of_the_published_way_grows_and_is_far_from_its_limit() -> None:
    with worker("paper") as fhe:
        points = paper_b_noise.published((0, 8), fhe)
    assert [point.hops for point in points] == [0, 8]
    assert points[0].largest < points[1].largest < points[0].largest * 16
    assert points[1].bits_left > 80


def test_every_profile_delivers_keys_over_the_four_links() -> None:
    needs_openfhe()
    pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")
    run = Run()
    run.found[PAPER, Case(3, 256)] = Found(payload=[3 << 23])
    asyncio.run(paper_b_network.measure(run, {1: 1, 3: 1}, lambda words: None))
    everything = {(profile, number) for profile in paper_b_network.SCHEMES for number in (1, 3)}
    assert set(run.journeys) == everything - {(PAPER, 3)}
    assert all(len(each) == 1 and each[0] > 0 for each in run.journeys.values())
    assert set(run.refused) == {(PAPER, 3)}
    assert "25,165,824 bytes" in run.refused[PAPER, 3]
