"""Device keys fetched ahead: agreed by both ends before use, used once, whatever crashes in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from keyhaul.errors import InsufficientKey, KeyNotFound, Malformed, Spent, StoreUnavailable
from keyhaul.keys import Ref
from keyhaul.links.prefetch import EXPECTED_TRIES, MAX_OFFER, OFFER_TRIES, DeviceKeys
from keyhaul.stores.change import StagedChange
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import run
from tests.neighbours import Devices, Key, Watch


def device_keys(devices: Devices, ledger: MemoryLedger, **options: Any) -> DeviceKeys:
    options = {"low": 2, "high": 4, "clock": Watch(), **options}
    return DeviceKeys(peer="bilbao", owner="vigo-devices", device=devices, ledger=ledger, **options)


class Both:
    """The two ends of one link and their ledgers."""

    def __init__(self, **options: Any) -> None:
        self.devices = Devices()
        self.options = options
        self.near_ledger, self.far_ledger = MemoryLedger(), MemoryLedger()
        self.near = device_keys(self.devices, self.near_ledger, **options)
        self.far = device_keys(self.devices, self.far_ledger, **options)

    async def agree(self) -> list[str]:
        """Draw, offer, hold, confirm: one round of refill. Returns the ids held."""
        offers = await self.near.draw()
        held = await self.far.hold(offers)
        await self.near.confirm(offers, held)
        return held

    async def restart(self) -> None:
        """Both nodes crash and come back on their ledgers."""
        self.near = device_keys(self.devices, self.near_ledger, **self.options)
        self.far = device_keys(self.devices, self.far_ledger, **self.options)
        await self.near.start()
        await self.far.start()

    async def use(self, number: int) -> tuple[list[str], bytes]:
        """Keys for one message: spent at the sender, matched and spent at the receiver."""
        keys = await self.near.take(number, 0)
        names = [name for name, _ in keys]
        async with self.near_ledger.edit() as change:
            self.near.spend(change, names)
        bits = await self.far.match(names)
        assert bits == b"".join(secret.reveal() for _, secret in keys)
        async with self.far_ledger.edit() as change:
            self.far.spend_matched(change, names)
        return names, bits


def test_a_key_is_ready_once_both_ends_hold_it_durably() -> None:
    async def story() -> None:
        both = Both()
        offers = await both.near.draw()
        assert len(offers) == 4
        assert set(await both.near_ledger.items("pad/bilbao/out")) == set(offers), "saved before offered"
        with pytest.raises(InsufficientKey):
            await both.near.take(1, 0)
        held = await both.far.hold(offers)
        assert set(await both.far_ledger.items("pad/bilbao/in")) == set(offers), "saved before answered"
        await both.near.confirm(offers, held)
        assert both.near.level() == 4 * 256
        await both.use(3)
        assert both.near.level() == 256
        assert len(await both.near_ledger.items("pad/bilbao/out")) == 1
        assert len(await both.far_ledger.items("pad/bilbao/in")) == 1

    run(story())


def test_spent_keys_never_come_back_whatever_restarts() -> None:
    async def story() -> None:
        both = Both()
        used: list[bytes] = []
        for _ in range(4):
            await both.agree()
            used.append((await both.use(1))[1])
            await both.restart()
            assert both.near.level() == 0, "after a restart the far end is asked again"
            await both.agree()
            used.append((await both.use(2))[1])
        bits = b"".join(used)
        pieces = [bits[at : at + 32] for at in range(0, len(bits), 32)]
        assert len(pieces) == len(set(pieces)) == 12

    run(story())


def test_a_crash_after_drawing_loses_nothing() -> None:
    async def story() -> None:
        both = Both()
        offers = await both.near.draw()
        await both.restart()
        assert sorted(await both.near.draw()) == sorted(offers)
        await both.agree()
        assert both.near.level() == 4 * 256
        assert len(both.devices.given) == 4, "no key was drawn in vain"

    run(story())


def test_a_crash_between_hold_and_confirm_loses_nothing() -> None:
    async def story() -> None:
        both = Both()
        offers = await both.near.draw()
        await both.far.hold(offers)
        await both.restart()
        assert sorted(await both.agree()) == sorted(offers)
        await both.use(4)
        assert len(both.devices.given) == 4

    run(story())


def test_a_crash_of_the_sender_after_its_commit_does_not_offer_the_key_again() -> None:
    async def story() -> None:
        both = Both()
        await both.agree()
        ((name, _),) = await both.near.take(1, 0)
        async with both.near_ledger.edit() as change:
            both.near.spend(change, [name])
        await both.restart()
        assert name not in await both.near.draw()
        assert await both.far.match([name]), "the receiver still waits for the message"

    run(story())


def test_a_key_spent_twice_fails_the_second_commit() -> None:
    async def story() -> None:
        both = Both()
        await both.agree()
        names, _ = await both.use(1)
        for ledger, spend in (
            (both.near_ledger, both.near.spend),
            (both.far_ledger, both.far.spend_matched),
        ):
            with pytest.raises(Spent):
                async with ledger.edit() as change:
                    spend(change, names)
        with pytest.raises(Malformed):
            await both.far.match(names)

    run(story())


# ---------------------------------------------------------------------- giving back


def test_keys_no_cipher_saw_are_used_again_and_seen_ones_are_burned() -> None:
    async def story() -> None:
        both = Both()
        await both.agree()
        unseen = await both.near.take(1, 0)
        both.near.give_back(unseen, burned=False)
        seen = await both.near.take(2, 0)
        both.near.give_back(seen, burned=True)
        left = await both.near.take(2, 0)
        assert not {name for name, _ in seen} & {name for name, _ in left}
        assert unseen[0][0] in {name for name, _ in left}
        async with both.near_ledger.edit() as change:
            both.near.spend(change, [name for name, _ in left])
        assert await both.near_ledger.items("pad/bilbao/out") == {}, "burned keys leave with the next commit"

    run(story())


def test_a_commit_that_fails_does_not_forget_what_was_burned() -> None:
    class Full(MemoryLedger):
        full = False

        def edit(self, *refs: Ref) -> AbstractAsyncContextManager[StagedChange]:  # type: ignore[override]
            if self.full:
                raise StoreUnavailable("the disk is full")
            return super().edit(*refs)

    async def story() -> None:
        both = Both()
        ledger = both.near_ledger = Full()
        both.near = device_keys(both.devices, ledger)
        await both.agree()
        seen, fine = await both.near.take(1, 0), await both.near.take(1, 0)
        both.near.give_back(seen, burned=True)
        with pytest.raises(Spent):
            async with ledger.edit() as change:
                both.near.spend(change, [fine[0][0], "never drawn"])
        both.near.give_back(fine, burned=True)
        ledger.full = True
        with pytest.raises(StoreUnavailable):
            await both.near.draw()
        ledger.full = False
        await both.near.draw()
        kept = await ledger.items("pad/bilbao/out")
        assert seen[0][0] not in kept
        assert fine[0][0] not in kept
        await both.restart()
        offers = await both.near.draw()
        assert seen[0][0] not in offers
        assert fine[0][0] not in offers

    run(story())


# ---------------------------------------------------------------------- the far end


def test_a_lagging_far_end_gets_more_offers() -> None:
    async def story() -> None:
        both = Both()
        offers = await both.near.draw()
        both.devices.lag = {offers[1]}
        assert sorted(await both.agree()) == sorted(set(offers) - {offers[1]})
        assert both.near.level() == 3 * 256
        both.devices.lag = set()
        assert offers[1] in await both.agree()
        assert both.near.lost == 0

    run(story())


def test_a_key_the_far_end_never_gets_is_burned_in_the_end() -> None:
    async def story() -> None:
        both = Both()
        (lost, *_) = await both.near.draw()
        both.devices.lag = {lost}
        for _ in range(OFFER_TRIES):
            assert lost in await both.near.draw()
            await both.agree()
        assert both.near.lost == 1
        assert lost not in await both.near_ledger.items("pad/bilbao/out")
        assert lost not in await both.near.draw()

    run(story())


def test_a_far_end_that_claims_other_ids_moves_nothing() -> None:
    async def story() -> None:
        both = Both()
        offers = await both.near.draw()
        await both.near.confirm(offers, ["never-offered", offers[0].upper() + "x", ""])
        assert both.near.level() == 0
        await both.near.confirm(["never-offered"], ["never-offered"])
        assert both.near.level() == 0
        await both.near.confirm(offers[:1], offers)
        assert both.near.level() == 256, "only what this offer named counts"

    run(story())


def test_one_unknown_id_does_not_hide_the_others() -> None:
    async def story() -> None:
        both = Both(high=64)
        both.near._drawing.number = 64
        offers = await both.near.draw()
        mixed = [*offers[:20], "unknown", *offers[20:], "unknown too", "unknown"]
        assert sorted(await both.far.hold(mixed)) == sorted(offers)
        assert sorted(await both.far.hold(offers)) == sorted(offers), "asked again, answered from the ledger"

    run(story())


def test_a_silent_device_is_asked_once_and_not_for_every_key() -> None:
    async def story() -> None:
        both = Both(high=64)
        both.near._drawing.number = 64
        offers = await both.near.draw()
        both.devices.silent, before = True, both.devices.asked
        assert await both.far.hold(offers) == []
        assert both.devices.asked == before + 1
        both.devices.silent = False
        assert len(await both.far.hold(offers)) == 64

    run(story())


def test_an_offer_has_a_limit() -> None:
    async def story() -> None:
        both = Both()
        assert await both.far.hold(["x"] * 2) == []
        with pytest.raises(Malformed):
            await both.far.hold([str(number) for number in range(MAX_OFFER + 1)])

    run(story())


def test_a_message_that_names_an_unknown_key_is_malformed() -> None:
    async def story() -> None:
        both = Both()
        await both.agree()
        names = [name for name, _ in await both.near.take(2, 0)]
        with pytest.raises(Malformed):
            await both.far.match([*names, "unknown"])

    run(story())


def test_bits_come_in_the_order_of_the_names() -> None:
    async def story() -> None:
        for ahead in (True, False):
            both = Both(ahead=ahead)
            if ahead:
                await both.agree()
            keys = await both.near.take(3, 0)
            turned = list(reversed(keys))
            bits = await both.far.match([name for name, _ in turned])
            assert bits == b"".join(secret.reveal() for _, secret in turned)

    run(story())


def test_a_dry_device_says_so() -> None:
    async def story() -> None:
        both = Both()
        both.devices.dry = True
        with pytest.raises(InsufficientKey):
            await both.near.draw()
        both.devices.dry = False
        await both.agree()
        assert both.near.level() > 0

    run(story())


def test_a_supply_grows_faster_with_every_round() -> None:
    """The first keys are not held up by a slow device that is asked for everything at once."""

    async def story() -> None:
        both = Both(high=40)
        assert [len(await both.agree()) for _ in range(4)] == [4, 8, 16, 12]

    run(story())


# ---------------------------------------------------------------------- device keys on demand


def test_without_prefetch_the_devices_are_asked_for_every_message() -> None:
    async def story() -> None:
        both = Both(ahead=False)
        names, _ = await both.use(2)
        assert len(names) == 2
        assert both.devices.waiting == {}
        assert await both.near_ledger.items("pad/bilbao/out") == {}
        both.near.give_back(await both.near.take(1, 0), burned=True)
        both.near.give_back(await both.near.take(1, 0), burned=False)
        assert both.near.level() == 0
        with pytest.raises(KeyNotFound):
            await both.far.match(names)

    run(story())


def test_without_prefetch_too_few_keys_are_insufficient() -> None:
    async def story() -> None:
        both = Both(ahead=False)
        both.devices.most = 2
        with pytest.raises(InsufficientKey, match="2 of 3"):
            await both.near.take(3, 0)
        assert len(await both.near.take(2, 0)) == 2

    run(story())


def test_without_prefetch_a_device_that_answers_with_other_keys_makes_the_message_malformed() -> None:
    class Confused(Devices):
        async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[Key]:
            return (await super().dec_keys(key_ids))[:-1]

    async def story() -> None:
        both = Both(ahead=False)
        both.devices = Confused()
        both.near = device_keys(both.devices, both.near_ledger, ahead=False)
        both.far = device_keys(both.devices, both.far_ledger, ahead=False)
        names = [name for name, _ in await both.near.take(2, 0)]
        with pytest.raises(Malformed):
            await both.far.match(names)

    run(story())


def test_two_takers_never_get_the_same_key() -> None:
    async def story() -> None:
        both = Both(high=32)
        both.near._drawing.number = 32
        takers = [asyncio.ensure_future(both.near.take(3, 10)) for _ in range(10)]
        await asyncio.sleep(0)
        for _ in range(3):
            await both.agree()
        names = [name for keys in await asyncio.gather(*takers) for name, _ in keys]
        assert len(names) == len(set(names)) == 30

    run(story())


def test_keys_that_the_far_end_lost_do_not_stop_the_supply() -> None:
    """The far device hands a key out once: a crash before it is saved loses all of an offer."""

    async def story() -> None:
        both = Both()
        gone = set(await both.near.draw())
        assert len(gone) == 4
        both.devices.lag = gone
        for _ in range(EXPECTED_TRIES):
            await both.agree()
        assert both.near.level() == 0
        held = await both.agree()
        assert len(held) == 4, "others are drawn beside the lost ones"
        assert both.near.level() == 4 * 256
        assert not gone & set(held)
        names, _ = await both.use(2)
        assert not gone & set(names)
        for _ in range(OFFER_TRIES):
            await both.agree()
        assert both.near.lost == 4
        assert not gone & set(await both.near_ledger.items("pad/bilbao/out"))

    run(story())


def test_after_a_doubt_nothing_that_was_ready_is_used_and_all_of_it_is_erased() -> None:
    async def story() -> None:
        both = Both()
        doubted = set(await both.agree())
        both.near.doubt()
        assert both.near.level() == 0
        assert both.near.supply.wanted.is_set()
        fresh = await both.agree()
        assert len(fresh) == 4
        assert not doubted & set(fresh)
        names, _ = await both.use(2)
        assert not doubted & set(names)
        assert not doubted & set(await both.near_ledger.items("pad/bilbao/out"))

    run(story())
