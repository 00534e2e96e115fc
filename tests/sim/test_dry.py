"""A dry link that a greedy and a modest application share, with keys relayed ahead and without them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import uuid4

import pytest

from keyhaul.admission import Admission
from keyhaul.admission import Rules as Limits
from keyhaul.edge.turns import Turns
from keyhaul.errors import Busy, InsufficientKey, Unavailable
from keyhaul.keys import Secret
from keyhaul.messages.etsi014 import Order
from keyhaul.pools import Rules
from keyhaul.routing import Edge
from keyhaul.testbed.clock import run
from tests.sim.parts import DevicePair, SimKey
from tests.sim.world import World

RATE = 2200.0  # bits/s, Clavis 3 over a short fibre (paper B)
MODEST = 150  # requests
HANDS = 100  # of the greedy one, as many as in paper A's Figure 7


@dataclass
class SlowPair(DevicePair):
    """Devices that make key at a rate, and hold no more than so many bits."""

    rate: float = RATE
    most: float = 32_768.0
    _bits: float = 32_768.0
    _since: float = field(default=0.0)

    async def enc_keys(self, number: int, size: int) -> list[SimKey]:
        await asyncio.sleep(self.rng.uniform(0.05, 0.2))
        now = asyncio.get_running_loop().time()
        self._bits = min(self.most, self._bits + (now - self._since) * self.rate)
        self._since = now
        number = min(number, int(self._bits // size))
        if not number:
            raise InsufficientKey("the device has no key now")
        self._bits -= number * size
        self.handed += number
        keys = [SimKey(str(uuid4()), Secret(self.rng.randbytes(size // 8))) for _ in range(number)]
        self.waiting.update((key.key_id, key.bits.reveal()) for key in keys)
        return keys


class Shop:
    """Two applications at node `a`, both with business at a far one, behind a node's usual admission."""

    def __init__(self, world: World, far: str) -> None:
        self.far = f"sae-{far}"
        self.origin = world.nodes["a"].origin
        self.turns = Turns(Admission(Limits()), asyncio.get_running_loop().time)
        self.answers: dict[str, Counter[str]] = {"sae-a": Counter(), "sae-greedy": Counter()}
        self.waited: list[float] = []

    async def ask(self, sae: str, number: int) -> None:
        loop = asyncio.get_running_loop()
        order, begun = Order(sae, (self.far,), number, 256, {}, frozenset()), loop.time()
        try:
            self.turns.call(sae)
            async with self.turns.turn(order):
                keys = await self.origin.request(order)
            assert len(keys) == number
            self.answers[sae]["served"] += 1
        except (Busy, Unavailable) as refusal:
            self.answers[sae][refusal.cause[:40]] += 1
        if sae == "sae-a":
            self.waited.append(loop.time() - begun)

    async def greed(self) -> None:
        while True:
            await self.ask("sae-greedy", 4)
            await asyncio.sleep(0.001)

    async def tend(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.origin.tend()

    async def modesty(self, rng: random.Random, requests: int) -> None:
        """One key now and then, sometimes three at once, for what a quarter of the link can carry."""
        asked = 0
        async with asyncio.TaskGroup() as tasks:
            while asked < requests:
                for _ in range(rng.choice((1, 1, 1, 3))):
                    tasks.create_task(self.ask("sae-a", 1))
                    asked += 1
                await asyncio.sleep(rng.expovariate(1 / 1.5))


def share(seed: int, rules: Rules, *, beyond: int = 0, hands: int = HANDS, requests: int = MODEST) -> Shop:
    """Both applications at work, until the modest one has asked all it wants.

    The dry link is the first of the way, or `beyond` so many relays.
    """

    async def story() -> Shop:
        names = "abcd"[: beyond + 2]
        lines = [(near, far, "pqc") for near, far in pairwise(names[:-1])] + [(names[-2], names[-1], "qkd")]
        world = World(seed, lines, saes={"sae-greedy": "a"})
        near, far, _ = lines[-1]
        world.stock = 32  # as outside: hundreds of requests wait
        world.edges[-1] = Edge(near, far, "qkd", "otp")
        world.devices[frozenset((near, far))] = SlowPair(world.rng)
        await world.start()
        shop = Shop(world, far)
        shop.origin.pools.rules = rules
        await asyncio.sleep(20.0)
        background = [asyncio.ensure_future(shop.greed()) for _ in range(hands)]
        background.append(asyncio.ensure_future(shop.tend()))
        await asyncio.sleep(30.0)
        await shop.modesty(random.Random(seed), requests)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        assert world.broken == []
        return shop

    return run(story())


def check(shop: Shop) -> None:
    modest, greedy = shop.answers["sae-a"], shop.answers["sae-greedy"]
    assert modest["served"] >= 0.99 * modest.total(), modest
    assert greedy["served"] < greedy.total(), "the link was not dry"


@pytest.mark.parametrize(
    "rules", [Rules(fixed=0), Rules(), Rules(fixed=64)], ids=["no pools", "by demand", "fixed"]
)
def test_a_greedy_application_leaves_a_modest_one_its_part_of_a_dry_link(rules: Rules) -> None:
    shop = share(1, rules)
    assert shop.answers["sae-a"].total() >= MODEST
    check(shop)
    # Three quarters of the link are its own until it has the turns that it left to others: in seeds 0 to 59
    # its bursts need 5.9 s of that at most. All of the link would carry them in 3.7 s, half of it in 11.7 s.
    assert sorted(shop.waited)[len(shop.waited) // 2] < 1.5
    assert max(shop.waited) < 6.0


@pytest.mark.parametrize("rules", [Rules(fixed=0), Rules()], ids=["no pools", "by demand"])
def test_nor_does_it_where_the_dry_link_lies_beyond_two_relays(rules: Rules) -> None:
    check(share(1, rules, beyond=2, hands=40, requests=60))


@dataclass
class BlockPair(DevicePair):
    """Devices that make a block of keys from time to time, as those of the Galician link do."""

    block: int = 48
    every: float = 60.0
    _left: int = 48
    _next: float = 60.0

    async def enc_keys(self, number: int, size: int) -> list[SimKey]:
        while asyncio.get_running_loop().time() >= self._next:
            self._left, self._next = self.block, self._next + self.every
        number = min(number, self._left)
        if not number:
            raise InsufficientKey("the device has no key now")
        self._left -= number
        return await super().enc_keys(number, size)


@pytest.mark.parametrize("beyond", [0, 1])
def test_applications_that_ask_without_pause_live_on_a_block_of_device_keys_a_minute(beyond: int) -> None:
    """Eight pairs want some 40 keys a second of a link that carries 48 messages a minute, in one go."""

    async def story() -> Counter[str]:
        lines = [("a", "b", "pqc"), ("b", "c", "qkd")][1 - beyond :]
        near, pairs = lines[0][0], [(f"sae-m{at}", f"sae-s{at}") for at in range(8)]
        homes = {sae: home for pair in pairs for sae, home in zip(pair, (near, "c"), strict=True)}
        world = World(1, lines, saes=homes, request_timeout=15.0)
        world.stock = 64
        world.devices[frozenset("bc")] = BlockPair(world.rng)
        await world.start()
        origin, answers = world.nodes[near].origin, Counter[str]()
        origin.pools.rules = Rules()
        loop = asyncio.get_running_loop()

        async def use(master: str, slave: str, rng: random.Random) -> None:
            while loop.time() < 240.0:
                order = Order(master, (slave,), rng.randint(1, 4), 256, {}, frozenset())
                try:
                    await origin.request(order)
                    answers["served"] += 1
                    await asyncio.sleep(0.5)
                except Unavailable:
                    answers["refused at first" if loop.time() < 120.0 else "refused"] += 1
                    await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as tasks:
            for at, (master, slave) in enumerate(pairs):
                tasks.create_task(use(master, slave, random.Random(at)))
            for _ in range(240):
                await asyncio.sleep(1.0)
                await origin.tend()
        assert world.broken == []
        return answers

    answers = run(story())
    assert answers["served"] > 2_500, answers
    assert answers["refused"] < 0.002 * answers["served"], answers
