"""What the page is made of: where nodes stand, which faults there are, when a link will be empty."""

from __future__ import annotations

import asyncio
import itertools
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.dashboard.arrange import IN_ONE_ROW, arrange, room
from keyhaul.dashboard.faults import DAYS_TO_RENEW, faults
from keyhaul.dashboard.local import certificates
from keyhaul.dashboard.source import explained, mark, picture, summed_up, united
from keyhaul.monitor.standing import TREND, Trend
from keyhaul.pki import Pki
from keyhaul.routing import Edge, Network
from keyhaul.testbed.topology import generate


def line(count: int) -> tuple[list[str], list[tuple[str, str]]]:
    names = [f"n{at:03}" for at in range(count)]
    return names, list(itertools.pairwise(names))


# ---------------------------------------------------------------- the map


def test_a_line_stands_in_one_row_in_its_order() -> None:
    names, links = line(8)
    places = arrange(reversed(names), links)
    assert len({y for _, y in places.values()}) == 1
    xs = [places[name][0] for name in names]
    assert xs == sorted(xs)


def test_a_long_line_is_folded_and_neighbours_stay_near() -> None:
    names, links = line(24)
    places = arrange(names, links)
    assert len({y for _, y in places.values()}) == math.ceil(24 / IN_ONE_ROW)
    assert max(math.dist(places[a], places[b]) for a, b in links) < 0.4


def test_a_ring_is_round() -> None:
    names, links = line(6)
    places = arrange(names, [*links, (names[-1], names[0])])
    assert {round(math.dist(place, (0.5, 0.5)), 6) for place in places.values()} == {0.42}


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_every_network_fits_into_the_square_and_looks_the_same_twice(count: int, rng: Any) -> None:
    names = [f"n{at}" for at in range(count)]
    links = {tuple(sorted(rng.sample(names, 2))) for _ in range(count)} if count > 1 else set()
    places = arrange(names, links)  # type: ignore[arg-type]
    assert places == arrange(names, links)  # type: ignore[arg-type]
    assert set(places) == set(names)
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in places.values())
    assert len(set(places.values())) == count


@pytest.mark.parametrize("count", [12, 50, 100])
def test_names_of_a_large_network_stand_beside_each_other(count: int) -> None:
    shape = generate("random", count, largest=count)
    places = arrange([node.name for node in shape.nodes], [(link.a, link.b) for link in shape.links])
    apart = [max(abs(a - x), abs(b - y)) for (a, b), (x, y) in itertools.combinations(places.values(), 2)]
    assert min(apart) > 0.95 * room(count)


def network() -> Network:
    edges = [Edge("a", "b", "qkd"), Edge("b", "c", "pqc"), Edge("a", "d", "pqc"), Edge("d", "c", "pqc")]
    return Network({name: "sim" for name in "abcd"}, edges, {"sae-a": "a", "sae-c": "c"})


def test_a_picture_says_what_the_configuration_says() -> None:
    drawn = picture(network())
    assert [(node["name"], node["domain"], node["saes"]) for node in drawn["nodes"]] == [
        ("a", "sim", ["sae-a"]),
        ("b", "sim", []),
        ("c", "sim", ["sae-c"]),
        ("d", "sim", []),
    ]
    assert {(link["a"], link["b"], link["kind"]) for link in drawn["links"]} == {
        ("a", "b", "qkd"),
        ("b", "c", "pqc"),
        ("a", "d", "pqc"),
        ("d", "c", "pqc"),
    }


def test_what_if_gives_the_way_round_or_the_reason_there_is_none() -> None:
    assert explained(network(), "a", "c", frozenset())["hops"] == ["a", "b", "c"]
    assert explained(network(), "a", "c", frozenset({("a", "b")}))["hops"] == ["a", "d", "c"]
    cut = explained(network(), "a", "c", frozenset({"b", "d"}))
    assert cut["hops"] == []
    assert "no route" in cut["explanation"]


# ---------------------------------------------------------------- faults


def status(name: str = "a", **parts: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "name": name,
        "links": [{"peer": "b", "level_bits": 4096, "hours_left": None, "trouble": ""}],
        "silent": {},
        "store": {"kind": "tpm", "grade": "hardware", "warnings": []},
        "entropy": {"sources": [{"name": "os", "state": "good", "last_cause": ""}]},
        "certificates": [{"port": "sae", "file": "sae.pem", "days_left": 200.0}],
    }
    return good | parts


