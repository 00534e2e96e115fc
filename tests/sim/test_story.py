"""One key, step by step, across a simulated line: the calm case, then faults one at a time."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from keyhaul.errors import KeyNotFound, Unauthorized, Unavailable
from keyhaul.keys import Secret, State
from keyhaul.messages.etsi014 import Order
from keyhaul.relay import Batch
from keyhaul.testbed.clock import run
from tests.sim.world import World, world_clock

LINE = [("a", "b", "qkd"), ("b", "c", "pqc"), ("c", "d", "qkd")]


def test_a_key_crosses_three_hops_and_is_fetched_once() -> None:
    async def story() -> None:
        world = World(1, LINE)
        await world.start()
        (key,) = await world.ask("a", "d")
        (same,) = await world.fetch("a", "d", [key.key_id])
        assert same.bits.same_as(key.bits)
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "d", [key.key_id])
        for relay in "bc":
            rows = await world.nodes[relay].ledger.find(key.key_id)
            assert [row.state for row in rows] == [State.RELAYED]

    run(story())


def test_a_batch_to_several_nodes_reaches_them_all() -> None:
    async def story() -> None:
        world = World(2, LINE)
        await world.start()
        keys = await world.ask("b", ("a", "c", "d", "b"), number=5)
        ids = [key.key_id for key in keys]
        for far in "acdb":
            got = await world.fetch("b", far, ids)
            assert all(x.bits.same_as(y.bits) for x, y in zip(got, keys, strict=True))

    run(story())


def test_a_stranger_and_the_master_are_refused() -> None:
    async def story() -> None:
        world = World(3, LINE)
        await world.start()
        (key,) = await world.ask("a", "b")
        with pytest.raises(Unauthorized):
            await world.nodes["b"].origin.fetch("sae-c", "sae-a", [key.key_id])
        with pytest.raises(Unauthorized):
            await world.nodes["a"].origin.fetch("sae-a", "sae-a", [key.key_id])

    run(story())


def test_a_cut_link_gives_503_and_leaves_no_key_behind() -> None:
    async def story() -> None:
        world = World(4, LINE, request_timeout=5.0)
        await world.start()
        await world.ask("a", "d")
        world.faults.cut.add(frozenset("cd"))
        with pytest.raises(Unavailable):
            await world.ask("a", "d")
        world.faults.cut.clear()
        await asyncio.sleep(60.0)
        for node in world.nodes.values():
            assert await node.ledger.unfinished() == []
            assert await node.ledger.deliverable() == [] or node.name == "d"
        assert len(await world.nodes["d"].ledger.deliverable()) == 1

    run(story())


def test_only_its_own_node_speaks_for_a_master() -> None:
    async def story() -> None:
        world = World(5, LINE)
        await world.start()
        await world.ask("a", "d")
        with pytest.raises(Unauthorized):
            await world.nodes["a"].origin.request(Order("sae-b", ("sae-d",), 1, 256))
        now = world_clock.now()
        key_id = uuid4()
        forged = Batch([(key_id, Secret(bytes(32)))], "sae-b", ("sae-d",), 256, now, now + 5.0, now + 60.0)
        await world.nodes["a"].relay.dispatch(forged)
        await asyncio.sleep(10.0)
        assert [row.state for row in await world.nodes["d"].ledger.find(key_id)] == [State.FAILED]
        assert [row.state for row in await world.nodes["a"].ledger.find(key_id)] == [State.FAILED]

    run(story())


def test_a_node_that_lost_what_it_heard_is_told_again_even_when_its_clock_went_back() -> None:
    """Its new descriptor must look newer than its last one, or no neighbour takes note of its return."""

    async def story() -> None:
        world = World(6, LINE, request_timeout=5.0)
        await world.start()
        await world.ask("b", "a")
        node = world.nodes["b"]
        node.crash()
        del node.disk.tables.items["directory", "a"]
        world.faults.wrong["b"] = -60.0
        await node.start()
        await asyncio.sleep(5.0)
        assert node.gossip._directory.nodes() == ["a", "b", "c", "d"]
        (key,) = await world.ask("b", "a")
        (same,) = await world.fetch("b", "a", [key.key_id])
        assert same.bits.same_as(key.bits)

    run(story())
