"""Neighbours that cheat, refuse or repeat themselves: the origin is told, and nothing false is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from keyhaul.control import encode_records, publish
from keyhaul.errors import (
    KeyNotFound,
    Malformed,
    PeerUnreachable,
    Tampered,
    Unavailable,
)
from keyhaul.keys import Message, Ref, Row, State
from keyhaul.messages import confirming, etsi020
from keyhaul.messages.payload import Payload
from keyhaul.ports import Answer
from keyhaul.schemes.masked import Masked
from tests.sim.dialogue import (
    STAR,
    all_rows,
    asking,
    corrupt,
    cut,
    failed_at,
    flip,
    foreign_key,
    nothing_can_be_replayed,
    past,
    rows,
    state,
    states,
    substitute,
    swap_pair,
    told,
    true_ack,
    void_of,
    watching,
)
from tests.sim.world import SimSigner, World, world_clock

# ---------------------------------------------------------------------- failure of a leg


@pytest.mark.parametrize("alter", [flip, substitute, swap_pair, cut])
@pytest.mark.parametrize("scheme", ["trusted", "masked"])
def test_a_relay_that_changes_a_key_is_found_out(alter: Callable[[Payload], Payload], scheme: str) -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        corrupt(world, "b", alter)
        waiting = await asking(world, "a", "c", number=2)
        with pytest.raises(Unavailable):
            await waiting
        await asyncio.sleep(10)
        held = await world.nodes["c"].ledger.deliverable()
        assert len(held) == 1, "only the key of before"
        ended = await failed_at(world, "c")
        assert len(ended) == 2
        for row in ended:
            stored = await world.nodes["c"].ledger.get(row.ref)
            assert stored is not None
            assert stored.secret is None
            assert not stored.waiting
            assert (await state(world, "a", row.ref.key_id)) is State.VOIDED
            (origin_row,) = await rows(world, "a", row.ref.key_id)
            assert State.FAILED in past(origin_row), "the origin was told"
        world.nodes["b"].site.schemes = world.nodes["a"].site.schemes
        assert await world.ask("a", "c"), "an honest relay works again"

    told(story, scheme=scheme)


def test_a_relay_may_not_send_a_key_to_an_sae_it_was_not_meant_for() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        relay = world.nodes["b"].relay
        pass_on = relay._pass_on

        async def redirect(peer: str, wrapping: Any, opened: Any) -> None:
            context = replace(wrapping.context, initiator="sae-b")
            await pass_on(peer, replace(wrapping, context=context), opened)

        relay._pass_on = redirect  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await world.ask("a", "c")
        assert len(await world.nodes["c"].ledger.deliverable()) == 1

    told(story, request_timeout=5.0)


def test_a_failed_leg_of_a_multicast_voids_the_others() -> None:
    async def story(world: World) -> None:
        await world.ask("hub", ("x", "y", "z"))
        keep = world.nodes["y"].site.schemes
        corrupt(world, "y", flip)
        with pytest.raises(Unavailable):
            await world.ask("hub", ("x", "y", "z"))
        await asyncio.sleep(5)
        (bad,) = [row.ref.key_id for row in await failed_at(world, "y")]
        assert await states(world, bad) == "hub:voided x:voided y:voided z:voided"
        (row,) = await rows(world, "x", bad)
        assert past(row)[-2:] == [State.DELIVERABLE, State.VOIDED]
        world.nodes["y"].site.schemes = keep
        assert await world.ask("hub", ("x", "y", "z"))

    told(story, STAR)


def test_a_neighbour_that_refuses_fails_the_key_at_once_and_is_not_voided() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        answer_as(world, "b", "ext_keys", Answer(400, "no route"))
        loop = asyncio.get_running_loop()
        before = loop.time()
        with pytest.raises(Unavailable):
            await world.ask("a", "c")
        assert loop.time() - before < 5.0
        await asyncio.sleep(5)
        assert len(await world.nodes["a"].ledger.messages()) == 0

    told(story)


def answer_as(world: World, target: str, path: str, answer: Answer) -> None:
    """From now on `target` answers messages of one operation like this and does nothing else."""
    relay = world.nodes[target].relay
    envelope = relay.envelope

    async def refuse(peer: str, body: bytes) -> None:
        opened = await world.nodes[target].links[peer].open(body)
        if opened is not None and opened.path == path:
            raise Malformed(answer.cause)
        await envelope(peer, body)

    relay.envelope = refuse  # type: ignore[method-assign]


def test_a_request_that_ends_while_its_ack_arrives_gives_its_keys_to_nobody_else() -> None:
    """Confirmed in the moment it is given up: the keys are the caller's, or nobody's, never a pool's."""

    async def story(world: World) -> None:
        await world.ask("a", "b")
        world.faults.slow["b", "a", "ack"] = 1000.0
        node = world.nodes["a"]
        abandon = node.settlement.abandon
        raced: list[Any] = []

        async def late(refs: Any) -> list[Row]:
            world.faults.slow.clear()
            (ref,) = refs
            await node.settlement.acknowledge("b", [await true_ack(world, ref.key_id, "b")])
            raced.extend(await world.ask("a", "b"))  # somebody else, at the same time
            return await abandon([ref])

        node.settlement.abandon = late  # type: ignore[method-assign]
        first = await world.ask("a", "b")
        assert len(raced) == 1
        assert first[0].key_id != raced[0].key_id, "one key went to two callers"
        for key in (*first, *raced):
            (same,) = await world.fetch("a", "b", [key.key_id])
            assert same.bits.same_as(key.bits)

    told(story, request_timeout=5.0)


