"""Pair secrets: agreed in one message, renewed, and of no use to anyone else."""

from __future__ import annotations

import asyncio
import hashlib
from uuid import uuid4

import msgspec
import pytest

from keyhaul.control import Descriptor, Directory, publish
from keyhaul.errors import KeyhaulError, Malformed, Tampered, Unavailable
from keyhaul.kem import KEMS
from keyhaul.messages import labels
from keyhaul.messages.payload import Pair
from keyhaul.pairing import ID_BYTES, KEM_LIFE, KEM_OVERLAP, PAIR_LIFE, Pairing
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock, run
from tests.neighbours import Anchors, Identity

NODES = ("vigo", "bilbao", "derio")


class Clock:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time


class Net:
    """Three nodes that know each other's newest descriptor."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledgers = {name: MemoryLedger() for name in NODES}
        self.directories: dict[str, Directory] = {}
        self.nodes: dict[str, Pairing] = {}

    async def start(self, *names: str, kem: str = "ml-kem-768") -> None:
        for name in names or NODES:
            self.directories[name] = Directory(Anchors(), dict.fromkeys(NODES, "lab"))
            self.nodes[name] = Pairing(
                Identity(name), "lab", self.directories[name], self.ledgers[name], self.clock, kem=kem
            )
            await self.nodes[name].start()
        self.announce()

    def announce(self) -> None:
        for pairing in self.nodes.values():
            for directory in self.directories.values():
                directory.receive(pairing.announce(), self.clock.now())

    async def out(self, origin: str, destination: str, *, once: bool = False) -> Pair:
        return await self.nodes[origin].outgoing(destination, self.clock.now(), once=once)

    def confirm(self, origin: str, destination: str, pair: Pair) -> None:
        """A payload that carried the pair's statement arrived."""
        key_id = uuid4()
        self.nodes[origin].sent(destination, pair, key_id)
        self.nodes[origin].confirmed(destination, key_id)

    async def taken(self, at: str, pair: Pair, origin: str) -> bytes:
        return (await self.nodes[at].incoming(pair.id + pair.statement, origin)).secret.reveal()


def announced(node: Pairing, kem: str = "ml-kem-768") -> bytes:
    """The id of the key of a kind that a node announces."""
    said = msgspec.msgpack.decode(node.announce().body, type=Descriptor)
    return next(key.id for key in said.keys if key.profile == kem)


async def net() -> Net:
    made = Net()
    await made.start()
    return made


def test_both_ends_have_the_same_secret_and_nobody_else_can_have_it() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        assert len(pair.id) == ID_BYTES
        assert await here.taken("bilbao", pair, "vigo") == pair.secret.reveal()
        assert pair.secret.reveal() not in pair.statement
        back = await here.out("bilbao", "vigo")
        assert not back.secret.same_as(pair.secret)

    run(story())


def test_one_pair_serves_until_it_is_old() -> None:
    async def story() -> None:
        here = await net()
        first = await here.out("vigo", "bilbao")
        here.clock.time += PAIR_LIFE
        assert (await here.out("vigo", "bilbao")).id == first.id
        here.clock.time += 1
        here.announce()
        second = await here.out("vigo", "bilbao")
        assert second.id != first.id
        assert not second.secret.same_as(first.secret)
        assert await here.taken("bilbao", second, "vigo") == second.secret.reveal()

    run(story())


def test_the_statement_travels_until_it_was_confirmed_and_again_after_forget() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        assert pair.statement
        assert (await here.out("vigo", "bilbao")).statement == pair.statement
        await here.taken("bilbao", pair, "vigo")
        here.confirm("vigo", "bilbao", pair)
        short = await here.out("vigo", "bilbao")
        assert (short.id, short.statement) == (pair.id, b"")
        assert await here.taken("bilbao", short, "vigo") == pair.secret.reveal()
        here.nodes["vigo"].forget("bilbao")
        afresh = await here.out("vigo", "bilbao")
        assert afresh.statement
        assert afresh.id != pair.id

    run(story())


def test_a_destination_that_announces_another_kem_key_is_sent_the_statement_again() -> None:
    async def story() -> None:
        net = Net()
        await net.start()
        first = await net.out("vigo", "bilbao")
        net.confirm("vigo", "bilbao", first)
        net.announce()
        net.nodes["vigo"].heard("bilbao")
        assert not (await net.out("vigo", "bilbao")).statement, "the same keys as before"
        net.ledgers["bilbao"] = MemoryLedger()  # restored: keys and secrets of pairs were erased
        net.clock.time += 1
        await net.start("bilbao")
        net.directories["vigo"].receive(net.nodes["bilbao"].announce(), net.clock.now())
        net.directories["bilbao"].receive(net.nodes["vigo"].announce(), net.clock.now())
        net.nodes["vigo"].heard("bilbao")
        again = await net.out("vigo", "bilbao")
        assert again.statement
        assert again.id != first.id
        assert await net.taken("bilbao", again, "vigo") == again.secret.reveal()

    asyncio.run(story())


