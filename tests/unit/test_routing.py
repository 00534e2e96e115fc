"""Routes are the cheapest, the same on every node, and their absence is explained."""

from __future__ import annotations

import itertools
import random

import pytest

from keyhaul.errors import NoRoute, NoSuchTarget
from keyhaul.explaining import explain
from keyhaul.routing import Edge, Network


def network(
    links: str, *, saes: dict[str, str] | None = None, costs: dict[str, float] | None = None
) -> Network:
    """From text such as `a=b-c x`: quantum link a b, post-quantum link b c, node x alone."""
    nodes: dict[str, str] = {}
    edges = []
    for chain in links.split():
        names = chain.replace("=", "-").split("-")
        kinds = ["qkd" if mark == "=" else "pqc" for mark in chain if mark in "=-"]
        nodes.update(dict.fromkeys(names, "lab"))
        edges += [Edge(a, b, kind) for (a, b), kind in zip(itertools.pairwise(names), kinds, strict=True)]
    return Network(nodes, edges, saes or {}, costs=costs)


def test_line_is_walked_end_to_end_and_drawn() -> None:
    line = network("1=2-3=4-5=6-7=8")
    route = line.route("1", "8")
    assert route.picture() == "1=2-3=4-5=6-7=8"
    assert route.cost == 4 * 1.0 + 3 * 2.0
    assert line.route("8", "1").hops == tuple(reversed(route.hops))


def test_quantum_hops_are_preferred_until_they_cost_more() -> None:
    assert network("a=b=c a-c").route("a", "c").hops == ("a", "c")  # 2 against 2: fewer hops
    assert network("a=b=c a-c", costs={"pqc": 2.5}).route("a", "c").hops == ("a", "b", "c")


def test_equal_ways_are_decided_by_name_whatever_the_order_of_links() -> None:
    links = ["a=x", "a=b", "x=z", "b=z", "a=m", "m=z"]
    for order in itertools.permutations(links):
        assert network(" ".join(order)).route("a", "z").hops == ("a", "b", "z")


def test_a_node_reaches_itself_without_a_hop() -> None:
    route = network("a=b").route("a", "a")
    assert (route.hops, route.kinds, route.cost, route.picture()) == (("a",), (), 0.0, "a")


def test_avoiding_a_node_or_a_link_takes_the_way_around() -> None:
    ring = network("a=b=c=d=e=a")
    assert ring.route("a", "c").hops == ("a", "b", "c")
    assert ring.route("a", "c", frozenset({"b"})).hops == ("a", "e", "d", "c")
    assert ring.route("a", "c", frozenset({("c", "b")})).hops == ("a", "e", "d", "c")
    assert ring.route("a", "c").hops == ("a", "b", "c"), "a detour changes nothing for others"


@pytest.mark.parametrize("seed", range(20))
def test_search_with_avoidance_is_as_cheap_as_tables_of_the_smaller_network(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(12)]
    edges = [
        Edge(a, b, rng.choice(["qkd", "pqc"]))
        for a, b in itertools.combinations(names, 2)
        if rng.random() < 0.25
    ]
    whole = Network(dict.fromkeys(names, "lab"), edges, {})
    lost = edges[rng.randrange(len(edges))]
    rest = Network(dict.fromkeys(names, "lab"), [edge for edge in edges if edge is not lost], {})
    for a, b in itertools.permutations(names, 2):
        assert cost(whole, a, b, frozenset({(lost.a, lost.b)})) == cost(rest, a, b, frozenset())


def cost(view: Network, a: str, b: str, avoid: frozenset[str | tuple[str, str]]) -> float | None:
    try:
        return view.route(a, b, avoid).cost
    except NoRoute:
        return None


@pytest.mark.parametrize(
    ("source", "destination", "avoid", "reason"),
    [
        ("a", "nowhere", frozenset(), "nowhere is not a node"),
        ("nowhere", "a", frozenset(), "nowhere is not a node"),
        ("a", "lonely", frozenset(), "lonely has no links at all"),
        ("a", "x", frozenset(), "no link leads from {a, b, c} towards x"),
        ("a", "c", frozenset({"b"}), "every way from a to c leads over b"),
        ("a", "c", frozenset({("c", "b")}), "every way from a to c leads over b/c"),
        ("a", "c", frozenset({"c"}), "every way from a to c leads over c"),
    ],
)
def test_a_missing_route_says_why(source: str, destination: str, avoid: frozenset[str], reason: str) -> None:
    view = network("a=b-c x=y lonely")
    with pytest.raises(NoRoute) as caught:
        view.route(source, destination, avoid)
    assert reason in caught.value.cause
    assert caught.value.remedy
    assert caught.value.cause in explain(view, source, destination, avoid=avoid)["explanation"]


def test_explanation_adds_up_the_hops() -> None:
    text = explain(network("a=b-c"), "a", "c")["explanation"]
    assert text.splitlines() == [
        "a=b-c  cost 3, 2 hop(s), scheme masked",
        "  a = b: qkd 1, so far 1  [pq qkd relay-blind]",
        "  b - c: pqc 2, so far 3  [pq relay-blind]",
        "there is no other way",
    ]


def test_saes_are_found_at_their_node_and_strangers_nowhere() -> None:
    view = Network({"a": "lab", "b": "lab"}, [Edge("a", "b", "qkd")], {"x/#?%": "a"}, {"far": "b"})
    assert view.home("x/#?%") == "a"
    assert view.home("far") == "b"
    assert view.saes("b") == ["far"]
    with pytest.raises(NoSuchTarget):
        view.home("stranger")


def test_labels_tell_what_each_link_promises() -> None:
    edges = [Edge("a", "b", "qkd", "otp"), Edge("b", "c", "qkd"), Edge("c", "d", "pqc")]
    labels = Network(dict.fromkeys("abcd", "lab"), edges, {}).labels(("a", "b", "c", "d", "elsewhere"))
    assert labels == [{"pq", "qkd", "its-wire"}, {"pq", "qkd"}, {"pq"}, frozenset()]


def test_it_is_known_who_sits_behind_a_foreign_key_manager() -> None:
    view = Network({"a": "x"}, [], {"sae-a": "a"}, {"sae-kme": "a"})
    assert view.foreign("sae-kme")
    assert not view.foreign("sae-a")
    assert not view.foreign("sae-b")


def test_links_that_cannot_keep_a_label_are_known() -> None:
    view = network("a=b-c=d")
    assert view.lacking(frozenset({"qkd"})) == {("b", "c")}
    assert view.lacking(frozenset({"qkd", "its-wire"})) == {("a", "b"), ("b", "c"), ("c", "d")}
    assert view.lacking(frozenset({"pq", "relay-blind"})) == frozenset(), "nodes and schemes decide those"
