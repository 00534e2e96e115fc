"""Rounds: neighbours take turns, behind each the nodes, there the applications; naming many gains nothing."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul import rounds as module
from keyhaul.errors import Refused
from keyhaul.rounds import NOBODY, Payer, Rounds, behind, own
from keyhaul.routing import Edge, Network
from keyhaul.site import Settings, Site


def rounds(waiting: dict[Payer, int], credit: int = 0) -> Rounds[object]:
    made: Rounds[object] = Rounds(credit)
    for payer, number in waiting.items():
        for _ in range(number):
            made.push(payer, object())
    return made


def served(of: Rounds[object], number: int) -> Counter[Payer]:
    turns: Counter[Payer] = Counter()
    for _ in range(number):
        payer = of.turn()
        assert payer is not None
        of.pop(payer)
        turns[payer] += 1
    return turns


def test_a_line_is_served_in_its_order_and_an_empty_one_not_at_all() -> None:
    here: Rounds[int] = Rounds()
    assert here.turn() is None
    for number in range(5):
        here.push(NOBODY, number)
    assert len(here) == 5
    assert here.turn() == NOBODY
    assert here.head(NOBODY) == 0
    assert [here.pop(NOBODY) for _ in range(5)] == list(range(5))
    assert here.turn() is None
    assert not here.waits(NOBODY)


def test_neighbours_and_own_applications_take_turns_and_applications_within_a_neighbours_turn() -> None:
    greedy, modest = behind("b", "a", "sae-greedy"), behind("b", "a", "sae-a")
    far, mine = behind("b", "z", "sae-z"), own("sae-mine")
    other = behind("c", "c", "sae-c")
    turns = served(rounds({greedy: 99, modest: 99, far: 99, mine: 99, other: 99}), 120)
    assert turns == {mine: 40, other: 40, far: 20, greedy: 10, modest: 10}


def test_a_neighbour_that_names_many_nodes_and_applications_gains_nothing() -> None:
    liar = {behind("liar", f"n{number % 7}", f"sae-{number}"): 3 for number in range(50)}
    honest = behind("b", "a", "sae-a")
    assert served(rounds({**liar, honest: 50}), 60)[honest] == 30


def test_an_application_may_be_called_like_a_neighbour() -> None:
    assert served(rounds({own("b"): 9, behind("b", "b", "b"): 9}), 10) == {
        own("b"): 5,
        behind("b", "b", "b"): 5,
    }


def test_who_may_not_now_keeps_its_place() -> None:
    greedy, modest, other = (
        behind("b", "a", "sae-greedy"),
        behind("b", "a", "sae-a"),
        behind("c", "c", "sae-c"),
    )
    here = rounds({greedy: 5, modest: 5, other: 5})
    assert here.turn(lambda prefix: prefix != greedy) == modest
    assert here.turn(lambda prefix: prefix != greedy[:1]) == other
    assert here.turn(lambda prefix: False) is None
    assert here.turn() == greedy


def relay() -> Site:
    """Node b of a line, as far as it can tell who is behind whom."""
    nodes = dict.fromkeys("abcz", "domain")
    edges = [Edge("a", "b", "pqc", "kem"), Edge("b", "c", "pqc", "kem"), Edge("c", "z", "pqc", "kem")]
    view = Network(nodes, edges, {"sae-a": "a", "sae-z": "z"})
    rest: Any = None
    return Site("b", rest, {}, view, {}, rest, rest, Settings())


def test_a_node_is_believed_about_its_own_applications_only() -> None:
    here = relay()
    assert here.payer("a", ("a", "b", "c"), "sae-a") == behind("a", "a", "sae-a")
    for foreign in ("sae-z", "sae-unknown", ""):
        assert here.payer("a", ("a", "b", "c"), foreign) == behind("a", "a", "")


def test_keys_come_from_the_node_before_on_their_route() -> None:
    here = relay()
    here.came(("a", "b", "c"), "a")
    here.came(("z", "c", "b"), "c")
    for route, peer in [("abc", "c"), ("zcb", "a"), ("zab", "c"), ("bc", "a"), ("az", "a")]:
        with pytest.raises(Refused, match="not lead over its sender"):
            here.came(tuple(route), peer)


PAYERS = st.lists(
    st.one_of(
        st.builds(own, st.sampled_from("pqrs")),
        st.builds(behind, st.sampled_from("bcd"), st.sampled_from("xy"), st.sampled_from("pqr")),
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(PAYERS, st.integers(0, 20), st.integers(1, 150))
def test_who_always_waits_has_the_same_on_its_level_within_one_item(
    payers: list[Payer], credit: int, number: int
) -> None:
    turns = served(rounds(dict.fromkeys(payers, number), credit), number)
    for depth in range(3):
        levels: dict[Payer, Counter[Payer]] = {}
        for payer in payers:
            if len(payer) > depth:
                levels.setdefault(payer[:depth], Counter())[payer[: depth + 1]] += turns[payer]
        for level in levels.values():
            assert max(level.values()) - min(level.values()) <= 1


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 60))
def test_who_left_turns_to_others_waits_for_one_item_and_gets_them_sooner(
    credit: int, others: int, rest: int
) -> None:
    here = rounds({own(f"sae-{number}"): 999 for number in range(others)}, credit)
    served(here, rest)
    for _ in range(99):
        here.push(own("sae-late"), object())
    first = served(here, 2)
    assert first[own("sae-late")] >= (1 if rest > others else 0)
    # Every second item, and its turn among the rest, until it has taken the turns that passed.
    turns = served(here, 99)
    fair, ahead = 101 / (others + 1), min(credit, (rest - 1) // others)
    assert abs((first + turns)[own("sae-late")] - fair - ahead * others / (others + 1)) <= 2


@given(st.integers(0, 20), st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=12))
def test_who_comes_and_goes_gains_its_credit_once_and_keeps_nobody_waiting(
    credit: int, visits: list[tuple[int, int]]
) -> None:
    goes, steady, third = own("sae-goes"), own("sae-steady"), own("sae-third")
    here = rounds({steady: 2000, third: 2000}, credit)
    story: list[Payer] = []
    for items, pause in visits:
        for _ in range(items):
            here.push(goes, object())
        while here.waits(goes):
            story += served(here, 1)
        for _ in range(pause):
            story += served(here, 1)
    had = [0]
    for payer in story:
        had.append(had[-1] + (payer == goes) - (payer == steady))
    gain = max((had[till] - had[since] for till in range(len(had)) for since in range(till)), default=0)
    assert gain <= credit + 2
    for since in range(len(story) - 6):
        assert steady in story[since : since + 6], "half of its turns, whoever comes"


def test_a_neighbour_whose_applications_come_and_go_under_many_names_gains_nothing() -> None:
    honest = behind("b", "a", "sae-a")
    here = rounds({honest: 999}, 16)
    turns: Counter[Payer] = Counter()
    for number in range(600):
        here.push(behind("liar", f"n{number}", f"sae-{number}"), object())
        turns += served(here, 1)
    assert 290 <= turns[honest] <= 310


def test_of_those_who_took_their_turns_only_so_many_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 10)
    here = rounds({own("sae-steady"): 999}, 30)
    (level,) = here._levels.values()
    for number in range(100):
        here.push(own(f"sae-{number}"), object())
        while here.waits(own(f"sae-{number}")):
            served(here, 1)
        assert len(level._had) <= 10
    served(here, 60)
    assert list(level._had) == [own("sae-steady")], "turns that are long past are forgotten"


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_kept_where_nobody_waits(seed: int) -> None:
    rng = random.Random(seed)
    here: Rounds[object] = Rounds(seed % 5)
    payers = [behind(rng.choice("bcd"), rng.choice("xy"), rng.choice("pqr")) for _ in range(9)] + [own("s")]
    waiting: list[tuple[Payer, object]] = []
    for _ in range(300):
        payer, item = rng.choice(payers), object()
        match rng.randrange(3):
            case 0:
                here.push(payer, item)
                waiting.append((payer, item))
            case 1 if waiting:
                gone = waiting.pop(rng.randrange(len(waiting)))
                here.remove(*gone)
                here.remove(*gone)  # unknown by now
            case _ if (turn := here.turn()) is not None:
                item = here.head(turn)
                assert here.pop(turn) is item
                assert waiting.pop(waiting.index((turn, item)))[0] == turn
        assert len(here) == len(waiting)
    for each in waiting:
        here.remove(*each)
    assert not here._lines
    assert not here._levels
