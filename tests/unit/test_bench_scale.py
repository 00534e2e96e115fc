"""Growth is fitted as it should be, and a report on sizes says what they gave."""

from __future__ import annotations

import os
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.errors import ConfigError
from keyhaul.testbed.benchmarks import scale
from keyhaul.testbed.benchmarks.report import Report, waiting_seconds
from keyhaul.testbed.topology import generate


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_an_exponent_is_found_again(exponent: float, factor: float) -> None:
    sizes = [6, 12, 24, 100]
    assert scale.growth(sizes, [factor * n**exponent for n in sizes]) == pytest.approx(exponent, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "values"), [([6], [1.0]), ([6, 6], [1.0, 2.0]), ([6, 12], [0.0, 5.0]), ([], [])]
)
def test_no_line_no_exponent(sizes: list[float], values: list[float]) -> None:
    assert scale.growth(sizes, values) is None


def size(shape: str, nodes: int, **more: Any) -> scale.Size:
    """Memory grows with the square, throughput not at all."""
    given: dict[str, Any] = {
        "up": 1.0, "resident": nodes * nodes * 2**20, "hops": 2.0, "keys": 1000, "seconds": 2.0, "busy": 0.5,
        "latencies": [0.1, 0.2, 0.3], "refused": 0, "different": 0, "held": 5000, "grown": 5000 * 400,
        "waited": nodes / 100,
    }  # fmt: skip
    return scale.Size(shape, nodes, **(given | more))


def report(**more: Any) -> Report:
    made = Report("scale", "keyhaul bench scale")
    sizes = {shape: [size(shape, nodes, **more) for nodes in (6, 12, 24)] for shape in ("line", "random")}
    scale._fill(made, sizes)
    return made


def figure(made: Report, name: str) -> Any:
    return next(each for each in made.figures if each.name == name)


def test_a_report_has_every_curve_with_its_growth() -> None:
    made = report()
    assert figure(made, "memory at rest, all nodes, line-12").value == pytest.approx(144)
    assert figure(made, "processor time a key and hop, random-24").value == pytest.approx(250)
    assert figure(made, "memory a key that waits to be fetched, line-6").value == pytest.approx(400)
    slopes = [each.value for each in made.figures if each.name == "  growth with the nodes, line"]
    assert slopes == pytest.approx([2, 0, 0, 0, 0, 0, 0], abs=1e-9)
    assert figure(made, "time in which nodes waited for a processor, at most").value == pytest.approx(24)
    root = Xml.fromstring(made.page().html())
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == len(scale.CURVES)
    assert "line: n^2.00, random: n^2.00" in " ".join(each.text or "" for each in root.iter("figcaption"))


def test_a_wrong_key_misses_the_goal() -> None:
    assert figure(report(), "keys that differ at the far end").met is True
    assert figure(report(different=1), "keys that differ at the far end").met is False


def test_a_network_in_which_no_key_came_is_still_reported() -> None:
    made = report(keys=0, latencies=[], refused=7, held=0, grown=0)
    assert figure(made, "requests refused").value == 42
    assert Xml.fromstring(made.page().html()) is not None


def test_every_node_asks_another_one_and_always_the_same() -> None:
    topology = generate("random", 30)
    pairs = scale._pairs(topology)
    assert pairs == scale._pairs(topology)
    assert sorted(near for near, _ in pairs) == sorted(node.name for node in topology.nodes)
    assert all(near != far for near, far in pairs)
    assert scale._mean_hops(generate("line", 3), [("n1", "n3"), ("n1", "n2")]) == 1.5


def test_only_a_crowd_may_be_larger_than_a_testbed() -> None:
    assert len(generate("random", scale.LARGEST, scale.LARGEST).nodes) == 100
    with pytest.raises(ConfigError, match="100 nodes"):
        generate("random", 100)


def test_a_process_that_runs_is_seen_to_wait_no_less_than_before() -> None:
    before = waiting_seconds(os.getpid())
    assert 0.0 <= before <= waiting_seconds(os.getpid())
    assert waiting_seconds(2**30) == 0.0, "a kernel that does not count, or a process that is gone"
