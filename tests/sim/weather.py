"""What goes wrong in a storm: the weather all the time, and disturbances one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from keyhaul.messages import confirming
from keyhaul.messages.etsi020 import AckStatus
from tests.sim.dialogue import cut, flip, substitute, swap_pair
from tests.sim.watching import Altering
from tests.sim.world import POINTS, Aim, World


def set_weather(world: World, rng: random.Random) -> None:
    """Loss, delay, duplicates, old messages that come again, disks that are slow or fail now and then."""
    faults = world.faults
    faults.lose = rng.choice((0.0, 0.05, 0.2))
    faults.lose_answer = rng.choice((0.0, 0.05, 0.2))
    faults.duplicate = rng.choice((0.0, 0.1))
    faults.delay = rng.choice((0.01, 0.01, 0.05, 0.3))  # exponential, so that messages overtake each other
    faults.replay = rng.choice((0.0, 0.0, 0.1))
    for node in world.nodes.values():
        node.disk.slow = rng.choice((0.0, 0.0, 0.002, 0.05))
        node.disk.fail = rng.choice((0.0, 0.0, 0.0, 0.02, 0.1))


async def disturb(world: World, rng: random.Random) -> None:
    """Some disturbances in about ten seconds."""
    kinds = [aim, aim, aim, kill, partition, dry, disagree, full_disk, jump, cheat, swallow, lie]
    for _ in range(rng.randrange(2, 8)):
        await asyncio.sleep(rng.uniform(0.0, 1.5))
        await rng.choice(kinds)(world, rng)


async def restore(world: World, rng: random.Random) -> None:
    """One node or two come back from backups that life has overtaken."""
    for _ in range(rng.randrange(1, 3)):
        await asyncio.sleep(rng.uniform(0.0, 3.0))
        names = rng.sample(sorted(world.nodes), k=rng.choice((1, 1, 2)))
        backups = {name: world.nodes[name].disk.tables.copy() for name in names}
        await asyncio.sleep(rng.uniform(0.5, 5.0))
        alive = [name for name in names if world.nodes[name].alive]
        await asyncio.gather(*(world.restore(name, backups[name], rng.uniform(0.0, 2.0)) for name in alive))


Disturbance = Callable[[World, random.Random], Awaitable[None]]


def _fault(world: World, text: str) -> None:
    world.history.note("world", "fault", text=text)


async def aim(world: World, rng: random.Random) -> None:
    """A kill that waits for a node to be at a certain point."""
    node = rng.choice([None, *world.nodes])
    world.aims.append(Aim(rng.choice(list(POINTS)), node, rng.randrange(1, 6), rng.uniform(0.0, 2.0)))


async def kill(world: World, rng: random.Random) -> None:
    world.kill(rng.choice(list(world.nodes)), rng.uniform(0.0, 2.0))


async def partition(world: World, rng: random.Random) -> None:
    """One link is cut, or several."""
    edges = rng.sample(world.edges, k=rng.randrange(1, len(world.edges) + 1))
    lost = {frozenset((edge.a, edge.b)) for edge in edges}
    _fault(world, "cut: " + ", ".join(f"{edge.a}-{edge.b}" for edge in edges))
    world.faults.cut |= lost
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    world.faults.cut -= lost


async def dry(world: World, rng: random.Random) -> None:
    pair = rng.choice(sorted(world.devices, key=sorted))
    _fault(world, f"the devices of {'='.join(sorted(pair))} are dry")
    world.devices[pair].dry = True
    await asyncio.sleep(rng.uniform(0.0, 2.0))
    world.devices[pair].dry = False


async def disagree(world: World, rng: random.Random) -> None:
    """The two ends of a pair have different bits under the same ids."""
    pair = rng.choice(sorted(world.devices, key=sorted))
    _fault(world, f"the devices of {'='.join(sorted(pair))} disagree")
    world.devices[pair].disagree = rng.choice((0.1, 1.0))
    await asyncio.sleep(rng.uniform(0.0, 2.0))
    world.devices[pair].disagree = 0.0


async def full_disk(world: World, rng: random.Random) -> None:
    """No commit of one node succeeds for a while."""
    node = rng.choice(list(world.nodes.values()))
    _fault(world, f"the disk of {node.name} is full")
    before, node.disk.fail = node.disk.fail, 1.0
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    node.disk.fail = before


async def jump(world: World, rng: random.Random) -> None:
    """A node's clock is wrong until all is healed."""
    name = rng.choice(list(world.nodes))
    world.faults.wrong[name] = rng.choice((-60.0, -5.0, -0.5, 0.5, 5.0, 60.0))
    _fault(world, f"the clock of {name} jumps by {world.faults.wrong[name]:g} s")


async def cheat(world: World, rng: random.Random) -> None:
    """A relay changes the keys that pass through it."""
    node = rng.choice(list(world.nodes.values()))
    alter = rng.choice((flip, substitute, swap_pair, cut))
    _fault(world, f"{node.name} cheats: {alter.__name__}")
    if node.alive:
        node.site.schemes = {name: Altering(honest, alter) for name, honest in node.honest.items()}
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    if node.alive:
        node.site.schemes = node.honest


async def swallow(world: World, rng: random.Random) -> None:
    """A relay answers 202 to keys and throws them away."""
    name = rng.choice(list(world.nodes))
    _fault(world, f"{name} swallows keys")
    world.faults.swallow.add(name)
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    world.faults.swallow.discard(name)


async def lie(world: World, rng: random.Random) -> None:
    """A relay throws keys away and acknowledges them."""
    node = rng.choice(list(world.nodes.values()))
    if not node.alive:
        return
    _fault(world, f"{node.name} acknowledges what it drops")
    relay = node.relay

    async def pretend(peer: str, wrapping: Any, opened: Any) -> None:
        context = wrapping.context
        outcomes = [(key_id, b"") for key_id in context.key_ids]
        saes = context.initiator, context.targets
        acks = confirming.acks(outcomes, AckStatus.RELAYED, saes, world.settings.pen)
        message = relay._letters.acks(peer, acks)
        async with relay.site.ledger.edit() as change:
            opened.spend(change)
            change.post(message)
        relay._outbox.send(message)

    relay._pass_on = pretend  # type: ignore[method-assign]
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    relay.__dict__.pop("_pass_on", None)
