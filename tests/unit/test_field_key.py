"""The layer under the database key: what was altered or moved does not open, nothing shows a secret."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from keyhaul.errors import SealError, StoreUnavailable, Taken
from keyhaul.keys import Secret
from keyhaul.ledger_samples import add, sample_message, sample_ref, sample_row
from keyhaul.stores import database
from tests.stores import PAGE_KEY, fingerprint, make_store, open_store, run


def altered(path: Path, *statements: str) -> None:
    """What somebody who holds the page key, but not the field key, may do to a closed store."""
    connection = database.connect(path, Secret(PAGE_KEY), writes=True)
    for statement in statements:
        assert connection.execute(statement).rowcount > 0
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rows SET secret = (SELECT secret FROM rows WHERE leg = 'derio') WHERE leg = 'vigo'",
        "UPDATE rows SET data = (SELECT data FROM rows WHERE leg = 'derio') WHERE leg = 'vigo'",
        "UPDATE rows SET version = version + 1 WHERE leg = 'vigo'",
        "UPDATE rows SET secret = zeroblob(length(secret))",
        "UPDATE rows SET secret = x'00'",
        "UPDATE rows SET data = x'c0'",
    ],
)
def test_an_altered_or_moved_secret_does_not_open(tmp_path: Path, statement: str) -> None:
    async def fill() -> None:
        store = await open_store(tmp_path / "store.db")
        here, there = sample_ref(1, "vigo"), sample_ref(1, "derio")
        await add(store, sample_row(here), sample_row(there, targets=("eve",)))
        await store.close()

    async def story() -> None:
        store = await open_store(tmp_path / "store.db")
        with pytest.raises(StoreUnavailable, match="altered or moved"):
            await store.get(sample_ref(1, "vigo"))
        with pytest.raises(StoreUnavailable, match="altered or moved"):
            async with store.edit(sample_ref(1, "vigo")):
                raise AssertionError("a draft was handed out")
        await store.close()

    run(fill())
    altered(tmp_path / "store.db", statement)
    run(story())


def test_an_altered_item_or_message_does_not_open(tmp_path: Path) -> None:
    async def fill() -> None:
        store = await open_store(tmp_path / "store.db")
        async with store.edit() as change:
            change.put("space", "a", b"1")
            change.put("space", "b", b"2")
            change.post(sample_message(1))
        await store.close()

    async def story() -> None:
        store = await open_store(tmp_path / "store.db")
        for answer in (store.item("space", "a"), store.items("space"), store.messages()):
            with pytest.raises(StoreUnavailable, match="altered or moved"):
                await answer
        await store.close()

    run(fill())
    swap = "UPDATE items SET value = (SELECT value FROM items WHERE name = 'b') WHERE name = 'a'"
    altered(tmp_path / "store.db", swap, "UPDATE outbox SET id = zeroblob(16)")
    run(story())


def test_another_field_key_opens_no_secret_and_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "store.db", field_key=bytes(32))
        assert len(await store.unfinished()) == 60
        with pytest.raises(StoreUnavailable, match="field key"):
            await store.get(sample_ref(1))
        await store.close()

    make_store(tmp_path / "store.db")
    run(story())


def test_a_copy_of_a_running_store_opens_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "store.db")
        await add(store, sample_row(sample_ref(1)))
        (tmp_path / "copy").mkdir()
        for name in ("store.db", "store.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "copy" / name)
        await store.close()
        key = bytearray(PAGE_KEY)
        key[0] ^= 1
        before = fingerprint(tmp_path / "copy")
        with pytest.raises(SealError):
            await open_store(tmp_path / "copy" / "store.db", bytes(key))
        assert fingerprint(tmp_path / "copy") == before
        copy = await open_store(tmp_path / "copy" / "store.db")
        assert await copy.get(sample_ref(1)) is not None
        await copy.close()

    run(story())


def test_errors_and_reprs_show_no_secret(tmp_path: Path) -> None:
    async def story() -> list[str]:
        store = await open_store(tmp_path / "store.db")
        async with store.edit() as change:
            change.put("space", "name", b"very secret")
        shown = [repr(store), repr(store.engine), repr(vars(store.engine))]
        try:
            async with store.edit() as change:
                change.claim("space", "name", b"very secret")
        except Taken as error:
            shown.append(repr(error))
        await store.close()
        return shown

    shown = run(story())
    assert len(shown) == 4
    assert not any("very secret" in text or PAGE_KEY.hex() in text for text in shown)