def test_only_keys_that_change_long_before_they_are_due_tell_of_a_restore() -> None:
    async def story() -> None:
        net = await started()
        told: list[str] = []
        near = net.nodes["vigo"]
        near.restored = told.append
        for _ in range(3):  # the same keys, and later others in their time
            net.clock.time += KEM_LIFE / 4 + 1
            await net.nodes["bilbao"].rotate()
            net.announce()
            near.heard("bilbao")
        assert told == []
        net.ledgers["bilbao"] = MemoryLedger()
        net.clock.time += 1
        await net.start("bilbao")
        net.directories["vigo"].receive(net.nodes["bilbao"].announce(), net.clock.now())
        near.heard("bilbao")
        assert told == ["bilbao"]
        near.heard("nowhere")
        near.heard("vigo")
        assert told == ["bilbao"]

    async def started() -> Net:
        net = Net()
        await net.start()
        return net

    asyncio.run(story())


def test_keys_sent_under_the_last_secret_do_not_confirm_the_new_one() -> None:
    async def story() -> None:
        here = await net()
        first, key_id = await here.out("vigo", "bilbao"), uuid4()
        here.nodes["vigo"].sent("bilbao", first, key_id)
        here.clock.time += PAIR_LIFE + 1
        second = await here.out("vigo", "bilbao")
        here.nodes["vigo"].sent("bilbao", first, uuid4())
        here.nodes["vigo"].confirmed("bilbao", key_id)
        assert (await here.out("vigo", "bilbao")).statement, "the far end never saw this statement"
        here.confirm("vigo", "bilbao", second)
        assert not (await here.out("vigo", "bilbao")).statement

    run(story())


def test_confirming_or_forgetting_an_unknown_destination_is_fine() -> None:
    async def story() -> None:
        here = await net()
        here.nodes["vigo"].confirmed("nowhere", uuid4())
        here.nodes["vigo"].forget("nowhere")
        here.nodes["vigo"].heard("nowhere")

    run(story())


def test_the_destination_remembers_across_a_restart() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        await here.taken("bilbao", pair, "vigo")
        await here.start("bilbao")
        assert await here.taken("bilbao", Pair(pair.id, pair.secret), "vigo") == pair.secret.reveal()
        late = await here.out("derio", "bilbao")
        await here.start("bilbao")
        assert await here.taken("bilbao", late, "derio") == late.secret.reveal(), "its key was sealed away"

    run(story())


# ---------------------------------------------------------------------- replays and forgeries


def test_a_statement_replayed_to_another_destination_is_refused() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        with pytest.raises(Tampered):
            await here.taken("derio", pair, "vigo")

    run(story())


def test_a_statement_under_another_origins_name_is_refused() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        with pytest.raises(Tampered):
            await here.taken("bilbao", pair, "derio")
        await here.taken("bilbao", pair, "vigo")
        for head in (pair, Pair(pair.id, pair.secret)):
            with pytest.raises(Tampered):
                await here.taken("bilbao", head, "derio")

    run(story())


def test_an_id_without_its_statement_is_refused() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        other = await here.out("vigo", "derio")
        nodes = here.nodes["bilbao"]
        for head in (b"", pair.id, pair.id[:8], bytes(ID_BYTES) + pair.statement, pair.id + other.statement):
            with pytest.raises(Tampered):
                await nodes.incoming(head, "vigo")
        assert await here.ledgers["bilbao"].items("pair/in") == {}

    run(story())


async def forge(here: Net, signer: str = "vigo", **changes: object) -> bytes:
    """A head whose statement is signed by `signer` and says what `changes` say."""
    pair = await here.out("vigo", "bilbao")
    body, _ = msgspec.msgpack.decode(pair.statement)
    said = dict(
        zip(
            ("origin", "destination", "kem", "kem_id", "ciphertext", "issued", "expires", "once"),
            msgspec.msgpack.decode(body),
            strict=True,
        )
    )
    text = msgspec.msgpack.encode(list({**said, **changes}.values()))
    signed = msgspec.msgpack.encode([text, Identity(signer).sign(labels.PAIR_STATEMENT + text)])
    return hashlib.sha256(signed).digest()[:ID_BYTES] + signed


