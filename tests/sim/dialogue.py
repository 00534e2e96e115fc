"""Words for telling stories in the simulated network: who asks, who cheats, where a key stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from keyhaul.keys import Message, Row, Secret, State
from keyhaul.messages import confirming
from keyhaul.messages.envelope import parse
from keyhaul.messages.etsi020 import Ack, AckStatus, ExtKey, ExtKeys, Void
from keyhaul.messages.payload import Context, Pair, Payload, origin_tag
from keyhaul.ports import Answer
from keyhaul.schemes.trusted import Trusted
from keyhaul.testbed.clock import run
from tests.sim.world import World

LINE = [("a", "b", "qkd"), ("b", "c", "pqc"), ("c", "d", "qkd")]
STAR = [("hub", name, "pqc") for name in ("x", "y", "z")]

Story = Callable[[World], Coroutine[Any, Any, None]]


def told(story: Story, links: Sequence[tuple[str, str, str]] = LINE, **options: Any) -> None:
    """Start a world and tell a story in it."""

    async def whole() -> None:
        world = World(1, links, **options)
        await world.start()
        await story(world)
        assert world.broken == []

    run(whole())


async def rows(world: World, node: str, key_id: UUID) -> list[Row]:
    return await world.nodes[node].ledger.find(key_id)


async def state(world: World, node: str, key_id: UUID) -> State | None:
    found = await rows(world, node, key_id)
    assert len(found) <= 1
    return found[0].state if found else None


async def states(world: World, key_id: UUID) -> str:
    """Where the key stands at every node, as one line."""
    return " ".join([f"{name}:{await state(world, name, key_id) or '-'}" for name in sorted(world.nodes)])


async def nothing_can_be_replayed(world: World) -> None:
    """Every message that was ever accepted is known as such, and the keys that opened it are gone."""
    before = {name: dict(node.ledger._items) for name, node in world.nodes.items()}
    for sender, message in world.accepted:
        node = world.nodes[message.peer]
        assert await node.links[sender].open(message.body) is None, f"{message.path} of {sender} came twice"
        await node.relay.envelope(sender, message.body)
        header = parse(message.body).header
        assert await node.ledger.item(f"kem/{sender}", header.kem_id.hex()) is None
        for name in (*header.message_keys, *header.pad_keys):
            assert await node.ledger.item(f"pad/{sender}/in", name) is None
            assert await world.nodes[sender].ledger.item(f"pad/{message.peer}/out", name) is None
    assert before == {name: dict(node.ledger._items) for name, node in world.nodes.items()}


async def last_key(world: World, node: str) -> UUID:
    """The id of the one key this node works on."""
    unfinished = await world.nodes[node].ledger.unfinished()
    (key_id,) = {row.ref.key_id for row in unfinished}
    return key_id


async def asking(world: World, *arguments: Any, **named: Any) -> asyncio.Task[list[Any]]:
    task = asyncio.ensure_future(world.ask(*arguments, **named))
    await asyncio.sleep(1.0)
    return task


async def foreign_key(world: World, target: str = "sae-d", value: bytes = bytes(range(32))) -> UUID:
    """A key manager of another maker hands a key to its gateway `a`, and is told that it arrived."""
    key_id = uuid4()
    transfer = ExtKeys((ExtKey(key_id, value),), "sae-kme", (target,), "https://kme")
    await world.nodes["a"].relay.accept("kme", transfer)
    await asyncio.sleep(5)
    assert world.foreigners["kme"].acks()[-1] == ("relayed", key_id)
    return key_id


def void_of(*key_ids: UUID, targets: tuple[str, ...] = ("sae-d",)) -> Void:
    return Void(key_ids, "sae-kme", targets, "https://kme", all_confirmation=not key_ids)


def ack(key_id: UUID, *targets: str, status: AckStatus = AckStatus.RELAYED, initiator: str = "a") -> Ack:
    return Ack((key_id,), status, f"sae-{initiator}", tuple(f"sae-{name}" for name in targets))


async def true_ack(world: World, key_id: UUID, target: str, initiator: str = "a") -> Ack:
    """What the destination would say, before it has: the origin knows what it waits for."""
    (row,) = await rows(world, initiator, key_id)
    (said,) = confirming.acks(
        [(key_id, row.proofs[target])],
        AckStatus.RELAYED,
        (f"sae-{initiator}", (f"sae-{target}",)),
        world.settings.pen,
    )
    return said


class Cheat(Trusted):
    """A relay, or destination, that changes what passes through `alter`."""

    def __init__(self, alter: Callable[[Payload], Payload], name: str) -> None:
        self.alter = alter
        self.name = name

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        bare = super().transit(payload, pad_in, None)
        return super().transit(bare if pad_in is None else self.alter(bare), None, pad_out)


def flip(payload: Payload) -> Payload:
    return replace(payload, body=bytes([payload.body[0] ^ 1]) + payload.body[1:])


def substitute(payload: Payload) -> Payload:
    """Keys of the relay's own with a tag of the relay's own."""
    own = bytes(len(payload.body) - 16)
    nobody = Context("", "", "", "", (), (), 256, 0, (), ())
    return replace(payload, body=own + origin_tag(Pair(payload.head[:16], Secret(own[:32])), nobody, own))


def swap_pair(payload: Payload) -> Payload:
    return replace(payload, head=bytes(16) + payload.head[16:])


def cut(payload: Payload) -> Payload:
    return replace(payload, body=payload.body[:-16])


def corrupt(world: World, node: str, alter: Callable[[Payload], Payload]) -> None:
    world.nodes[node].site.schemes = {name: Cheat(alter, name) for name in ("trusted", "masked")}


def past(row: Row) -> list[State]:
    return [event.state for event in row.history]


async def failed_at(world: World, node: str) -> list[Row]:
    """Rows that this node found to be false; a void that follows changes their state only."""
    return [row for row in await all_rows(world, node) if State.FAILED in past(row)]


async def all_rows(world: World, node: str) -> list[Row]:
    ledger = world.nodes[node].ledger
    found = [await ledger.get(ref) for ref in list(ledger._rows)]
    return [row for row in found if row is not None]


async def ask_until_it_fails(world: World, master: str, slave: str) -> None:
    for _ in range(100):
        await world.ask(master, slave)


async def ready(world: World, node: str) -> int:
    return sum(pool["ready"] for pool in world.nodes[node].origin.pools.summary())


def watching(
    post: Callable[[Message], Awaitable[Answer]], wire: list[bytes]
) -> Callable[[Message], Coroutine[Any, Any, Answer]]:
    async def watch(message: Message) -> Answer:
        wire.append(message.body)
        return await post(message)

    return watch
