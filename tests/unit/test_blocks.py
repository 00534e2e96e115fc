"""Blocks: a slot leaves once, opens only in its place, and ids that go together are made to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyhaul.errors import StaleRow, StoreUnavailable
from keyhaul.keys import Ref, Secret, State
from keyhaul.ledger_rules import add, herd_of
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
        assert store.engine.read("SELECT count(*) FROM blocks")[0][0] == 0
        assert store.engine.read("SELECT count(*) FROM rows")[0][0] == len(refs)
        await store.close()

    asyncio.run(story())


def test_a_slot_leaves_once_whatever_memory_says(tmp_path: Path) -> None:
    async def story() -> None:
        store, refs = await opened(tmp_path / "store.db")
        (block,) = store._blocks.of(blocks.name_of(refs[0].key_id)).values()
        leave = blocks._leave(block, [1, 3])
        assert await store.engine.submit([leave]) == 1
        with pytest.raises(StaleRow):
            await store.engine.submit([leave])
        with pytest.raises(StaleRow):
            await store.engine.submit([blocks._leave(block, [3, 4])])
        assert await store.engine.submit([blocks._leave(block, [4])]) == 1
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
