"""Work ends when somebody wishes it, also when its first cancellation was lost; and what it said is kept."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from keyhaul.testbed.interrupt import Interruptible, unless, wished


async def endless() -> str:
    await asyncio.Event().wait()
    return "never"


async def deaf(times: int, heard: list[int]) -> str:
    """Loses so many cancellations, as `asyncio.wait_for` may lose one."""
    for time in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append(time)
    return await endless()


def test_work_that_is_left_alone_says_what_it_has_to_say() -> None:
    async def story() -> None:
        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        assert await unless(asyncio.Event(), work()) == 7

    asyncio.run(story())


@pytest.mark.parametrize("times", [0, 1, 3])
def test_work_is_told_to_end_until_it_ends(times: int) -> None:
    async def story() -> None:
        stop, heard = asyncio.Event(), list[int]()
        running = asyncio.ensure_future(unless(stop, deaf(times, heard), insist=0.01))
        await asyncio.sleep(0)
        stop.set()
        assert await running is None
        assert heard == [*range(times)]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_what_goes_wrong_on_the_way_out_is_not_hidden() -> None:
    async def story() -> None:
        async def fails() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError("cannot be undone")

        stop = asyncio.Event()
        running = asyncio.ensure_future(unless(stop, fails()))
        await asyncio.sleep(0)
        stop.set()
        with pytest.raises(OSError, match="cannot be undone"):
            await running

    asyncio.run(story())


def test_work_ends_with_whoever_waits_for_it() -> None:
    async def story() -> None:
        running = asyncio.ensure_future(unless(asyncio.Event(), endless()))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish(number: signal.Signals) -> None:
    async def story() -> None:
        with wished() as stop:
            os.kill(os.getpid(), number)
            assert await unless(stop, endless()) is None
        with Interruptible() as wish:
            os.kill(os.getpid(), number)
            await endless()
        assert wish.came

    asyncio.run(story())
