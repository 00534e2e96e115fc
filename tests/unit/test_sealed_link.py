"""What a sealed link of ours does beyond the contract: downgrades, used-up keys, numbers, giving back."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest

from keyhaul.errors import InsufficientKey, Malformed, Spent, StoreUnavailable, Tampered
from keyhaul.keys import Ref
from keyhaul.links.sealed import REPLAY_WINDOW, SEQUENCE_BLOCK, SealedGrant, SealedOpened
from keyhaul.messages import envelope
from keyhaul.messages.envelope import Header, Material, Mode, Suite
from keyhaul.stores.change import StagedChange
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock, run
from tests.neighbours import Devices, End, introduce, neighbours


async def grant(end: End, pad_bytes: int = 48, patience: float = 5.0) -> SealedGrant:
    return await end.link.grant(pad_bytes, deadline=LoopClock().now() + patience)


async def commit(end: End, *parts: SealedGrant | SealedOpened) -> None:
    async with end.ledger.edit() as change:
        for part in parts:
            part.spend(change)


async def through(a: End, b: End, pad_bytes: int = 48) -> SealedOpened:
    """One message from a to b, spent at both."""
    sent = await grant(a, pad_bytes)
    pad, body = sent.pad(), sent.seal("ext_keys", b"keys")
    await commit(a, sent)
    opened = await b.link.open(body)
    assert opened is not None
    assert opened.pad(pad_bytes) == pad
    await commit(b, opened)
    return opened


# ---------------------------------------------------------------------- downgrades and forged headers


def resealed(sent: SealedGrant, material: Material | None = None, **changes: Any) -> bytes:
    """What a neighbour could send that has all keys but not our manners."""
    header: Header = msgspec.structs.replace(sent.header, **changes)
    header = msgspec.structs.replace(header, version=2 if header.pad_keys else 1)
    return envelope.seal(header, material or sent.material, bytes(12), "ext_keys", b"keys")


def test_a_neighbour_cannot_talk_the_link_down_to_fewer_device_bits() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12)
        sent = await grant(a)
        kem_only = Material(b"", b"", sent.material.kem_secret)
        pads_only = Material(b"", sent.material.pad_bits, sent.material.kem_secret)
        down = {
            "expanded": resealed(sent, mode=Mode.EXPANDED),
            "kem": resealed(sent, kem_only, mode=Mode.KEM, message_keys=(), pad_keys=()),
            "pads without a message key": resealed(sent, pads_only, message_keys=()),
            "kem with device keys": resealed(sent, mode=Mode.KEM),
        }
        for name, body in down.items():
            with pytest.raises((Malformed, Tampered)):
                raise AssertionError(f"{name} was opened: {await b.link.open(body)}")
        opened = await b.link.open(resealed(sent))
        assert opened is not None, "the same message in its own mode is fine"

    run(story())


def test_pads_that_differ_at_the_two_ends_are_noticed_before_one_is_taken_off() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12)
        sent = await grant(a)
        pads = bytearray(sent.material.pad_bits)
        assert sent.header.version == 2
        for at in (0, len(pads) - 17, len(pads) - 1):  # the first of the pad, its last, and of its check
            other = bytes([*pads[:at], pads[at] ^ 1, *pads[at + 1 :]])
            body = resealed(sent, Material(sent.material.message_bits, other, sent.material.kem_secret))
            with pytest.raises(Tampered):
                await b.link.open(body)
        unchecked = envelope.seal(
            msgspec.structs.replace(sent.header, version=1), sent.material, bytes(12), "ext_keys", b"keys"
        )
        with pytest.raises(Malformed, match="version 1"):
            await b.link.open(unchecked)
        assert await b.link.open(sent.seal("ext_keys", b"keys")) is not None

    run(story())


def test_an_otp_message_that_announces_too_few_bits_gives_no_pad() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12)
        sent = await grant(a, 32)
        opened = await b.link.open(sent.seal("ext_keys", b"keys"))
        assert opened is not None
        assert len(opened.pad(48)) == 48
        with pytest.raises(Malformed):
            opened.pad(49)

    run(story())


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": "derio"},
        {"receiver": "derio"},
        {"sender": "b", "receiver": "a"},
        {"suite": Suite.PAPER_A},
    ],
    ids=repr,
)
def test_an_envelope_of_others_is_tampered(changes: dict[str, Any]) -> None:
    async def story() -> None:
        a, b = await neighbours(Devices())
        with pytest.raises(Tampered):
            await b.link.open(resealed(await grant(a), **changes))

    run(story())


def test_one_device_key_cannot_serve_twice_in_a_message() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12)
        sent = await grant(a, 32)
        (name,) = sent.header.message_keys
        bits = sent.material.message_bits
        body = resealed(sent, Material(bits, bits, sent.material.kem_secret), pad_keys=(name,))
        with pytest.raises(Malformed):
            await b.link.open(body)

    run(story())


def test_device_keys_on_a_link_without_devices_are_malformed() -> None:
    async def story() -> None:
        a, b = await neighbours()
        with pytest.raises(Malformed):
            await b.link.open(resealed(await grant(a), mode=Mode.EXPANDED, message_keys=("x",)))

    run(story())


# ---------------------------------------------------------------------- keys that are used up


def test_a_replay_after_the_record_of_it_is_gone_cannot_be_opened() -> None:
    async def story() -> None:
        a, b = await neighbours()
        sent = await grant(a)
        body = sent.seal("ext_keys", b"keys")
        opened = await b.link.open(body)
        assert opened is not None
        await commit(b, opened)
        assert await b.link.open(body) is None
        for name in await b.ledger.items("seen/a"):
            async with b.ledger.edit() as change:
                change.erase("seen/a", name)
        with pytest.raises(Malformed):
            await (await restarted(b)).link.open(body)

    run(story())


async def restarted(end: End, devices: Devices | None = None, **options: Any) -> End:
    again = End(end.link._me, end.link.peer, end.ledger, devices, **options)
    await again.start()
    return again


def test_an_accepted_message_leaves_no_key_behind() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12)
        before = {space: len(await b.ledger.items(space)) for space in ("kem/a", "pad/a/in")}
        opened = await through(a, b)
        used = (*opened.header.message_keys, *opened.header.pad_keys)
        assert len(used) == 3, "for the message, and for 48 bytes of pad and their check"
        assert len(await b.ledger.items("kem/a")) == before["kem/a"] - 1
        assert len(await b.ledger.items("pad/a/in")) == before["pad/a/in"] - 3
        for name in used:
            assert await a.ledger.item("pad/b/out", name) is None
        with pytest.raises(Spent):
            await commit(b, SealedOpened(b.link, "a", "", b"", fresh(opened), b"", opened.material))

    run(story())


def fresh(opened: SealedOpened) -> Header:
    header: Header = msgspec.structs.replace(opened.header, sequence=opened.header.sequence + 1)
    return header


def test_old_claims_are_pruned_and_new_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert REPLAY_WINDOW >= 1024
    monkeypatch.setattr("keyhaul.links.sealed.REPLAY_WINDOW", 3)

    async def story() -> None:
        a, b = await neighbours()
        for _ in range(8):
            await a.stock()
            await through(a, b)
        assert len(await b.ledger.items("seen/a")) == 3
        newest = max(await b.ledger.items("seen/a"))
        assert newest.endswith(f"{7:016x}")

    run(story())


# ---------------------------------------------------------------------- giving material back


def test_an_unused_grant_gives_its_device_keys_back_and_a_used_one_burns_them() -> None:
    async def story() -> None:
        devices = Devices()
        a, b = await neighbours(devices, mode=Mode.OTP, low=2, high=20)
        assert a.device is not None
        level = a.device.level()
        (await grant(a)).cancel()
        assert a.device.level() == level
        for pads in (True, False):
            shown = await grant(a)
            assert shown.pad() if pads else shown.seal("ext_keys", b"x")
            names = {name for name, _ in shown.device_keys}
            shown.cancel()
            shown.cancel()
            level -= 3 * 256
            assert a.device.level() == level
            await a.refill.fetch_keys()
            opened = await through(a, b)
            level -= 3 * 256
            assert not names & {*opened.header.message_keys, *opened.header.pad_keys}
            assert not names & set(await a.ledger.items("pad/b/out"))
        again = await restarted(a, devices, mode=Mode.OTP)
        assert again.device is not None
        assert len(await again.device.draw()) >= level // 256

    run(story())


def test_no_device_key_serves_twice_across_restarts() -> None:
    async def story() -> None:
        devices = Devices()
        options: dict[str, Any] = {"mode": Mode.OTP, "low": 2, "high": 12}
        a, b = await neighbours(devices, **options)
        used: list[str] = []
        for round_ in range(4):
            opened = await through(a, b)
            used += (*opened.header.message_keys, *opened.header.pad_keys)
            shown = await grant(a)
            shown.pad()
            if round_ % 2:
                shown.cancel()
            a, b = End("a", "b", a.ledger, devices, **options), End("b", "a", b.ledger, devices, **options)
            await introduce(a, b)
        assert len(used) == len(set(used)) == 12

    run(story())


def test_waiting_in_vain_for_device_keys_costs_no_one_time_key() -> None:
    async def story() -> None:
        devices = Devices()
        a, _ = await neighbours(devices, mode=Mode.OTP, low=2, high=4)
        stock = len(a.peer_keys)
        with pytest.raises(InsufficientKey):
            await grant(a, 32 * 100)
        assert len(a.peer_keys) == stock
        waiting = asyncio.ensure_future(grant(a, 32 * 100))
        await asyncio.sleep(1)
        assert len(a.peer_keys) == stock, "acknowledgements need them meanwhile"
        waiting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(a.peer_keys) == stock
        assert a.device is not None
        assert a.device.level() == 4 * 256

    run(story())


def test_waiting_in_vain_for_a_one_time_key_costs_no_device_key() -> None:
    async def story() -> None:
        a, _ = await neighbours(Devices(), mode=Mode.OTP, low=2, high=4)
        assert a.device is not None
        await a.peer_keys.take(len(a.peer_keys), 0)
        with pytest.raises(InsufficientKey):
            await grant(a, 32)
        assert a.device.level() == 4 * 256

    run(story())


def test_what_is_sent_ahead_of_demand_leaves_a_part_of_the_device_keys_and_waits_for_none() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        a, _ = await neighbours(Devices(), mode=Mode.OTP, low=2, high=8)
        assert a.device is not None
        end = LoopClock().now() + 5
        sent = await a.link.grant(32, deadline=end, leave=5 * 256)
        assert a.device.level() == 5 * 256
        before = loop.time()
        for leave in (5 * 256, 2 * 256 + 1):
            with pytest.raises(InsufficientKey, match="3 needed beside"):
                await a.link.grant(32, deadline=end, leave=leave)
        assert loop.time() == before
        sent.cancel()
        await a.link.grant(32, deadline=end, leave=5 * 256)
        assert await a.link.grant(0, deadline=end, leave=8 * 256), "a message without a pad costs none"

    run(story())


def test_a_grant_waits_no_longer_than_its_deadline_for_both_kinds_of_key() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        a, _ = await neighbours(Devices(), mode=Mode.OTP, low=2, high=4)
        await a.peer_keys.take(len(a.peer_keys), 0)
        start = loop.time()
        waiting = asyncio.ensure_future(grant(a, 32 * 100, patience=5))
        await asyncio.sleep(4)
        await a.refill.fetch_keys()
        with pytest.raises(InsufficientKey):
            await waiting
        assert loop.time() - start == pytest.approx(5.0)

    run(story())


# ---------------------------------------------------------------------- numbers


class Slow(MemoryLedger):
    """A disk that can be made slow or full."""

    delay = 0.0
    full = False

    def edit(self, *refs: Ref) -> AbstractAsyncContextManager[StagedChange]:  # type: ignore[override]
        if self.full:
            raise StoreUnavailable("the disk is full")
        return _Delayed(super().edit(*refs), self.delay)


class _Delayed(AbstractAsyncContextManager[StagedChange]):
    def __init__(self, inner: AbstractAsyncContextManager[StagedChange], delay: float) -> None:
        self.inner, self.delay = inner, delay

    async def __aenter__(self) -> StagedChange:
        await asyncio.sleep(self.delay)
        return await self.inner.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        await asyncio.sleep(self.delay)
        return await self.inner.__aexit__(*error)


async def on(ledger: MemoryLedger, b: End) -> End:
    a = End("a", "b", ledger)
    a.other = b
    await a.start()
    a.peer_keys._high = 12
    await a.refill.fetch_keys()
    return a


def test_no_number_is_used_before_its_block_is_on_disk() -> None:
    async def story() -> None:
        _, b = await neighbours()
        ledger = Slow()
        a = await on(ledger, b)
        ledger.delay = 1.0
        grants = [asyncio.ensure_future(grant(a)) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in grants), "a crash now would use the numbers again"
        numbers = [sent.header.sequence for sent in await asyncio.gather(*grants)]
        assert numbers == [0, 1, 2, 3, 4]
        assert await ledger.item("sequence", "b") == str(SEQUENCE_BLOCK).encode()

    run(story())


def test_a_block_that_could_not_be_saved_is_not_used() -> None:
    async def story() -> None:
        _, b = await neighbours()
        ledger = Slow()
        a = await on(ledger, b)
        ledger.full = True
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await grant(a)
        ledger.full = False
        sent = await grant(a)
        kept = await ledger.item("sequence", "b")
        assert kept is not None
        assert sent.header.sequence < int(kept)

    run(story())


def test_a_restart_goes_on_above_every_number_of_before() -> None:
    async def story() -> None:
        a, b = await neighbours()
        numbers = []
        for _ in range(3):
            for _ in range(3):
                await a.stock()
                numbers.append((await grant(a)).header.sequence)
            a = await restarted(a)
            a.other = b
        assert numbers == sorted(set(numbers))

    run(story())


def test_blocks_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyhaul.links.sealed.SEQUENCE_BLOCK", 2)

    async def story() -> None:
        a, _ = await neighbours()
        numbers = []
        for _ in range(7):
            await a.stock()
            numbers.append((await grant(a)).header.sequence)
            kept = await a.ledger.item("sequence", "b")
            assert kept is not None
            assert numbers[-1] < int(kept)
        assert numbers == list(range(7))

    run(story())


def test_labels_follow_the_mode() -> None:
    async def story() -> None:
        otp, _ = await neighbours(Devices(), mode=Mode.OTP)
        expanded, _ = await neighbours(Devices(), mode=Mode.EXPANDED)
        kem, _ = await neighbours()
        assert "its-wire" in otp.link.labels
        assert "its-wire" not in expanded.link.labels | kem.link.labels
        assert (otp.link.kind, expanded.link.kind, kem.link.kind) == ("qkd", "qkd", "pqc")
        assert kem.link.level() is None
        assert kem.link.mode is Mode.KEM

    run(story())


def test_neither_a_grant_nor_an_opened_message_shows_its_secrets() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices())
        sent = await grant(a)
        opened = await b.link.open(sent.seal("ext_keys", b"keys"))
        for thing in (sent, opened, sent.material):
            assert sent.material.kem_secret.hex() not in repr(thing)
            assert repr(sent.material.message_bits)[2:-1] not in repr(thing)

    run(story())
