"""A way that failed is left for another one within the request's time, with keys and pads of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from keyhaul.errors import ExtensionRefused, KeyNotFound, Unavailable
from keyhaul.keys import Ref, State
from keyhaul.messages.etsi014 import Order
from tests.sim.dialogue import all_rows, corrupt, flip, past, ready, told
from tests.sim.world import World, world_clock

RING = [("a", "b", "qkd"), ("b", "c", "pqc"), ("a", "d", "pqc"), ("d", "c", "pqc")]
"""From a to c the way is over b; the other one is over d."""

THREE = [(end, via, "qkd" if via + end in ("ba", "bc", "da") else "pqc") for via in "bde" for end in "ac"]
"""The cheaper, the earlier in the alphabet."""


async def path_of(world: World, key: Any) -> tuple[str, ...]:
    row = await world.nodes["a"].ledger.get(Ref(key.key_id, "a"))
    assert row is not None
    return row.path


async def given_up(world: World) -> list[Any]:
    return [row for row in await all_rows(world, "a") if State.VOIDED in past(row)]


async def only_these_can_be_fetched(world: World, keys: list[Any]) -> None:
    await asyncio.sleep(10)
    held = {row.ref.key_id for row in await world.nodes["c"].ledger.deliverable()}
    assert held == {key.key_id for key in keys}
    for row in await given_up(world):
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "c", [row.ref.key_id])
    for key in keys:
        (same,) = await world.fetch("a", "c", [key.key_id])
        assert same.bits.same_as(key.bits)


@pytest.mark.parametrize("scheme", ["trusted", "masked"])
def test_a_relay_that_alters_keys_is_gone_around_at_once(scheme: str) -> None:
    async def story(world: World) -> None:
        corrupt(world, "b", flip)
        before = world_clock.now()
        keys = await world.ask("a", "c", number=3)
        assert world_clock.now() < before + 5.0, "told by the destination, not by the clock"
        assert await path_of(world, keys[0]) == ("a", "d", "c")
        lost = await given_up(world)
        assert len(lost) == 3
        assert all(row.path == ("a", "b", "c") and row.secret is None for row in lost)
        assert {row.ref.key_id for row in lost}.isdisjoint(key.key_id for key in keys)
        await only_these_can_be_fetched(world, keys)

    told(story, RING, scheme=scheme)


def test_a_slow_network_is_given_time_rather_than_asked_twice() -> None:
    async def story(world: World) -> None:
        carry, pause = world.carry, [0.0]

        async def slowly(*given: Any) -> Any:
            await asyncio.sleep(pause[0])
            return await carry(*given)

        world.carry = slowly  # type: ignore[method-assign]
        await world.ask("a", "c")
        pause[0] = 1.0
        await world.ask("a", "c")
        pause[0] = 2.0  # there and back over one relay: more than half of the time of a request
        (key,) = await world.ask("a", "c")
        assert await path_of(world, key) == ("a", "b", "c")
        assert await given_up(world) == []

    told(story, RING, request_timeout=12.0)


def test_a_relay_that_is_silent_is_gone_around_within_the_time_of_the_request() -> None:
    async def story(world: World) -> None:
        world.faults.cut.add(frozenset(("b", "c")))
        before = world_clock.now()
        (key,) = await world.ask("a", "c")
        assert world_clock.now() - before < world.settings.request_timeout
        assert await path_of(world, key) == ("a", "d", "c")
        before = world_clock.now()
        (next_key,) = await world.ask("a", "c")
        assert world_clock.now() - before < 2.0, "the way that failed is avoided for a while"
        world.faults.cut.clear()
        await only_these_can_be_fetched(world, [key, next_key])
        await asyncio.sleep(60)
        (later,) = await world.ask("a", "c")
        assert await path_of(world, later) == ("a", "b", "c"), "and then trusted again"

    told(story, RING, request_timeout=12.0)


def test_a_dry_first_link_is_gone_around() -> None:
    async def story(world: World) -> None:
        device = world.devices[frozenset("ab")]
        device.dry = True
        for _ in range(14):
            assert await world.ask("a", "b") or True
        paths = {await path_of(world, (await world.ask("a", "b"))[0]) for _ in range(3)}
        assert ("a", "d", "c", "b") in paths

    told(story, RING, request_timeout=8.0)


def test_three_ways_are_tried_one_after_another() -> None:
    async def story(world: World) -> None:
        corrupt(world, "b", flip)
        corrupt(world, "d", flip)
        (key,) = await world.ask("a", "c")
        assert await path_of(world, key) == ("a", "e", "c")
        assert {row.path for row in await given_up(world)} == {("a", "b", "c"), ("a", "d", "c")}
        await only_these_can_be_fetched(world, [key])

    told(story, THREE)


def test_when_all_ways_fail_the_master_is_told_so_and_nothing_is_left() -> None:
    async def story(world: World) -> None:
        for relay in "bde":
            corrupt(world, relay, flip)
        with pytest.raises(Unavailable):
            await world.ask("a", "c")
        assert len(await given_up(world)) == 3
        await only_these_can_be_fetched(world, [])

    told(story, THREE)


def test_of_several_targets_only_the_way_that_failed_is_changed() -> None:
    async def story(world: World) -> None:
        world.faults.cut.add(frozenset(("b", "c")))
        (key,) = await world.ask("a", ("b", "c"))
        row = await world.nodes["a"].ledger.get(Ref(key.key_id, "a"))
        assert row is not None
        assert row.peers == {"b": "b", "c": "d"}
        for target in "bc":
            (same,) = await world.fetch("a", target, [key.key_id])
            assert same.bits.same_as(key.bits)

    told(story, RING)


def test_a_way_that_lacks_what_was_demanded_is_not_taken() -> None:
    ring = [("a", "b", "qkd"), ("b", "c", "qkd"), ("a", "d", "pqc"), ("d", "c", "pqc")]

    async def story(world: World) -> None:
        corrupt(world, "b", flip)
        options = {"keyhaul_labels": ["qkd"]}
        order = Order("sae-a", ("sae-c",), 1, 256, options, frozenset(options))
        with pytest.raises(Unavailable) as caught:
            await world.nodes["a"].origin.request(order)
        assert not isinstance(caught.value, ExtensionRefused)
        assert all(row.path == ("a", "b", "c") for row in await all_rows(world, "a"))

    told(story, ring)


def test_a_pool_fills_over_the_other_way() -> None:
    async def story(world: World) -> None:
        corrupt(world, "b", flip)
        (key,) = await world.ask("a", "c")
        await asyncio.sleep(5)
        assert await ready(world, "a") >= 4
        assert await path_of(world, (await world.ask("a", "c"))[0]) == ("a", "d", "c")
        assert await world.fetch("a", "c", [key.key_id])

    told(story, RING, pool=4)