@pytest.mark.parametrize(
    ("signer", "changes"),
    [
        ("derio", {}),
        ("vigo", {"origin": "derio"}),
        ("vigo", {"destination": "derio"}),
        ("vigo", {"kem_id": bytes(16)}),
        ("vigo", {"kem": "ml-kem-1024"}),
        ("vigo", {"kem": "ml-kem-512"}),
        ("vigo", {"once": 1}),
        ("vigo", {"ciphertext": bytes(1087)}),
        ("vigo", {"expires": 1_799_999_999.0}),
        ("vigo", {"expires": float("nan")}),
        ("vigo", {"expires": float("inf")}),
        ("vigo", {"expires": 1_900_000_000.0}),
        ("vigo", {"surprise": 1}),
        ("vigo", {"origin": 5}),
    ],
    ids=repr,
)
def test_a_statement_that_is_not_in_order_is_refused(signer: str, changes: dict[str, object]) -> None:
    async def story() -> None:
        here = await net()
        with pytest.raises((Tampered, Malformed)):
            await here.nodes["bilbao"].incoming(await forge(here, signer, **changes), "vigo")
        assert await here.ledgers["bilbao"].items("pair/in") == {}
        assert await here.nodes["bilbao"].incoming(await forge(here), "vigo"), "the forgery itself is sound"

    run(story())


def test_every_bit_of_a_statement_counts() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        signed = pair.statement
        for at in range(0, len(signed), 11):
            changed = signed[:at] + bytes([signed[at] ^ 4]) + signed[at + 1 :]
            head = hashlib.sha256(changed).digest()[:ID_BYTES] + changed
            with pytest.raises((Tampered, Malformed)):
                await here.nodes["bilbao"].incoming(head, "vigo")

    run(story())


def test_an_origin_nobody_knows_is_told_to_come_back() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        here.directories["bilbao"]._known.clear()
        with pytest.raises(Unavailable):
            await here.taken("bilbao", pair, "vigo")

    run(story())


# ---------------------------------------------------------------------- expiry and rotation


def test_a_pair_ends_with_its_statement_and_is_pruned() -> None:
    async def story() -> None:
        here = await net()
        pair = await here.out("vigo", "bilbao")
        await here.taken("bilbao", pair, "vigo")
        here.clock.time += PAIR_LIFE + KEM_OVERLAP
        await here.nodes["bilbao"].prune()
        assert await here.taken("bilbao", pair, "vigo") == pair.secret.reveal()
        here.clock.time += 1
        with pytest.raises(Tampered):
            await here.taken("bilbao", pair, "vigo")
        await here.nodes["bilbao"].prune()
        assert await here.ledgers["bilbao"].items("pair/in") == {}
        here.announce()
        with pytest.raises(KeyhaulError):
            await here.taken("bilbao", pair, "vigo")

    run(story())


def test_keys_rotate_half_way_and_old_ones_open_for_a_while() -> None:
    async def story() -> None:
        here = await net()
        bilbao = here.nodes["bilbao"]
        first = announced(bilbao)
        pair = await here.out("vigo", "bilbao")
        here.clock.time += KEM_LIFE / 2
        await bilbao.rotate()
        assert announced(bilbao) == first, "half way is not yet over"
        here.clock.time += 1
        await bilbao.rotate()
        here.announce()
        assert announced(bilbao) != first
        fresh = await here.out("vigo", "bilbao")
        assert await here.taken("bilbao", fresh, "vigo") == fresh.secret.reveal()
        with pytest.raises(Tampered):
            await here.taken("bilbao", pair, "vigo")  # its own time is over
        assert len(await here.ledgers["bilbao"].items("kem/destination")) == 2 * len(KEMS)
        here.clock.time += KEM_LIFE / 2 + KEM_OVERLAP
        await bilbao.rotate()
        kept = await here.ledgers["bilbao"].items("kem/destination")
        assert first.hex() not in kept, "an old private key is erased"
        assert len(kept) == 2 * len(KEMS)

    run(story())


def test_an_announcement_is_always_newer_than_the_last() -> None:
    async def story() -> None:
        here = await net()
        one = here.nodes["vigo"].announce()
        here.clock.time += 0.002
        two = here.nodes["vigo"].announce()
        assert msgspec.msgpack.decode(one.body)[2] < msgspec.msgpack.decode(two.body)[2]

    run(story())