def link(**parts: Any) -> dict[str, Any]:
    good = {"peer": "b", "level_bits": 4096, "hours_left": None, "trouble": "", "unopened": 0}
    return {**good, "offered_keys": 0, "device": None, **parts}


def device(**parts: Any) -> dict[str, Any]:
    return {"stored_bits": 8192, "bits_per_second": None, "trouble": "", **parts}


def test_a_node_that_is_well_has_no_faults() -> None:
    assert faults([status()]) == []
    assert faults([status(links=[{"peer": "b", "level_bits": None, "hours_left": None}])]) == []


@pytest.mark.parametrize(
    ("parts", "severity", "where", "words"),
    [
        ({"unreachable": "connection refused"}, "error", ("a",), "connection refused"),
        ({"silent": {"b": "timed out"}}, "error", ("a", "b"), "b does not answer a: messages wait"),
        (
            {"links": [{"peer": "b", "level_bits": 0, "trouble": "the device says 503"}]},
            "error",
            ("a", "b"),
            "the device says 503",
        ),
        (
            {"links": [{"peer": "b", "level_bits": 9, "hours_left": 0.5, "trouble": "cut"}]},
            "warning",
            ("a", "b"),
            "30 min",
        ),
        (
            {"entropy": {"sources": [{"name": "q", "state": "failed", "last_cause": "stuck"}]}},
            "error",
            ("a",),
            "stuck",
        ),
        (
            {"entropy": {"sources": [{"name": "q", "state": "unreachable", "last_cause": "away"}]}},
            "warning",
            ("a",),
            "away",
        ),
        ({"certificates": [{"port": "sae", "file": "f", "days_left": -2.0}]}, "error", ("a",), "expired"),
        (
            {"certificates": [{"port": "sae", "file": "f", "days_left": 0.5}]},
            "error",
            ("a",),
            "expires in 12 h",
        ),
        (
            {"links": [link(unopened=3, level_bits=0)]},
            "error",
            ("a", "b"),
            "two devices hand out different bits",
        ),
        (
            {"links": [link(device=device(trouble="refused"))]},
            "warning",
            ("a", "b"),
            "cannot be used: refused",
        ),
        ({"links": [link(device=device(stored_bits=0))]}, "warning", ("a", "b"), "device at a stores no key"),
        (
            {"links": [link(level_bits=0, device=device(stored_bits=0))]},
            "error",
            ("a", "b"),
            "no key bits ready, so keys over it wait or fail with 503: the device at a stores no key",
        ),
        (
            {"links": [link(level_bits=0, offered_keys=7)]},
            "error",
            ("a", "b"),
            "does not have the 7 keys yet",
        ),
        (
            {"links": [link(level_bits=None, trouble="b: connection refused")]},
            "warning",
            ("a", "b"),
            "no new one-time keys come",
        ),
        ({"links": [link(hours_left=3.0)]}, "warning", ("a", "b"), "its store is empty in 3.0 h"),
        ({"skew": {"b": -20.0}}, "warning", ("a", "b"), "clock of b is 20 s behind that of a"),
        ({"skew": {"b": 400.0}}, "error", ("a", "b"), "clock of b is 7 min ahead of that of a"),
        (
            {"store": {"kind": "tpm", "grade": "hardware", "warnings": [], "broken": True, "file": "/v/s"}},
            "error",
            ("a",),
            "its disk is full, or fails",
        ),
        ({"audit": {"trouble": "full", "required": True}}, "error", ("a",), "without it no key is given"),
        ({"audit": {"trouble": "full", "required": False}}, "warning", ("a",), "audit log cannot be written"),
        ({"workers": {"restarts": 3, "running": []}}, "error", ("a",), "no worker of the SAE port"),
        ({"draining": True}, "warning", ("a",), "is stopping"),
        (
            {"certificates": [{"port": "sae", "file": "f", "days_left": DAYS_TO_RENEW - 1.0}]},
            "warning",
            ("a",),
            "expires in 29 days",
        ),
        (
            {"store": {"kind": "credential", "grade": "external", "warnings": ["stays on this machine"]}},
            "notice",
            ("a",),
            "credential",
        ),
    ],
)
def test_every_fault_has_words_a_place_and_a_next_step(
    parts: dict[str, Any], severity: str, where: tuple[str, ...], words: str
) -> None:
    (fault,) = faults([status(**parts)])
    assert (fault.severity, fault.where) == (severity, where)
    assert words in fault.what
    assert fault.next_step
    assert 0 < len(fault.short) < 18, "it stands on the map"


