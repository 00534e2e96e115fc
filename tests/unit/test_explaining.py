"""Why keys go where they go: cost and labels of each hop, what lacks, and what speaks against other ways."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from keyhaul.errors import Malformed, NoSuchTarget
from keyhaul.explaining import MOST_OTHERS, explain, lines, parted, usual_scheme
from keyhaul.policy import PathPolicy, Rule
from keyhaul.routing import Edge, Network
from keyhaul.wayfinding import ends


def network() -> Network:
    """From a to d: over b (cost 3), over c (cost 4), over e and f with one-time pads all the way (cost 3)."""
    edges = [
        Edge("a", "b", "qkd", "otp"),
        Edge("b", "d", "pqc"),
        Edge("a", "c", "pqc"),
        Edge("c", "d", "pqc"),
        Edge("a", "e", "qkd", "otp"),
        Edge("e", "f", "qkd", "otp"),
        Edge("f", "d", "qkd", "otp"),
        Edge("x", "y", "qkd"),
    ]
    return Network(dict.fromkeys("abcdefxy", "lab"), edges, {"sae-a": "a", "sae-d": "d"}, {"far": "x"})


def told(**known: Any) -> dict[str, Any]:
    return explain(network(), "a", "d", **known)


def test_each_hop_has_its_cost_and_labels() -> None:
    found = told()
    assert (found["hops"], found["picture"], found["cost"], found["scheme"]) == (
        ["a", "b", "d"],
        "a=b-d",
        3.0,
        "masked",
    )
    assert found["problem"] == ""
    first, second = found["links"]
    assert first == {
        "a": "a", "b": "b", "kind": "qkd", "mode": "otp", "cost": 1.0, "so_far": 1.0,
        "labels": ["its-wire", "pq", "qkd", "relay-blind"], "lacks": [],
    }  # fmt: skip
    assert (second["cost"], second["so_far"], second["labels"]) == (2.0, 3.0, ["pq", "relay-blind"])


def test_other_ways_come_cheapest_first_each_with_what_speaks_against_it() -> None:
    others = told()["alternatives"]
    assert [(each["picture"], each["cost"], each["why_not"]) for each in others] == [
        ("a=e=f=d", 3.0, ["as cheap, over more hops"])
    ]
    others = told(avoid=frozenset({("a", "e")}))["alternatives"]
    assert [(each["picture"], each["why_not"]) for each in others] == [("a-c-d", ["costs 1 more"])]


def test_what_is_demanded_leads_elsewhere_and_the_cheaper_way_says_what_it_lacks() -> None:
    found = told(demanded=frozenset({"its-wire"}))
    assert found["picture"] == "a=e=f=d"
    usual = next(each for each in found["alternatives"] if each["picture"] == "a=b-d")
    assert "hop b to d lacks its-wire" in usual["why_not"]
    assert "LACKS" not in found["explanation"]
    assert "demanded: its-wire" in found["explanation"]


def test_where_nothing_has_it_the_usual_way_says_what_each_hop_lacks() -> None:
    found = explain(network(), "a", "d", demanded=frozenset({"its-wire"}), avoid=frozenset({"e"}))
    assert (found["hops"], found["cost"], found["scheme"]) == ([], None, "")
    assert "every way" in found["problem"]
    assert [link["lacks"] for link in found["links"]] == [[], ["its-wire"]]
    text = found["explanation"]
    assert "no route" in text
    assert "b - d: pqc 2, so far 3  [pq relay-blind]  LACKS its-wire" in text
    assert "hop a to c lacks its-wire" in text


def test_a_way_that_failed_lately_says_so_and_the_one_that_is_taken_is_told() -> None:
    found = told(chosen=("a", "c", "d"), scheme="blind", failed=[("a", "b", "d")])
    assert (found["picture"], found["scheme"]) == ("a-c-d", "blind")
    usual = next(each for each in found["alternatives"] if each["picture"] == "a=b-d")
    assert usual["why_not"] == ["failed within the last minute"]


def test_a_problem_of_the_running_node_is_told_with_the_usual_way() -> None:
    found = told(problem="node b does not take part in it")
    assert found["hops"] == []
    assert "node b does not take part in it" in found["explanation"]
    assert [link["b"] for link in found["links"]] == ["b", "d"]


@pytest.mark.parametrize(
    ("default", "hops", "scheme"),
    [("auto", 2, "trusted"), ("auto", 3, "masked"), ("blind", 2, "blind"), ("paper-a", 3, "paper-a")],
)
def test_the_usual_scheme_is_the_configurations(default: str, hops: int, scheme: str) -> None:
    assert usual_scheme(default, ["n"] * hops) == scheme


def test_relays_that_can_read_keys_are_not_called_blind() -> None:
    assert "relay-blind" not in told(default="trusted")["links"][0]["labels"]
    assert "relay-blind" in explain(network(), "a", "b", default="trusted")["links"][0]["labels"]  # no relay


def test_separated_and_unknown_nodes_and_a_node_itself() -> None:
    found = explain(network(), "a", "x")
    assert (found["links"], found["alternatives"]) == ([], [])
    assert "no link leads" in found["explanation"]
    assert "not a node" in explain(network(), "a", "nowhere")["explanation"]
    assert "no link needed" in explain(network(), "a", "a")["explanation"]


def test_a_long_way_tells_a_bounded_number_of_others() -> None:
    names = [f"n{at:02}" for at in range(30)]
    edges = [Edge(a, b, "qkd") for a, b in itertools.pairwise(names)]
    edges += [Edge(a, b, "pqc") for a, b in zip(names, names[2:], strict=False)]
    found = explain(Network(dict.fromkeys(names, "lab"), edges, {}), names[0], names[-1])
    assert len(found["alternatives"]) == MOST_OTHERS
    assert list(lines(found)) == found["explanation"].splitlines()


@pytest.mark.parametrize(
    ("text", "item"), [("a", "a"), ("a|b", ("a", "b")), ("a|b|c", ("a", "b|c")), ("", "")]
)
def test_what_is_thought_away(text: str, item: object) -> None:
    assert parted(text) == item


# ------------------------------------------------------------------ ends


POLICY = PathPolicy((Rule("sae-a", "*", frozenset({"its-wire"})),))


@pytest.mark.parametrize(
    ("source", "destination", "found"),
    [
        ("a", "d", ("a", "d", frozenset())),
        ("sae-a", "sae-d", ("a", "d", frozenset({"its-wire"}))),
        ("sae-a", "d", ("a", "d", frozenset())),
        ("sae-d", "sae-a", ("d", "a", frozenset())),
        ("sae-a", "far", ("a", "x", frozenset({"its-wire"}))),
    ],
)
def test_applications_stand_for_their_nodes_and_bring_their_policy(
    source: str, destination: str, found: tuple[str, str, frozenset[str]]
) -> None:
    assert ends(network(), POLICY, source, destination, ()) == found
    asked = ends(network(), POLICY, source, destination, ["qkd"])
    assert asked[2] == found[2] | {"qkd"}


def test_strangers_and_labels_nobody_knows_are_refused() -> None:
    with pytest.raises(NoSuchTarget, match="neither a node nor an SAE"):
        ends(network(), POLICY, "a", "stranger", ())
    with pytest.raises(Malformed, match="no label"):
        ends(network(), POLICY, "a", "d", ["shiny"])
