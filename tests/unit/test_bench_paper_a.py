"""The statistics behind paper A's tables, the journal of a long run, and the report on made-up units."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import socket
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from keyhaul.errors import ConfigError
from keyhaul.testbed.benchmarks import paper_a, paper_a_report, published, supply
from keyhaul.testbed.benchmarks.journal import Journal
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.statistics_a import (
    answered,
    correlations,
    delay_row,
    metrics,
    moving,
    rates,
)
from keyhaul.testbed.benchmarks.traffic import Traffic
from keyhaul.testbed.presets import PRESETS
from keyhaul.testbed.topology import named

OURS, PAPER = paper_a_report.OURS, paper_a_report.PAPER


# ---------------------------------------------------------------------- statistics


def test_only_answered_requests_have_a_latency() -> None:
    found = {"begun": [0, 1, 2], "took": [0.1, 0.2, 0.3], "status": [200, 503, 200]}
    assert answered(found) == [0.1, 0.3]
    assert rates([0.1, 0.5]) == pytest.approx([2560, 512])


def test_jitter_is_taken_inside_runs_only() -> None:
    row = delay_row([[0.010, 0.012, 0.011], [1.0, 1.004]], window=2)
    assert row.jitter_median == pytest.approx(2)
    assert row.jitter_95 == pytest.approx(4), "the step from one run to the next is no jitter"
    assert row.latency_median == pytest.approx(12)
    assert row.rolling_95 == pytest.approx(statistics.stdev([1000, 1004]))


def test_too_few_samples_give_no_figure() -> None:
    assert delay_row([[], [0.5]], window=4) == delay_row([[0.5]], window=4)
    assert delay_row([[0.5]], window=4).jitter_95 is None
    assert delay_row([], window=4).latency_median is None


def test_moving_windows_are_whole() -> None:
    assert moving([1, 3, 5, 7], 2) == [(2, math.sqrt(2)), (4, math.sqrt(2)), (6, math.sqrt(2))]
    assert moving([1, 2], 3) == []


def test_the_table_of_the_paper_comes_out_of_its_own_presets() -> None:
    """What `delay_row` finds in delays drawn from a preset is what the paper's Table IV says of that node."""
    rng = random.Random(1)
    for node, (_, jitter_95, _, median) in enumerate(published.DELAY):
        delay = PRESETS[f"kmstn{node + 1}"].delay()
        found = delay_row([[delay.draw(rng) for _ in range(4000)]], published.WINDOW)
        assert found.latency_median == pytest.approx(median, rel=0.06)
        assert found.jitter_95 == pytest.approx(jitter_95, rel=0.12)


def test_correlations_find_what_depends_on_what() -> None:
    rows = [(x, -2 * x, 7.0) for x in (1.0, 2.0, 5.0)]
    table = correlations(rows)
    assert table[0][0] == pytest.approx(1)
    assert table[0][1] == pytest.approx(-1)
    assert table[0][2] is None, "a constant correlates with nothing"
    assert table[1][0] == table[0][1]


def test_metrics_of_a_run_without_any_key_have_no_rate() -> None:
    found = {"begun": [0.0, 0.0], "took": [1.0, 1.0], "status": [503, 503]}
    number, concurrency, failed, mean, *_ = metrics(4, 2, found)
    assert (number, concurrency, failed) == (4, 2, 1.0)
    assert math.isnan(mean)
    good = {"begun": [0.0, 0.0], "took": [1.0, 2.0], "status": [200, 200]}
    assert metrics(2, 2, good) == (2, 2, 0.0, 384.0, 512.0, 1.5)


# ---------------------------------------------------------------------- published values


def test_published_tables_have_the_shape_of_the_paper() -> None:
    for table in (published.KEY_RATE, published.KEY_RATE_DEVIATION):
        assert [len(row) for row in table] == [8] * 8
        assert all(
            (value is None) == (at == place)
            for at, row in enumerate(table)
            for place, value in enumerate(row)
        )
    assert len(published.DELAY) == 8
    means = [statistics.fmean(value for value in row if value) for row in published.KEY_RATE]
    for node, mean in enumerate(means):  # the paper's tables agree with each other, the stray 509.5 apart
        assert mean == pytest.approx(256 / published.DELAY[node][3] * 1e3, rel=0.13)


