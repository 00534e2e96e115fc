"""Backups: encrypted as the store is, checked before they are used, and safe to go on with."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from keyhaul import backups, vault
from keyhaul.config import NodeConfig, load
from keyhaul.config.write import toml
from keyhaul.errors import ConfigError, Refused, SealError
from keyhaul.keys import MASTER, Event, Message, Ref, Row, Secret, State
from keyhaul.node import prepare
from keyhaul.stores.sqlcipher import SqlcipherLedger
from tests.nodes import Ports, make_node, make_ports

SECRET = b"these bits are not to be seen" + bytes(3)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Ports:
    return make_ports(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def config(tmp_path: Path, ports: Ports) -> NodeConfig:
    return make_node(tmp_path / "node", ports)


async def opened(config: NodeConfig) -> SqlcipherLedger:
    return (await vault.open_vault(config.store)).ledger


def a_row(state: State, secret: bytes | None = SECRET) -> Row:
    now = time.time()
    return Row(
        Ref(uuid4(), "vigo"),
        state,
        "sae-a",
        ("sae-b",),
        256,
        now,
        now + 15,
        now + 86_400,
        waiting=frozenset({MASTER, "sae-b"}) if secret else frozenset(),
        secret=None if secret is None else Secret(secret),
        history=(Event(state, now),),
    )


SPACES = {
    "pad/derio/out": True,
    "pad/derio/in": True,
    "kem/derio": True,
    "kem/destination": True,
    "pair/in": True,
    "sequence": True,
    "bfv/destination": True,
    "something new": True,
    "seen/derio": False,
    "directory": False,
}
"""Spaces of items, and whether what they hold is good for one use."""


async def fill(ledger: SqlcipherLedger) -> dict[State, Row]:
    """Rows in every state that is stored, a message, and an item in every space."""
    rows = {
        state: a_row(state, None if state in (State.TAKEN, State.FAILED) else SECRET)
        for state in (State.SENDING, State.SENT, State.DELIVERABLE, State.TAKEN, State.FAILED)
    }
    for row in rows.values():
        async with ledger.edit(row.ref) as change:
            change.rows[row.ref] = row
    message = Message(UUID(int=7), "derio", "ext_keys", SECRET, True, (), time.time(), time.time() + 9)
    async with ledger.edit() as change:
        change.post(message)
        for space in SPACES:
            change.put(space, "one", SECRET)
    return rows


async def after(config: NodeConfig, rows: dict[State, Row], before: bytes) -> None:
    """What must hold of a restored store."""
    ledger = await opened(config)
    assert ledger.incarnation != before
    assert await ledger.messages() == []
    for space, once in SPACES.items():
        assert (await ledger.item(space, "one") is None) == once, space
    for state, row in rows.items():
        found = await ledger.get(row.ref)
        assert found is not None, "a key id was forgotten, so it could come again"
        assert found.secret is None
        assert found.state is (state if state in (State.TAKEN, State.FAILED) else State.EXPIRED)
        assert found.waiting == frozenset()
    assert await ledger.deliverable() == []
    assert await ledger.unfinished() == []
    await ledger.close()


def test_a_backup_of_a_running_store_is_restored_and_nothing_in_it_counts_twice(
    config: NodeConfig, tmp_path: Path
) -> None:
    async def life() -> tuple[dict[State, Row], bytes]:
        ledger = await opened(config)
        rows = await fill(ledger)
        await asyncio.to_thread(backups.back_up, config, tmp_path / "copy")
        with pytest.raises(SealError, match="in use"):
            await asyncio.to_thread(backups.restore, tmp_path / "copy", config.file, replace=True)
        late = a_row(State.DELIVERABLE)
        async with ledger.edit(late.ref) as change:
            change.rows[late.ref] = late
        await ledger.close()
        return rows, ledger.incarnation

    rows, before = asyncio.run(life())
    done = backups.restore(tmp_path / "copy", config.file, replace=True)
    assert (done.renewal.keys, done.renewal.messages) == (3, 1)
    assert done.renewal.items == sum(SPACES.values()) + 0
    assert [path.name.partition(".before-")[0] for path in done.aside] == ["keyhaul.db"]
    asyncio.run(after(config, rows, before))


def test_a_stopped_node_is_backed_up_and_restored_on_another_machine(
    config: NodeConfig, tmp_path: Path
) -> None:
    async def life() -> tuple[dict[State, Row], bytes]:
        ledger = await opened(config)
        rows = await fill(ledger)
        await ledger.close()
        return rows, ledger.incarnation

    rows, before = asyncio.run(life())
    backups.back_up(config, tmp_path / "copy")
    there = tmp_path / "elsewhere" / "node.toml"
    there.parent.mkdir()
    (there.parent / "root.credential").write_bytes((config.file.parent / "root.credential").read_bytes())
    os.chmod(there.parent / "root.credential", 0o600)
    done = backups.restore(tmp_path / "copy", there)
    assert done.aside == ()
    assert done.warnings == ()
    assert {path.name for path in there.parent.iterdir()} == {
        "node.toml", "network.toml", "root.slots", "root.credential", "keyhaul.db", "keyhaul.db-lock",
    }  # fmt: skip
    asyncio.run(after(load(there), rows, before))


def test_two_restores_of_one_backup_are_two_incarnations(config: NodeConfig, tmp_path: Path) -> None:
    asyncio.run(_once(config))
    backups.back_up(config, tmp_path / "copy")
    seen = {
        backups.restore(tmp_path / "copy", config.file, replace=True).renewal.incarnation for _ in range(3)
    }
    assert len(seen) == 3
    for path in config.file.parent.glob("*.before-*"):
        assert path.stat().st_mode & 0o077 == 0


async def _once(config: NodeConfig) -> None:
    await (await opened(config)).close()


def test_a_backup_holds_no_bit_and_no_private_key_in_clear(config: NodeConfig, tmp_path: Path) -> None:
    async def life() -> None:
        ledger = await opened(config)
        await fill(ledger)
        await asyncio.to_thread(backups.back_up, config, tmp_path / "copy")
        await ledger.close()

    asyncio.run(life())
    credential = (config.file.parent / "root.credential").read_bytes()
    files = list((tmp_path / "copy").iterdir())
    assert {file.name for file in files} == {
        "keyhaul.db", "root.slots", "node.toml", "network.toml", "manifest.json",
    }  # fmt: skip
    for file in files:
        content = file.read_bytes()
        assert SECRET[:16] not in content
        assert credential not in content
        assert b"PRIVATE KEY" not in content
        assert file.stat().st_mode & 0o077 == 0
    assert not (tmp_path / "copy" / "keyhaul.db").read_bytes().startswith(b"SQLite format 3")
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text())["node"] == "vigo"


def test_a_backup_that_is_not_whole_or_of_another_node_is_refused_before_anything_changes(
    config: NodeConfig, tmp_path: Path
) -> None:
    asyncio.run(_once(config))
    backups.back_up(config, tmp_path / "copy")
    store = config.store.file.read_bytes()
    with pytest.raises(ConfigError, match="would be replaced"):
        backups.restore(tmp_path / "copy", config.file)
    with pytest.raises(ConfigError, match="not empty"):
        backups.back_up(config, tmp_path / "copy")
    other = config.file.with_name("other.toml")
    text = config.file.read_text().replace('name = "vigo"', 'name = "derio"', 1)
    other.write_text(text.replace("network.toml", "other-network.toml"))
    network = toml({"nodes": {"derio": "galicia"}, "links": [], "saes": {}})
    config.file.with_name("other-network.toml").write_text(network)
    with pytest.raises(ConfigError, match="backup is of 'vigo'"):
        backups.restore(tmp_path / "copy", other, replace=True)
    manifest = tmp_path / "copy" / "manifest.json"
    whole = manifest.read_text()
    for wrong in ("{", "[]", "{}", '{"sha256": {}}', whole.replace('"version": 1', '"version": 2')):
        manifest.write_text(wrong)
        with pytest.raises(Refused):
            backups.restore(tmp_path / "copy", config.file, replace=True)
    manifest.write_text(whole)
    copied = tmp_path / "copy" / "keyhaul.db"
    copied.write_bytes(copied.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="not as it was backed up"):
        backups.restore(tmp_path / "copy", config.file, replace=True)
    with pytest.raises(Refused, match="No such file"):
        backups.restore(tmp_path / "nowhere", config.file, replace=True)
    assert config.store.file.read_bytes() == store
    assert not list(config.file.parent.glob("*.before-*"))


def test_a_store_of_another_root_is_set_aside_with_its_slots(config: NodeConfig, tmp_path: Path) -> None:
    asyncio.run(_once(config))
    backups.back_up(config, tmp_path / "copy")
    config.store.file.unlink()
    config.store.root.unlink()
    prepare(config)
    asyncio.run(_once(config))
    done = backups.restore(tmp_path / "copy", config.file, replace=True)
    assert sorted(path.name.partition(".before-")[0] for path in done.aside) == ["keyhaul.db", "root.slots"]
    asyncio.run(_once(config))
