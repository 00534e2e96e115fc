"""Blocks: a slot leaves once, opens only in its place, and ids that go together are made to."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from keyhaul.errors import IllegalStep, StaleRow, StoreUnavailable
from keyhaul.keys import Ref, Secret, State
from keyhaul.ledger_samples import add, herd_of
from keyhaul.minting import OwnMint
from keyhaul.stores import blocks, database
from keyhaul.stores.sqlcipher import SqlcipherLedger
from tests.stores import PAGE_KEY, open_store


async def opened(path: Path) -> tuple[SqlcipherLedger, list[Ref]]:
    """A ledger with one block of five, and its refs."""
    store = await open_store(path)
    rows = herd_of(1, state=State.DELIVERABLE)
    if await store.get(rows[0].ref) is None:
        await add(store, *rows)
    return store, [row.ref for row in rows]


def test_a_batch_is_one_record_and_a_row_that_leaves_zeroes_its_slot(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        assert store.engine.read("SELECT count(*) FROM rows")[0][0] == 0
        (record,) = store.engine.read(f"SELECT {blocks.COLUMNS} FROM blocks")
        sealed = blocks.block_of(record).slot(2)
        async with store.edit(refs[2]) as change:
            draft = change.rows[refs[2]]
            assert draft is not None
            draft.state, draft.secret = State.TAKEN, None
        await store._blocks.tidy()
        (record,) = store.engine.read(f"SELECT {blocks.COLUMNS} FROM blocks")
        after = blocks.block_of(record)
        assert after.live() == [0, 1, 3, 4]
        assert sealed not in bytes(after.slots)
        assert store.engine.read("SELECT key_id, secret FROM rows") == [(refs[2].key_id.bytes, None)]
        async with store.edit(*refs[:2], *refs[3:]) as change:
            for number, ref in enumerate(refs[:2] + refs[3:]):
                draft = change.rows[ref]
                assert draft is not None
                draft.state, draft.secret, draft.size = State.TAKEN, None, 8 + number
        await store._blocks.tidy()
        assert store.engine.read("SELECT count(*) FROM blocks")[0][0] == 0
        assert store.engine.read("SELECT count(*) FROM rows")[0][0] == len(refs)
        await store.close()

    asyncio.run(story())


async def take(store: SqlcipherLedger, *refs: Ref) -> None:
    for ref in refs:
        async with store.edit(ref) as change:
            draft = change.rows[ref]
            assert draft is not None
            draft.state, draft.secret = State.TAKEN, None


def slots_on_disk(store: SqlcipherLedger) -> list[int]:
    """Positions whose slots are not zeroed in the database, of the one block there is."""
    (record,) = store.engine.read(f"SELECT {blocks.COLUMNS} FROM blocks")
    return blocks.block_of(record).live()


async def grow(store: SqlcipherLedger, refs: list[Ref]) -> None:
    async with store.together(refs) as herd:
        assert herd is not None
        herd.row.size += 8


async def states(store: SqlcipherLedger, refs: list[Ref]) -> list[State]:
    rows = [await store.get(ref) for ref in refs]
    return [row.state for row in rows if row is not None]


def test_a_row_leaves_once_whatever_memory_says(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        (before,) = store.engine.read(f"SELECT {blocks.COLUMNS} FROM blocks")
        await take(store, refs[1])
        name = blocks.name_of(refs[1].key_id)
        store._blocks._recent[name] = {refs[1].leg: blocks.block_of(before)}  # as if it had not left
        with pytest.raises(StaleRow):
            await take(store, refs[1])
        assert await states(store, refs[1:2]) == [State.TAKEN]
        await store.close()

    asyncio.run(story())


def test_a_block_whose_member_left_is_not_written_by_one_who_does_not_know(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        (before,) = store.engine.read(f"SELECT {blocks.COLUMNS} FROM blocks")
        await take(store, refs[1])
        store._blocks._recent[blocks.name_of(refs[1].key_id)] = {refs[1].leg: blocks.block_of(before)}
        with pytest.raises(StaleRow):
            await grow(store, refs)
        stayed = [refs[0], *refs[2:]]
        async with store.together(stayed) as herd:  # read again after the refusal
            assert herd is not None
            herd.row.state = State.TAKEN
        assert await states(store, refs) == [State.TAKEN] * len(refs)
        await store.close()

    asyncio.run(story())


def test_until_its_slot_is_zeroed_the_row_stands_against_it(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        await take(store, refs[2])
        assert slots_on_disk(store) == [0, 1, 2, 3, 4]
        left = {refs[0], refs[1], refs[3], refs[4]}
        for _ in range(2):
            assert await states(store, [refs[2]]) == [State.TAKEN]
            assert {row.ref for row in await store.deliverable()} == left
            assert set(await store.due(1e12)) == left
            (row,) = await store.find(refs[2].key_id)
            assert row.state is State.TAKEN
            with pytest.raises(IllegalStep):
                async with store.edit(refs[2]) as change:
                    change.rows[refs[2]] = None
            store._blocks.forgotten()  # the second time the block is read from disk
        await store._blocks.tidy()
        assert slots_on_disk(store) == [0, 1, 3, 4]
        assert {row.ref for row in await store.deliverable()} == left
        await store.close()

    asyncio.run(story())


def test_a_slot_is_zeroed_without_anybody_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        monkeypatch.setattr(blocks, "TIDY_AFTER", 0.0)
        zeroed = asyncio.Event()
        done = store._blocks._zeroed

        def told(*what: Any) -> None:
            done(*what)
            zeroed.set()

        monkeypatch.setattr(store._blocks, "_zeroed", told)
        await take(store, refs[2])
        await asyncio.wait_for(zeroed.wait(), 60)
        assert slots_on_disk(store) == [0, 1, 3, 4]
        assert store._blocks.gone() == set()
        await store.close()

    asyncio.run(story())


def test_what_a_crash_left_behind_is_zeroed_at_the_start(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        await take(store, refs[1], refs[4])
        (tmp_path / "later").mkdir()
        for file in tmp_path.glob("store.db*"):  # as the disk is in this moment
            shutil.copy(file, tmp_path / "later" / file.name)
        await store.close()
        later = await open_store(tmp_path / "later" / "store.db")
        assert slots_on_disk(later) == [0, 2, 3]
        taken, ready = State.TAKEN, State.DELIVERABLE
        assert await states(later, refs) == [ready, taken, ready, ready, taken]
        assert {row.ref for row in await later.deliverable()} == {refs[0], refs[2], refs[3]}
        await later.close()

    asyncio.run(story())


def test_a_block_that_everybody_left_is_gone_after_closing(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        await take(store, *refs)
        assert await states(store, refs) == [State.TAKEN] * len(refs)
        await store.close()
        again = await open_store(tmp_path / "store.db")
        assert again.engine.read("SELECT count(*) FROM blocks")[0][0] == 0
        assert again.engine.read("SELECT count(*) FROM rows WHERE secret IS NULL")[0][0] == len(refs)
        await again.close()

    asyncio.run(story())


def test_a_disk_that_fails_while_zeroing_is_tried_again(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        await take(store, refs[3])
        commit, store.engine._commit = store.engine._commit, no_space  # type: ignore[method-assign,assignment]
        with pytest.raises(StoreUnavailable):
            await store._blocks.tidy()
        assert store._blocks.gone() == {refs[3]}
        store.engine._commit = commit  # type: ignore[method-assign]
        assert store._blocks._timer is not None
        await store._blocks.tidy()
        assert (store._blocks.gone(), slots_on_disk(store)) == (set(), [0, 1, 2, 4])
        await store.close()

    asyncio.run(story())


def no_space(batch: list[Any]) -> list[StoreUnavailable]:
    return [StoreUnavailable("no space") for _ in batch]


def test_the_search_for_what_was_left_behind_uses_the_keys_of_rows(tmp_path: Path) -> None:
    async def story() -> None:
        store, _ = await opened(tmp_path / "store.db")
        plan = [str(step[-1]) for step in store.engine.read("EXPLAIN QUERY PLAN " + blocks._LEFT_BEHIND)]
        assert any("SEARCH r USING PRIMARY KEY (key_id>? AND key_id<?)" in step for step in plan)
        assert not any("TEMP B-TREE" in step for step in plan)
        await store.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "meddling",
    [
        "slots = CAST(substr(slots, 1, 24) || substr(slots, 73, 48) || substr(slots, 73) AS BLOB)",
        "data = CAST(replace(CAST(data AS TEXT), 'sae-c', 'sae-x') AS BLOB)",
        "marks = zeroblob(length(marks))",
        "version = version + 1",
        "leg = 'elsewhere'",
    ],
)
def test_a_block_somebody_meddled_with_is_not_believed(tmp_path: Path, meddling: str) -> None:
    path = tmp_path / "store.db"

    async def read(leg: str) -> object:
        store, refs = await opened(path)
        try:
            async with store.together([Ref(ref.key_id, leg) for ref in refs]) as herd:
                return herd
        finally:
            await store.close()

    assert asyncio.run(read("vigo")) is not None
    connection = database.connect(path, Secret(PAGE_KEY), writes=True)
    assert connection.execute(f"UPDATE blocks SET {meddling}").rowcount == 1
    connection.close()
    with pytest.raises(StoreUnavailable, match="altered or moved"):
        asyncio.run(read("elsewhere" if "leg" in meddling else "vigo"))


def test_ids_of_keys_that_go_together_share_all_but_the_last_byte() -> None:
    class Zeros:
        def read(self, length: int) -> Secret:
            return Secret(bytes(length))

    class Noon:
        def now(self) -> float:
            return 43_200.0

    async def made(number: int, herd: int) -> list[int]:
        keys = await OwnMint(Zeros(), Noon()).keys(number, 256, herd)
        assert len({key_id for key_id, _ in keys}) == number
        assert all(key_id.version == 7 and key_id.variant == "specified in RFC 4122" for key_id, _ in keys)
        names = [blocks.name_of(key_id) for key_id, _ in keys]
        return [names.count(name) for name in dict.fromkeys(names)]

    assert asyncio.run(made(10, 4)) == [4, 4, 2]
    assert asyncio.run(made(300, 1_000)) == [256, 44]
    assert asyncio.run(made(3, 0)) == [1, 1, 1]
