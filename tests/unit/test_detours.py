"""After a failure the next attempt shares as little as it can with what failed, and time heals."""

from __future__ import annotations

import pytest

from keyhaul.detours import LASTING, Detours
from keyhaul.errors import NoRoute
from keyhaul.explaining import explain
from tests.unit.test_routing import network


def test_a_detour_avoids_all_relays_that_failed_if_it_can() -> None:
    view = network("a=b=z a-c-d-z a=c")
    assert view.route("a", "z").hops == ("a", "b", "z")
    assert view.detour("a", "z", [("a", "b", "z")]).hops == ("a", "c", "d", "z")
    assert view.detour("a", "z", [("a", "b", "z")]).cost == 5.0


def test_a_detour_shares_fewest_relays_where_it_must_share_some() -> None:
    view = network("a=m=b=z m-c-z")
    assert view.detour("a", "z", [("a", "m", "b", "z")]).hops == ("a", "m", "c", "z")


def test_between_neighbours_the_link_itself_is_gone_around() -> None:
    assert network("a=z a-b-z").detour("a", "z", [("a", "z")]).hops == ("a", "b", "z")


@pytest.mark.parametrize("links", ["a=b=z", "a=z", "a=b=c=z b-d"])
def test_where_there_is_no_other_way_that_is_said(links: str) -> None:
    view = network(links)
    with pytest.raises(NoRoute, match="no other way"):
        view.detour("a", "z", [view.route("a", "z").hops])
    assert "no other way" in explain(view, "a", "z")["explanation"]


def test_no_way_at_all_is_another_error() -> None:
    with pytest.raises(NoRoute, match="no link leads"):
        network("a=b y=z").detour("a", "z", [])


def test_the_explanation_names_the_fallback_and_what_it_shares() -> None:
    text = explain(network("a=m=b=z m-c-z"), "a", "z")["explanation"]
    assert "a=m-c-z  cost 5: costs 2 more; shares m" in text
    assert "shares" not in explain(network("a=b=z a-c-z"), "a", "z")["explanation"]
    assert "no link needed" in explain(network("a=b"), "a", "a")["explanation"]


def test_a_detour_leads_over_nothing_that_is_to_be_avoided() -> None:
    view = network("a=b=z a-c-z a-d-e-z")
    failed = [("a", "b", "z")]
    assert view.detour("a", "z", failed, frozenset({"c"})).hops == ("a", "d", "e", "z")
    assert view.detour("a", "z", failed, frozenset({("z", "c")})).hops == ("a", "d", "e", "z")
    with pytest.raises(NoRoute, match="no other way"):
        view.detour("a", "z", failed, frozenset({"c", ("e", "z")}))
    with pytest.raises(NoRoute, match="every way from a to z leads over b, c, d"):
        view.detour("a", "z", failed, frozenset("bcd"))


def test_failures_are_remembered_beside_what_is_to_be_avoided() -> None:
    detours, avoid = Detours("a", network("a=b=z a=c-z a-d-z")), frozenset({"d"})
    assert detours.way("z", 0.0, avoid) == ("a", "b", "z")
    detours.failed(("a", "b", "z"), 0.0)
    assert detours.way("z", 1.0, avoid) == ("a", "c", "z")
    detours.failed(("a", "c", "z"), 1.0)
    assert detours.way("z", 2.0, avoid) in {("a", "b", "z"), ("a", "c", "z")}, "better than none"
    assert detours.way("z", 2.0) == ("a", "d", "z"), "for others the failures still count"
    with pytest.raises(NoRoute):
        detours.way("z", 2.0, frozenset("bcd"))


def test_ways_are_tried_in_turn_and_again_after_a_while() -> None:
    detours = Detours("a", network("a=b=z a=c-z a-d-z"))
    first = detours.way("z", 0.0)
    assert first == ("a", "b", "z")
    assert detours.other(first, 0.0)
    detours.failed(first, 0.0)
    second = detours.way("z", 1.0)
    assert second == ("a", "c", "z")
    detours.failed(second, 1.0)
    third = detours.way("z", 2.0)
    assert third == ("a", "d", "z")
    assert not detours.other(third, 2.0)
    assert sorted(detours.avoided(2.0)) == [first, second]
    assert detours.way("z", LASTING) == first, "its time is over"
    assert detours.avoided(LASTING) == [second]


def test_when_all_ways_failed_all_are_forgotten() -> None:
    detours = Detours("a", network("a=b=z a=c=z a=y"))
    for way in (("a", "b", "z"), ("a", "c", "z")):
        detours.failed(way, 0.0)
    detours.failed(("a", "y"), 0.0)
    assert detours.way("z", 1.0) == ("a", "b", "z")
    assert detours.avoided(1.0) == [("a", "y")], "of this destination, not of others"
