"""After a crash, a full disk or a silence: few keys were burned, and what waits goes on soon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from keyhaul import outbox
from keyhaul.errors import StoreUnavailable
from keyhaul.keys import Ref
from keyhaul.links.prefetch import ANSWER_WITHIN, EXPECTED_TRIES, OFFER_TRIES
from keyhaul.links.refill import LONGEST_PAUSE
from keyhaul.ports import Answer
from keyhaul.signs import LEAST, Sign
from keyhaul.stores.change import StagedChange
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import run
from tests.neighbours import Devices, Key, neighbours
from tests.unit.test_gossip import Post
from tests.unit.test_outbox import Bench, message, unreachable
from tests.unit.test_prefetch import Both, device_keys

DELAY = 0.6  # seconds
PART = 32  # keys that a slow device gives in that time


class Slow(Devices):
    """Devices as slow as those of a long fibre, and of a few keys at a time."""

    async def enc_keys(self, number: int, size: int) -> Sequence[Key]:
        return [key for part in parts(range(number)) for key in await self._enc(len(part), size)]

    async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[Key]:
        return [key for part in parts(key_ids) for key in await self._dec(part)]

    async def _enc(self, number: int, size: int) -> Sequence[Key]:
        await asyncio.sleep(DELAY)
        return await super().enc_keys(number, size)

    async def _dec(self, key_ids: Sequence[str]) -> Sequence[Key]:
        await asyncio.sleep(DELAY)
        return await super().dec_keys(key_ids)


def parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[at : at + PART] for at in range(0, len(items), PART))


class Full(MemoryLedger):
    """A disk that may be full."""

    full = False

    def edit(self, *refs: Ref) -> AbstractAsyncContextManager[StagedChange]:  # type: ignore[override]
        if self.full:
            raise StoreUnavailable("the disk is full")
        return super().edit(*refs)


def slow() -> Both:
    both = Both(high=512)
    both.devices = Slow()
    both.near = device_keys(both.devices, both.near_ledger, high=512)
    both.far = device_keys(both.devices, both.far_ledger, high=512)
    return both


# ---------------------------------------------------------------------- crashes


def test_a_crash_burns_what_a_slow_device_gives_in_a_second_and_not_a_whole_supply() -> None:
    async def story() -> None:
        both = slow()
        for _ in range(4):
            await both.agree()
        for crash in (0.5, 1.1, 1.7, 2.3, 5.0, 9.0):
            saved, given = await both.near_ledger.items("pad/bilbao/out"), len(both.devices.given)
            drawing = asyncio.ensure_future(both.near.draw())
            await asyncio.sleep(crash)
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
            kept = len(await both.near_ledger.items("pad/bilbao/out")) - len(saved)
            assert len(both.devices.given) - given - kept <= PART
            await both.restart()
            await both.agree()

    run(story())


def test_a_crash_of_the_far_end_costs_one_step_of_an_offer() -> None:
    async def story() -> None:
        both = slow()
        both.near._drawing.number = 256
        offers = await both.near.draw()
        before = len(both.devices.waiting)
        holding = asyncio.ensure_future(both.far.hold(offers))
        await asyncio.sleep(DELAY * 3.5)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        fetched = before - len(both.devices.waiting)
        assert fetched >= 4 + 8 + 16, "three steps had been made"
        assert len(await both.far_ledger.items("pad/bilbao/in")) == fetched

    run(story())


def test_keys_lost_behind_a_slow_device_do_not_hold_up_the_answer_to_an_offer() -> None:
    """The far end fetched a whole offer and crashed: the device has none of it any more."""

    async def story() -> None:
        both = slow()
        both.near._drawing.number = 64
        gone = set(await both.near.draw())
        both.devices.lag = gone
        loop, tries = asyncio.get_running_loop(), 0
        while not both.near.level():
            begun = loop.time()
            await both.agree()
            tries += 1
            assert loop.time() - begun <= ANSWER_WITHIN + 5 * DELAY
            assert tries <= EXPECTED_TRIES + 1, "others are drawn beside the lost ones"
        assert not gone & {name for name, _ in await both.near.take(1, 0)}

    run(story())


def test_after_a_restart_one_offer_tells_what_the_far_end_has_lost_and_others_are_drawn() -> None:
    async def story() -> None:
        both = slow()
        both.near._drawing.number = 64
        gone = set(await both.near.draw())
        both.devices.lag, both.options["high"] = gone, 64
        await both.restart()
        assert gone == set(await both.near.draw()), "none is drawn before the far end was asked"
        await both.agree()
        fresh = [name for name in await both.near.draw() if name not in gone]
        assert fresh
        assert (await both.near.draw())[: len(fresh)] == fresh, "what may be lost comes last"
        assert set(fresh) <= set(await both.agree())

    run(story())


def test_one_lost_key_is_told_from_the_others_within_a_few_offers() -> None:
    async def story() -> None:
        both = slow()
        both.near._drawing.number = 32
        (lost, *others) = await both.near.draw()
        both.devices.lag = {lost}
        held: set[str] = set()
        for _ in range(5):
            held |= set(await both.far.hold([lost, *others]))
        assert held == set(others)
        assert both.far._missed.keys() == {lost}
        for _ in range(OFFER_TRIES):
            await both.agree()
        assert lost not in await both.near_ledger.items("pad/bilbao/out")

    run(story())


# ---------------------------------------------------------------------- disks


def test_a_full_disk_costs_no_device_key_at_either_end() -> None:
    async def story() -> None:
        both = Both()
        near, far = Full(), Full()
        both.near_ledger, both.far_ledger = near, far
        both.near, both.far = device_keys(both.devices, near), device_keys(both.devices, far)
        near.full = True
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await both.near.draw()
        assert len(both.devices.given) == 4, "what could not be saved is saved before more is drawn"
        near.full = False
        offers = await both.near.draw()
        far.full = True
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await both.far.hold(offers)
        far.full = False
        assert sorted(await both.far.hold(offers)) == sorted(offers)
        assert len(both.devices.given) == 4

    run(story())


def test_a_message_that_could_not_be_stored_burns_its_keys_and_no_other_does_until_the_disk_works() -> None:
    async def story() -> None:
        both = Both(low=8, high=16)
        both.near_ledger = ledger = Full()
        both.near = device_keys(both.devices, ledger, low=8, high=16)
        while both.near.supply.shortage:
            await both.agree()
        level = both.near.level()
        ledger.full = True
        both.near.give_back(seen := await both.near.take(1, 0), burned=True)
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await both.near.take(1, 0)
        assert both.near.level() == level - 256
        ledger.full = False
        assert seen[0][0] not in {name for name, _ in await both.near.take(1, 0)}
        assert seen[0][0] not in await ledger.items("pad/bilbao/out")

    run(story())


# ---------------------------------------------------------------------- silence


def test_a_rest_ends_with_a_sign_but_not_at_once() -> None:
    async def story() -> None:
        loop, sign = asyncio.get_running_loop(), Sign()

        async def rest(seconds: float, *signs: float) -> tuple[bool, float]:
            begun = loop.time()
            for at in signs:
                loop.call_later(at, sign.give)
            return await sign.rest(seconds), loop.time() - begun

        assert await rest(5.0) == (False, pytest.approx(5.0))
        assert await rest(5.0, 2.0, 2.1) == (True, pytest.approx(2.0))
        assert await rest(5.0, 0.01) == (True, pytest.approx(LEAST)), "heard and not reached"
        assert await rest(0.1, 0.05) == (True, pytest.approx(0.1))

    run(story())


def test_messages_go_soon_after_the_neighbour_was_heard_from() -> None:
    async def story() -> None:
        bench = Bench(unreachable)
        bench.outbox.send(message(1, patience=600.0))
        bench.outbox.heard("b")
        bench.outbox.heard("nobody")
        await asyncio.sleep(60)
        bench.peers.behave = lambda message: Answer(202)
        while bench.peers.attempts[-1][0] < asyncio.get_running_loop().time() - LEAST:
            await asyncio.sleep(0.001)  # until an attempt has just failed, or the pause is nearly over
            if bench.settled():
                return
        bench.outbox.heard("b")
        bench.outbox.send(message(2, patience=600.0))
        await asyncio.sleep(LEAST + 0.1 + outbox.SETTLE_AFTER)
        assert bench.settled() == [1, 2]

    run(story())


def test_a_neighbour_that_is_heard_and_not_reached_is_tried_a_few_times_a_second() -> None:
    async def story() -> None:
        bench = Bench(unreachable)
        bench.outbox.send(message(1, patience=600.0))
        await asyncio.sleep(60)
        before = len(bench.peers.attempts)
        for _ in range(1000):
            bench.outbox.heard("b")
            await asyncio.sleep(0.01)
        assert len(bench.peers.attempts) - before <= 10.0 / LEAST + 2
        bench.crash()

    run(story())


def test_supplies_are_filled_soon_after_the_neighbour_was_heard_from() -> None:
    async def story() -> None:
        near, far = await neighbours(Devices())
        near.other = None
        near.refill.renew()
        tasks = [asyncio.ensure_future(near.refill.run())]
        await asyncio.sleep(60)
        near.other = far
        near.refill.nearby()
        await asyncio.sleep(2 * LEAST)
        assert near.link.supplies()["one_time_keys"]
        assert near.link.level()
        for task in tasks:
            task.cancel()

    run(story())


def test_a_dry_device_is_not_asked_more_often_because_the_neighbour_is_heard() -> None:
    async def story() -> None:
        devices = Devices()
        near, _ = await neighbours(devices)
        devices.dry = True
        near.link.doubt()
        task = asyncio.ensure_future(near.refill.run())
        await asyncio.sleep(60)
        before = devices.asked
        for _ in range(1000):
            near.refill.nearby()
            await asyncio.sleep(0.01)
        assert devices.asked - before <= 10.0 / (LONGEST_PAUSE / 2) + 1
        task.cancel()

    run(story())


def test_descriptors_go_soon_after_the_neighbour_was_heard_from() -> None:
    async def story() -> None:
        net: dict[str, Post] = {}
        Post("vigo", "lab", ["bilbao"], net)
        Post("bilbao", "north", ["vigo"], net).deaf = True
        for post in net.values():
            await post.pairing.start()
            await post.gossip.start()
        task = asyncio.ensure_future(net["vigo"].gossip.run())
        await asyncio.sleep(120)
        net["bilbao"].deaf = False
        net["vigo"].gossip.heard("bilbao")
        await asyncio.sleep(2 * LEAST)
        assert net["bilbao"].heard
        task.cancel()

    run(story())
