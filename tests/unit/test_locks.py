"""Row locks exclude, are passed on when a waiter is cancelled, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from keyhaul.keys import Ref
from keyhaul.ledger_samples import sample_ref
from keyhaul.stores.locks import RefLocks


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, 30))


def test_locks_leave_nothing_behind_and_survive_cancellation() -> None:
    async def story() -> None:
        locks, inside = RefLocks(), []

        async def work(number: int) -> None:
            refs: list[Ref] = [sample_ref(number % 3), sample_ref(number % 5)]
            async with locks.hold(refs):
                assert not set(refs) & set(inside)
                inside.extend(refs)
                try:
                    await asyncio.sleep(0)
                finally:
                    for ref in refs:
                        inside.remove(ref)

        tasks = [asyncio.create_task(work(number)) for number in range(90)]
        for number in range(0, 90, 4):
            await asyncio.sleep(0)
            tasks[number].cancel()
            tasks[-number - 1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError | None) for outcome in outcomes)
        assert len(locks) == 0

    run(story())


def test_a_lock_handed_to_a_task_cancelled_in_the_same_tick_is_passed_on() -> None:
    async def story() -> None:
        locks, ref = RefLocks(), sample_ref(1)

        async def wait() -> str:
            async with locks.hold([ref]):
                return "served"

        async with locks.hold([ref]):
            first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == "served"
        assert len(locks) == 0

    run(story())
