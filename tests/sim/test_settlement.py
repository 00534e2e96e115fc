"""Dialogues about what became of keys: acknowledgements and voids, early, late, repeated and false."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from keyhaul.errors import (
    Conflict,
    KeyNotFound,
    Unavailable,
)
from keyhaul.keys import Ref, State
from keyhaul.messages import etsi020
from keyhaul.messages.etsi014 import Order
from keyhaul.messages.etsi020 import Ack, AckStatus, ExtKey, ExtKeys, Void
from tests.sim.dialogue import (
    STAR,
    ack,
    asking,
    corrupt,
    flip,
    foreign_key,
    last_key,
    nothing_can_be_replayed,
    past,
    rows,
    state,
    states,
    told,
    void_of,
)
from tests.sim.world import World

# ---------------------------------------------------------------------- void


def test_a_void_that_overtakes_its_keys_keeps_them_out_for_ever() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")  # everybody knows everybody
        world.faults.slow["b", "c", "ext_keys"] = 20.0
        waiting = await asking(world, "a", "c")
        key_id = await last_key(world, "a")
        with pytest.raises(Unavailable):
            await waiting
        await asyncio.sleep(5)
        assert await states(world, key_id) == "a:voided b:voided c:voided d:-"
        await asyncio.sleep(30)  # the keys arrive, and are taken in as void
        late = [message for sender, message in world.accepted if (sender, message.path) == ("b", "ext_keys")]
        assert key_id in {message.refs[0].key_id for message in late}
        assert await states(world, key_id) == "a:voided b:voided c:voided d:-"
        for node, leg in (("a", "c"), ("b", "c")):
            (row,) = await rows(world, node, key_id)
            assert row.legs == {leg: State.VOIDED}, f"{node} was told"
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "c", [key_id])
        assert [len(await node.ledger.messages()) for node in world.nodes.values()] == [0, 0, 0, 0]
        await nothing_can_be_replayed(world)

    told(story, request_timeout=5.0)


def test_a_void_may_come_while_a_gateway_still_looks_for_a_way() -> None:
    async def story(world: World) -> None:
        key_id = uuid4()
        transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", ("sae-c",), "https://kme")
        taken = asyncio.ensure_future(world.nodes["a"].relay.accept("kme", transfer))
        await asyncio.sleep(0)  # nobody has heard of anybody yet
        await world.nodes["a"].settlement.void("kme", Void((key_id,), "sae-kme", ("sae-c",), "https://kme"))
        assert not taken.done()
        await taken
        await asyncio.sleep(1)
        assert world.foreigners["kme"].acks() == [("key not present", key_id), ("voided", key_id)]
        assert await states(world, key_id) == "a:voided b:- c:- d:-"

    told(story, foreign={"kme": "a"})


def test_keys_that_come_twice_at_once_are_accepted_twice_and_kept_once() -> None:
    async def story(world: World) -> None:
        key_id = uuid4()
        transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", ("sae-c",), "https://kme")
        other = replace(transfer, keys=(ExtKey(key_id, b"x" * 32),))
        accept = world.nodes["a"].relay.accept
        answers = await asyncio.gather(
            accept("kme", transfer), accept("kme", transfer), accept("kme", other), return_exceptions=True
        )
        assert answers[:2] == [None, None]
        assert isinstance(answers[2], Conflict)
        await asyncio.sleep(1)
        assert world.foreigners["kme"].acks() == [("relayed", key_id)]
        (key,) = await world.nodes["c"].origin.fetch("sae-c", "sae-kme", [key_id])
        assert key.bits.reveal() == bytes(32)

    told(story, foreign={"kme": "a"})


@pytest.mark.parametrize("target", ["a", "c"])
def test_a_void_of_an_unknown_key_leaves_a_tombstone_and_says_so(target: str) -> None:
    async def story(world: World) -> None:
        key_id = uuid4()
        await world.nodes["a"].settlement.void(
            "kme", Void((key_id,), "sae-kme", (f"sae-{target}",), "https://kme")
        )
        await asyncio.sleep(1)
        assert world.foreigners["kme"].acks() == [("key not present", key_id)]
        assert await state(world, "a", key_id) is State.VOIDED
        transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", (f"sae-{target}",), "https://kme")
        await world.nodes["a"].relay.accept("kme", transfer)
        await asyncio.sleep(1)
        assert world.foreigners["kme"].acks()[1:] == [("voided", key_id)]
        assert await state(world, "a", key_id) is State.VOIDED
        with pytest.raises(KeyNotFound):
            await world.nodes[target].origin.fetch(f"sae-{target}", "sae-kme", [key_id])

    told(story, foreign={"kme": "a"})


def test_a_void_before_delivery_takes_the_key_back() -> None:
    async def story(world: World) -> None:
        key_id = await foreign_key(world)
        assert await states(world, key_id) == "a:relayed b:relayed c:relayed d:deliverable"
        await world.nodes["a"].settlement.void("kme", void_of(key_id))
        await asyncio.sleep(5)
        assert await states(world, key_id) == "a:voided b:voided c:voided d:voided"
        assert world.foreigners["kme"].acks()[1:] == [("voided", key_id)]
        with pytest.raises(KeyNotFound):
            await world.nodes["d"].origin.fetch("sae-d", "sae-kme", [key_id])

    told(story, foreign={"kme": "a"})


def test_a_void_after_delivery_fails_and_says_so() -> None:
    async def story(world: World) -> None:
        key_id = await foreign_key(world)
        (key,) = await world.nodes["d"].origin.fetch("sae-d", "sae-kme", [key_id])
        assert key.bits.reveal() == bytes(range(32))
        await world.nodes["a"].settlement.void("kme", void_of(key_id))
        await asyncio.sleep(5)
        assert world.foreigners["kme"].acks()[1:] == [("failed to void", key_id)]
        assert await state(world, "d", key_id) is State.TAKEN

    told(story, foreign={"kme": "a"})


def test_a_void_is_confirmed_when_the_far_end_did_it_and_no_sooner_although_the_keys_come_again() -> None:
    async def story(world: World) -> None:
        key_id = await foreign_key(world)
        a, kme = world.nodes["a"], world.foreigners["kme"]
        again = ExtKeys((ExtKey(key_id, bytes(range(32))),), "sae-kme", ("sae-d",), "https://kme")
        world.faults.cut.add(frozenset("ab"))
        await a.settlement.void("kme", void_of(key_id))
        await a.relay.accept("kme", again)
        await asyncio.sleep(5)
        assert kme.acks() == [("relayed", key_id)], "d may still give the key"
        await world.nodes["d"].origin.fetch("sae-d", "sae-kme", [key_id])
        world.faults.cut.clear()
        await asyncio.sleep(10)
        assert kme.acks()[1:] == [("failed to void", key_id)]
        await a.relay.accept("kme", again)
        await asyncio.sleep(1)
        assert kme.acks()[2:] == []

    told(story, foreign={"kme": "a"})


@pytest.mark.parametrize("slow", ["b", "d"])
def test_a_void_for_two_nodes_is_answered_once_and_failed_where_one_of_them_gave_the_key(slow: str) -> None:
    async def story(world: World) -> None:
        key_id, both = uuid4(), ("sae-b", "sae-d")
        transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", both, "https://kme")
        await world.nodes["a"].relay.accept("kme", transfer)
        await asyncio.sleep(5)
        await world.nodes[slow].origin.fetch(f"sae-{slow}", "sae-kme", [key_id])
        await world.nodes["a"].settlement.void("kme", void_of(key_id, targets=both))
        await asyncio.sleep(5)
        assert world.foreigners["kme"].acks() == [("relayed", key_id), ("failed to void", key_id)]

    told(story, foreign={"kme": "a"})


def test_a_key_that_one_of_two_saes_fetched_is_not_taken_from_the_other() -> None:
    async def story(world: World) -> None:
        key_id, both = uuid4(), ("sae-d", "sae-d2")
        transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", both, "https://kme")
        await world.nodes["a"].relay.accept("kme", transfer)
        await asyncio.sleep(5)
        await world.nodes["d"].origin.fetch("sae-d2", "sae-kme", [key_id])
        await world.nodes["a"].settlement.void("kme", void_of(key_id, targets=both))
        await asyncio.sleep(5)
        assert world.foreigners["kme"].acks() == [("relayed", key_id), ("failed to void", key_id)]
        assert await state(world, "d", key_id) is State.DELIVERABLE
        await world.nodes["d"].origin.fetch("sae-d", "sae-kme", [key_id])
        assert await state(world, "d", key_id) is State.TAKEN

    told(story, foreign={"kme": "a"}, saes={"sae-d2": "d"})


def test_a_void_without_ids_takes_back_all_keys_of_the_saes_and_no_others() -> None:
    async def story(world: World) -> None:
        mine = [await foreign_key(world) for _ in range(3)]
        other = await foreign_key(world, "sae-b")
        await world.nodes["d"].origin.fetch("sae-d", "sae-kme", mine[:1])
        (own,) = await world.ask("a", "d")
        await world.nodes["a"].settlement.void("kme", void_of())
        await asyncio.sleep(5)
        acks = {key_id: status for status, key_id in world.foreigners["kme"].acks()}
        assert [acks[key_id] for key_id in mine] == ["failed to void", "voided", "voided"]
        assert acks[other] == "relayed"
        assert [await state(world, "d", key_id) for key_id in mine] == [
            State.TAKEN,
            State.VOIDED,
            State.VOIDED,
        ]
        assert await state(world, "b", other) is State.DELIVERABLE
        assert await world.fetch("a", "d", [own.key_id])

    told(story, foreign={"kme": "a"})


def test_a_void_twice_is_answered_twice_and_changes_nothing_more() -> None:
    async def story(world: World) -> None:
        key_id = await foreign_key(world)
        for _ in range(2):
            await world.nodes["a"].settlement.void("kme", void_of(key_id))
            await asyncio.sleep(5)
        assert [status for status, _ in world.foreigners["kme"].acks()] == [
            "relayed",
            "voided",
            "key not present",
        ]

    told(story, foreign={"kme": "a"})


def test_a_neighbour_cannot_void_keys_it_neither_gave_nor_got() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "b")
        await world.nodes["b"].settlement.void(
            "c", Void((key.key_id,), "sae-a", ("sae-b",), "https://c/kmapi/v1/ext_keys/ack")
        )
        await world.nodes["a"].settlement.void(
            "b", Void((), "sae-x", ("sae-b",), None, all_confirmation=True)
        )
        await asyncio.sleep(2)
        (same,) = await world.fetch("a", "b", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story)


def test_a_void_from_below_tells_the_origin_and_voids_the_other_legs() -> None:
    async def story(world: World) -> None:
        await world.ask("hub", ("x", "y"))
        world.faults.slow["y", "hub", "ack"] = 60.0
        waiting = await asking(world, "hub", ("x", "y"))
        key_id = await last_key(world, "hub")
        assert await state(world, "x", key_id) is State.DELIVERABLE
        await world.nodes["hub"].settlement.void("y", Void((key_id,), "sae-hub", ("sae-y",), None))
        with pytest.raises(Unavailable):
            await waiting
        await asyncio.sleep(2)
        assert await state(world, "hub", key_id) is State.VOIDED
        assert await state(world, "x", key_id) is State.VOIDED

    told(story, STAR)


# ---------------------------------------------------------------------- acknowledgements


def test_an_ack_may_overtake_the_answer_to_its_keys() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "b")
        world.faults.lose_answer = 1.0  # no 202 ever arrives, acks do
        (key,) = await world.ask("a", "b")
        assert await state(world, "a", key.key_id) is State.TAKEN
        (row,) = await rows(world, "a", key.key_id)
        assert past(row) == [
            State.MINTED,
            State.SENDING,
            State.DELIVERABLE,
            State.TAKEN,
        ]
        world.faults.lose_answer = 0.0
        await asyncio.sleep(15)
        assert await state(world, "a", key.key_id) is State.TAKEN
        assert await world.nodes["a"].ledger.messages() == []
        assert await world.fetch("a", "b", [key.key_id])

    told(story)


@pytest.mark.parametrize("status", list(AckStatus))
def test_a_repeated_or_late_ack_changes_nothing(status: AckStatus) -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "c")
        before = await states(world, key.key_id)
        for node, peer in (("a", "b"), ("b", "c")):
            for _ in range(2):
                await world.nodes[node].settlement.acknowledge(peer, [ack(key.key_id, "c", status=status)])
        await asyncio.sleep(5)
        assert await states(world, key.key_id) == before
        assert await world.fetch("a", "c", [key.key_id])

    told(story)


def test_an_ack_counts_only_from_the_neighbour_that_got_the_key() -> None:
    async def story(world: World) -> None:
        await world.ask("hub", ("x", "y"))
        world.faults.slow["y", "hub", "ack"] = 10.0
        waiting = await asking(world, "hub", ("x", "y"))
        hub = world.nodes["hub"].settlement
        key_id = await last_key(world, "hub")
        for peer, target in (("z", "y"), ("x", "y"), ("z", "x"), ("nobody", "y")):
            for status in (AckStatus.RELAYED, AckStatus.FAILED):
                with pytest.raises(KeyNotFound):
                    await hub.acknowledge(peer, [ack(key_id, target, status=status, initiator="hub")])
        with pytest.raises(KeyNotFound):
            await hub.acknowledge("y", [ack(key_id, "x", "y", initiator="hub")])
        with pytest.raises(KeyNotFound):
            await hub.acknowledge("y", [ack(uuid4(), "y", initiator="hub")])
        assert not waiting.done()
        (row,) = await rows(world, "hub", key_id)
        assert row.legs == {"x": State.RELAYED, "y": State.SENDING}
        assert len(await waiting) == 1

    told(story, STAR)


def test_a_key_is_not_released_before_every_target_holds_it() -> None:
    async def story(world: World) -> None:
        await world.ask("hub", ("x", "y"))
        world.faults.slow["hub", "y", "ext_keys"] = 5.0
        waiting = await asking(world, "hub", ("x", "y", "hub"))
        key_id = await last_key(world, "hub")
        assert await state(world, "x", key_id) is State.DELIVERABLE
        assert await state(world, "y", key_id) is None
        assert not waiting.done()
        with pytest.raises(KeyNotFound):
            await world.fetch("hub", "hub", [key_id])
        (key,) = await waiting
        assert await state(world, "y", key.key_id) is State.DELIVERABLE
        assert await state(world, "hub", key.key_id) is State.DELIVERABLE, "its own SAE has not fetched"
        for node in ("x", "y", "hub"):
            (same,) = await world.fetch("hub", node, [key.key_id])
            assert same.bits.same_as(key.bits)
        assert await state(world, "hub", key.key_id) is State.TAKEN

    told(story, STAR)


def test_immediate_release_does_not_wait() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(5)
        world.faults.slow["b", "c", "ext_keys"] = 5.0
        loop = asyncio.get_running_loop()
        before = loop.time()
        (key,) = await world.ask("a", "c")
        assert loop.time() - before < 1.0
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "c", [key.key_id])
        await asyncio.sleep(10)
        assert await states(world, key.key_id) == "a:relayed b:relayed c:deliverable d:-"
        (same,) = await world.fetch("a", "c", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, release="immediate")


# ---------------------------------------------------------------------- gateway


def test_a_transfer_repeated_is_the_same_and_with_other_bits_a_conflict() -> None:
    async def story(world: World) -> None:
        key_id = await foreign_key(world, "sae-a")
        same = ExtKeys((ExtKey(key_id, bytes(range(32))),), "sae-kme", ("sae-a",), "https://kme")
        await world.nodes["a"].relay.accept("kme", same)
        await asyncio.sleep(2)
        assert {status for status, _ in world.foreigners["kme"].acks()} == {"relayed"}
        for other in (
            replace(same, keys=(ExtKey(key_id, bytes(32)),)),
            replace(same, target_sae_ids=("sae-b",)),
        ):
            with pytest.raises(Conflict):
                await world.nodes["a"].relay.accept("kme", other)
        (key,) = await world.nodes["a"].origin.fetch("sae-a", "sae-kme", [key_id])
        assert key.bits.reveal() == bytes(range(32))

    told(story, foreign={"kme": "a"})


def test_a_key_that_cannot_go_on_is_failed_to_the_foreign_kme() -> None:
    async def story(world: World) -> None:
        await foreign_key(world)
        corrupt(world, "c", flip)
        key_id = uuid4()
        transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", ("sae-d",), "https://kme")
        await world.nodes["a"].relay.accept("kme", transfer)
        await asyncio.sleep(10)
        assert world.foreigners["kme"].acks()[-1] == ("failed", key_id)
        assert await state(world, "d", key_id) is State.FAILED

    told(story, foreign={"kme": "a"})


# ---------------------------------------------------------------------- paper B's void after delivery


def test_the_void_of_paper_b_goes_back_to_the_origin_and_takes_nothing_from_anyone() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", ("d", "a"))
        await world.fetch("a", "d", [key.key_id])
        await asyncio.sleep(5)
        assert await states(world, key.key_id) == "a:deliverable b:voided c:voided d:taken"
        (same,) = await world.fetch("a", "a", [key.key_id])
        assert same.bits.same_as(key.bits), "the other target still gets its copy"
        assert await states(world, key.key_id) == "a:taken b:voided c:voided d:taken"
        for node in world.nodes.values():
            assert await node.ledger.messages() == []

    told(story, void_delivered=True)


def test_a_key_is_voided_only_when_the_last_application_has_it() -> None:
    async def story(world: World) -> None:
        order = Order("sae-a", ("sae-d", "sae-d-other"), 1, 256)
        (key,) = await world.nodes["a"].origin.request(order)
        await world.fetch("a", "d", [key.key_id])
        await asyncio.sleep(5)
        assert await states(world, key.key_id) == "a:taken b:relayed c:relayed d:deliverable"
        (same,) = await world.nodes["d"].origin.fetch("sae-d-other", "sae-a", [key.key_id])
        assert same.bits.same_as(key.bits)
        await asyncio.sleep(5)
        assert await states(world, key.key_id) == "a:taken b:voided c:voided d:taken"

    told(story, saes={"sae-d-other": "d"}, void_delivered=True)


def test_nothing_of_it_is_sent_by_default() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "d")
        await world.fetch("a", "d", [key.key_id])
        await asyncio.sleep(5)
        assert await states(world, key.key_id) == "a:taken b:relayed c:relayed d:taken"

    told(story)


def test_a_foreign_key_manager_is_sent_it_too_and_its_answer_is_understood() -> None:
    async def story(world: World) -> None:
        key_id = await foreign_key(world, "sae-a")
        (key,) = await world.nodes["a"].origin.fetch("sae-a", "sae-kme", [key_id])
        assert len(key.bits) == 32
        await asyncio.sleep(1)
        (void,) = [each for each in world.foreigners["kme"].inbox if each.path == etsi020.VOID]
        said = etsi020.decode_void(void.body)
        assert (said.key_ids, said.target_sae_ids) == ((key_id,), ("sae-a",))
        answer = Ack((key_id,), AckStatus.VOIDED, "sae-kme", ("sae-a",))
        await world.nodes["a"].relay._settlement.acknowledge("kme", [answer])
        stranger = Ack((uuid4(),), AckStatus.VOIDED, "sae-kme", ("sae-a",))
        with pytest.raises(KeyNotFound):
            await world.nodes["a"].relay._settlement.acknowledge("kme", [stranger])

    told(story, foreign={"kme": "a"}, void_delivered=True)


def test_which_link_disagreed_is_no_business_of_a_foreign_kme() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "d")
        world.devices[frozenset("cd")].disagree = 1.0
        heard: list[Ref] = []
        world.nodes["a"].settlement.doubted = heard.extend
        for _ in range(20):  # what c and d have of before is used up first
            key_id = uuid4()
            transfer = ExtKeys((ExtKey(key_id, bytes(32)),), "sae-kme", ("sae-d",), "https://kme")
            await world.nodes["a"].relay.accept("kme", transfer)
            await asyncio.sleep(2)
            if world.foreigners["kme"].acks()[-1] == ("failed", key_id):
                break
        assert world.foreigners["kme"].acks()[-1] == ("failed", key_id)
        assert heard == [Ref(key_id, "a")], "c said so to b, and b to a"
        (failed,) = etsi020.decode_acks(world.foreigners["kme"].inbox[-1].body)
        assert failed.extension == {}

    told(story, foreign={"kme": "a"})
