"""Keys relayed ahead, keys nobody fetched, and devices that run dry."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatch
from uuid import UUID

import pytest

from keyhaul.errors import (
    InsufficientKey,
    KeyNotFound,
    StoreUnavailable,
    Unavailable,
)
from keyhaul.keys import Ref, Row, State
from keyhaul.links.onetime import OneTimeKey
from keyhaul.links.refill import Refill
from keyhaul.messages.etsi014 import Order
from keyhaul.pairing import ANEW
from keyhaul.pools import Pair, Rules
from keyhaul.settlement import GRACE
from keyhaul.stock import LEFT
from keyhaul.testbed.clock import run
from tests.sim.dialogue import (
    LINE,
    ask_until_it_fails,
    asking,
    last_key,
    ready,
    rows,
    state,
    states,
    told,
)
from tests.sim.disk import Tables
from tests.sim.storm import MOST
from tests.sim.world import RENEW, World, world_clock

# ---------------------------------------------------------------------- pools


def test_a_pool_fills_serves_and_survives_a_restart() -> None:
    async def story(world: World) -> None:
        seen: set[UUID] = set()
        (first,) = await world.ask("a", "c")
        await asyncio.sleep(20)
        assert await ready(world, "a") == 8
        world.faults.cut.add(frozenset("ab"))
        for number in (1, 3):
            keys = await world.ask("a", "c", number=number)
            seen |= {key.key_id for key in keys}
            assert len(keys) == number
        world.nodes["a"].crash()
        await world.nodes["a"].start()
        assert await ready(world, "a") == 4
        keys = await world.ask("a", "c", number=4)
        seen |= {key.key_id for key in keys}
        assert len(seen) == 8
        assert first.key_id not in seen
        with pytest.raises(Unavailable):
            await world.ask("a", "c", number=1)
        world.faults.cut.clear()
        got = await world.fetch("a", "c", [key.key_id for key in keys])
        assert all(x.bits.same_as(y.bits) for x, y in zip(got, keys, strict=True))
        await asyncio.sleep(30)
        await world.ask("a", "c")
        await asyncio.sleep(30)
        assert await ready(world, "a") == 8

    told(story, pool=8, request_timeout=5.0)


def test_the_policy_warms_a_pair_serves_it_and_voids_at_both_ends_what_lies_idle() -> None:
    async def story(world: World) -> None:
        origin = world.nodes["a"].origin
        origin.pools.rules = Rules(idle=60.0)
        await world.ask("a", "c")
        await asyncio.sleep(1)
        assert await ready(world, "a") == 0, "one request makes no pool"
        for _ in range(4):
            await world.ask("a", "c")
            await asyncio.sleep(0.2)
        await asyncio.sleep(5)
        waiting = {row.ref.key_id for row in await world.nodes["a"].ledger.deliverable()}
        assert await ready(world, "a") == len(waiting) > 0
        before = world_clock.now()
        (key,) = await world.ask("a", "c")
        assert world_clock.now() - before < 0.01, "a key that is ready waits for no relay"
        (copy,) = await world.fetch("a", "c", [key.key_id])
        assert copy.bits.same_as(key.bits)

        await asyncio.sleep(1_000)
        idle = {row.ref.key_id for row in await world.nodes["a"].ledger.deliverable()}
        stocked = origin.pools.summary()[0]
        await origin.tend()
        await asyncio.sleep(20)
        assert await ready(world, "a") == 0
        assert origin.pools.summary()[0]["given_up"] - stocked["given_up"] == len(idle) > 0
        for key_id in idle:
            assert [await state(world, node, key_id) for node in "abc"] == [State.VOIDED] * 3

    told(story)


def test_a_reserved_pair_is_stocked_before_it_asks_and_an_expired_key_counts_no_more() -> None:
    async def story(world: World) -> None:
        origin = world.nodes["a"].origin
        origin.pools.rules = Rules(pairs={("sae-a", "sae-c"): Pair(least=3)})
        await origin.start()

        async def tended() -> int:
            for _ in range(20):  # as the node's sweep does
                await origin.tend()
                await asyncio.sleep(1)
            return await ready(world, "a")

        assert await tended() == 3
        rows_here = await world.nodes["a"].ledger.deliverable()
        await asyncio.sleep(max(row.expires for row in rows_here) - world_clock.now() + GRACE + 30)
        assert await ready(world, "a") == 0
        assert await tended() == 3

    told(story, ttl=120.0)


def test_a_pool_serves_only_the_saes_and_size_it_was_made_for() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        await asyncio.sleep(20)
        pooled = {row.ref.key_id for row in await world.nodes["a"].ledger.deliverable()}
        assert len(pooled) == 4
        (other_target,) = await world.ask("a", "b")
        (other_size,) = await world.ask("a", "c", size=512)
        both = await world.ask("a", ("b", "c"))
        for key in (other_target, other_size, *both):
            assert key.key_id not in pooled
        assert len(other_size.bits) == 64
        (mine,) = await world.ask("a", "c")
        assert mine.key_id in pooled

    told(story, pool=4)


def test_a_key_in_the_pool_that_was_voided_or_expired_is_not_served() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "b")
        await asyncio.sleep(5)
        pooled = [row.ref for row in await world.nodes["a"].ledger.deliverable()]
        assert len(pooled) == 3
        await world.nodes["a"].settlement.abandon(pooled[:1])
        keys = await world.ask("a", "b", number=3)
        assert pooled[0].key_id not in {key.key_id for key in keys}
        await asyncio.sleep(5)
        old = {row.ref.key_id for row in await world.nodes["a"].ledger.deliverable()}
        assert old
        await asyncio.sleep(100 + 5)
        (key,) = await world.ask("a", "b")
        assert key.key_id not in old
        (same,) = await world.fetch("a", "b", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, pool=3, ttl=100.0)


@pytest.mark.parametrize("given", [True, False])
def test_a_key_of_the_pool_is_given_only_while_its_slave_has_time_to_come(given: bool) -> None:
    """Also one that was taken out of the pool for a block and waits in memory."""

    async def story(world: World) -> None:
        await world.ask("a", "b")
        await asyncio.sleep(5)
        (row, *_) = await world.nodes["a"].ledger.deliverable()
        pooled = {each.ref.key_id for each in await world.nodes["a"].ledger.deliverable()}
        await world.ask("a", "b")  # a block is in memory now
        last = row.expires - LEFT * 100.0
        await asyncio.sleep(last - world_clock.now() + (-0.5 if given else 0.5))
        (key,) = await world.ask("a", "b")
        assert (key.key_id in pooled) is given
        await asyncio.sleep(LEFT * 100.0 - 2.0)
        (same,) = await world.fetch("a", "b", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, pool=8, ttl=100.0)


async def stocked(world: World) -> tuple[Tables, set[UUID]]:
    """A pool from `a` to `b`: the disk of `b` before it was filled, and the ids of what lies ready."""
    backup = world.nodes["b"].disk.tables.copy()
    await world.ask("a", "b")
    await asyncio.sleep(5)
    pooled = {row.ref.key_id for row in await world.nodes["b"].ledger.deliverable()}
    assert len(pooled) >= 8
    return backup, pooled


async def ask_for_another(world: World, pooled: set[UUID]) -> None:
    (key,) = await world.ask("a", "b")
    assert key.key_id not in pooled
    (same,) = await world.fetch("a", "b", [key.key_id])
    assert same.bits.same_as(key.bits)


async def left(world: World, pooled: set[UUID]) -> list[Row]:
    """What `a` would still give of it."""
    return [row for row in await world.nodes["a"].ledger.deliverable() if row.ref.key_id in pooled]


@pytest.mark.parametrize("block", [False, True])
def test_what_lies_ready_for_a_node_that_was_restored_is_given_to_nobody(block: bool) -> None:
    """Neither from the pool nor from what was taken out of it for the next requests."""

    async def story(world: World) -> None:
        backup, pooled = await stocked(world)
        if block:
            pooled |= {key.key_id for key in await world.ask("a", "b")}
        await world.restore("b", backup, 0.1)
        await asyncio.sleep(5)
        for _ in range(10):
            await ask_for_another(world, pooled)
        assert await left(world, pooled) == []

    told(story, pool=8)


def test_nor_by_a_node_that_was_killed_when_it_had_just_heard_of_the_restore() -> None:
    async def story(world: World) -> None:
        backup, pooled = await stocked(world)
        a = world.nodes["a"]

        async def abandon(_: object, *, lost: bool) -> list[Row]:
            await asyncio.sleep(0.1)  # what it heard is on disk
            a.crash()
            return []

        a.settlement.abandon = abandon  # type: ignore[method-assign]
        await world.restore("b", backup, 0.1)
        await asyncio.sleep(5)
        assert not a.alive
        await world.revive("a", 0.1)
        await asyncio.sleep(5)
        await ask_for_another(world, pooled)
        assert await left(world, pooled) == []
        assert await a.ledger.items(ANEW) == {}

    told(story, pool=8)


def test_nor_is_what_was_under_way_then_although_it_was_acknowledged_before_the_restore() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        backup = world.nodes["c"].disk.tables.copy()
        world.faults.slow["b", "a", "ack"] = 5.0
        waiting = await asking(world, "a", "c")
        key_id = await last_key(world, "a")
        while await state(world, "c", key_id) is not State.DELIVERABLE:
            await asyncio.sleep(0.01)
        await world.restore("c", backup, 0.1)
        with pytest.raises(Unavailable):
            await waiting
        await asyncio.sleep(10)
        assert await states(world, key_id) == "a:voided b:voided c:voided d:-"
        world.faults.slow.clear()
        (key,) = await world.ask("a", "c")
        (same,) = await world.fetch("a", "c", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story)


def test_nor_is_what_was_sent_between_two_restores_that_follow_each_other() -> None:
    async def story(world: World) -> None:
        _, pooled = await stocked(world)
        a = world.nodes["a"]
        given_up: list[set[UUID]] = []
        abandon = a.settlement.abandon

        async def watched(refs: list[Ref], *, lost: bool = False) -> list[Row]:
            rows = await abandon(refs, lost=lost)
            if lost:
                given_up.append({ref.key_id for ref in refs})
                if len(given_up) == 1:
                    a.origin._restored("b")
            return rows

        a.settlement.abandon = watched  # type: ignore[assignment,method-assign]
        a.origin._restored("b")
        await asyncio.sleep(5)
        assert len(given_up) == 2
        assert given_up[0] <= pooled
        assert not a.origin._losses._heard
        await ask_for_another(world, pooled)

    told(story, pool=8)


def test_a_key_that_the_master_has_stays_for_its_other_slaves_when_one_of_their_nodes_is_restored() -> None:
    async def story(world: World) -> None:
        backup = world.nodes["c"].disk.tables.copy()
        order = Order("sae-a", ("sae-c", "sae-a2"), 1, 256)
        (key,) = await world.nodes["a"].origin.request(order)
        await world.restore("c", backup, 0.1)
        await asyncio.sleep(10)
        (same,) = await world.nodes["a"].origin.fetch("sae-a2", "sae-a", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, saes={"sae-a2": "a"})


def test_a_disk_that_is_full_when_a_restore_is_heard_of_delays_the_void_and_gives_nothing() -> None:
    async def story(world: World) -> None:
        backup, pooled = await stocked(world)
        ready = await left(world, pooled)
        world.nodes["a"].disk.fail = 1.0
        await world.restore("b", backup, 0.1)
        await asyncio.sleep(5)
        assert await left(world, pooled) == ready
        world.nodes["a"].disk.fail = 0.0
        await asyncio.sleep(30)
        assert await left(world, pooled) == []
        await ask_for_another(world, pooled)

    told(story, pool=8)


def test_the_rest_of_an_empty_pool_is_not_given_after_a_restore_either() -> None:
    """The last block was taken out of the pool, nothing new comes, and some of it waits in memory."""

    async def story(world: World) -> None:
        backup, pooled = await stocked(world)
        world.faults.cut.add(frozenset("ab"))
        given = 0
        while list(world.nodes["a"].origin.pools):
            given += len(await world.ask("a", "b"))
        assert given < len(pooled), "some are left in memory"
        await world.restore("b", backup, 0.1)
        world.faults.cut.clear()
        await asyncio.sleep(5)
        await ask_for_another(world, pooled)

    told(story, pool=8)


# ---------------------------------------------------------------------- time


def test_keys_expire_and_their_tombstones_are_forgotten() -> None:
    async def story(world: World) -> None:
        (taken,) = await world.ask("a", "c")
        (left,) = await world.ask("a", "c")
        await world.fetch("a", "c", [taken.key_id])
        await asyncio.sleep(105)
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "c", [left.key_id])
        assert await states(world, left.key_id) == "a:taken b:relayed c:expired d:-"
        stored = await world.nodes["c"].ledger.get(Ref(left.key_id, "c"))
        assert stored is not None
        assert stored.secret is None
        assert await states(world, taken.key_id) == "a:taken b:relayed c:taken d:-"
        await asyncio.sleep(55)
        for key in (taken, left):
            assert await states(world, key.key_id) == "a:- b:- c:- d:-"
        for node in world.nodes.values():
            assert node.ledger._rows == {}
            assert await node.ledger.messages() == []

    told(story, ttl=100.0, retention=50.0)


def test_an_expired_key_is_not_given_even_before_the_sweep() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "b")
        world.nodes["b"].settlement.sweep = _never  # type: ignore[method-assign]
        (row,) = await rows(world, "b", key.key_id)
        await asyncio.sleep(row.expires - world_clock.now())
        assert await state(world, "b", key.key_id) is State.DELIVERABLE
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "b", [key.key_id])

    told(story, ttl=60.0)


async def _never() -> int:
    return 0


def test_a_relay_gives_up_what_is_overdue_and_voids_what_lies_beyond() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        world.faults.slow["c", "b", "ack"] = 40.0
        waiting = await asking(world, "a", "c")
        key_id = await last_key(world, "a")
        world.nodes["a"].crash()  # so that nobody voids from above
        waiting.cancel()
        await asyncio.sleep(0)
        assert await state(world, "c", key_id) is State.DELIVERABLE
        await asyncio.sleep(10 + GRACE)
        assert await state(world, "b", key_id) is State.FAILED
        assert await state(world, "c", key_id) is State.VOIDED
        await world.nodes["a"].start()
        await asyncio.sleep(60)
        assert await state(world, "a", key_id) in (State.FAILED, State.VOIDED)

    told(story, request_timeout=8.0)


# ---------------------------------------------------------------------- key material


def test_dry_devices_say_insufficient_key_in_time_and_recover() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "b")
        device = world.devices[frozenset("ab")]
        device.dry = True
        loop = asyncio.get_running_loop()
        before = loop.time()
        with pytest.raises(InsufficientKey, match="dry"):
            await ask_until_it_fails(world, "a", "b")
        assert loop.time() - before < 5.0 + 5.0
        assert await world.nodes["a"].ledger.unfinished() == []
        device.dry = False
        await asyncio.sleep(10)
        (key,) = await world.ask("a", "b")
        (same,) = await world.fetch("a", "b", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, request_timeout=5.0)


def test_a_dry_link_further_on_is_waited_for_and_then_given_up() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "d")
        device = world.devices[frozenset("cd")]
        device.dry = True
        with pytest.raises(Unavailable):
            await ask_until_it_fails(world, "a", "d")
        device.dry = False
        await asyncio.sleep(30)
        assert await world.ask("a", "d")
        for node in world.nodes.values():
            assert await node.ledger.unfinished() == []

    told(story, request_timeout=5.0)


@pytest.mark.parametrize("far", ["b", "d"], ids=["next-door", "further-on"])
@pytest.mark.parametrize(("mode", "share"), [("expanded", 1.0), ("otp", 1.0), ("otp", 0.2)])
def test_devices_that_disagreed_for_a_while_cost_no_request_once_they_agree(
    mode: str, share: float, far: str
) -> None:
    """With a share of the keys an envelope may open and a pad not fit (storms 5082505, 5086373)."""

    async def story() -> None:
        world = World(1, LINE)
        world.edges = [replace(edge, mode=mode) if edge.kind == "qkd" else edge for edge in world.edges]
        await world.start()
        near = {"b": "a", "d": "c"}[far]
        device = world.devices[frozenset((near, far))]
        await world.ask("a", far)
        device.disagree = 1.0
        with pytest.raises(Unavailable):
            await ask_until_it_fails(world, "a", far)
        device.disagree = share
        await asyncio.sleep(5.0)
        stock = world.nodes[near].links[far].level()
        assert stock is not None
        assert stock > 4 * 256, "both ends hold keys again, and not all of them are alike"
        device.disagree = 0.0
        for _ in range(20):
            (key,) = await world.ask("a", far)
            (same,) = await world.fetch("a", far, [key.key_id])
            assert same.bits.same_as(key.bits)
        assert world.broken == []

    run(story())


def test_a_full_disk_costs_a_pool_none_of_its_keys() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        await asyncio.sleep(20)
        full = await ready(world, "a")
        assert full > 0
        world.faults.cut.add(frozenset("ab"))
        disk = world.nodes["a"].disk
        disk.fail = 1.0
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await world.ask("a", "c")
        disk.fail = 0.0
        keys = [key for _ in range(full) for key in await world.ask("a", "c")]
        assert len({key.key_id for key in keys}) == full
        got = await world.fetch("a", "c", [key.key_id for key in keys])
        assert all(x.bits.same_as(y.bits) for x, y in zip(got, keys, strict=True))

    told(story, pool=8, request_timeout=5.0)


# ---------------------------------------------------------------------- what is held for a neighbour


def held(world: World, space: str) -> int:
    """The most that a node holds in one space that matches."""
    tables = [node.disk.tables.items for node in world.nodes.values()]
    found = (Counter(kept for kept, _ in items if fnmatch(kept, space)) for items in tables)
    return max(max(counted.values(), default=0) for counted in found)


def test_eight_minutes_of_lost_refills_leave_a_bounded_heap_and_a_link_that_works() -> None:
    """On one link, as each has its own bounds, and for longer than twice what anything is held for."""

    async def story(world: World) -> None:
        # Renewals call for more all the time; every answer is lost on its way back.
        made = watch_made(world.nodes["a"].refills["b"])
        world.faults.lose_answer = 1.0
        most = 0
        for _ in range(16):
            await asyncio.sleep(30)
            most = max(most, held(world, "kem/[abcd]"))
        assert made["made"] > 4 * MOST["kem"]
        assert 150 < most < MOST["kem"]
        assert held(world, "pad/*/in") < MOST["pad"]
        world.faults.lose_answer = 0.0
        await asyncio.sleep(30)
        for _ in range(10):
            (key,) = await world.ask("a", "b")
            (same,) = await world.fetch("a", "b", [key.key_id])
            assert same.bits.same_as(key.bits)

    told(story, LINE[:1])


def test_a_sender_that_dies_again_and_again_leaves_a_bounded_heap_and_draws_no_device_key_in_vain() -> None:
    async def story(world: World) -> None:
        for _ in range(20):
            world.nodes["a"].crash()
            await world.nodes["a"].start()
            await asyncio.sleep(RENEW)
            assert held(world, "kem/[abcd]") < MOST["kem"]
            (key,) = await world.ask("a", "b")
            assert len(await world.fetch("a", "b", [key.key_id])) == 1
        assert held(world, "pad/a/in") <= 12
        assert world.devices[frozenset("ab")].handed <= 12 + 12 + 21, "both stocks, and one for each request"

    told(story)


def watch_made(refill: Refill) -> Counter[str]:
    """Counts the one-time keys that are made from now on."""
    counted: Counter[str] = Counter()
    make = refill._own_keys.make

    async def counting(number: int) -> list[OneTimeKey]:
        keys = await make(number)
        counted["made"] += len(keys)
        return keys

    refill._own_keys.make = counting  # type: ignore[method-assign]
    return counted
