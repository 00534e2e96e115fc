"""Keys between two key managers of other makers, through gateways of ours at both ends of a line a=b-c=d."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from keyhaul.errors import ExtensionRefused, Unavailable
from keyhaul.keys import State
from keyhaul.messages import etsi020
from keyhaul.messages.etsi014 import LABELS
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.settlement import GRACE
from tests.sim.dialogue import Story, rows, state, states, told, void_of
from tests.sim.world import Aim, World

VALUE = bytes(range(32))
BOTH = {"kme": "a", "far": "d"}


def between(story: Story, **options: object) -> None:
    told(story, foreign=BOTH, **options)  # type: ignore[arg-type]


async def handed(world: World, target: str = "sae-far") -> UUID:
    """The near key manager hands a key to its gateway `a`; nothing is waited for."""
    key_id = uuid4()
    transfer = ExtKeys((ExtKey(key_id, VALUE),), "sae-kme", (target,), "https://kme")
    await world.nodes["a"].relay.accept("kme", transfer)
    return key_id


def came(world: World) -> list[tuple[UUID, bytes]]:
    """Keys that the far key manager was given."""
    return [
        (key.key_id, key.value)
        for message in world.foreigners["far"].inbox
        if message.path == etsi020.EXT_KEYS
        for key in etsi020.decode_ext_keys(message.body).keys
    ]


def test_a_key_passes_from_one_to_the_other_and_is_acknowledged_when_that_one_has_it() -> None:
    async def story(world: World) -> None:
        near, far = world.foreigners["kme"], world.foreigners["far"]
        key_id = await handed(world)
        await asyncio.sleep(2)
        assert came(world) == [(key_id, VALUE)]
        assert near.acks() == [], "the far one has said nothing yet"
        assert await state(world, "d", key_id) is State.SENT
        await world.nodes["d"].settlement.acknowledge(
            "far", [etsi020.Ack((key_id,), etsi020.AckStatus.RELAYED, "sae-kme", ("sae-far",))]
        )
        await asyncio.sleep(2)
        assert near.acks() == [("relayed", key_id)]
        assert await states(world, key_id) == "a:relayed b:relayed c:relayed d:relayed"
        for name in world.nodes:
            for row in await rows(world, name, key_id):
                assert row.secret is None
        assert len(far.inbox) == 1

    between(story)


@pytest.mark.parametrize("point", ["saved", "accepted", "posted"])
def test_a_gateway_that_dies_on_the_way_hands_over_what_it_took(point: str) -> None:
    async def story(world: World) -> None:
        world.foreigners["far"].lively = True
        world.aims.append(Aim(point, "d", 1, 2.0))
        key_id = await handed(world)
        await asyncio.sleep(12)
        assert set(came(world)) == {(key_id, VALUE)}
        assert world.foreigners["kme"].acks() == [("relayed", key_id)]

    between(story, request_timeout=10.0)


def test_a_key_manager_that_stays_silent_costs_the_other_one_its_key_and_is_told_to_forget_it() -> None:
    async def story(world: World) -> None:
        key_id = await handed(world)
        await asyncio.sleep(5 + 3 * GRACE)
        assert world.foreigners["kme"].acks() == [("failed", key_id)]
        first, *more = world.foreigners["far"].inbox
        assert first.path == "ext_keys"
        assert {message.path for message in more} == {"void"}
        assert {etsi020.decode_void(void.body).key_ids for void in more} == {(key_id,)}
        assert await state(world, "d", key_id) in (State.FAILED, State.VOIDED)

    between(story, request_timeout=5.0)


def test_a_void_goes_all_the_way() -> None:
    async def story(world: World) -> None:
        key_id = await handed(world)
        await asyncio.sleep(2)
        await world.nodes["a"].settlement.void("kme", void_of(key_id, targets=("sae-far",)))
        await asyncio.sleep(2)
        assert world.foreigners["far"].inbox[-1].path == "void"
        assert await states(world, key_id) == "a:voided b:voided c:voided d:voided"

    between(story)


def test_an_application_of_ours_reaches_the_far_one_and_is_told_what_that_is_worth() -> None:
    async def story(world: World) -> None:
        world.foreigners["far"].lively = True
        (key,) = await world.ask("a", "far")
        assert came(world) == [(key.key_id, key.bits.reveal())]
        trust = dict(key.trust or {})
        assert trust["path"] == "a=b-c=d~"
        assert (trust["relays"], trust["neighbour"], trust["labels"]) == ("none", "none", "")
        both = await world.ask("a", ("d", "far"))
        got = await world.fetch("a", "d", [each.key_id for each in both])
        assert [each.bits.reveal() for each in got] == [each.bits.reveal() for each in both]
        assert came(world)[-1] == (both[0].key_id, both[0].bits.reveal())
        before = len(came(world))
        with pytest.raises(ExtensionRefused, match="hop d to the key manager of sae-far"):
            await world.ask("a", "far", mandatory={LABELS: ["pq"]})
        assert len(came(world)) == before

    between(story)


def test_an_application_gets_no_key_that_the_far_key_manager_did_not_take() -> None:
    async def story(world: World) -> None:
        with pytest.raises(Unavailable):
            await world.ask("a", "far")

    between(story, request_timeout=4.0)
