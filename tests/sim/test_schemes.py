"""Schemes and labels in whole networks: what is asked for happens on the whole path, or nothing is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from keyhaul.blindkeys import LEAST_LIFE, STREAK
from keyhaul.config import BlindConfig
from keyhaul.errors import ExtensionRefused, KeyhaulError, NoRoute, Unavailable
from keyhaul.kem import KEMS
from keyhaul.messages.payload import Payload
from keyhaul.policy import PathPolicy, Rule
from keyhaul.schemes.blind import Blind
from keyhaul.testbed.clock import run
from tests.sim.dialogue import LINE, all_rows
from tests.sim.world import World, world_clock

BLIND = {"keyhaul_scheme": "blind"}
ON = BlindConfig(enabled=True, rerandomise=True)


def told(
    tell: Callable[[World], Coroutine[Any, Any, None]],
    prepare: Callable[[World], None] = lambda world: None,
    **options: Any,
) -> None:
    """Start a world after `prepare` and tell a story in it."""

    async def whole() -> None:
        world = World(1, LINE, **options)
        prepare(world)
        await world.start()
        await tell(world)
        assert world.broken == []

    with capture_logs():
        run(whole())


def enabled(*nodes: str) -> Callable[[World], None]:
    pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")

    def prepare(world: World) -> None:
        world.blind = dict.fromkeys(nodes or tuple(world.nodes), ON)

    return prepare


def policy(*rules: Rule) -> Callable[[World], None]:
    return lambda world: setattr(world, "policy", PathPolicy(rules))


def demand(*labels: str, master: str = "*", slave: str = "*") -> Rule:
    return Rule(master, slave, frozenset(labels))


async def nothing_was_sent(world: World) -> None:
    """No key left its origin, nor does a row of it exist."""
    await asyncio.sleep(5)
    assert [message.path for _, message in world.accepted if message.path == "ext_keys"] == []
    assert [row for node in world.nodes for row in await all_rows(world, node)] == []


# ---------------------------------------------------------------------- all three, side by side


@pytest.mark.parametrize("number", [1, 5, 64])  # more would compute in a thread, which has real time
@pytest.mark.parametrize(
    ("scheme", "relays"),
    [
        ("trusted", "none"),
        ("masked", "computational"),
        ("blind", "computational"),
        ("blind-fresh", "computational"),
    ],
)
def test_every_scheme_brings_the_same_bits_and_says_what_it_promises(
    scheme: str, relays: str, number: int
) -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(5)
        keys = await world.ask("a", "d", number=number, mandatory={"keyhaul_scheme": scheme})
        got = await world.fetch("a", "d", [key.key_id for key in keys])
        assert all(one.bits.same_as(other.bits) for one, other in zip(keys, got, strict=True))
        for key in got:
            assert key.trust["scheme"] == scheme
            assert key.trust["relays"] == relays
            assert key.trust["labels"] == ("pq" if scheme == "trusted" else "pq relay-blind")

    told(story, enabled())


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kem", sorted(KEMS))
def test_masks_come_from_any_kem_in_both_forms(kem: str, once: bool) -> None:
    def prepare(world: World) -> None:
        world.kem, world.once = kem, once

    async def story(world: World) -> None:
        for _ in range(3):
            keys = await world.ask("a", "d", number=2)
            got = await world.fetch("a", "d", [key.key_id for key in keys])
            assert all(one.bits.same_as(other.bits) for one, other in zip(keys, got, strict=True))
        kept = await world.nodes["d"].ledger.items("pair/in")
        assert len(kept) == (0 if once else 1), "only the form of an hour keeps a secret"

    told(story, prepare)


def test_an_origin_right_after_its_start_waits_for_the_descriptors_of_the_path() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "d", mandatory=BLIND)
        (same,) = await world.fetch("a", "d", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, enabled())


def test_a_key_survives_a_restart_of_its_destination_on_the_way() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "d", mandatory=BLIND)
        far = world.nodes["d"]
        far.crash()
        asking = asyncio.ensure_future(world.ask("a", "d", mandatory=BLIND))
        await asyncio.sleep(2)
        await far.start()
        (key,) = await asking
        (same,) = await world.fetch("a", "d", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, enabled())


# ---------------------------------------------------------------------- what a path does not have


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [("acd", "node b does"), ("abd", "node c does"), ("abc", "node d does"), ("bcd", "a")],
)
def test_a_scheme_that_a_node_of_the_path_does_not_have_is_refused_with_its_name(
    nodes: str, missing: str
) -> None:
    async def story(world: World) -> None:
        with pytest.raises(ExtensionRefused, match=f"scheme blind: .*{missing}"):
            await world.ask("a", "d", mandatory=BLIND)
        await nothing_was_sent(world)
        (key,) = await world.ask("a", "d", optional=BLIND)
        assert key.trust["scheme"] == "masked", "what is only wished for gives way"
        (same,) = await world.fetch("a", "d", [key.key_id])
        assert same.bits.same_as(key.bits)

    told(story, enabled(*nodes))


def test_a_wish_is_granted_where_it_can_be() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "d", optional=BLIND)
        assert key.trust["scheme"] == "blind"
        (key,) = await world.ask("a", "b", optional={"keyhaul_scheme": "masked"})
        assert key.trust["scheme"] == "masked"
        (key,) = await world.ask("a", "d", optional={"keyhaul_scheme": "nonsense"})
        assert key.trust["scheme"] == "masked"
        (key,) = await world.ask(
            "a", "d", optional={"keyhaul_scheme": "trusted", "keyhaul_labels": ("relay-blind",)}
        )
        assert key.trust["scheme"] == "masked", "a wish for a label is met before one for a weaker scheme"

    told(story, enabled())


def test_a_default_that_a_path_cannot_have_is_refused_and_not_weakened() -> None:
    async def story(world: World) -> None:
        with pytest.raises(NoRoute, match="node c does not take part"):
            await world.ask("a", "d")
        await nothing_was_sent(world)
        (key,) = await world.ask("a", "b")
        assert key.trust["scheme"] == "blind"

    told(story, enabled("a", "b", "d"), scheme="blind")


# ---------------------------------------------------------------------- labels


def test_labels_of_a_request_hold_on_every_hop_or_nothing_is_sent() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(5)
        with pytest.raises(ExtensionRefused, match=r"hop b to c lacks qkd$|hop b to c lacks qkd:") as raised:
            await world.ask("a", "d", mandatory={"keyhaul_labels": ("qkd", "pq")})
        assert "hop a to b" not in str(raised.value), "that hop has both"
        with pytest.raises(ExtensionRefused, match="lacks its-wire"):
            await world.ask("a", "b", mandatory={"keyhaul_labels": ("its-wire",)})
        await nothing_was_sent(world)
        (key,) = await world.ask("a", "b", mandatory={"keyhaul_labels": ("qkd", "pq", "relay-blind")})
        assert key.trust["scheme"] == "trusted", "between neighbours there is no relay"
        (key,) = await world.ask("a", "d", optional={"keyhaul_labels": ("its-wire",)})
        assert key.trust["labels"] == "pq relay-blind"

    told(story)


def test_labels_choose_a_scheme_that_has_them() -> None:
    async def story(world: World) -> None:
        (key,) = await world.ask("a", "d")
        assert key.trust["scheme"] == "trusted"
        for where in ("mandatory", "optional"):
            (key,) = await world.ask("a", "d", **{where: {"keyhaul_labels": ("relay-blind",)}})
            assert key.trust["scheme"] == "masked"
        with pytest.raises(
            ExtensionRefused, match="scheme trusted: hop a to b lacks relay-blind; hop b to c"
        ):
            await world.ask(
                "a", "d", mandatory={"keyhaul_scheme": "trusted", "keyhaul_labels": ("relay-blind",)}
            )

    told(story, scheme="trusted")


def test_policy_counts_whatever_a_request_says() -> None:
    rules = [demand("relay-blind", slave="sae-d"), demand("qkd", master="sae-a", slave="sae-[bc]")]

    async def story(world: World) -> None:
        (key,) = await world.ask("a", "d")
        assert key.trust["scheme"] == "masked"
        with pytest.raises(ExtensionRefused, match="lacks relay-blind"):
            await world.ask("a", "d", mandatory={"keyhaul_scheme": "trusted"})
        (key,) = await world.ask("a", "d", optional={"keyhaul_scheme": "trusted"})
        assert key.trust["scheme"] == "masked"
        assert await world.ask("a", "b")
        with pytest.raises(NoRoute, match=r"policy of these .* demands qkd; .*hop b to c lacks qkd"):
            await world.ask("a", "c")
        with pytest.raises(NoRoute):
            await world.ask("a", ("b", "c"))
        (key,) = await world.ask("b", "d")
        assert key.trust["scheme"] == "masked"
        (key,) = await world.ask("b", "c")
        assert key.trust["scheme"] == "trusted", "no rule fits"

    told(story, policy(*rules), scheme="trusted")


def test_a_node_that_does_not_vouch_for_post_quantum_tls_lacks_pq() -> None:
    def prepare(world: World) -> None:
        world.classic = {"c"}
        policy(demand("pq"))(world)

    async def story(world: World) -> None:
        (key,) = await world.ask("a", "b")
        assert key.trust["labels"] == "pq qkd relay-blind"
        with pytest.raises(NoRoute, match="hop b to c lacks pq; hop c to d lacks pq"):
            await world.ask("a", "d")

    told(story, prepare)


@pytest.mark.parametrize("labels", [("relay-blind",), ("pq",)])
def test_a_foreign_key_manager_has_no_label(labels: tuple[str, ...]) -> None:
    async def story(world: World) -> None:
        with pytest.raises(NoRoute, match="hop a to kme, plain ETSI GS QKD 020, lacks"):
            await world.nodes["a"].origin.request(order("sae-kme"))
        with pytest.raises(ExtensionRefused, match="scheme masked"):
            await world.nodes["a"].origin.request(order("sae-kme", keyhaul_scheme="masked"))
        assert world.foreigners["kme"].inbox == []

    def order(slave: str, **mandatory: str) -> Any:
        from keyhaul.messages.etsi014 import Order

        return Order("sae-a", (slave,), 1, 256, mandatory, frozenset(mandatory))

    told(story, policy(demand(*labels)), foreign={"kme": "a"})


def test_keys_of_a_foreign_key_manager_do_not_enter_where_policy_demands_labels() -> None:
    from uuid import uuid4

    from keyhaul.messages.etsi020 import ExtKey, ExtKeys

    async def story(world: World) -> None:
        transfer = ExtKeys((ExtKey(uuid4(), bytes(32)),), "sae-kme", ("sae-d",), "https://kme")
        with pytest.raises(NoRoute, match="lacks relay-blind"):
            await world.nodes["a"].relay.accept("kme", transfer)
        await nothing_was_sent(world)

    told(story, policy(demand("relay-blind", master="sae-kme")), foreign={"kme": "a"})


# ---------------------------------------------------------------------- pools


def test_a_pool_holds_no_key_that_is_worse_than_what_a_request_gets() -> None:
    """Keys that a request for less left behind, and keys of before the policy, are not given to others."""

    async def story(world: World) -> None:
        world.faults.slow["b", "a", "ack"] = 60.0
        with pytest.raises(Unavailable):
            await world.ask("a", "d", number=3, mandatory={"keyhaul_scheme": "trusted"})
        world.faults.slow.clear()
        near = world.nodes["a"]
        await asyncio.sleep(70)
        (key,) = await world.ask("a", "d")
        assert key.trust["scheme"] == "masked"
        await asyncio.sleep(30)
        assert near.origin.pools.summary()[0]["ready"] > 0
        world.policy = PathPolicy((demand("qkd"),))
        near.crash()
        await near.start()
        assert near.origin.pools.summary() == []
        with pytest.raises(NoRoute):
            await world.ask("a", "d")

    told(story, pool=4)


# ---------------------------------------------------------------------- a relay that probes


class Prober(Blind):
    """Adds to the ciphertexts that pass: what a reaction attack sends."""

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        passed = super().transit(payload, pad_in, pad_out)
        if pad_out is None:
            return passed  # it has only taken a pad off so far
        at = len(passed.body) - 100  # in c1
        changed = bytes([passed.body[at] ^ 1])
        return replace(passed, body=passed.body[:at] + changed + passed.body[at + 1 :])


def test_probing_a_destination_gets_refusals_and_soon_another_key() -> None:
    async def story(world: World) -> None:
        await world.ask("a", "d", mandatory=BLIND)
        await asyncio.sleep(LEAST_LIFE)
        here, far = world.nodes["a"].pairing, world.nodes["d"]
        before = announced(here)
        honest = world.nodes["b"].site.schemes
        world.nodes["b"].site.schemes = {**honest, "blind": Prober()}
        for _ in range(STREAK):
            assert announced(here) == before
            with pytest.raises(KeyhaulError):
                await world.ask("a", "d", mandatory=BLIND)
        await asyncio.sleep(5)
        assert announced(here) != before, "the destination has a new key and everybody knows it"
        assert len(await far.ledger.items("bfv/destination")) == 2
        world.nodes["b"].site.schemes = honest
        (key,) = await world.ask("a", "d", mandatory=BLIND)
        (same,) = await world.fetch("a", "d", [key.key_id])
        assert same.bits.same_as(key.bits)

    def announced(pairing: Any) -> bytes:
        known = pairing._directory.get("d", world_clock.now())
        return known.key("bfv-dense", world_clock.now()).id

    told(story, enabled())
