"""Admission: buckets hold their rate, the queue is fair, the gate keeps its bounds whatever comes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.admission import MOST_BUCKETS, Admission, Buckets, FairQueue, Gate, Rules, Turn
from keyhaul.errors import Busy

NAMES = st.sampled_from(["a", "b", "c", "vip"])


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.1, 30)), max_size=200))
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst(calls: list[tuple[float, float]]) -> None:
    bucket, now, given_out = Buckets(10.0, 2.0), 0.0, 0.0
    for pause, amount in calls:
        now += pause
        if bucket.take("a", amount, now) == 0.0:
            given_out += min(amount, 20.0)
        assert given_out <= 20.0 + 10.0 * now + 1e-6


@given(st.lists(st.floats(0.1, 19), min_size=1, max_size=50))
def test_who_waits_as_long_as_it_was_told_is_served(amounts: list[float]) -> None:
    bucket, now = Buckets(10.0, 2.0), 0.0
    for amount in amounts:
        if pause := bucket.take("a", amount, now):
            assert bucket.take("a", amount, now + 0.9 * pause) > 0.0
            now += pause + 1e-9
            assert bucket.take("a", amount, now) == 0.0


def test_buckets_are_apart_bounded_in_number_and_indifferent_to_clocks_set_back() -> None:
    buckets = Buckets(1.0, 1.0)
    assert buckets.take("a", 1, 100.0) == 0.0
    assert buckets.take("a", 1, 100.0) > 0.0
    assert buckets.take("b", 1, 100.0) == 0.0
    assert buckets.take("a", 1, 50.0) == pytest.approx(1.0)
    for number in range(2 * MOST_BUCKETS):
        buckets.take(str(number), 1, 101.0)
    assert len(buckets) == MOST_BUCKETS


def test_what_is_larger_than_a_bucket_costs_a_full_one() -> None:
    buckets = Buckets(1.0, 4.0)
    assert buckets.take("a", 1_000, 0.0) == 0.0
    assert buckets.take("a", 1_000, 0.0) == pytest.approx(4.0)


def test_names_take_turns_however_many_items_one_of_them_has() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push("greedy", 1.0, number)
    for number in range(3):
        queue.push("modest", 1.0, number)
    order = served(queue, 8)
    assert order.count("modest") == 3
    assert order[:6].count("modest") >= 2


def test_turns_are_weighted_by_cost() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push("large", 10.0, number)
        queue.push("small", 1.0, number)
    order = served(queue, 55)
    assert order.count("small") == 50


def test_a_newcomer_owes_nothing_and_has_saved_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(50):
        queue.push("old", 1.0, number)
    served(queue, 30)
    for number in range(20):
        queue.push("new", 1.0, number)
    assert 8 <= served(queue, 20).count("new") <= 12


def served(queue: FairQueue[int], number: int) -> list[str]:
    names = []
    for _ in range(number):
        turn = queue.first()
        assert turn is not None
        queue.pop(turn[0])
        names.append(turn[0])
    return names


@given(st.lists(st.tuples(NAMES, st.floats(0.1, 9.0), st.booleans()), max_size=100))
def test_every_item_is_served_once_in_its_names_order_or_removed(
    steps: list[tuple[str, float, bool]],
) -> None:
    queue: FairQueue[list[int]] = FairQueue()
    waiting: dict[str, list[list[int]]] = {}
    for at, (name, cost, removes) in enumerate(steps):
        item = [at]
        queue.push(name, cost, item)
        waiting.setdefault(name, []).append(item)
        if removes:
            victim = waiting[name].pop(len(waiting[name]) // 2)
            queue.remove(name, victim)
            queue.remove(name, victim)
    assert len(queue) == sum(map(len, waiting.values()))
    while (turn := queue.first()) is not None:
        assert queue.pop(turn[0]) is waiting[turn[0]].pop(0)
    assert len(queue) == 0
    assert not any(waiting.values())


RULES = Rules(slots=4, share=0.5, reserved=1, priority=frozenset({"vip"}), queue=6, queue_per_sae=4)


@given(st.lists(st.tuples(st.booleans(), NAMES, st.floats(0.1, 5)), max_size=200))
def test_the_gate_keeps_every_bound_and_leaves_nobody_behind(steps: list[tuple[bool, str, float]]) -> None:
    gate, turns = Gate(RULES), list[Turn]()
    for enters, name, cost in steps:
        if enters:
            waiting = Counter(turn.name for turn in turns if not turn.admitted)
            full = waiting[name] == 4 or waiting.total() == 6
            try:
                turns.append(gate.enter(name, cost, lambda: None))
            except Busy:
                refused = True
            else:
                refused = False
            assert refused <= full, "refused while there was room"
            assert turns[-1].admitted or refused or not full, "queued beyond the bound"
        elif turns:
            gate.leave(turns.pop(int(cost * 7) % len(turns)))
        admitted = Counter(turn.name for turn in turns if turn.admitted)
        ordinary = admitted.total() - admitted["vip"]
        assert gate.used == admitted.total() <= 4
        assert ordinary <= 3
        assert all(number <= 2 for name, number in admitted.items() if name != "vip")
        idle = [turn.name for turn in turns if not turn.admitted and admitted.total() < 4]
        assert all(name != "vip" and (ordinary == 3 or admitted[name] == 2) for name in idle)
    for turn in turns:
        gate.leave(turn)
    assert (gate.used, gate.waiting) == (0, 0)


def test_a_turn_that_had_to_wait_is_told_when_it_comes() -> None:
    gate, told = Gate(Rules(slots=1, share=1.0, reserved=0)), list[str]()
    first = gate.enter("a", 1.0, lambda: told.append("first"))
    second = gate.enter("b", 1.0, lambda: told.append("second"))
    assert (first.admitted, second.admitted, told) == (True, False, [])
    gate.leave(first)
    assert second.admitted
    assert told == ["second"]


def test_reserved_slots_are_for_the_priority_class_alone() -> None:
    gate = Gate(Rules(slots=4, share=1.0, reserved=2, priority=frozenset({"vip"})))
    assert [gate.enter("a", 1, lambda: None).admitted for _ in range(3)] == [True, True, False]
    assert [gate.enter("vip", 1, lambda: None).admitted for _ in range(3)] == [True, True, False]


def test_rates_refuse_with_the_seconds_to_wait_and_are_counted() -> None:
    admission = Admission(
        Rules(burst=1.0, sae_requests=2.0, sae_bits=1000.0, pair_bits=600.0, peer_messages=1.0, peer_keys=5.0)
    )
    admission.call("a", 0.0)
    admission.call("a", 0.0)
    with pytest.raises(Busy) as caught:
        admission.call("a", 0.0)
    assert caught.value.retry_after == 1
    admission.call("b", 0.0)
    admission.enter("a", "x", 500, 0.0)
    with pytest.raises(Busy, match="pair"):
        admission.enter("a", "x", 500, 0.0)
    with pytest.raises(Busy, match="SAE"):
        admission.enter("a", "y", 500, 0.0)
    admission.message("n", 0.0)
    with pytest.raises(Busy, match="neighbour"):
        admission.message("n", 0.5)
    admission.message("n", 1.0)
    admission.keys("n", 5, 0.0)
    with pytest.raises(Busy, match="neighbour"):
        admission.keys("n", 1, 0.0)
    assert admission.refused == {
        "sae_requests": 1,
        "pair_bits": 1,
        "sae_bits": 1,
        "peer_messages": 1,
        "peer_keys": 1,
    }
    assert admission.summary()["refused"]["pair_bits"] == 1


def test_rows_of_a_neighbour_are_bounded_until_they_are_counted_anew() -> None:
    admission = Admission(Rules(peer_rows=10))
    admission.keys("n", 8, 0.0)
    with pytest.raises(Busy, match="10 keys"):
        admission.keys("n", 3, 0.0)
    assert admission.crowded
    admission.keys("other", 10, 0.0)
    since = admission.mark()
    admission.keys("n", 1, 0.0)  # while the rows are being counted
    admission.recount(Counter({"n": 4}), since)
    assert not admission.crowded
    admission.keys("n", 5, 0.0)
    with pytest.raises(Busy):
        admission.keys("n", 1, 0.0)


def test_other_rules_hold_from_the_next_call_on_and_leave_no_slot_behind() -> None:
    admission = Admission(Rules(slots=2, share=1.0, reserved=0))
    turns = [admission.enter("a", "x", 256, 0.0) for _ in range(3)]
    assert [turn.admitted for turn in turns] == [True, True, False]
    admission.use(
        Rules(slots=2, share=1.0, reserved=1, priority=frozenset({"a"}), sae_requests=1.0, burst=1.0)
    )
    for turn in turns:
        admission.gate.leave(turn)
    assert admission.gate.used == admission.gate.waiting == 0
    assert [admission.enter("b", "x", 256, 0.0).admitted for _ in range(2)] == [True, False]
    admission.call("b", 0.0)
    with pytest.raises(Busy):
        admission.call("b", 0.0)