def test_both_ends_of_a_dry_link_are_one_fault_and_notices_are_gathered() -> None:
    dry = {"level_bits": 0, "trouble": ""}
    warned = {"store": {"kind": "credential", "grade": "external", "warnings": ["w"]}}
    found = faults(
        [
            status("a", links=[{"peer": "b", **dry}], **warned),
            status("b", links=[{"peer": "a", **dry}], **warned),
        ]
    )
    assert [(fault.severity, set(fault.where)) for fault in found] == [
        ("error", {"a", "b"}),
        ("notice", {"a", "b"}),
    ]


def test_what_only_follows_from_a_node_that_is_down_is_not_named() -> None:
    waiting = {"silent": {"b": "connection refused"}, "skew": {"b": 99.0}}
    (fault,) = faults([status("a", **waiting), {"name": "b", "unreachable": "connection refused"}])
    assert (fault.where, fault.short) == (("b",), "no answer")


def test_a_link_that_one_end_finds_worse_is_as_bad_as_that() -> None:
    here, there = link(peer="b", level_bits=0), link(peer="a", level_bits=0)
    found = faults([status("a", skew={"b": 9.0}), status("b", skew={"a": -90.0})])
    assert [(fault.severity, fault.short) for fault in found] == [("error", "clocks differ")]
    assert len(faults([status("a", links=[here]), status("b", links=[there])])) == 1


def test_nodes_that_are_configured_with_another_network_are_named() -> None:
    views = {"a": "1", "b": "1", "c": "2"}
    (fault,) = faults([status(name, links=[], network=view) for name, view in views.items()])
    assert (fault.severity, fault.where) == ("notice", ("c",))
    assert "a, b" in fault.what


def test_pictures_of_nodes_that_differ_become_one() -> None:
    edges = [Edge("a", "b", "qkd"), Edge("b", "c", "pqc")]
    one = picture(Network({"a": "sim", "b": "sim"}, edges[:1], {"sae-a": "a"}))
    two = picture(Network(dict.fromkeys("abc", "sim"), edges, {"sae-a": "a", "sae-c": "c"}))
    both = united([one, two])
    assert [node["name"] for node in both["nodes"]] == ["a", "b", "c"]
    assert [(each["a"], each["b"]) for each in both["links"]] == [("a", "b"), ("b", "c")]
    assert united([one]) == one
    assert len({mark(each) for each in (one, two, both)}) >= 2
    assert mark(one) == mark(picture(Network({"a": "sim", "b": "sim"}, edges[:1], {"sae-a": "a"})))


def test_a_snapshot_is_statuses_by_name_and_faults_in_json() -> None:
    snapshot = summed_up([status("a"), status("b", unreachable="gone")], 12.5)
    assert set(snapshot["nodes"]) == {"a", "b"}
    assert snapshot["faults"][0]["where"] == ["b"]
    assert snapshot["time"] == 12.5


# ---------------------------------------------------------------- levels and certificates


def test_a_link_that_falls_says_when_it_will_be_empty() -> None:
    trend = Trend()
    for second in range(int(TREND)):
        trend.note(float(second), 36_000 - 10 * second)
    left = trend.hours_left()
    assert left == pytest.approx((36_000 - 590) / 10 / 3600)


def test_a_link_that_holds_or_is_hardly_known_says_nothing() -> None:
    trend = Trend()
    trend.note(0.0, 100)
    assert trend.hours_left() is None
    trend.note(1.0, 50)
    assert trend.hours_left() is None
    steady = Trend()
    for second in range(200):
        steady.note(float(second), 100)
    assert steady.hours_left() is None


def test_what_fell_once_and_grows_since_is_not_running_empty() -> None:
    trend = Trend(600.0)
    trend.note(0.0, 500_000)
    for second in range(5, 600, 5):
        trend.note(float(second), 300 * second)
    assert trend.hours_left() is None
    assert trend.rate() is not None


def test_certificates_tell_their_days_and_a_missing_file_counts_as_expired(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path / "pki", ["galicia"])
    made = pki.sae("galicia", "sae-a")
    found = asyncio.run(certificates({"sae": made.cert, "node": tmp_path / "none.pem"}))
    assert [each["port"] for each in found] == ["sae", "node"]
    assert 1 < found[0]["days_left"] <= (datetime.now(UTC) + timedelta(days=4000) - datetime.now(UTC)).days
    assert "sae-a" in found[0]["subject"]
    assert found[1]["days_left"] < 0
