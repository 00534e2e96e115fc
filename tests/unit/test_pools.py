"""The policy of relaying ahead: sized by demand, shared fairly, given up when idle; the index under it."""

from __future__ import annotations

from uuid import UUID

import pytest

from keyhaul.keys import MASTER, Ref, Row, State
from keyhaul.pools import LONGEST_PAUSE, MAX_BATCH, Pair, Pools, Rules
from keyhaul.shelves import Pool, Shelves

A, B, C = (Pool(master, frozenset({"slave"}), 256) for master in ("a", "b", "c"))


def room(pool: Pool) -> int:
    return 10_000


def ask(pools: Pools, pool: Pool, times: int, *, every: float, start: float = 0.0, number: int = 1) -> float:
    """Requests at a steady pace; returns the time after them."""
    for at in range(times):
        pools.asked(pool, number, False, start + at * every)
    return start + times * every


def stock(pools: Pools, pool: Pool, number: int, first: int = 0) -> None:
    pools.add(pool, [Ref(UUID(int=first * 256 + at), "here") for at in range(number)])


# -- how many -----------------------------------------------------------------------------------------


def test_one_request_makes_no_pool_and_the_second_does() -> None:
    pools = Pools(Rules())
    pools.asked(A, 1, False, 0.0)
    assert pools.target(A, 0.0) == 0
    pools.asked(A, 1, False, 1.0)
    assert pools.target(A, 1.0) >= 1
    assert pools.low(A, 1.0)


def test_a_new_pair_is_warm_after_a_few_requests() -> None:
    pools = Pools(Rules())
    now = ask(pools, A, 5, every=0.1)
    assert pools.target(A, now) >= 5


def test_more_demand_asks_for_more_keys_and_larger_requests_for_more_still() -> None:
    def target(every: float, number: int, lead: float = 1.0) -> int:
        pools = Pools(Rules())
        for _ in range(20):
            pools.filled(A, 1, lead, 0.0)
        now = ask(pools, A, 200, every=every, number=number)
        return pools.target(A, now)

    assert target(10.0, 1) < target(1.0, 1) < target(0.1, 1)
    assert target(1.0, 16) > 16
    assert target(0.1, 1, lead=5.0) > target(0.1, 1, lead=0.1), "a narrow link asks for a larger pool"


def test_a_pair_that_asks_less_often_than_a_key_may_lie_has_none_ready() -> None:
    for every, ready in ((120.0, True), (900.0, False)):
        pools = Pools(Rules(idle=300.0))
        now = ask(pools, A, 10, every=every)
        assert (pools.target(A, now) >= 1) == ready


def test_a_burst_is_remembered_and_forgotten() -> None:
    pools = Pools(Rules(idle=300.0))
    now = ask(pools, A, 40, every=0.01)
    assert 30 <= pools.target(A, now + 60.0) <= 40
    assert 8 <= pools.target(A, now + 600.0) <= 12
    assert pools.target(A, now + 6_000.0) == 0


def test_a_pool_is_restocked_in_lots_that_are_worth_a_message() -> None:
    """A quantum link that makes two device keys a second, one a message, carries a hundred keys a second."""
    pools, messages, asked, now = Pools(Rules()), 0, 0, 0.0
    while now < 120.0:
        pools.asked(A, 2, pools.count(A) >= 2, now)
        asked += 2
        if pools.count(A) >= 2:
            block = pools.pop(A)
            pools.add(A, block[2:])
        if (picked := pools.pick(now, room)) is not None:
            stock(pools, A, picked[1], first=1 + messages)
            pools.filled(A, picked[1], 1.0, now)
            messages += 1
        now += 0.2
    assert asked / messages > 40
    assert pools.count(A) < 150


def test_bounds_of_the_configuration_hold() -> None:
    pairs = {("a", "slave"): Pair(most=7), ("b", "slave"): Pair(least=9)}
    pools = Pools(Rules(most=20, pairs=pairs))
    pools.reserve(B, 0.0)
    now = 0.0
    for pool in (A, C):
        now = ask(pools, pool, 500, every=0.001)
    assert (pools.target(A, now), pools.target(B, now), pools.target(C, now)) == (7, 9, 20)
    assert pools.low(B, now)


def test_a_fixed_pool_is_of_its_size_once_it_was_asked_for() -> None:
    pools = Pools(Rules(fixed=8))
    assert pools.pick(0.0, room) is None
    pools.asked(A, 1, False, 0.0)
    assert pools.pick(0.0, room) == (A, 8)
    stock(pools, A, 8)
    pools.filled(A, 8, 0.1, 0.1)
    assert pools.pick(1e6, room) is None
    assert pools.surplus(1e6) == []
    assert Pools(Rules(fixed=0)).target(A, 0.0) == 0


# -- who first ----------------------------------------------------------------------------------------


