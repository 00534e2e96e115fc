"""The supply: payers take turns, in their order under each; in time or not at all; nothing is ever lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from keyhaul.errors import InsufficientKey
from keyhaul.links.supply import Supply
from keyhaul.testbed.clock import run


def supply(low: int = 2, high: int = 4) -> Supply[int]:
    return Supply("numbers", low, high)


async def taking(of: Supply[int], number: int, patience: float = 10.0) -> asyncio.Task[list[int]]:
    """A taker that has had its first turn."""
    task = asyncio.ensure_future(of.take(number, patience))
    await asyncio.sleep(0)
    return task


def test_items_come_in_the_order_they_went_in() -> None:
    async def story() -> None:
        here = supply()
        here.add(range(5))
        assert await here.take(2, 0) == [0, 1]
        here.add([5])
        assert await here.take(4, 0) == [2, 3, 4, 5]
        assert len(here) == 0

    run(story())


def test_takers_of_as_much_are_served_in_the_order_they_came() -> None:
    async def story() -> None:
        here = supply()
        first, second = await taking(here, 3), await taking(here, 3)
        here.add([0, 1])
        late = await taking(here, 3)
        await asyncio.sleep(1)
        assert not first.done()
        here.add([2, 3])
        assert await first == [0, 1, 2]
        here.add([4, 5])
        assert await second == [3, 4, 5]
        assert not late.done()
        here.add([6, 7, 8])
        assert await late == [6, 7, 8]

    run(story())


def test_a_large_request_does_not_keep_small_ones_waiting_nor_they_it() -> None:
    async def story() -> None:
        here = supply()
        big = await taking(here, 4)
        small = [await taking(here, 1) for _ in range(9)]
        here.add([0, 1])
        await asyncio.sleep(0.1)
        assert [task.done() for task in small] == [True] + [False] * 8
        here.add(range(2, 8))
        assert await big == [0, 2, 4, 6]
        assert [await task for task in small[:4]] == [[1], [3], [5], [7]]
        assert not small[4].done()
        for task in small[4:]:
            task.cancel()

    run(story())


def test_what_was_put_aside_goes_to_the_next_of_the_same_or_back() -> None:
    async def story() -> None:
        here = supply()
        hasty, patient = await taking(here, 3, 1.0), await taking(here, 3, 2.0)
        here.add([0, 1])
        await asyncio.sleep(1.5)
        assert isinstance(hasty.exception(), InsufficientKey)
        assert len(here) == 0, "two are put aside for the patient one"
        assert here.shortage == 4 + 1
        await asyncio.sleep(1)
        assert isinstance(patient.exception(), InsufficientKey)
        assert await here.take(2, 0) == [0, 1]
        assert here.shortage == 4

    run(story())


def test_what_is_drained_is_also_what_was_put_aside() -> None:
    async def story() -> None:
        here = supply()
        waiting = await taking(here, 3)
        here.add([0, 1])
        assert here.drain() == [0, 1]
        assert here.shortage == 4 + 3
        here.add([2, 3, 4])
        assert await waiting == [2, 3, 4]
        assert here.shortage == 4

    run(story())


def test_who_waits_in_vain_is_told_why() -> None:
    async def story() -> None:
        here = supply()
        here.add([1])
        here.trouble = "the device is dry"
        with pytest.raises(InsufficientKey, match=r"2 needed, 1 there.*the device is dry"):
            await here.take(2, 3.0)
        for patience in (0.0, -5.0):
            with pytest.raises(InsufficientKey):
                await here.take(2, patience)
        assert await here.take(1, 0) == [1]

    run(story())


def test_patience_ends_on_time() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        here = supply()
        with pytest.raises(InsufficientKey):
            await here.take(1, 7.5)
        assert loop.time() == pytest.approx(7.5)

    run(story())


def test_a_taker_that_gives_up_lets_those_behind_move_up() -> None:
    async def story() -> None:
        here = supply()
        here.add([0, 1])
        greedy, modest = await taking(here, 9, 5.0), await taking(here, 2, 60.0)
        await asyncio.sleep(6)
        assert isinstance(greedy.exception(), InsufficientKey)
        assert modest.done()
        assert modest.result() == [0, 1]

    run(story())


def test_a_cancelled_taker_lets_those_behind_move_up() -> None:
    async def story() -> None:
        here = supply()
        here.add([0, 1])
        greedy, modest = await taking(here, 9), await taking(here, 2)
        greedy.cancel()
        assert await modest == [0, 1]
        assert greedy.cancelled() or isinstance(greedy.exception(), asyncio.CancelledError)

    run(story())


def test_items_handed_to_a_taker_that_was_just_cancelled_come_back_in_order() -> None:
    async def story() -> None:
        here = supply()
        first, second = await taking(here, 2), await taking(here, 2)
        here.add([0, 1])  # set for the first, which has not run since
        first.cancel()
        await asyncio.sleep(0)
        assert first.done()
        assert await second == [0, 1]

    run(story())


def test_a_cancelled_taker_takes_nothing_later() -> None:
    async def story() -> None:
        here = supply()
        gone = await taking(here, 2)
        gone.cancel()
        await asyncio.sleep(0)
        here.add([0, 1])
        assert len(here) == 2
        assert here.shortage == 2

    run(story())


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_item_is_taken_once_or_still_there(seed: int) -> None:
    async def story() -> None:
        rng = random.Random(seed)
        here = supply()
        made, taken = 0, []
        tasks: list[asyncio.Task[list[int]]] = []
        for _ in range(200):
            match rng.randrange(4):
                case 0:
                    number = rng.randrange(1, 4)
                    here.add(range(made, made + number))
                    made += number
                case 1:
                    tasks.append(asyncio.ensure_future(here.take(rng.randrange(1, 4), rng.uniform(0, 0.3))))
                case 2 if tasks:
                    rng.choice(tasks).cancel()
                case _:
                    await asyncio.sleep(rng.choice((0, 0, 0.1)))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, list):
                taken += result
            else:
                assert isinstance(result, InsufficientKey | asyncio.CancelledError)
        rest = await here.take(len(here), 0)
        assert sorted(taken + rest) == list(range(made))

    run(story())


def test_the_supply_calls_for_more_when_low_or_waited_for() -> None:
    async def story() -> None:
        here = supply(low=2, high=4)
        assert here.wanted.is_set()
        assert here.shortage == 4
        here.add([0, 1])
        assert not here.wanted.is_set()
        assert here.shortage == 2
        await here.take(1, 0)
        assert here.wanted.is_set()
        here.add([2, 3, 4])
        assert not here.wanted.is_set()
        waiting = await taking(here, 6, 5.0)
        assert here.wanted.is_set(), "somebody waits"
        assert here.shortage == 6
        with pytest.raises(InsufficientKey):
            await waiting
        assert not here.wanted.is_set(), "nobody waits any more"
        assert here.shortage == 0

    run(story())


def test_new_items_end_the_trouble() -> None:
    here = supply()
    here.trouble = "the neighbour does not answer"
    here.add([1])
    assert here.trouble == ""


def test_payers_take_turns_so_a_modest_one_does_not_wait_behind_a_greedy_ones_queue() -> None:
    async def story() -> None:
        here = supply()
        greedy = [asyncio.ensure_future(here.take(1, 60.0, ("greedy",))) for _ in range(50)]
        await asyncio.sleep(0)
        modest = asyncio.ensure_future(here.take(1, 60.0, ("modest",)))
        await asyncio.sleep(0)
        assert here.shortage == 4 + 51
        here.add(range(3))
        assert len(await modest) == 1
        await asyncio.sleep(0)
        assert sum(task.done() for task in greedy) == 2
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
        assert here.shortage == 4

    run(story())


def test_what_nobody_waits_for_takes_only_what_is_over_and_never_waits() -> None:
    async def story() -> None:
        here = supply(low=2, high=8)
        here.add(range(8))
        assert here.spare(3, leave=4) == [0, 1, 2]
        for number, leave in ((2, 4), (5, 1), (6, 0)):
            with pytest.raises(InsufficientKey, match=f"{number} needed beside {leave} that stay, 5 there"):
                here.spare(number, leave)
        assert here.spare(1, leave=4) == [3]
        waiting = await taking(here, 5)
        with pytest.raises(InsufficientKey):
            here.spare(1, leave=0)  # there are four, but somebody waits for them
        here.add([8])
        assert await waiting == [4, 5, 6, 7, 8]
        assert not here.spare(0, leave=0)

    run(story())
