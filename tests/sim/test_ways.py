"""Keys go the cheapest way that keeps what is demanded; nodes that can tell refuse what breaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from keyhaul.config import BlindConfig
from keyhaul.errors import ExtensionRefused, NoRoute, Unavailable
from keyhaul.keys import State
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.messages.wrapping import Wrapping
from keyhaul.policy import PathPolicy, Rule
from keyhaul.ports import Opened
from keyhaul.testbed.clock import run
from tests.sim.dialogue import LINE, all_rows
from tests.sim.world import World

CHEAP = [("a", "b", "pqc"), ("b", "z", "pqc")]
RING = [*CHEAP, ("a", "c", "qkd"), ("c", "d", "qkd"), ("d", "e", "qkd"), ("e", "z", "qkd"), ("d", "z", "pqc")]
"""From a to z it is cheapest over b: 4, like over c, d and e, with fewer hops. Only the latter has `qkd`."""

QKD = {"keyhaul_labels": ("qkd",)}


def told(
    tell: Callable[[World], Coroutine[Any, Any, None]],
    prepare: Callable[[World], None] = lambda world: None,
    links: list[tuple[str, str, str]] = RING,
    **options: Any,
) -> None:
    async def whole() -> None:
        world = World(1, links, **options)
        prepare(world)
        await world.start()
        await asyncio.sleep(5)
        await tell(world)
        assert world.broken == []

    with capture_logs():
        run(whole())


def demand(*labels: str, master: str = "*", slave: str = "*") -> PathPolicy:
    return PathPolicy((Rule(master, slave, frozenset(labels)),))


async def path(world: World, **asked: Any) -> str:
    """The way one key took, which both ends have."""
    (key,) = await world.ask("a", "z", **asked)
    (same,) = await world.fetch("a", "z", [key.key_id])
    assert same.bits.same_as(key.bits)
    return key.trust["path"]


# ---------------------------------------------------------------------- the way is searched


def test_labels_of_a_request_lead_another_way() -> None:
    async def story(world: World) -> None:
        assert await path(world) == "a-b-z"
        assert await path(world, mandatory=QKD) == "a=c=d=e=z"
        assert await path(world) == "a-b-z", "others go on as before"
        assert await path(world, optional=QKD) == "a-b-z", "a wish leads nowhere else"

    told(story)


def test_policy_leads_another_way_whatever_a_request_says() -> None:
    async def story(world: World) -> None:
        assert await path(world) == "a=c=d=e=z"
        assert await path(world, optional={"keyhaul_scheme": "trusted"}) == "a=c=d=e=z"

    told(story, lambda world: setattr(world, "policy", demand("qkd", master="sae-a")))


def test_a_node_that_vouches_for_nothing_is_gone_around() -> None:
    def prepare(world: World) -> None:
        world.classic = {"b", "e"}

    async def story(world: World) -> None:
        assert await path(world, mandatory={"keyhaul_labels": ("pq",)}) == "a=c=d-z"
        with pytest.raises(ExtensionRefused, match="hop a to b lacks pq, qkd"):
            await world.ask("a", "z", mandatory={"keyhaul_labels": ("pq", "qkd")})

    told(story, prepare)


def test_a_scheme_that_some_nodes_have_leads_over_those() -> None:
    pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")

    def prepare(world: World) -> None:
        world.blind = dict.fromkeys("acdz", BlindConfig(enabled=True))

    async def story(world: World) -> None:
        assert await path(world, mandatory={"keyhaul_scheme": "blind"}) == "a=c=d-z"
        with pytest.raises(ExtensionRefused, match="node b does not take part"):
            await world.ask("a", "z", mandatory={"keyhaul_scheme": "blind", **QKD})
        with pytest.raises(ExtensionRefused, match="node b does not take part"):
            await world.ask("a", "b", mandatory={"keyhaul_scheme": "blind"})

    told(story, prepare)


def test_without_a_mask_only_a_way_without_relays_is_blind() -> None:
    links = [("a", "b", "qkd"), ("b", "z", "qkd"), ("a", "z", "pqc")]
    trusted = {"keyhaul_scheme": "trusted", "keyhaul_labels": ("relay-blind",)}

    async def story(world: World) -> None:
        assert await path(world, mandatory=trusted) == "a-z"

    told(story, links=links)


def test_where_no_way_has_it_the_usual_one_is_told_and_nothing_is_sent() -> None:
    async def story(world: World) -> None:
        with pytest.raises(ExtensionRefused, match="hop a to b lacks its-wire; hop b to z lacks its-wire"):
            await world.ask("a", "z", mandatory={"keyhaul_labels": ("its-wire",)})
        assert [message for _, message in world.accepted if message.path == "ext_keys"] == []

    told(story)


def test_a_way_that_failed_is_avoided_among_those_that_keep_the_promise() -> None:
    links = [*RING, ("c", "f", "qkd"), ("f", "z", "qkd")]

    async def story(world: World) -> None:
        assert await path(world, mandatory=QKD) == "a=c=f=z"
        world.faults.cut.add(frozenset("fz"))
        assert await path(world, mandatory=QKD) == "a=c=d=e=z"
        world.faults.cut.add(frozenset("ez"))
        with pytest.raises(Unavailable):
            await world.ask("a", "z", mandatory=QKD)

    told(story, links=links)


# ---------------------------------------------------------------------- other nodes' policies


async def refused(world: World, by: str, **asked: Any) -> None:
    """Nothing arrives, and from `by` on no node ever accepted anything of it."""
    with pytest.raises(Unavailable):
        await world.ask("a", "d", **asked)
    await asyncio.sleep(20)
    for node in "abcd"["abcd".index(by) :]:
        for row in await all_rows(world, node):
            assert [event.state for event in row.history] == [State.VOIDED], "a tombstone of the void alone"
    origin = await all_rows(world, "a")
    assert origin
    assert all(row.state in (State.FAILED, State.VOIDED) for row in origin)


@pytest.mark.parametrize("by", ["b", "c", "d"])
def test_a_node_refuses_a_scheme_that_its_own_policy_does_not_allow(by: str) -> None:
    """The destination keeps no such key for its application, and a relay does not want to see it."""

    def prepare(world: World) -> None:
        world.policies = {by: demand("relay-blind", slave="sae-d")}

    async def story(world: World) -> None:
        await refused(world, by, mandatory={"keyhaul_scheme": "trusted"})
        (key,) = await world.ask("a", "d", mandatory={"keyhaul_scheme": "masked"})
        assert key.trust["labels"] == "pq relay-blind"
        (key,) = await world.ask("a", "c", mandatory={"keyhaul_scheme": "trusted"})
        assert key.trust["scheme"] == "trusted", "another pair"

    told(story, prepare, LINE, request_timeout=6.0)


@pytest.mark.parametrize("by", ["b", "c", "d"])
def test_the_neighbours_of_a_link_and_the_destination_know_what_it_lacks(by: str) -> None:
    """On a=b-c=d only the middle link lacks `qkd`."""

    def prepare(world: World) -> None:
        world.policies = {by: demand("qkd")}

    told(lambda world: refused(world, by), prepare, LINE, request_timeout=6.0)


def test_a_relay_judges_its_own_hops_alone() -> None:
    links = [("a", "b", "pqc"), ("b", "c", "qkd"), ("c", "d", "qkd"), ("d", "e", "qkd")]

    async def story(world: World) -> None:
        assert await world.ask("a", "e")

    told(story, lambda world: setattr(world, "policies", {"c": demand("qkd")}), links)


def test_a_relay_that_does_not_vouch_is_known_at_the_destination() -> None:
    def prepare(world: World) -> None:
        world.classic = {"b"}
        world.policies = {"d": demand("pq")}

    async def story(world: World) -> None:
        await refused(world, "d")
        (key,) = await world.ask("c", "d")
        assert "pq" in key.trust["labels"]

    told(story, prepare, LINE, request_timeout=6.0)


def test_an_origin_goes_around_a_relay_that_refuses() -> None:
    def prepare(world: World) -> None:
        world.policies = {"b": demand("qkd")}

    async def story(world: World) -> None:
        assert await path(world) == "a=c=d-z"

    told(story, prepare)


def test_a_lie_about_the_path_fails_at_the_origins_tag() -> None:
    """A relay that names a better path to a destination with a policy changes what the origin vouched for."""
    links = [*LINE, ("a", "e", "qkd"), ("e", "f", "qkd"), ("f", "c", "qkd")]

    async def story(world: World) -> None:
        relay = world.nodes["c"].relay
        pass_on = relay._pass_on

        async def lie(peer: str, wrapping: Wrapping, opened: Opened) -> None:
            context = replace(wrapping.context, route=("a", "e", "f", "c", "d"))
            await pass_on(peer, replace(wrapping, context=context), opened)

        relay._pass_on = lie  # type: ignore[method-assign]
        (key,) = await world.ask("a", "d")
        assert key.trust["path"] == "a=e=f=c=d", "the second attempt goes where the policy lets it"
        states = {row.ref.key_id: [each.state for each in row.history] for row in await all_rows(world, "d")}
        assert states.pop(key.key_id) == [State.ACCEPTED, State.DELIVERABLE]
        assert list(states.values()) == [[State.ACCEPTED, State.FAILED, State.VOIDED]], "the lie"

    told(story, lambda world: setattr(world, "policies", {"d": demand("qkd")}), links)


def test_what_came_in_as_plain_020_keeps_no_label_on_its_way() -> None:
    """The gateway may let keys of a foreign key manager in; the far node knows whose they are."""
    transfer = ExtKeys((ExtKey(uuid4(), bytes(32)),), "sae-kme", ("sae-d",), "https://a/kme")

    async def story(world: World) -> None:
        await world.nodes["a"].relay.accept("kme", transfer)
        await asyncio.sleep(20)
        for row in await all_rows(world, "d"):
            assert [event.state for event in row.history] == [State.VOIDED]
        (row,) = [row for row in await all_rows(world, "a") if row.initiator == "sae-kme"]
        assert row.state in (State.FAILED, State.VOIDED)

    def prepare(world: World) -> None:
        world.policies = {"d": demand("relay-blind", master="sae-kme")}

    told(story, prepare, LINE, foreign={"kme": "a"}, request_timeout=6.0)


def test_no_route_is_still_told_as_such() -> None:
    async def story(world: World) -> None:
        with pytest.raises(NoRoute, match="demands qkd"):
            await world.ask("a", "d")

    told(story, lambda world: setattr(world, "policy", demand("qkd")), LINE)


def test_keys_that_do_not_come_from_the_node_before_on_their_route_are_refused() -> None:
    async def story(world: World) -> None:
        relay = world.nodes["a"].relay
        hand_on = relay._hand_on

        async def pretend(scheme: Any, wrapping: Wrapping, *rest: Any) -> Any:
            context = replace(wrapping.context, origin="c", route=("c", "b", "z"), initiator="sae-c")
            return await hand_on(scheme, replace(wrapping, context=context), *rest)

        relay._hand_on = pretend  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await world.ask("a", "z")
        assert await all_rows(world, "b") == []

    told(story, links=CHEAP)