def served(pools: Pools, turns: int, now: float) -> dict[Pool, int]:
    """Who gets how many keys in so many turns, when everybody lacks without an end."""
    got = {A: 0, B: 0, C: 0}
    for _ in range(turns):
        picked = pools.pick(now, lambda pool: 4)
        assert picked is not None
        pool, number = picked
        pools.filled(pool, number, 1.0, now)
        got[pool] += number
    return got


def test_pools_take_turns_by_their_weights_and_nobody_starves() -> None:
    pools = Pools(Rules(fixed=1_000_000, pairs={("b", "slave"): Pair(weight=3.0)}))
    for pool, number in ((A, 1_000), (B, 1), (C, 1)):
        pools.asked(pool, number, False, 0.0)
    assert served(pools, 100, 0.0) == {A: 80, B: 240, C: 80}


def test_a_newcomer_neither_waits_for_what_others_had_nor_makes_up_for_it() -> None:
    pools = Pools(Rules(fixed=1_000_000))
    pools.asked(A, 1, False, 0.0)
    pools.asked(B, 1, False, 0.0)
    served(pools, 100, 0.0)
    pools.asked(C, 1, False, 1.0)
    got = served(pools, 30, 1.0)
    assert got[C] == 40
    assert abs(got[A] - got[B]) <= 4


def test_priority_goes_first_and_no_pool_twice_at_once() -> None:
    pools = Pools(Rules(fixed=300, pairs={("c", "slave"): Pair(priority=True)}))
    for pool in (A, B, C):
        pools.asked(pool, 1, False, 0.0)
    picked = [pools.pick(0.0, room) for _ in range(4)]
    assert picked[0] == (C, MAX_BATCH)
    assert {each[0] for each in picked[1:3] if each is not None} == {A, B}
    assert picked[3] is None


def test_a_request_brings_what_its_pool_lacks_as_far_as_the_message_and_the_link_go() -> None:
    pools = Pools(Rules(fixed=50))
    assert pools.along(A, 1, lambda pool: 100, 0.0) == 0, "one request makes no pool"
    pools.asked(A, 1, False, 0.0)
    stock(pools, A, 10)
    assert pools.along(A, 1, lambda pool: 100, 0.0) == 40
    assert pools.along(A, 1, lambda pool: 100, 0.0) == 0, "they are under way"
    assert pools.pick(0.0, room) is None
    pools.failed(A, 0.0)
    assert pools.along(A, MAX_BATCH - 3, lambda pool: 100, 0.0) == 3, "that others failed holds up nobody"
    pools.filled(A, 3, 1.0, 0.0)
    assert pools.along(A, MAX_BATCH, lambda pool: 100, 0.0) == 0
    assert pools.along(A, 1, lambda pool: 5, 0.0) == 5


def test_what_came_along_counts_as_a_turn_of_its_pool() -> None:
    pools = Pools(Rules(fixed=300))
    for pool in (A, B):
        pools.asked(pool, 1, False, 0.0)
    assert pools.along(A, 1, lambda pool: 100, 0.0) == 100
    pools.filled(A, 100, 1.0, 0.0)
    picked = pools.pick(0.0, room)
    assert picked == (B, MAX_BATCH)


def test_a_link_that_makes_pools_wait_for_room_gets_fewer_and_larger_messages() -> None:
    """A device that gives a block of keys a minute is dry in between: that is part of restocking."""

    def lot(wait: float) -> int:
        pools, now = Pools(Rules()), 0.0
        for _ in range(6):
            now = ask(pools, A, 40, every=0.25, start=now)
            assert pools.pick(now, lambda pool: 0) is None
            now = ask(pools, A, int(4 * wait), every=0.25, start=now)
            picked = pools.pick(now, room)
            assert picked is not None
            now += 0.1
            pools.filled(A, picked[1], 0.1, now)
        pools.target(A, now)
        return pools._states[A].lot

    assert lot(0.0) < 50
    assert lot(20.0) > 80
    assert lot(600.0) <= MAX_BATCH


def test_a_link_that_was_down_for_long_makes_no_pool_for_that() -> None:
    pools = Pools(Rules())
    now = ask(pools, A, 100, every=0.1)
    assert pools.pick(now, lambda pool: 0) is None
    now = ask(pools, A, 36_000, every=0.1, start=now)
    picked = pools.pick(now, room)
    assert picked is not None
    pools.filled(A, picked[1], 0.1, now)
    assert pools.target(A, now) < 1_000


def test_a_link_without_room_holds_up_only_those_who_need_it() -> None:
    pools = Pools(Rules(fixed=50))
    pools.asked(A, 1, False, 0.0)
    pools.asked(B, 1, False, 0.0)
    rooms = {A: 0, B: 3}
    assert pools.pick(0.0, lambda pool: rooms[pool]) == (B, 3)
    assert pools.pick(0.0, lambda pool: rooms[pool]) is None


