"""Both ledgers keep the contract of the port, and a thousand random operations cannot tell them apart."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path

import pytest

from keyhaul import testing
from keyhaul.errors import StaleRow
from keyhaul.keys import Ref
from keyhaul.ledger_rules import RULES, concurrent_edits_lose_no_update
from keyhaul.ledger_samples import add, sample_ref, sample_row
from keyhaul.ports import Ledger
from keyhaul.stores.change import StagedChange
from keyhaul.stores.locks import RefLocks
from keyhaul.stores.memory import MemoryLedger
from keyhaul.stores.sqlcipher import SqlcipherLedger
from tests.stores import open_store


async def in_memory() -> Ledger:
    return MemoryLedger()


def test_memory_ledger_keeps_the_contract() -> None:
    asyncio.run(testing.check_store(in_memory))


def test_sqlcipher_ledger_keeps_the_contract(tmp_path: Path) -> None:
    numbers = count()

    async def make() -> Ledger:
        return await open_store(tmp_path / f"{next(numbers)}.db")

    asyncio.run(testing.check_store(make))
    assert next(numbers) == len(RULES)


def test_sqlcipher_ledger_keeps_its_contents_across_a_restart(tmp_path: Path) -> None:
    async def make() -> Ledger:
        return await open_store(tmp_path / "store.db")

    asyncio.run(testing.check_reopen(make))


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_give_the_same_answers(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store.db"

    async def reopen(ledger: Ledger) -> Ledger:
        await ledger.close()
        return await open_store(path)

    async def run() -> None:
        await testing.cross_test(MemoryLedger(), await open_store(path), seed=seed, reopen=reopen)

    asyncio.run(run())


def test_a_ledger_that_forgets_to_lock_fails_the_contract() -> None:
    class Unlocked(MemoryLedger):
        def edit(self, *refs: Ref) -> AbstractAsyncContextManager[StagedChange]:
            self._locks = RefLocks()
            return super().edit(*refs)

    async def run() -> None:
        await concurrent_edits_lose_no_update(Unlocked())

    with pytest.raises(StaleRow):
        asyncio.run(run())


def test_memory_and_disk_disagree_where_one_of_them_is_wrong(tmp_path: Path) -> None:
    class Sloppy(MemoryLedger):
        async def forget(self, before: float) -> int:
            return await super().forget(before + 1)

        async def item(self, space: str, name: str) -> bytes | None:
            return await super().item(space, name) or b""

    async def run() -> None:
        await testing.cross_test(Sloppy(), MemoryLedger(), seed=1)

    with pytest.raises(AssertionError, match="seed 1, step"):
        asyncio.run(run())


def test_between_and_due_use_an_index(tmp_path: Path) -> None:
    async def run() -> list[str]:
        store = await open_store(tmp_path / "store.db")
        assert isinstance(store, SqlcipherLedger)
        await add(store, *(sample_row(sample_ref(number)) for number in range(20)))
        asked: list[str] = []
        read = store.engine._scan_reader
        for reader in (read, store.engine._point_reader):
            reader.set_trace_callback(asked.append)
        await store.between("sae-a", frozenset({"sae-b"}))
        await store.due(1e12)
        await store.unfinished()
        await store.deliverable()
        for reader in (read, store.engine._point_reader):
            reader.set_trace_callback(None)
        plans = [str(read.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()) for sql in asked]
        await store.close()
        return plans

    plans = asyncio.run(run())
    assert len(plans) == 11
    for plan in plans:
        assert "SEARCH" in plan, plan
        assert "SCAN" not in plan.replace("SCAN CONSTANT ROW", ""), plan
