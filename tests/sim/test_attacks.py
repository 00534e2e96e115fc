"""What malicious relays get away with, attack by attack and scheme by scheme, and that the page says so."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from uuid import UUID

import pytest

from keyhaul.errors import Unavailable
from keyhaul.messages.receipts import judge
from keyhaul.schemes.paper_a import PaperA
from keyhaul.testbed.clock import run
from keyhaul.testbed.faults import ATTACKS, Attack, turn
from tests.sim import attacks
from tests.sim.attacks import (
    ALONE,
    DELIVERED,
    FALSE_KEY,
    FALSE_NAME,
    KEY,
    LINE,
    NO_KEY,
    REFUSED,
    SCHEMES,
    UNEQUAL,
    outcome,
    scene,
)
from tests.sim.dialogue import past
from tests.sim.world import World

pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")

AUTHENTICATED = [scheme for scheme in SCHEMES if scheme != PaperA.name]
UNALTERED = (Attack.LISTEN, Attack.REORDER, Attack.DROP, Attack.PRETEND)
ALTERING = [attack for attack in Attack if attack not in UNALTERED]


def test_the_page_holds_the_outcomes_as_they_are() -> None:
    now, should = attacks.written()
    assert now == should, "write docs/threat-model.md anew: python -m tests.sim.attacks"


@pytest.mark.parametrize("scheme", AUTHENTICATED)
@pytest.mark.parametrize("attack", ALTERING)
def test_what_was_altered_is_never_stored(attack: Attack, scheme: str) -> None:
    played = scene(LINE, scheme, attack)
    assert played.cheat.touched, "the attack took place"
    for key_id in played.cheat.touched:
        states = [state.value for state in past(played.at_c[key_id])]
        assert states[:2] == ["accepted", "failed"], "refused before it was stored"
        assert played.at_c[key_id].secret is None
    assert played.stored() == NO_KEY


@pytest.mark.parametrize("scheme", AUTHENTICATED)
@pytest.mark.parametrize("attack", list(Attack))
def test_a_master_gets_the_key_its_peer_gets_or_none(attack: Attack, scheme: str) -> None:
    came = outcome(scheme, attack)
    harmless = attack in (Attack.REORDER, Attack.LISTEN)
    assert came.one_way == (DELIVERED if harmless else REFUSED)
    assert came.two_ways == DELIVERED, "keys go around the cheat"
    assert came.sees == ("the key" if scheme == "trusted" else "nothing")
    assert came.stored in (NO_KEY, KEY)


def test_without_authentication_the_same_attacks_succeed() -> None:
    """So the harness can tell success from failure."""
    came = {attack: outcome(PaperA.name, attack) for attack in ATTACKS}
    assert {came[attack].one_way for attack in (Attack.FLIP, Attack.SUBSTITUTE, Attack.SWAP)} == {UNEQUAL}
    assert {came[attack].one_way for attack in (Attack.PRETEND, Attack.REDIRECT)} == {ALONE}
    assert came[Attack.SUBSTITUTE].stored == FALSE_KEY
    assert came[Attack.REDIRECT].stored == FALSE_NAME
    assert {each.sees for each in came.values()} == {"the key"}


@pytest.mark.parametrize("scheme", AUTHENTICATED)
def test_a_probing_relay_hears_one_constant_answer(scheme: str) -> None:
    played = scene(LINE, scheme, Attack.PROBE)
    states = {key_id: [state.value for state in past(row)] for key_id, row in played.at_b.items()}
    touched = [states[key_id] for key_id in played.cheat.touched]
    assert len(touched) == 4
    assert {"failed" in each and "relayed" not in each for each in touched} == {True}


# ---------------------------------------------------------------------- who it was


async def traced(world: World, key_id: UUID) -> list[dict[str, Any]]:
    """What `keyhaul key trace` is told by all nodes."""
    return [
        {"node": name, **row.summary()}
        for name, node in world.nodes.items()
        for row in await node.ledger.find(key_id)
    ]


LONG = [("a", "b", "qkd"), ("b", "c", "pqc"), ("c", "d", "qkd"), ("d", "e", "pqc")]
LIES = {
    "says it came so": lambda row, sent: {},
    "says it left as it came": lambda row, sent: {"took": sent, "passed": {"e": sent}},
    "says what it did": lambda row, sent: {"took": sent},
}


@pytest.mark.parametrize("lie", list(LIES))
@pytest.mark.parametrize("scheme", ["trusted", "masked"])
@pytest.mark.parametrize(
    "attack", [attack for attack in Attack if attack not in UNALTERED or "drop" in attack]
)
def test_receipts_name_the_cheat_or_the_cheat_and_a_neighbour(attack: Attack, scheme: str, lie: str) -> None:
    async def story() -> None:
        world = World(1, LONG, saes={"sae-a-other": "a"}, scheme=scheme, request_timeout=6.0)
        await world.start()
        honest = await world.ask("a", "e", number=2)
        (fits,) = judge(await traced(world, honest[0].key_id), list("abcde"))
        assert (fits.suspects, fits.reason) == ((), "all receipts from a to e fit")
        cheat = turn(world.nodes["c"].relay, attack)
        for _ in range(2):
            with contextlib.suppress(Unavailable):
                await world.ask("a", "e", number=2)
        await asyncio.sleep(10)
        assert cheat.touched
        rows = await traced(world, cheat.touched[0])
        (origin,) = [row for row in rows if row["node"] == "a"]
        for row in rows:
            if row["node"] == "c":
                row.update(LIES[lie](row, origin["passed"]["e"]))
        (finding,) = judge(rows, list("abcde"))
        assert "c" in finding.suspects, finding
        assert len(finding.suspects) <= 2
        if attack is not Attack.DROP:
            named = {"says it came so": ("b", "c"), "says it left as it came": ("c", "d")}
            assert finding.suspects == named.get(lie, ("c",))

    run(story())