def test_a_pool_that_cannot_be_filled_tries_less_and_less_often() -> None:
    pools = Pools(Rules(fixed=10))
    pools.asked(A, 1, False, 0.0)
    now, pauses = 0.0, []
    for _ in range(10):
        assert pools.pick(now, room) is not None
        pools.failed(A, now)
        begun = now
        while pools.pick(now, room) is None:
            now += 0.125
        pools.failed(A, now)  # the pick that ended the pause
        pauses.append(now - begun)
        now += 2 * LONGEST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[0] <= 1.0
    assert pauses[-1] == LONGEST_PAUSE
    pools.filled(A, 1, 0.1, now)
    pools.pick(now, room)
    pools.failed(A, now)
    assert pools.pick(now + 0.5, room) is not None, "a success ends the pauses"


def test_keys_that_arrive_for_a_request_end_the_pause_of_a_pool() -> None:
    pools = Pools(Rules(fixed=10))
    pools.asked(A, 1, False, 0.0)
    for _ in range(10):
        pools.pick(0.0, room)
        pools.failed(A, 0.0)
    assert pools.pick(10.0, room) is None
    pools.reached(A, 10.0)
    pools.reached(B, 10.0)
    assert pools.pick(10.0, room) is None, "not at once, for requests succeed often"
    assert pools.pick(10.5, room) == (A, 10)


def test_restocking_begins_when_a_pool_is_low_and_ends_when_it_is_full() -> None:
    pools = Pools(Rules(fixed=100))
    pools.asked(A, 1, False, 0.0)
    stock(pools, A, 76)
    assert pools.pick(0.0, room) is None
    pools.pop(A)
    stock(pools, A, 74)
    assert pools.pick(0.0, lambda pool: 10) == (A, 10)
    pools.filled(A, 10, 0.1, 0.0)
    stock(pools, A, 10, first=1)
    assert pools.pick(0.0, room) == (A, 16)


# -- what is given up ---------------------------------------------------------------------------------


def test_idle_keys_are_given_up_but_not_before_the_pair_is_known() -> None:
    pools = Pools(Rules(idle=100.0))
    stock(pools, A, 50)
    now = ask(pools, A, 4, every=0.1)
    assert pools.surplus(now) == [], "keys of an earlier run wait until demand is known"
    assert pools.surplus(99.0) == []
    ((pool, extra),) = pools.surplus(3_000.0)
    assert (pool, extra) == (A, 50)
    pools.pop(A)
    pools.gave_up(A, 50)
    assert pools.summary()[0]["given_up"] == 50


def test_a_pair_nobody_asks_for_any_more_is_forgotten() -> None:
    pools = Pools(Rules(idle=10.0, pairs={("b", "slave"): Pair(least=1)}))
    pools.reserve(B, 0.0)
    ask(pools, A, 2, every=1.0)
    assert {entry["master"] for entry in pools.summary()} == {"a", "b"}
    pools.surplus(1_000.0)
    assert {entry["master"] for entry in pools.summary()} == {"b"}


# -- the index ----------------------------------------------------------------------------------------


def row(number: int, state: State = State.DELIVERABLE) -> Row:
    ref = Ref(UUID(int=number), "here")
    return Row(ref, state, "a", ("slave",), 256, 0.0, 1.0, 2.0, waiting=frozenset({MASTER}))


def test_blocks_leave_oldest_first_and_whole() -> None:
    shelves = Shelves()
    for number in (256, 257, 512, 258):
        assert shelves.offer(row(number))
    assert shelves.count(A) == 4
    assert shelves.pop(A, 2) == []
    assert [ref.key_id.int for ref in shelves.pop(A)] == [256, 257, 258]
    assert [ref.key_id.int for ref in shelves.pop(A, 2)] == [512]
    assert (shelves.pop(A), shelves.count(A), list(shelves)) == ([], 0, [])


def test_keys_that_ended_lie_here_no_longer() -> None:
    shelves = Shelves()
    for number in (256, 257, 512):
        shelves.offer(row(number))
    assert shelves.remove(row(257, State.EXPIRED))
    assert not shelves.remove(row(257, State.EXPIRED))
    assert shelves.remove(row(256, State.VOIDED))
    assert shelves.count(A) == 1
    assert [ref.key_id.int for ref in shelves.pop(A)] == [512]
    assert not shelves.remove(row(512))


@pytest.mark.parametrize(
    "change", [{"state": State.TAKEN}, {"upstream": "there"}, {"waiting": frozenset({"slave"})}]
)
def test_only_confirmed_keys_of_this_origin_that_wait_for_their_master_are_offered(
    change: dict[str, object],
) -> None:
    other = row(1)
    for name, value in change.items():
        setattr(other, name, value)
    assert not Shelves().offer(other)
