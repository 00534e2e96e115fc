"""Refill: batches count from the right neighbour for the right receiver, and supplies fill up again."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from keyhaul.errors import InsufficientKey, KeyhaulError, Malformed, Tampered, Unauthorized
from keyhaul.links.onetime import MAX_BATCH, Batch, OneTimeKey, OneTimeKeys, check_batch, sign_batch
from keyhaul.links.refill import Reply, Request
from keyhaul.messages import labels
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import run
from tests.neighbours import Anchors, Devices, End, Identity, Watch, neighbours

NOW = 1_800_000_000.0


def keys(number: int = 3) -> list[OneTimeKey]:
    return asyncio.run(OneTimeKeys("vigo", MemoryLedger(), Watch()).make(number))


def check(batch: Batch, sender: str = "bilbao", receiver: str = "vigo") -> list[OneTimeKey]:
    return check_batch(batch, Anchors(), sender, receiver, NOW)


def test_a_batch_counts_for_its_receiver_from_its_sender() -> None:
    made = keys()
    assert check(sign_batch(made, Identity("bilbao"), "vigo")) == made


def test_a_batch_for_another_receiver_is_refused() -> None:
    with pytest.raises(Tampered):
        check(sign_batch(keys(), Identity("bilbao"), "derio"))


def test_a_batch_signed_by_another_node_is_refused() -> None:
    with pytest.raises(Tampered):
        check(sign_batch(keys(), Identity("derio"), "vigo"))
    good = sign_batch(keys(), Identity("bilbao"), "vigo")
    with pytest.raises(Tampered):
        check(Batch(good.keys, Identity("bilbao").der, Identity("derio").sign(good.keys)))


def test_a_batch_under_a_foreign_ca_is_refused() -> None:
    with pytest.raises(Unauthorized):
        check(sign_batch(keys(), Identity("bilbao", "elsewhere"), "vigo"))


def test_names_that_run_together_do_not_confuse() -> None:
    with pytest.raises(Tampered):
        check(sign_batch(keys(), Identity("bilbao"), "ovigo"), receiver="vigo")


@pytest.mark.parametrize("at", [0, 1, 5, 30, 500, -1])
def test_no_bit_of_a_batch_can_be_changed(at: int) -> None:
    good = sign_batch(keys(1), Identity("bilbao"), "vigo")
    changed = bytearray(good.keys)
    changed[at] ^= 1
    with pytest.raises((Tampered, Malformed)):
        check(Batch(bytes(changed), good.certificate, good.signature))
    signature = bytearray(good.signature)
    signature[at % len(signature)] ^= 1
    with pytest.raises(Tampered):
        check(Batch(good.keys, good.certificate, bytes(signature)))


def signed(body: bytes) -> Batch:
    text = labels.KEM_BATCH + msgspec.msgpack.encode(["bilbao", "vigo"]) + body
    return Batch(body, Identity("bilbao").der, Identity("bilbao").sign(text))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["no key"]),
        msgspec.msgpack.encode([[b"x" * 16, b"y" * 1183]]),
        msgspec.msgpack.encode([[b"x" * 15, b"y" * 1184]]),
        msgspec.msgpack.encode([[b"x" * 16, b"y" * 1184]] * (MAX_BATCH + 1)),
    ],
    ids=["empty", "garbage", "no-key", "short-key", "short-id", "too-many"],
)
def test_a_signed_batch_that_is_out_of_order_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        check(signed(body))


# ---------------------------------------------------------------------- one-time keys


def test_a_one_time_key_opens_until_it_is_spent() -> None:
    async def story() -> None:
        ledger = MemoryLedger()
        mine = OneTimeKeys("vigo", ledger, Watch())
        (key,) = await mine.make(1)
        secret, ciphertext = key.encapsulate()
        assert await mine.decapsulate(key.id, ciphertext) == secret
        again = OneTimeKeys("vigo", ledger, Watch())  # after a restart
        assert await again.decapsulate(key.id, ciphertext) == secret
        async with ledger.edit() as change:
            again.spend(change, key.id)
            again.cool(key.id)
        with pytest.raises(Malformed):
            await again.decapsulate(key.id, ciphertext)
        assert await ledger.items("kem/vigo") == {}

    run(story())


def test_an_unknown_key_or_a_cut_ciphertext_is_malformed() -> None:
    async def story() -> None:
        mine = OneTimeKeys("vigo", MemoryLedger(), Watch())
        (key,) = await mine.make(1)
        _, ciphertext = key.encapsulate()
        for key_id, text in (
            (b"", ciphertext),
            (bytes(16), ciphertext),
            (key.id, ciphertext[:-1]),
            (key.id, b""),
        ):
            with pytest.raises(Malformed):
                await mine.decapsulate(key_id, text)
        assert len(await mine.decapsulate(key.id, bytes(1088))) == 32, "implicit rejection: a useless secret"

    run(story())


def test_keys_for_one_neighbour_do_not_open_for_another() -> None:
    async def story() -> None:
        ledger = MemoryLedger()
        (key,) = await OneTimeKeys("vigo", ledger, Watch()).make(1)
        _, ciphertext = key.encapsulate()
        with pytest.raises(Malformed):
            await OneTimeKeys("derio", ledger, Watch()).decapsulate(key.id, ciphertext)

    run(story())


# ---------------------------------------------------------------------- the conversation


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"{}", msgspec.msgpack.encode([1]), b"\x92\x01\x91\xa1\xff", b"\x92\xa11\x90"]
)
def test_a_request_that_cannot_be_read_is_malformed(body: bytes) -> None:
    async def story() -> None:
        a, _ = await neighbours()
        with pytest.raises(Malformed):
            await a.refill.answer(body)

    run(story())


def test_an_answer_that_cannot_be_read_is_malformed() -> None:
    class Mute(End):
        body = b""

        async def _call(self, peer: str, body: bytes) -> bytes:
            return self.body

    async def story() -> None:
        end = Mute("a", "b", MemoryLedger(), Devices())
        await end.start()
        stray = msgspec.msgpack.encode(Reply(None, ()))
        for body in (b"", b"\xc1", b"\x92\xc0\x91\xa1\xff", stray):
            end.body = body
            with pytest.raises(Malformed):
                await end.refill.fetch_keys()
        assert not await end.refill.offer_keys()

    run(story())


@pytest.mark.parametrize("hears", ["a request", "a reply"])
def test_nothing_agreed_on_with_a_neighbour_is_used_after_it_was_restored(hears: str) -> None:
    async def story() -> None:
        devices = Devices()
        a, b = await neighbours(devices, low=2, high=4)
        old = set(await b.ledger.items("kem/a"))
        restored = End("b", "a", MemoryLedger(), devices, epoch=b"restored", low=2, high=4)
        a.other, restored.other = restored, a
        await restored.start()
        assert a.device is not None
        assert len(a.peer_keys) > 0 < len(a.device.supply)
        await a.peer_keys.take(1, 1.0)  # so that it has a reason to ask
        if hears == "a request":
            await restored.refill.fetch_keys()
            assert len(a.peer_keys) == 0 == len(a.device.supply)
        await a.refill.fetch_keys()
        taken = await a.peer_keys.take(len(a.peer_keys), 1.0)
        assert taken
        assert not old & {key.id.hex() for key in taken}
        assert len(a.device.supply) == 0, "offered again before they are used"
        await a.refill.offer_keys()
        ready = {name for name, _ in a.device.supply._items}
        assert ready <= set(await restored.ledger.items("pad/a/in"))

    run(story())


def test_a_neighbour_that_says_nothing_of_its_store_or_the_same_keeps_what_was_agreed_on() -> None:
    async def story() -> None:
        a, _ = await neighbours()
        ready = len(a.peer_keys)
        for epoch in (b"", b"epochb", b""):
            await a.refill.answer(msgspec.msgpack.encode(Request(0, (), epoch)))
        assert len(a.peer_keys) == ready > 0
        with pytest.raises(Malformed):
            await a.refill.answer(msgspec.msgpack.encode(Request(0, (), bytes(17))))

    run(story())


def test_nobody_gets_more_than_a_batch_at_once() -> None:
    async def story() -> None:
        a, _ = await neighbours()
        before = len(await a.ledger.items("kem/b"))
        for want in (10**6, 1, 0, -5):
            await a.refill.answer(msgspec.msgpack.encode(Request(want, ())))
        assert len(await a.ledger.items("kem/b")) == before + MAX_BATCH + 1

    run(story())


def test_device_keys_offered_where_there_is_no_device_are_refused() -> None:
    async def story() -> None:
        a, _ = await neighbours()
        with pytest.raises(Malformed):
            await a.refill.answer(msgspec.msgpack.encode(Request(0, ("x",))))

    run(story())


def test_supplies_fill_up_and_are_topped_up_when_low() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), low=2, high=6)
        loops = [asyncio.ensure_future(end.refill.run()) for end in (a, b)]
        assert a.device is not None
        for _ in range(20):
            await a.peer_keys.take(2, 10)
            await a.device.take(5, 10)
        await asyncio.sleep(10)
        assert len(a.peer_keys) >= 2
        assert len(a.device.supply) >= 2
        for task in loops:
            task.cancel()

    run(story())


def test_a_refill_goes_on_after_trouble_and_says_what_it_was() -> None:
    async def story() -> None:
        devices = Devices()
        a, b = await neighbours(devices, low=2, high=6)
        assert a.device is not None
        devices.dry, a.other = True, None
        loops = [asyncio.ensure_future(end.refill.run()) for end in (a, b)]
        await a.device.take(len(a.device.supply), 0)
        await a.peer_keys.take(len(a.peer_keys), 0)
        with pytest.raises(InsufficientKey, match="dry"):
            await a.device.take(1, 5)
        with pytest.raises(InsufficientKey, match="does not answer"):
            await a.peer_keys.take(1, 5)
        devices.dry, a.other = False, b
        await a.device.take(1, 30)
        await a.peer_keys.take(1, 30)
        for task in loops:
            task.cancel()

    run(story())


def test_refill_survives_a_neighbour_that_talks_nonsense() -> None:
    rng = random.Random(5)

    class Babbler(End):
        sane = False

        async def _call(self, peer: str, body: bytes) -> bytes:
            return await super()._call(peer, body) if self.sane else rng.randbytes(rng.randrange(60))

    async def story() -> None:
        _, b = await neighbours()
        a = Babbler("a", "b", MemoryLedger())
        a.other, b.other = b, a
        await a.start()
        loop = asyncio.ensure_future(a.refill.run())
        with pytest.raises(KeyhaulError):
            await a.peer_keys.take(1, 60)
        assert not loop.done()
        a.sane = True
        assert await a.peer_keys.take(1, 60)
        loop.cancel()

    run(story())
