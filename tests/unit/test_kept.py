"""What a link holds for a neighbour that never comes for it is bounded, and what is needed is not lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from keyhaul.errors import Malformed
from keyhaul.letters import WORTH
from keyhaul.links.kept import KEEP, RENEW, Kept, dated, undated
from keyhaul.links.onetime import MAX_BATCH, OneTimeKeys
from keyhaul.links.prefetch import EXPECTED_TRIES, DeviceKeys
from keyhaul.links.refill import Request
from keyhaul.links.sealed import SealedGrant
from keyhaul.messages.envelope import Mode
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock, run
from tests.neighbours import Devices, End, Watch, introduce, neighbours
from tests.stores import open_store


async def sealed(a: End, pad_bytes: int = 48) -> tuple[bytes, SealedGrant]:
    """A message of `a` that is on its way, and its grant."""
    grant = await a.link.grant(pad_bytes, deadline=a.link._clock.now() + 5)
    grant.pad()
    body = grant.seal("ext_keys", b"keys")
    async with a.ledger.edit() as change:
        grant.spend(change)
    return body, grant


async def arrives(b: End, body: bytes) -> bool:
    """Opened and accepted at `b`; whether it was new."""
    opened = await b.link.open(body)
    if opened is None:
        return False
    assert opened.content == b"keys"
    async with b.ledger.edit() as change:
        opened.spend(change)
    return True


async def held(end: End, space: str) -> int:
    return len(await end.ledger.items(space.replace("PEER", end.link.peer)))


def test_the_age_covers_the_stock_of_the_sender_and_the_longest_repetition() -> None:
    longest_request = 3600.0  # config: request_timeout
    assert 2 * (RENEW + max(WORTH, longest_request)) <= KEEP


# ---------------------------------------------------------------------- one-time keys


def test_a_thousand_lost_replies_leave_no_more_keys_than_the_limit() -> None:
    async def story() -> None:
        b = End("b", "a", MemoryLedger(), clock=Watch())
        b.own_keys = b.refill._own_keys = OneTimeKeys("a", b.ledger, Watch(), most=300)
        request = msgspec.msgpack.encode(Request(8, ()))
        for _ in range(1000):
            await b.refill.answer(request)
            assert len(b.own_keys._warm) == await held(b, "kem/PEER")
            assert await held(b, "kem/PEER") <= 300 + 300 // 4 + 8
        await b.refill.prune()
        assert await held(b, "kem/PEER") == 300

    run(story())


def test_the_newest_are_kept_and_the_message_on_its_way_is_opened() -> None:
    async def story() -> None:
        a, b = await neighbours()
        body, _ = await sealed(a)
        lost = msgspec.msgpack.encode(Request(MAX_BATCH, ()))
        for _ in range(15):  # the reply to each is lost
            await b.refill.answer(lost)
        await b.refill.prune()
        assert await arrives(b, body)
        assert not await arrives(b, body)

    run(story())


def test_a_key_is_opened_as_long_as_it_is_promised_and_erased_after_that() -> None:
    async def story() -> None:
        watch = Watch()
        a, b = await neighbours(clock=watch)
        early, _ = await sealed(a)
        late, _ = await sealed(a)
        watch.time += RENEW + WORTH
        await b.refill.prune()
        assert await arrives(b, early)
        watch.time += KEEP
        await b.refill.prune()
        assert await held(b, "kem/PEER") == 0
        assert b.own_keys._warm == {}
        with pytest.raises(Malformed):
            await b.link.open(late)

    run(story())


def test_a_neighbour_whose_keys_were_erased_recovers_after_one_refusal() -> None:
    async def story() -> None:
        watch = Watch()
        devices = Devices()
        a, b = await neighbours(devices, mode=Mode.OTP, low=2, high=12, clock=watch)
        watch.time += KEEP + 1  # the renewals of `a` did not come through
        await b.refill.prune()
        assert await held(b, "kem/PEER") == await held(b, "pad/PEER/in") == 0
        body, _ = await sealed(a)
        with pytest.raises(Malformed):
            await b.link.open(body)
        a.link.recheck()  # what the settlement does about a refusal
        loop = asyncio.ensure_future(a.refill.run())
        await asyncio.sleep(EXPECTED_TRIES * 5.0)
        loop.cancel()
        body, _ = await sealed(a)
        assert await arrives(b, body)

    run(story())


# ---------------------------------------------------------------------- device keys


def test_a_sender_that_burns_everything_leaves_no_more_than_the_limit() -> None:
    async def story() -> None:
        devices = Devices()
        near = DeviceKeys(peer="b", owner="a", device=devices, ledger=MemoryLedger(), clock=Watch(), high=16)
        ledger = MemoryLedger()
        far = DeviceKeys(peer="a", owner="b", device=devices, ledger=ledger, clock=Watch(), high=16, most=100)
        for _ in range(200):
            while near.supply.shortage:
                offers = await near.draw()
                await near.confirm(offers, await far.hold(offers))
            near.doubt()
            kept = await ledger.items("pad/a/in")
            assert len(kept) <= 100 + 100 // 4 + 16
            assert len(far._held) == len(kept)
        assert near.drawn == 3200
        assert len(await near._ledger.items("pad/b/out")) <= 16, "nor does it keep what it burned"

    run(story())


def test_the_limit_follows_the_high_mark() -> None:
    async def story() -> None:
        devices, ledger = Devices(), MemoryLedger()
        far = DeviceKeys(peer="a", owner="b", device=devices, ledger=ledger, clock=Watch(), high=64, most=1)
        for _ in range(8):
            await far.hold([key.key_id for key in await devices.enc_keys(64, 256)])
        await far.prune()
        assert len(await ledger.items("pad/a/in")) == 4 * 64

    run(story())


def test_what_the_sender_offers_again_stays_and_what_it_burned_goes() -> None:
    async def story() -> None:
        watch = Watch()
        a, b = await neighbours(Devices(), mode=Mode.EXPANDED, low=2, high=12, clock=watch)
        assert a.device is not None
        burned = {name for name, _ in await a.device.take(3, 0)}
        for _ in range(10):
            watch.time += RENEW
            a.refill.renew()
            await a.stock()
            await b.refill.prune()
        ready = {name for name, _ in a.device.supply._items}
        assert len(ready) == 12
        assert set(await b.ledger.items("pad/a/in")) == ready
        assert not burned & ready
        body, _ = await sealed(a)
        assert await arrives(b, body)

    run(story())


def test_a_message_on_its_way_outlives_the_renewal_of_what_was_ready_beside_it() -> None:
    async def story() -> None:
        watch = Watch()
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12, clock=watch)
        body, _ = await sealed(a)
        watch.time += WORTH
        for end in (a, b):
            end.refill.renew()
            await end.stock()
            await end.refill.prune()
        assert await arrives(b, body)

    run(story())


# ---------------------------------------------------------------------- as it runs


def test_a_link_that_was_idle_for_a_month_works_at_once_and_holds_no_more_than_before() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), mode=Mode.OTP, low=2, high=12)
        loops = [asyncio.ensure_future(end.refill.run()) for end in (a, b)]
        await asyncio.sleep(30 * RENEW + 0.5 * RENEW)
        for _ in range(10):
            body, _ = await sealed(a)
            assert await arrives(b, body)
        assert await held(b, "pad/PEER/in") <= 12
        week = 1 + KEEP / RENEW
        assert await held(b, "kem/PEER") <= week * (a.peer_keys._high + 1)
        for task in loops:
            task.cancel()

    run(story())


def test_a_restart_does_not_make_old_keys_young() -> None:
    async def story() -> None:
        a, b = await neighbours(Devices(), low=2, high=12)
        for _ in range(10):
            await asyncio.sleep(RENEW)
            b = End("b", "a", b.ledger, Devices(), low=2, high=12)
            b.other = a
            await b.start()
            await b.refill.prune()
        assert await held(b, "kem/PEER") == await held(b, "pad/PEER/in") == 0

    run(story())


def test_a_prune_that_fails_is_done_the_next_day() -> None:
    class Failing(OneTimeKeys):
        fails = 1

        async def prune(self) -> None:
            if self.fails:
                self.fails -= 1
                raise Malformed("the disk is full")
            await super().prune()

    async def story() -> None:
        a, b = await neighbours()
        b.own_keys = b.refill._own_keys = Failing("a", b.ledger, LoopClock())
        await asyncio.sleep(KEEP + RENEW)
        loop = asyncio.ensure_future(b.refill.run())
        await asyncio.sleep(RENEW / 2)
        assert await held(b, "kem/PEER") > 0
        await asyncio.sleep(RENEW)
        assert await held(b, "kem/PEER") == 0
        loop.cancel()
        assert a.other is b

    run(story())


# ---------------------------------------------------------------------- the format


async def shelf(ledger: MemoryLedger, watch: Watch, **values: bytes) -> Kept:
    async with ledger.edit() as change:
        for name, value in values.items():
            change.put("space", name, value)
    return Kept("space", ledger, watch, most=10)


def test_a_value_comes_back_with_its_time() -> None:
    for value in (b"", b"x", bytes(64)):
        assert undated(dated(value, 1_800_000_000.25)) == (value, 1_800_000_000.25)
        assert undated(value) == (value, None)
    assert undated(b"kept at ") == (b"kept at ", None), "too short to have a head"


def test_values_of_earlier_versions_are_read_and_count_from_the_start_of_the_node() -> None:
    async def story() -> None:
        ledger, watch = MemoryLedger(), Watch()
        kept = await shelf(ledger, watch, old=bytes(32))
        began = watch.time
        assert await kept.get("old") == bytes(32)
        watch.time += KEEP - 10
        assert await kept.prune() == []
        assert undated((await ledger.items("space"))["old"]) == (bytes(32), began)
        kept = Kept("space", ledger, watch, most=10)  # a restart does not start it anew
        watch.time += 11
        assert await kept.prune() == ["old"]
        assert await ledger.items("space") == {}

    run(story())


def test_one_time_and_device_keys_of_earlier_versions_still_open_messages() -> None:
    async def story() -> None:
        devices = Devices()
        a, b = await neighbours(devices, mode=Mode.OTP, low=2, high=12)
        body, _ = await sealed(a)
        async with b.ledger.edit() as change:
            for space in ("kem/a", "pad/a/in"):
                for name, stored in (await b.ledger.items(space)).items():
                    change.put(space, name, undated(stored)[0])
        b = End("b", "a", b.ledger, devices, mode=Mode.OTP, low=2, high=12)
        await introduce(a, b)
        await b.refill.prune()
        assert await arrives(b, body)

    run(story())


def test_a_clock_that_was_far_ahead_makes_nothing_immortal() -> None:
    async def story() -> None:
        ledger, watch = MemoryLedger(), Watch()
        kept = await shelf(ledger, watch, odd=dated(b"x", watch.time + 100 * KEEP))
        assert await kept.prune() == []
        watch.time += KEEP + 1
        assert await kept.prune() == ["odd"]

    run(story())


def test_the_oldest_of_too_many_go() -> None:
    async def story() -> None:
        ledger, watch = MemoryLedger(), Watch()
        kept = await shelf(ledger, watch)
        names = [f"{at * 5 % 14:02}" for at in range(14)]  # their order is not that of their ages
        for name in names:
            watch.time += 1
            async with ledger.edit() as change:
                kept.put(change, name, b"x")
        assert kept.crowded
        assert set(await kept.prune()) == set(names[:4])
        assert set(await ledger.items("space")) == set(names[4:])
        assert not kept.crowded

    run(story())


class Hasty(MemoryLedger):
    """A message spends `victim` in the moment between a read and the commit that follows it."""

    victim = ""

    async def item(self, space: str, name: str) -> bytes | None:
        found = await super().item(space, name)
        if name == self.victim and found is not None:
            async with self.edit() as change:
                change.spend(space, name)
        return found


def test_a_secret_that_is_spent_while_it_is_renewed_does_not_come_back() -> None:
    async def story() -> None:
        ledger, watch = Hasty(), Watch()
        kept = await shelf(ledger, watch, one=dated(b"1", watch.time), two=dated(b"2", watch.time))
        watch.time += RENEW
        ledger.victim = "one"
        assert await kept.claimed(["two", "one", "three"]) == ["two", "one"]
        assert set(await ledger.items("space")) == {"two"}
        assert await kept.claimed(["one", "two"]) == ["two"]
        assert undated((await ledger.items("space"))["two"]) == (b"2", watch.time)

    run(story())


def test_the_store_on_disk_renews_and_prunes_too(tmp_path: Path) -> None:
    async def story() -> None:
        watch = Watch()
        ledger = await open_store(tmp_path / "keyhaul.db")
        kept = Kept("space", ledger, watch, most=10)
        async with ledger.edit() as change:
            kept.put(change, "burned", b"1")
            kept.put(change, "ready", b"2")
        watch.time += KEEP - 1
        assert await kept.claimed(["ready"]) == ["ready"]
        watch.time += 2
        assert await kept.prune() == ["burned"]
        assert await kept.get("burned") is None
        assert await kept.get("ready") == b"2"
        await ledger.close()

    asyncio.run(story())
