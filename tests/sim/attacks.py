"""Every attack of the testbed on every scheme, in the simulated network, and what came of it, in words."""

from __future__ import annotations

import asyncio
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from keyhaul.config import BlindConfig
from keyhaul.errors import KeyNotFound, Unavailable
from keyhaul.keys import Row, State
from keyhaul.messages.etsi014 import Delivered
from keyhaul.schemes.paper_a import PaperA
from keyhaul.testbed.clock import run
from keyhaul.testbed.faults import ATTACKS, Attack, Cheat, turn
from tests.sim.dialogue import all_rows, past
from tests.sim.world import World, world_clock

SCHEMES = ("trusted", "masked", "blind", "blind-fresh", "paper-a")
LINE = [("a", "b", "qkd"), ("b", "c", "pqc")]
RING = [*LINE, ("a", "d", "pqc"), ("d", "c", "pqc")]
"""From a to c the way is over b, and there is another one."""

PATIENCE = 8.0  # seconds a master waits

DELIVERED, REFUSED = "gets the key", "503"
UNEQUAL, ALONE = "**another key than its peer**", "**a key that its peer lacks**"
FALSE_KEY, FALSE_NAME = "**a false key**", "**the key, for another master**"
NO_KEY, KEY = "nothing", "the key as sent"


@dataclass(frozen=True)
class Outcome:
    """What one attack came to, in the words of docs/threat-model.md."""

    sees: str  # the cheating relay, of the key
    stored: str  # at the destination, of what was touched
    found: str  # by whom, and how
    one_way: str  # the master, where there is no other way
    two_ways: str  # the master, where there is one


class Scene:
    """Node a asks for keys for c while b cheats; everything that can be seen of it afterwards."""

    def __init__(self, world: World, attack: Attack) -> None:
        self.world = world
        self.minted: dict[UUID, bytes] = {}
        self.cheat: Cheat = turn(world.nodes["b"].relay, attack)
        self.answers: list[list[Delivered]] = []
        mint: Any = world.nodes["a"].origin._mint
        keys = mint.keys

        async def noted(*wanted: Any) -> Any:
            made = await keys(*wanted)
            self.minted.update((key_id, key.reveal()) for key_id, key in made)
            return made

        mint.keys = noted

    async def play(self) -> None:
        """Two requests at once, of two keys each; what can be fetched of them; then time for all voids."""
        self.began = world_clock.now()
        self.answers = await asyncio.gather(self.ask(), self.ask())
        self.took = world_clock.now() - self.began
        self.fetched = [await self.fetch(key.key_id) for answer in self.answers for key in answer]
        await asyncio.sleep(20)
        self.at_a = await self.rows("a")
        self.at_b = await self.rows("b")
        self.at_c = await self.rows("c")

    async def ask(self) -> list[Delivered]:
        try:
            return await self.world.ask("a", "c", number=2)
        except Unavailable:
            return []

    async def fetch(self, key_id: UUID) -> bytes | None:
        try:
            (key,) = await self.world.fetch("a", "c", [key_id])
        except KeyNotFound:
            return None
        return key.bits.reveal()

    async def rows(self, node: str) -> dict[UUID, Row]:
        rows = await all_rows(self.world, node)
        return {row.ref.key_id: row for row in rows if row.ref.key_id in self.minted}

    # --- in words

    def sees(self) -> str:
        seen = any(bits in body for bits in self.minted.values() for body in self.cheat.seen)
        return "the key" if seen else "nothing"

    def stored(self) -> str:
        kept = [key_id for key_id in self.cheat.touched if self.ever(self.at_c, key_id, State.DELIVERABLE)]
        if not kept:
            return KEY if not self.cheat.touched else NO_KEY
        if any(self.at_c[key_id].initiator != "sae-a" for key_id in kept):
            return FALSE_NAME
        fetched = dict(zip([key.key_id for each in self.answers for key in each], self.fetched, strict=True))
        return KEY if all(fetched.get(key_id) == self.minted[key_id] for key_id in kept) else FALSE_KEY

    def found(self) -> str:
        touched = self.cheat.touched
        if any(self.ever(self.at_c, key_id, State.FAILED) for key_id in touched):
            return "destination: not the origin's tag"
        if any(self.ever(self.at_a, key_id, State.FAILED) for key_id in touched) and self.took < PATIENCE / 2:
            return "origin: no proof of the destination"
        if any(self.ever(self.at_a, key_id, State.VOIDED) for key_id in touched):
            return "origin: time is up"
        return "nobody" if self.master() in (UNEQUAL, ALONE) else "no harm done"

    def master(self) -> str:
        """The worst that happened to one of the requests."""
        sent = [key.bits.reveal() for answer in self.answers for key in answer]
        pairs = list(zip(sent, self.fetched, strict=True))
        if any(got is not None and got != bits for bits, got in pairs):
            return UNEQUAL
        if any(got is None for _, got in pairs):
            return ALONE
        return REFUSED if [] in self.answers else DELIVERED

    def ever(self, rows: dict[UUID, Row], key_id: UUID, state: State) -> bool:
        return key_id in rows and state in past(rows[key_id])


async def prepared(links: list[tuple[str, str, str]], scheme: str) -> World:
    """A world whose nodes know all schemes; b too can make BFV ciphertexts, as an attacker would."""
    world = World(1, links, saes={"sae-a-other": "a"}, scheme=scheme, request_timeout=PATIENCE)
    world.blind = dict.fromkeys(world.nodes, BlindConfig(enabled=True, rerandomise=True))
    world.more = [PaperA()]
    await world.start()
    await world.ask("a", "c", number=2)  # a network in use: pair secrets are known
    return world


def scene(links: list[tuple[str, str, str]], scheme: str, attack: Attack) -> Scene:
    """One attack, played to its end."""

    async def whole() -> Scene:
        played = Scene(await prepared(links, scheme), attack)
        await played.play()
        assert played.world.broken == []
        return played

    return run(whole())


@cache
def outcome(scheme: str, attack: Attack) -> Outcome:
    """What the attack comes to where it is on the only way, and where there is another."""
    one, two = scene(LINE, scheme, attack), scene(RING, scheme, attack)
    return Outcome(one.sees(), one.stored(), one.found(), one.master(), two.master())


HEADINGS = (
    "the relay",
    "scheme",
    "sees of the key",
    "destination stores",
    "found by",
    "master, only way",
    "master, two ways",
)
PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
BEGIN, END = "<!-- attacks, from tests/sim/attacks.py -->\n", "<!-- end of attacks -->\n"


def table() -> str:
    """The table of docs/threat-model.md; schemes with the same outcome share a line."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for attack, words in ATTACKS.items():
        groups: dict[Outcome, list[str]] = {}
        for scheme in SCHEMES:
            groups.setdefault(outcome(scheme, attack), []).append(f"`{scheme}`")
        for at, (came, schemes) in enumerate(groups.items()):
            lines.append(("" if at else words, ", ".join(schemes), *astuple(came)))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def written() -> tuple[str, str]:
    """The page as it is, and as it should be."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return page, head + BEGIN + table() + END + tail


if __name__ == "__main__":
    PAGE.write_text(written()[1])