@pytest.mark.parametrize("proof", [b"", bytes(16)])
@pytest.mark.parametrize("scheme", ["trusted", "masked"])
def test_a_relay_that_acknowledges_what_it_dropped_is_found_out_at_once(scheme: str, proof: bytes) -> None:
    async def story(world: World) -> None:
        (honest,) = await world.ask("a", "c")
        relay = world.nodes["b"].relay

        async def pretend(peer: str, wrapping: Any, opened: Any) -> None:
            context = wrapping.context
            outcomes = [(key_id, proof) for key_id in context.key_ids]
            saes = context.initiator, context.targets
            acks = confirming.acks(outcomes, etsi020.AckStatus.RELAYED, saes, world.settings.pen)
            message = relay._letters.acks(peer, acks)
            async with relay.site.ledger.edit() as change:
                opened.spend(change)
                change.post(message)
            relay._outbox.send(message)

        relay._pass_on = pretend  # type: ignore[method-assign]
        before = world_clock.now()
        with pytest.raises(Unavailable):
            await world.ask("a", "c", number=2)
        assert world_clock.now() < before + world.settings.request_timeout / 2, "not by its time being up"
        for row in await all_rows(world, "a"):
            if row.ref.key_id != honest.key_id:
                assert past(row) == [
                    State.MINTED,
                    State.SENDING,
                    *past(row)[2:-2],
                    State.FAILED,
                    State.VOIDED,
                ]
                assert row.secret is None
        assert await world.fetch("a", "c", [honest.key_id])

    told(story, scheme=scheme)


def test_a_proof_lasts_over_a_crash_of_the_origin_and_counts_for_its_own_key_only() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "c")
        world.faults.slow["b", "a", "ack"] = 4.0
        first, second = await asking(world, "a", "c"), await asking(world, "a", "c")
        one, two = sorted({row.ref.key_id for row in await world.nodes["a"].ledger.unfinished()})
        said = await true_ack(world, one, "c")
        world.nodes["a"].crash()
        await world.nodes["a"].start()
        for task in (first, second):
            task.cancel()
        await world.nodes["a"].settlement.acknowledge("b", [replace(said, key_ids=(two,))])
        assert await state(world, "a", two) is State.FAILED
        await asyncio.sleep(10)
        assert await state(world, "a", one) is State.DELIVERABLE, "the true one, by the usual way"
        assert await state(world, "c", two) is State.VOIDED

    told(story)


# ---------------------------------------------------------------------- envelopes


