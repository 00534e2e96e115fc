"""A request whose pool is empty brings the pool along, and requests wait for keys that are on their way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from keyhaul.errors import Unavailable
from keyhaul.messages.etsi020 import EXT_KEYS
from keyhaul.pools import MAX_BATCH
from keyhaul.routing import Edge
from keyhaul.shelves import Pool
from keyhaul.testbed.clock import run
from tests.sim.dialogue import ready, told
from tests.sim.world import World

SQUARE = [("a", "b", "pqc"), ("b", "c", "pqc"), ("a", "d", "pqc"), ("d", "c", "pqc")]
POOL = 8


def sent(world: World) -> int:
    """Messages with keys that node a's neighbours have accepted from it."""
    return sum(sender == "a" and message.path == EXT_KEYS for sender, message in world.accepted)


async def warm(world: World, far: str) -> None:
    """The pool from a to `far` is full."""
    await world.ask("a", far)
    await asyncio.sleep(20.0)
    assert await ready(world, "a") == POOL


async def empty(world: World, far: str) -> None:
    """The pool is empty, and restocking it has failed for the first time."""
    await warm(world, far)
    world.faults.cut.add(frozenset("ab"))
    await world.ask("a", far, number=POOL)
    await asyncio.sleep(world.settings.request_timeout + 0.1)
    world.faults.cut.clear()
    assert await ready(world, "a") == 0


def test_a_request_brings_what_its_pool_lacks_in_its_own_message() -> None:
    async def story(world: World) -> None:
        await empty(world, "c")
        before = sent(world)
        keys = await world.ask("a", "c", number=2)
        assert sent(world) - before == 1
        assert await ready(world, "a") == POOL
        keys += await world.ask("a", "c", number=POOL)
        assert len({key.key_id for key in keys}) == 2 + POOL, "no key for two"
        copies = await world.fetch("a", "c", [key.key_id for key in keys])
        assert all(x.bits.same_as(y.bits) for x, y in zip(copies, keys, strict=True))

    told(story, pool=POOL, request_timeout=5.0)


def test_what_came_along_survives_a_crash_and_what_was_handed_out_is_not_handed_out_again() -> None:
    async def story(world: World) -> None:
        await empty(world, "c")
        (first,) = await world.ask("a", "c")
        world.nodes["a"].crash()
        await world.nodes["a"].start()
        keys = await world.ask("a", "c", number=POOL)
        assert first.key_id not in {key.key_id for key in keys}

    told(story, pool=POOL, request_timeout=5.0)


def test_requests_for_keys_that_are_on_their_way_send_none_of_their_own() -> None:
    async def story(world: World) -> None:
        await empty(world, "c")
        before = sent(world)
        answers = await asyncio.gather(*(world.ask("a", "c") for _ in range(1 + POOL)))
        assert sent(world) - before == 1
        assert len({key.key_id for keys in answers for key in keys}) == 1 + POOL

    told(story, pool=POOL, request_timeout=5.0)


def test_a_request_for_more_than_is_on_its_way_does_not_wait_for_it() -> None:
    async def story(world: World) -> None:
        await empty(world, "c")
        before = sent(world)
        small, large = await asyncio.gather(world.ask("a", "c"), world.ask("a", "c", number=POOL + 1))
        assert sent(world) - before == 2
        assert len({key.key_id for key in (*small, *large)}) == 2 + POOL

    told(story, pool=POOL, request_timeout=5.0)


def test_where_keys_on_their_way_get_lost_there_is_time_left_for_another_way() -> None:
    async def story(world: World) -> None:
        await warm(world, "c")
        way = world.nodes["a"].origin._site.view.hops("a", "c")
        world.faults.cut.add(frozenset(way[1:]))  # the relay takes keys and gets rid of none
        await world.ask("a", "c", number=POOL)
        begun = asyncio.get_running_loop().time()
        assert await world.ask("a", "c")
        assert asyncio.get_running_loop().time() - begun < world.settings.request_timeout

    told(story, SQUARE, pool=POOL, request_timeout=8.0)


def test_where_there_is_no_other_way_the_error_comes_in_time_and_costs_nothing() -> None:
    async def story(world: World) -> None:
        await warm(world, "c")
        world.faults.cut.add(frozenset("bc"))
        await world.ask("a", "c", number=POOL)
        loop = asyncio.get_running_loop()
        begun, before = loop.time(), sent(world)
        with pytest.raises(Unavailable, match="did not confirm keys that are on their way"):
            await world.ask("a", "c")
        assert loop.time() - begun <= world.settings.request_timeout + 0.1
        assert sent(world) - before == 1, "that which lies at the relay"
        world.faults.cut.clear()
        await asyncio.sleep(10.0)
        assert await world.ask("a", "c")
        for node in world.nodes.values():
            assert await node.ledger.unfinished() == []

    told(story, request_timeout=8.0, pool=POOL)


def test_one_time_pads_are_not_spent_on_a_pool_where_requests_want_them() -> None:
    async def story() -> None:
        world = World(1, [("a", "b", "qkd"), ("a", "c", "qkd")], pool=2 * POOL)
        world.edges[0] = Edge("a", "b", "qkd", "otp")
        await world.start()
        await asyncio.sleep(20.0)
        asked, policy = list[int](), world.nodes["a"].origin.pools.along

        def along(pool: Pool, number: int, room: Callable[[Pool], int], now: float) -> int:
            asked.append(room(pool))
            return policy(pool, number, room, now)

        world.nodes["a"].origin.pools.along = along  # type: ignore[method-assign]
        level = world.nodes["a"].links["b"].level()
        assert level is not None
        await world.ask("a", "b")
        await world.ask("a", "c")
        pads, wrapped = asked
        assert pads * 256 < level
        assert wrapped == MAX_BATCH, "one device key carries them all"

    run(story())
