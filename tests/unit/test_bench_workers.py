"""The benchmark of workers: what it concludes from slices."""

from __future__ import annotations

import pytest

from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.workers import Cell, _fill


def slices(rate: float, node: float, workers: float = 0.0) -> list[dict[str, float]]:
    """Three slices, one of them disturbed; processor times in microseconds."""
    plain = {"requests": 10, "p50": 0.001, "client_share": 0.2}
    return [
        {**plain, "rate": rate * part, "server": node / 1e6, "workers": workers / 1e6}
        for part in (1.0, 0.3, 1.0)
    ]


CELLS = [
    Cell(1, 0, slices(2000, 120), slices(4000, 50), slices(400, 90, 900)),
    Cell(1, 1, slices(1800, 60, 80), slices(4000, 50), slices(400, 90, 900)),
    Cell(1, 2, slices(1600, 60, 80), slices(4000, 50), slices(400, 90, 900)),
    Cell(2, 0, slices(2400, 120), slices(5000, 50), slices(400, 90, 900)),
    Cell(2, 1, slices(3600, 60, 80), slices(5000, 50), slices(400, 90, 900)),
    Cell(2, 2, slices(4000, 60, 80), slices(5000, 50), slices(400, 90, 900)),
]


def figures(cells: list[Cell]) -> dict[str, float]:
    report = Report("workers", "keyhaul bench workers")
    _fill(report, cells, [50.0, 54.0])
    assert "<svg" in report.page().html()
    return {figure.name: figure.value for figure in report.figures}


def test_the_busiest_process_is_the_limit() -> None:
    assert [cell.busiest * 1e6 for cell in CELLS[:3]] == [120, 80, 60]
    found = figures(CELLS)
    assert found["1 workers against none, by processor time of the busiest process"] == pytest.approx(1.5)
    assert found["2 workers against none, by processor time of the busiest process"] == pytest.approx(2.0)


def test_rates_are_medians_and_ratios_are_taken_slice_by_slice() -> None:
    found = figures(CELLS)
    assert found["enc_keys, 1 workers, 2 cores"] == 3600
    assert CELLS[0].ratio == 0.5
    assert found["1 workers: from one core to two, load generator included"] == 2.0
    assert found["1 workers against none, both on two cores"] == 1.5
    assert found["from none on one core to 1 workers on two, load generator included"] == 1.8
    assert CELLS[0].greeting * 1e6 == pytest.approx(90)
    assert found["resident memory of a worker"] == 52.0


def test_a_machine_with_one_core_shows_what_it_can() -> None:
    found = figures(CELLS[:3])
    assert found["enc_keys, 2 workers, 1 core"] == 1600
    assert not any("from one core to two" in name for name in found)
