"""Every application asks for every key under every master's name, of real kernels: only the named get any."""

from __future__ import annotations

import asyncio
from itertools import product
from uuid import UUID, uuid4

import pytest

from keyhaul import story
from keyhaul.errors import KeyhaulError
from keyhaul.messages.etsi014 import Delivered, Order
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.testbed.clock import run
from tests.sim.dialogue import LINE
from tests.sim.world import World

MORE = {"sae-a2": "a", "sae-b2": "b", "sae-d2": "d"}
ORDERS = {
    "sae-a": [
        ("sae-d",),
        ("sae-d2",),
        ("sae-d", "sae-d2", "sae-b"),
        ("sae-a2",),
        ("sae-a2", "sae-c", "sae-d2"),
    ],
    "sae-a2": [("sae-d",), ("sae-a",)],
    "sae-b": [("sae-c",), ("sae-b2", "sae-a")],
    "sae-d": [("sae-a",), ("sae-a2", "sae-b2")],
}
"""Far ends, neighbours, the same node, and several at once, two of them at one node, by master."""

Key = tuple[str, tuple[str, ...], UUID, bytes]  # master, slaves, id, bits


def home(world: World, sae: str) -> str:
    return str(world.network.home(sae))


async def order(world: World, master: str, slaves: tuple[str, ...]) -> Key:
    story.begin()
    (key,) = await world.nodes[home(world, master)].origin.request(Order(master, slaves, 1, 256, {}))
    return master, slaves, key.key_id, key.bits.reveal()


async def foreign(world: World) -> Key:
    """A key of another maker's application, which its key manager hands over at b."""
    key_id, value = uuid4(), bytes(range(32))
    keys = ExtKeys((ExtKey(key_id, value),), "sae-kme", ("sae-d",), "https://kme")
    await world.nodes["b"].relay.accept("kme", keys)
    await asyncio.sleep(5)
    return "sae-kme", ("sae-d",), key_id, value


async def fetch(world: World, caller: str, master: str, key_ids: list[UUID]) -> list[Delivered]:
    return await world.nodes[home(world, caller)].origin.fetch(caller, master, key_ids)


async def refused(world: World, caller: str, master: str, key_ids: list[UUID]) -> None:
    with pytest.raises(KeyhaulError) as error:
        await fetch(world, caller, master, key_ids)
    assert error.value.status in (400, 401), (caller, master, error.value)


@pytest.mark.parametrize("scheme", ["trusted", "masked"])
@pytest.mark.parametrize("pool", [0, 4])
def test_only_who_is_named_gets_a_key_and_only_under_its_masters_name(scheme: str, pool: int) -> None:
    async def main() -> None:
        world = World(5, LINE, foreign={"kme": "b"}, saes=MORE, scheme=scheme, pool=pool)
        await world.start()
        await asyncio.sleep(5)
        keys = [await order(world, master, slaves) for master, each in ORDERS.items() for slaves in each]
        keys.append(await foreign(world))
        saes = sorted({f"sae-{node}" for node in world.nodes} | set(MORE))
        masters = [*saes, "sae-kme", "nobody"]
        own = {(caller, key[0]): key for key in keys for caller in key[1]}
        tried = 0
        for caller, claimed, (master, slaves, key_id, _) in product(saes, masters, keys):
            if claimed == master and caller in slaves:
                continue
            await refused(world, caller, claimed, [key_id])
            if (good := own.get((caller, claimed))) is not None:
                await refused(world, caller, claimed, [good[2], key_id])  # beside one that it may have
            tried += 1
        assert tried > len(saes) * len(masters) * (len(keys) - 4)
        for master, slaves, key_id, bits in keys:  # and nothing was used up by all that
            for slave in slaves:
                (same,) = await fetch(world, slave, master, [key_id])
                assert same.bits.reveal() == bits
                await refused(world, slave, master, [key_id])
        for caller, claimed, (_, _, key_id, _) in product(saes, masters, keys):
            await refused(world, caller, claimed, [key_id])
        assert world.broken == []

    run(main())