def test_a_repeated_envelope_is_accepted_once_and_a_changed_one_not_at_all() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "b")
        seen: list[Message] = []
        peers = world.nodes["a"].outbox._peers
        post = peers.post

        async def watch(message: Message) -> Answer:
            seen.append(message)
            return await post(message)

        peers.post = watch  # type: ignore[method-assign]
        (key,) = await world.ask("a", "b")
        (message,) = [each for each in seen if each.path == etsi020.EXT_KEYS]
        b = world.nodes["b"]
        before = dict(b.ledger._items)
        for _ in range(3):
            await b.relay.envelope("a", message.body)
        await asyncio.gather(*(b.relay.envelope("a", message.body) for _ in range(5)))
        with pytest.raises((Tampered, Malformed)):
            await world.nodes["c"].relay.envelope("b", message.body)
        assert before.keys() <= b.ledger._items.keys() | before.keys()
        assert len([row for row in await b.ledger.find(key.key_id)]) == 1
        assert key.bits.reveal() not in message.body
        (same,) = await world.fetch("a", "b", [key.key_id])
        await b.relay.envelope("a", message.body)
        assert same.bits.same_as(key.bits)
        with pytest.raises(KeyNotFound):
            await world.fetch("a", "b", [key.key_id])

    told(story)


def test_no_message_of_any_kind_can_be_replayed() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "d")
        (given_up,) = await world.ask("a", "d")
        await world.nodes["a"].settlement.abandon([Ref(given_up.key_id, "a")])
        key_id = await foreign_key(world)
        await world.nodes["a"].settlement.void("kme", void_of(key_id))
        world.faults.duplicate = 1.0
        await world.ask("d", ("a", "b", "c"), number=3)
        await asyncio.sleep(5)
        world.faults.duplicate = 0.0
        for node in world.nodes.values():
            for refill in node.refills.values():
                refill._call = _nobody  # so that the ledgers stand still
        await asyncio.sleep(5)
        paths = {message.path for _, message in world.accepted}
        assert paths == {etsi020.EXT_KEYS, etsi020.ACK, etsi020.VOID}
        await nothing_can_be_replayed(world)
        (same,) = await world.fetch("a", "d", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, foreign={"kme": "a"})


async def _nobody(peer: str, body: bytes) -> bytes:
    raise PeerUnreachable(f"{peer} does not answer")


def test_a_ledger_of_a_relay_holds_no_key_and_no_bit_of_it_is_on_a_wire() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "d")
        wire: list[bytes] = []
        for node in world.nodes.values():
            peers = node.outbox._peers
            peers.post = watching(peers.post, wire)  # type: ignore[method-assign,assignment]
        keys = await world.ask("a", "d", number=3)
        for bits in (key.bits.reveal() for key in keys):
            assert not any(bits in body for body in wire)
            for relay in "bc":
                ledger = world.nodes[relay].ledger
                assert not any(bits in value for value in ledger._items.values())
                assert not any(bits in message.body for message in await ledger.messages())
                assert all(row.secret is None for row in await all_rows(world, relay))

    told(story)


def test_masked_relays_never_see_the_key() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "d")
        bare: list[bytes] = []

        def look(payload: Payload) -> Payload:
            bare.append(payload.body)
            return payload

        corrupt(world, "b", look)
        (key,) = await world.ask("a", "d")
        assert bare
        assert not any(key.bits.reveal() in body for body in bare)

    told(story, scheme=Masked.name)


# ---------------------------------------------------------------------- descriptors


def test_a_descriptor_of_another_domain_is_refused_and_the_node_stays_unknown() -> None:
    async def story(world: World) -> None:
        known = world.nodes["a"].site.pairing._directory
        await asyncio.sleep(2)
        said = known.get("c", world_clock.now()).descriptor
        newer = msgspec.structs.replace(said, domain="elsewhere", sequence=said.sequence + 9)
        with pytest.raises(Tampered):
            await world.nodes["a"].gossip.receive("b", encode_records([publish(newer, SimSigner("c"))]))
        stranger = msgspec.structs.replace(said, node="m")
        with pytest.raises(Tampered):
            await world.nodes["a"].gossip.receive("b", encode_records([publish(stranger, SimSigner("m"))]))
        assert known.nodes() == ["a", "b", "c", "d"]
        assert known.get("c", world_clock.now()).descriptor == said
        assert await world.ask("a", "c")

    told(story)