# ---------------------------------------------------------------------- journal


def test_a_journal_gives_back_what_was_noted(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    first = Journal(file, {"run": 1})
    first.note("a", {"took": [1.5]})
    again = Journal(file, {"run": 1})
    assert list(again) == ["a"]
    assert again["a"] == {"took": [1.5]}
    again.note("b", 2)
    assert dict(Journal(file, {"run": 1})) == {"a": {"took": [1.5]}, "b": 2}
    again.close()
    assert not file.exists()


@pytest.mark.parametrize("cut", range(1, 50, 3))
def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "run.jsonl"
    journal = Journal(file, {"run": 1})
    journal.note("a", 1)
    journal.note("b", list(range(10)))
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    again = Journal(file, {"run": 1})
    assert "a" in again
    again.note("c", 3)
    assert {"a": 1, "c": 3}.items() <= dict(Journal(file, {"run": 1})).items()


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    Journal(file, {"quick": True}).note("a", 1)
    with pytest.raises(ConfigError, match="not of this run"):
        Journal(file, {"quick": False})
    file.write_text("something else\n")
    with pytest.raises(ConfigError, match="not of this run"):
        Journal(file, {"quick": True})
    assert file.read_text() == "something else\n", "a file that is not ours is left alone"


# ---------------------------------------------------------------------- traffic


def test_the_kernel_counts_what_crosses_a_port() -> None:
    with (
        contextlib.ExitStack() as stack,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as near,
    ):
        far = stack.enter_context(listening.accept()[0])
        port = listening.getsockname()[1]
        traffic = Traffic([port])
        before = traffic.total()
        near.sendall(bytes(40_000))
        left = 40_000
        while left:
            left -= len(far.recv(left))
        far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a running timer is no other connection
        assert {traffic.total() - before for _ in range(300)} == {40_000}
        other = Traffic([near.getsockname()[1]])
        assert other.total() >= 40_000, "the other end is a connection of its own"
        assert Traffic([]).total() == 0
    assert traffic.total() - before >= 40_000, "what has ended stays counted"


# ---------------------------------------------------------------------- the report


class MadeUp:
    """Units as the load generator would give them: `slow` times the delay in profile paper-a."""

    def __init__(self, slow: float = 100.0, failures: int = 0, different: int = 0) -> None:
        rng = random.Random(1)
        delays = {OURS: 0.001, PAPER: 0.001 * slow}
        supply = {
            "delivered": 96_000,
            "used": {"a--b": 100_000, "c--d": 98_000},
            "refused": 2,
            "narrowest": "c--d",
        }
        self.units: dict[str, Any] = {"otp: supply": supply}
        for profile, delay in delays.items():

            def answers(number: int, bad: int = 0, middle: float = delay) -> dict[str, Any]:
                took = [middle * rng.uniform(0.9, 1.1) for _ in range(number)]
                return {
                    "begun": [0.1 * at for at in range(number)],
                    "took": took,
                    "status": [503] * bad + [200] * (number - bad),
                }

            for near, far in itertools.permutations(range(1, 9), 2):
                self.units[f"{profile}: pair {near} {far}"] = answers(6)
            self.units[f"{profile}: burst 1"] = answers(100, failures)
            for number, concurrency in itertools.product((1, 4), (1, 10)):
                self.units[f"{profile}: grid {number} {concurrency} 0"] = answers(
                    concurrency, 0, delay * concurrency
                )
            both = [[delay * hops] for hops in range(1, 8)]
            self.units[f"{profile}: hops"] = {"enc": both, "whole": [*both[:-1], []], "different": 0}
            compared = {"same": 10, "different": different, "missing": 0}
            self.units[f"{profile}: compared"] = compared
            nodes = [node.name for node in named("galicia-basque").nodes]
            self.units[f"{profile}: cost"] = {
                "keys": 10, "compared": [compared], "seconds": 2.0, "idle": 0.1, "bytes": 70_000,
                "device_bits": 2560, "processor": dict.fromkeys(nodes, 0.1),
                "resident": dict.fromkeys(nodes, 2**26),
            }  # fmt: skip

    def report(self) -> Report:
        made = Report("paper-a", "keyhaul bench paper-a")
        paper_a_report.fill(made, self.units, named("galicia-basque"))
        return made


def figure(report: Report, name: str) -> Any:
    (found,) = [each for each in report.figures if each.name == name]
    return found


GOALS = {
    "key rate": "key rate, default / paper-a, the pair that gains least",
    "delay": "enc_keys delay between the ends, paper-a / default",
    "failures": "failed of 100 concurrent requests, default",
    "bits": "keys that differ at the far end, default",
}


def test_ratios_are_those_of_the_units() -> None:
    report = MadeUp(slow=100).report()
    assert figure(report, GOALS["key rate"]).value == pytest.approx(100, rel=0.15)
    assert figure(report, GOALS["delay"]).value == pytest.approx(100, rel=0.15)
    printed = figure(report, "enc_keys delay between the ends, published / default")
    assert printed.high == pytest.approx(published.DELAY[7][3], rel=0.15), "ours take a millisecond here"
    assert figure(report, "processor time a key and hop, default").value == pytest.approx(1e3 * 0.6 / 10 / 7)
    assert figure(report, "otp: key delivered, of what the narrowest link supplied").met is True
    assert figure(report, "bytes a key and hop, paper-a").value == pytest.approx(1000)


@pytest.mark.parametrize(
    ("made", "missed"),
    [
        (MadeUp(), set()),
        (MadeUp(slow=20), {"key rate", "delay"}),
        (MadeUp(failures=1), {"failures"}),
        (MadeUp(different=1), {"bits"}),
    ],
)
def test_a_goal_that_is_missed_is_said_to_be(made: MadeUp, missed: set[str]) -> None:
    report = made.report()
    assert {goal for goal, name in GOALS.items() if not figure(report, name).met} == missed


def test_the_page_follows_the_paper_and_parses() -> None:
    report = MadeUp(failures=3).report()
    root = Xml.fromstring(report.page().html())
    heads = [each.text or "" for each in root.iter("h2")]
    for words in (
        "Table III, Figure 4",
        "Table IV, Figure 5",
        "Figure 6",
        "Figure 7",
        "Figure 8",
        "left open",
    ):
        assert any(words in head for head in heads)
    titles = [each.get("aria-label") or "" for each in root.iter("{http://www.w3.org/2000/svg}svg")]
    assert "Table III, published" in titles
    assert sum(title.startswith("Figure 7") for title in titles) == 2
    cells = {each.text for each in root.iter("td")}
    assert "published" in cells
    assert "102.661" not in cells
    assert "103" in cells, "the paper's medians are in the table"
    assert json.loads(json.dumps(report.document()))["data"]["key rate, mean bits/s"][OURS][0][0] is None


def test_the_narrowest_link_of_the_paper_is_that_of_120_km() -> None:
    line = supply.line()
    assert supply.narrowest(line) == "cesga-5--cesga-6"
    assert {link.mode for link in line.links if link.devices} == {"otp"}
    assert supply.narrowest(supply.PAIR) == "itg-1--itg-2"


@pytest.mark.parametrize("amount", [paper_a.FULL, paper_a.QUICK])
def test_profiles_take_turns_and_units_have_names_of_their_own(amount: paper_a.Amount) -> None:
    units = paper_a._units(named("galicia-basque"), amount)
    assert [unit.profile for unit in units] == [OURS, PAPER] * (len(units) // 2)
    assert len({unit.name for unit in units}) == len(units)
    assert sum(": pair " in unit.name for unit in units) == 2 * 56
    assert [unit.name for unit in units[-2:]] == [f"{OURS}: compared", f"{PAPER}: compared"]