def test_a_request_waits_for_the_destinations_descriptor() -> None:
    async def story() -> None:
        clock = LoopClock()
        directory = Directory(Anchors(), dict.fromkeys(NODES, "lab"))
        far = Pairing(Identity("bilbao"), "lab", Directory(Anchors(), {}), MemoryLedger(), clock)
        await far.start()
        near = Pairing(Identity("vigo"), "lab", directory, MemoryLedger(), clock)
        await near.start()
        with pytest.raises(Unavailable):
            await near.outgoing("bilbao", clock.now() + 3)
        waiting = [asyncio.ensure_future(near.outgoing("bilbao", clock.now() + 30)) for _ in range(3)]
        await asyncio.sleep(5)
        assert not any(task.done() for task in waiting)
        directory.receive(far.announce(), clock.now())
        near.heard("bilbao")
        pairs = await asyncio.gather(*waiting)
        assert len({pair.id for pair in pairs}) == 1, "one secret for all who waited"

    run(story())


def test_a_descriptor_that_ran_out_gives_no_secret() -> None:
    async def story() -> None:
        here = await net()
        here.clock.time += KEM_LIFE + 1
        with pytest.raises(Unavailable):
            await here.out("vigo", "bilbao")
        directory = here.directories["vigo"]
        now = here.clock.now()
        said = msgspec.msgpack.decode(here.nodes["bilbao"].announce().body, type=Descriptor)
        longer = msgspec.structs.replace(said, expires=now + 9)
        assert directory.receive(publish(longer, Identity("bilbao")), now) is not None
        with pytest.raises(Unavailable):
            await here.out("vigo", "bilbao")  # the descriptor is good, its key is not
        keys = tuple(msgspec.structs.replace(key, expires=now + 9) for key in said.keys)
        fresh = msgspec.structs.replace(longer, keys=keys, sequence=longer.sequence + 1)
        assert directory.receive(publish(fresh, Identity("bilbao")), now) is not None
        assert (await here.out("vigo", "bilbao")).statement

    run(story())


# ---------------------------------------------------------------------- kinds of KEM, one payload a secret


@pytest.mark.parametrize("kem", sorted(KEMS))
def test_the_origin_chooses_the_kem_and_every_destination_has_a_key_for_it(kem: str) -> None:
    async def story() -> None:
        here = Net()
        await here.start("bilbao")
        await here.start("vigo", kem=kem)
        here.announce()
        pair = await here.out("vigo", "bilbao")
        assert await here.taken("bilbao", pair, "vigo") == pair.secret.reveal()
        said = msgspec.msgpack.decode(msgspec.msgpack.decode(pair.statement)[0])
        assert (said[2], len(said[4])) == (kem, KEMS[kem].ciphertext)
        await here.start("bilbao")
        late = await here.out("vigo", "bilbao")
        here.nodes["vigo"].forget("bilbao")
        assert await here.taken("bilbao", late, "vigo") == late.secret.reveal(), "unsealed after a restart"

    run(story())


def test_a_destination_without_a_key_of_the_kind_gets_nothing() -> None:
    async def story() -> None:
        here = Net()
        await here.start("bilbao")
        await here.start("vigo", kem="ml-kem-1024")
        said = msgspec.msgpack.decode(here.nodes["bilbao"].announce().body, type=Descriptor)
        keys = tuple(key for key in said.keys if key.profile == "ml-kem-768")
        only = msgspec.structs.replace(said, keys=keys, sequence=said.sequence + 1)
        here.directories["vigo"].receive(publish(only, Identity("bilbao")), here.clock.now())
        with pytest.raises(Unavailable, match="'bilbao' announces no current ml-kem-1024 key"):
            await here.out("vigo", "bilbao")

    run(story())


def test_a_secret_of_one_payload_is_never_kept_and_never_the_same() -> None:
    async def story() -> None:
        here = await net()
        first, second = (
            await here.out("vigo", "bilbao", once=True),
            await here.out("vigo", "bilbao", once=True),
        )
        assert first.id != second.id
        assert not first.secret.same_as(second.secret)
        for pair in (first, second, first):
            assert await here.taken("bilbao", pair, "vigo") == pair.secret.reveal()
        assert await here.ledgers["bilbao"].items("pair/in") == {}
        with pytest.raises(Tampered):
            await here.taken("bilbao", Pair(first.id, first.secret), "vigo")
        here.confirm("vigo", "bilbao", second)
        assert (await here.out("vigo", "bilbao", once=True)).statement, "a statement travels every time"
        epoch = await here.out("vigo", "bilbao")
        assert (await here.out("vigo", "bilbao")).id == epoch.id, "and the secret of the hour is another"

    run(story())
