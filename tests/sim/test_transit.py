"""Keys between two key managers of other makers, through gateways of ours at both ends of a line a=b-c=d."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec import Raw

from keyhaul.errors import ExtensionRefused, TooLarge, Unavailable, Unsupported
from keyhaul.keys import State
from keyhaul.messages import etsi020
from keyhaul.messages.etsi014 import LABELS
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.messages.wrapping import MAX_CARRIED, Wrapping
from keyhaul.ports import Opened
from keyhaul.settlement import GRACE
from tests.sim.dialogue import Story, failed_at, rows, state, states, told, void_of
from tests.sim.world import Aim, World

VALUE = bytes(range(32))
BOTH = {"kme": "a", "far": "d"}


def between(story: Story, **options: object) -> None:
    told(story, foreign=BOTH, **options)  # type: ignore[arg-type]


async def handed(
    world: World, target: str = "sae-far", optional: Mapping[str, Any] | None = None, **mandatory: Any
) -> UUID:
    """The near key manager hands a key to its gateway `a`; nothing is waited for."""
    key_id = uuid4()
    keys = (ExtKey(key_id, VALUE),)
    transfer = ExtKeys(keys, "sae-kme", (target,), "https://kme", mandatory, optional or {})
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


def test_both_gateways_note_for_the_audit_log_what_crosses_their_doors() -> None:
    async def story(world: World) -> None:
        noted: list[tuple[str, str, dict[str, Any]]] = []
        for name in "ad":
            node = world.nodes[name]
            node.site.note = lambda event, name=name, **fields: noted.append((name, event, fields))
        key_id = await handed(world)
        await asyncio.sleep(2)
        fields = {"master": "sae-kme", "targets": ["sae-far"], "keys": [str(key_id)]}
        crossed = [each for each in noted if each[1] in ("taken_in", "handed_over")]
        assert crossed == [
            ("a", "taken_in", {"by": "kme", **fields}),
            ("d", "handed_over", {"by": "far", **fields}),
        ]
        assert VALUE.hex() not in str(noted)

    between(story)


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


# ---------------------------------------------------------------------- optional extensions

EXTENSIONS = {
    "E32473_hops": Raw(b'{ "n": 1.50,"\\u00e9":[ true , null ] }'),
    "E4711_note": Raw(b'"\xc3\xb1"'),
    "E32473_traceparent": Raw(b'"theirs, whoever they are"'),
}


def extended(world: World) -> list[Mapping[str, Any]]:
    """The optional extensions that the far key manager was given, of each message."""
    return [
        etsi020.decode_ext_keys(message.body).extension_optional
        for message in world.foreigners["far"].inbox
        if message.path == etsi020.EXT_KEYS
    ]


@pytest.mark.parametrize("scheme", ["trusted", "masked"])
def test_an_optional_extension_passes_both_gateways_as_it_was_written(scheme: str) -> None:
    async def story(world: World) -> None:
        await handed(world, optional=EXTENSIONS)
        await handed(world)
        await asyncio.sleep(2)
        assert extended(world) == [EXTENSIONS, {}]

    between(story, scheme=scheme)


CHANGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda text: b"",
    lambda text: bytes([text[0] ^ 1]) + text[1:],
    lambda text: text[:-1],
    lambda text: text + b"\0",
)


def test_a_relay_can_neither_read_an_extension_nor_change_it_nor_take_it_away() -> None:
    async def story(world: World) -> None:
        relay = world.nodes["b"].relay
        honest, seen = relay._pass_on, list[bytes]()
        for change in CHANGES:

            async def cheating(
                peer: str, wrapping: Wrapping, opened: Opened, change: Callable[[bytes], bytes] = change
            ) -> None:
                seen.append(wrapping.context.carried)
                vouched = replace(wrapping.context, carried=change(wrapping.context.carried))
                await honest(peer, replace(wrapping, context=vouched), opened)

            relay._pass_on = cheating  # type: ignore[method-assign]
            key_id = await handed(world, optional=EXTENSIONS)
            await asyncio.sleep(2)
            assert key_id in {row.ref.key_id for row in await failed_at(world, "d")}
            assert world.foreigners["kme"].acks()[-1] == ("failed", key_id)
        assert came(world) == []
        assert len(seen) == len(CHANGES)
        assert all(seen)
        assert not any(word in text for text in seen for word in (b"hops", b"4711"))

    between(story)


def test_the_extensions_of_one_message_have_a_limit_and_nothing_of_it_is_kept() -> None:
    async def story(world: World) -> None:
        frame = len(b'{"E1_x":""}')
        fits, more = ({"E1_x": Raw(b'"' + b"x" * (MAX_CARRIED - frame + at) + b'"')} for at in (0, 1))
        await handed(world, optional=fits)
        with pytest.raises(TooLarge, match="extension_optional"):
            await handed(world, optional=more)
        await asyncio.sleep(2)
        assert extended(world) == [fits]
        assert len(world.nodes["a"].ledger._rows) == 1

    between(story)


def test_an_unknown_mandatory_extension_is_refused_at_the_first_gateway() -> None:
    async def story(world: World) -> None:
        with pytest.raises(Unsupported):
            await handed(world, optional=EXTENSIONS, E4711_must=Raw(b"1"))
        await asyncio.sleep(2)
        assert world.foreigners["far"].inbox == []

    between(story)


def test_what_ends_at_an_application_of_ours_takes_no_extension_along() -> None:
    async def story(world: World) -> None:
        key_id = await handed(world, "sae-d", EXTENSIONS)
        await asyncio.sleep(2)
        assert world.foreigners["kme"].acks() == [("relayed", key_id)]

    between(story)
