"""What `keyhaul bench paper-b` computes from what it measures: sizes, noise, ratios, goals, its page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair, Payload
from keyhaul.schemes.bfv import COEFFICIENTS, DENSE
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.lean import Lean
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from keyhaul.testbed.benchmarks import paper_b, paper_b_noise, paper_b_report, paper_b_ways
from keyhaul.testbed.benchmarks.paper_b_noise import Point
from keyhaul.testbed.benchmarks.paper_b_pairs import fresh_pairs
from keyhaul.testbed.benchmarks.paper_b_results import BATCH, ONE, Run
from keyhaul.testbed.benchmarks.paper_b_ways import (
    DENSE_,
    EPOCH,
    FINAL,
    FRESH,
    HOP,
    INITIAL,
    LEAN,
    MASKED,
    MODULO,
    PAPER,
    PROFILES,
    STEPS,
    XOR,
    Agreed,
    Case,
    Found,
    ModuloWay,
    SchemeWay,
)
from keyhaul.testbed.benchmarks.report import Report
from tests.bfv import Bare

SealWhole = pytest.importorskip("keyhaul.schemes.seal_whole").SealWhole
MARKS = (0, 1, 50)


# ---------------------------------------------------------------------- one message


@pytest.mark.parametrize("case", [Case(1, 128), Case(1, 256), Case(128, 256)], ids=str)
def test_every_step_of_a_scheme_is_measured(case: Case) -> None:
    found = Found()
    SchemeWay(Masked(), Agreed()).measure(case, found, 3)
    assert list(found.seconds) == list(STEPS)
    assert all(len(each) == 3 and min(each) > 0 for each in found.seconds.values())
    keys = case.number * case.size // 8
    assert found.pad == keys + 16
    assert set(found.payload) == {16 + keys + 16}, "pair id, keys, tag"


def test_a_fresh_pair_secret_a_message_costs_a_signature_and_an_encapsulation() -> None:
    found = Found()
    with fresh_pairs() as pairs:
        one, other = pairs.outgoing(), pairs.outgoing()
        assert one.id != other.id
        assert pairs.incoming(one.id + one.statement).secret.same_as(one.secret)
        SchemeWay(Masked(), pairs).measure(ONE, found, 2)
    (size,) = set(found.payload)
    assert 3_309 + 1_088 < size - 64 < 3_309 + 1_088 + 200


def test_the_published_hop_in_dense_form_has_its_size() -> None:
    found = Found()
    ModuloWay().measure(ONE, found, 2)
    assert found.payload == [256 * 17 // 8 + 2_176] == [2_720]
    ModuloWay().measure(BATCH, found, 2)
    assert found.payload[-1] == 32 * 2 * 2_176
    assert list(found.seconds) == [HOP]


class _Loses(Trusted):
    """Flips a bit of what arrives."""

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        return [
            Secret(bytes([key.reveal()[0] ^ 1]) + key.reveal()[1:])
            for key in super().deliver(payload, context, pair)
        ]


def test_keys_that_do_not_arrive_end_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match="did not arrive"):
        SchemeWay(_Loses(), Agreed()).measure(ONE, Found(), 1)
    with pytest.raises(RuntimeError):
        paper_b_ways.check([], [Secret(b"k")])


def test_the_way_of_lean_keeps_its_size() -> None:
    bfv, found = SealWhole(), Found()
    ring = KeyRing(bfv)
    ring.activate(ring.prepare(0.0))
    SchemeWay(Lean(bfv, lambda _: ring.announced(0.0), ring.own), Agreed()).measure(ONE, found, 1)
    assert set(found.payload) == {16 + 4_352 + 16 + 21}


# ---------------------------------------------------------------------- noise


def test_the_secret_key_is_read_right() -> None:
    bare, bfv = Bare(DENSE), SealWhole()
    found = paper_b_noise.coefficients(bfv, bare.secret)
    assert found.tolist() == bare.secret_coefficients().tolist()
    assert set(np.unique(found)) == {-1, 0, 1}


def test_noise_of_plaintext_additions_grows_by_at_most_a_unit_a_hop() -> None:
    for walk in (paper_b_noise.lean, paper_b_noise.modulo):
        points = walk(MARKS, SealWhole())
        assert [point.hops for point in points] == list(MARKS)
        assert 100 < points[0].largest < 1_500, "a fresh ciphertext: 116 in deviation"
        assert abs(points[-1].largest - points[0].largest) <= 50
        assert all(point.limit == DENSE.q / 4 for point in points)


def test_noise_of_quarters_stays_but_for_the_rounding_of_one_half() -> None:
    points = paper_b_noise.quartered(MARKS, SealWhole())
    eighth = DENSE.q / 8
    assert all(eighth - 1_500 < point.largest < eighth + 1_500 for point in points)
    assert max(point.largest for point in points) - min(point.largest for point in points) <= 2


def test_a_lost_bit_shows_as_noise_beyond_the_limit() -> None:
    first = np.zeros(COEFFICIENTS, np.uint32)
    key = np.zeros(COEFFICIENTS, np.int64)
    right = paper_b_noise._point(1, first, key, bytes(128))
    wrong = paper_b_noise._point(1, first, key, b"\x01" + bytes(127))
    assert right.largest == 0
    assert wrong.largest > wrong.limit
    assert wrong.bits_left < 0 < right.bits_left


# ---------------------------------------------------------------------- ratios and goals


def made(hop: float, payload: int, case: Case = ONE, pad: int = 48) -> Found:
    found = Found(payload=[payload], pad=pad * case.number)
    for step in STEPS:
        found.note(step, hop, hop)
    return found


@pytest.fixture
def run() -> Run:
    """A run with figures made up, in seconds and bytes."""
    run = Run()
    times = {
        FRESH: 200e-6,
        XOR: 3e-6,
        PAPER: 20e-3,
        LEAN: 500e-6,
        DENSE_: 8e-6,
        MODULO: 50e-6,
        MASKED: 4e-6,
        EPOCH: 4e-6,
    }
    sizes = {
        FRESH: 8_600,
        XOR: 64,
        PAPER: 347_400,
        LEAN: 4_405,
        DENSE_: 2_293,
        MODULO: 2_720,
        MASKED: 4_600,
        EPOCH: 64,
    }
    for name in PROFILES:
        for case in (ONE, BATCH):
            run.found[name, case] = made(
                times[name] * (case.number if name == PAPER else 1), sizes[name], case
            )
    paper = run.found[PAPER, ONE]
    paper.details = {step: {"encrypt": [1e-3], "gzip": [2e-3]} for step in (INITIAL, HOP, FINAL)}
    run.noise = {
        PAPER: [Point(0, 1_000, 2.0**100), Point(10, 3_000, 2.0**100)],
        DENSE_: [Point(0, 15_000, 30_208)],
    }
    run.journeys = {(XOR, 1): [0.02, 0.03], (PAPER, 1): [0.2], (XOR, 128): [0.05]}
    run.refused = {(PAPER, 128): "the body is too large"}
    return run


def filled(run: Run) -> Report:
    report = Report("paper-b", "keyhaul bench paper-b")
    paper_b_report.fill(report, run)
    return report


def test_ratios_are_those_of_the_run(run: Run) -> None:
    figures = {figure.name: figure for figure in filled(run).figures}
    assert figures["hop in processor time, paper / lean"].value == pytest.approx(40)
    assert figures["hop in processor time, paper / dense"].value == pytest.approx(2_500)
    assert figures["hop in processor time, a key of 128, paper / dense"].value == pytest.approx(2_500 * 128)
    assert len(figures["hop in processor time, paper / dense"].note) > 0
    assert figures["payload, paper / masked, epoch: one key, signed once an epoch"].value == pytest.approx(
        347_400 / 64
    )
    assert figures["hop, lean, 128 keys of 256 bits"].value == pytest.approx(500 / 128)
    assert figures["enc_keys over four links, XOR, 1 key"].value == pytest.approx(25)
    assert all(figure.met for figure in figures.values() if figure.bound)
    assert sum(bool(figure.bound) for figure in figures.values()) >= 13


@pytest.mark.parametrize(
    ("profile", "seconds", "size", "missed"),
    [
        (LEAN, 2e-3, 4_405, "hop in processor time, paper / lean"),
        (DENSE_, 8e-6, 5_000, "payload, paper / dense: one key"),
        (MODULO, 90e-6, 2_720, "hop in processor time, paper / dense mod q"),
        (MASKED, 4e-6, 5_200, "payload, paper / masked: a lone first key with its signature"),
        (PAPER, 20e-3, 380_000, "paper: payload, off the published 347 kB"),
    ],
)
def test_a_goal_that_is_missed_says_so(
    run: Run, profile: str, seconds: float, size: int, missed: str
) -> None:
    run.found[profile, ONE] = made(seconds, size)
    run.found[PAPER, ONE].details = {step: {} for step in (INITIAL, HOP, FINAL)}
    verdicts = {figure.name: figure.met for figure in filled(run).figures}
    assert verdicts[missed] is False


def test_per_key_figures_divide_by_the_number_of_keys(run: Run) -> None:
    run.found[XOR, BATCH] = made(128e-6, 4_128, BATCH)
    assert run.median(XOR, BATCH, HOP) == pytest.approx(1e-6)
    assert run.payload(XOR, BATCH) == pytest.approx(4_128 / 128)
    assert run.pad_bits(XOR, BATCH) == pytest.approx(8 * 48)


def test_the_page_has_every_section_and_what_was_not_delivered(run: Run) -> None:
    html = filled(run).page().html()
    for section in ("Figure 8", "Figure 9", "Figure 10", "Noise", "Link bits", "four links of tecnalia"):
        assert section in html
    assert html.count("<svg") >= 7
    assert "the body is too large" in html
    assert "✗" not in html


def test_without_openfhe_nothing_is_compared_and_the_reason_is_there(run: Run) -> None:
    run.found = {key: value for key, value in run.found.items() if key[0] != PAPER}
    run.missing = {PAPER: "no interpreter here loads OpenFHE"}
    run.noise.pop(PAPER)
    report = filled(run)
    assert not [figure for figure in report.figures if figure.bound]
    assert {f"hop, {name}, {ONE}" for name in PROFILES if name != PAPER} <= {
        each.name for each in report.figures
    }
    html = report.page().html()
    assert "Profile paper is unavailable here: no interpreter here loads OpenFHE" in html
    assert "Figure 9" in html


def test_the_data_can_be_written_as_json(run: Run) -> None:
    document = json.loads(json.dumps(filled(run).document()))
    assert document["data"]["cases"]["dense, 1 key of 256 bits"]["payload bytes"] == [2_293]
    assert document["data"]["noise"]["paper"][1] == [10, 3_000, 2.0**100]
    assert document["data"]["not delivered"] == {"paper, 128 keys": "the body is too large"}


# ---------------------------------------------------------------------- the run


def test_a_run_that_is_stopped_measures_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    stop, run = threading.Event(), Run()
    stop.set()

    @contextmanager
    def no_pairs() -> Iterator[None]:
        yield None

    monkeypatch.setattr(paper_b, "ways", lambda pairs: ({}, {PAPER: "not here", LEAN: "not here"}))
    monkeypatch.setattr(paper_b, "fresh_pairs", no_pairs)
    paper_b._alone(run, paper_b.QUICK, lambda words: None, stop)
    assert not run.found
    assert not run.noise


def test_what_cannot_run_here_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYHAUL_OPENFHE_PYTHON", os.devnull)
    running, missing = paper_b_ways.ways(Agreed())
    assert set(running) == set(PROFILES) - {PAPER}
    assert "no interpreter here loads OpenFHE" in missing[PAPER]
