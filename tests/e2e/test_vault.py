"""The store opens under its root and only under it; with a TPM, an old copy of it is refused."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from keyhaul.config import SlotSource, StoreConfig
from keyhaul.errors import SealError
from keyhaul.vault import create_root, open_vault
from tests.e2e import test_tpm
from tests.e2e.test_tpm import SoftwareTpm, new_tpm, tpm

__all__ = ["new_tpm", "tpm"]  # fixtures
needs_tpm = [mark for mark in test_tpm.pytestmark if mark.name == "skipif"]


def by_passphrase(directory: Path, text: str = "correct horse battery staple") -> StoreConfig:
    word = directory / "passphrase"
    word.write_text(text + "\n")
    slot = SlotSource("passphrase", file=word)
    return StoreConfig(directory / "keyhaul.db", directory / "root.slots", (slot,))


def by_tpm(directory: Path, chip: SoftwareTpm) -> StoreConfig:
    slot = SlotSource("tpm", tcti=chip.tcti)
    return StoreConfig(directory / "keyhaul.db", directory / "root.slots", (slot,))


async def keep(store: StoreConfig, name: str) -> None:
    """One run of a node: open, keep a secret, close."""
    vault = await open_vault(store)
    async with vault.ledger.edit() as change:
        change.put("test", name, b"a secret value of this run")
    await vault.ledger.close()


async def kept(store: StoreConfig) -> set[str]:
    vault = await open_vault(store)
    names = set(await vault.ledger.items("test"))
    await vault.ledger.close()
    return names


def refused(store: StoreConfig) -> str:
    with pytest.raises(SealError) as error:
        asyncio.run(open_vault(store))
    assert error.value.remedy, "an error without a next step"
    return str(error.value)


def test_a_store_opens_again_and_nothing_lies_in_it_in_the_clear(tmp_path: Path) -> None:
    store = by_passphrase(tmp_path)
    create_root(store)
    asyncio.run(keep(store, "first"))
    assert asyncio.run(kept(store)) == {"first"}
    for file in tmp_path.iterdir():
        if file.name != "passphrase":
            assert b"a secret value" not in file.read_bytes()
            assert file.stat().st_mode & 0o077 == 0


def test_a_wrong_passphrase_changes_nothing(tmp_path: Path) -> None:
    store = by_passphrase(tmp_path)
    create_root(store)
    asyncio.run(keep(store, "first"))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "passphrase"}
    assert "passphrase" in refused(by_passphrase(tmp_path, "wrong"))
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name in before}


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b"\0" * len(file.read_bytes())),
        lambda file: _plain_sqlite(file),
    ],
    ids=["truncated", "zeroed", "plain sqlite"],
)
def test_a_damaged_or_foreign_database_is_refused_and_left_alone(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = by_passphrase(tmp_path)
    create_root(store)
    asyncio.run(keep(store, "first"))
    damage(store.file)
    before = store.file.read_bytes()
    assert store.file.name in refused(store)
    assert store.file.read_bytes() == before


def _plain_sqlite(file: Path) -> None:
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("create table keys (id)")
    connection.commit()
    connection.close()


def test_a_database_of_another_root_is_refused(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
        store = by_passphrase(directory)
        create_root(store)
        asyncio.run(keep(store, directory.name))
    shutil.copy(there / "keyhaul.db", here / "keyhaul.db")
    assert "keyhaul.db" in refused(by_passphrase(here))


class TestWithTpm:
    """On a real TPM in software."""

    pytestmark: ClassVar = [pytest.mark.e2e, pytest.mark.tpm, *needs_tpm]

    def test_a_restored_old_database_is_refused(self, tmp_path: Path, tpm: SoftwareTpm) -> None:
        store = by_tpm(tmp_path, tpm)
        create_root(store)
        asyncio.run(keep(store, "first"))
        old = tmp_path / "old"
        old.mkdir()
        for file in tmp_path.glob("keyhaul.db*"):
            shutil.copy(file, old / file.name)
        asyncio.run(keep(store, "second"))
        assert asyncio.run(kept(store)) == {"first", "second"}
        for file in tmp_path.glob("keyhaul.db*"):
            file.unlink()
        for file in old.iterdir():
            shutil.copy(file, tmp_path / file.name)
        assert "rollback" in refused(store)

    def test_another_machines_tpm_does_not_open_it(
        self, tmp_path: Path, new_tpm: Callable[[str], SoftwareTpm]
    ) -> None:
        create_root(by_tpm(tmp_path, new_tpm("here")))
        assert "tpm" in refused(by_tpm(tmp_path, new_tpm("elsewhere"))).lower()
