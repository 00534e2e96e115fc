"""Private halves that only the TPM opens, on software TPMs: no recovery slot and no other chip does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from keyhaul import backups, vault
from keyhaul.blindkeys import SPACE as BFV
from keyhaul.config import NodeConfig, load
from keyhaul.config.reader import Mistakes
from keyhaul.destination import SEALED
from keyhaul.destination import SPACE as KEM
from keyhaul.errors import SealError
from keyhaul.node import Node
from keyhaul.stores.sealing import Grade, describe
from tests.e2e.test_tpm import SoftwareTpm, new_tpm, pytestmark, tpm
from tests.nodes import CREDENTIAL, make_node, make_ports

__all__ = ["new_tpm", "pytestmark", "tpm"]

pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")


def made(tmp_path: Path, tpm: SoftwareTpm) -> NodeConfig:
    """A node with a recovery credential for its store, and private halves for the chip alone."""
    slots = [{"kind": "tpm", "tcti": tpm.tcti}, CREDENTIAL]
    schemes = {"private_keys": "tpm", "blind": {"enabled": True}}
    return make_node(tmp_path / "node", make_ports(tmp_path / "pki"), store={"slots": slots}, schemes=schemes)


@contextlib.asynccontextmanager
async def running(config: NodeConfig) -> AsyncIterator[Node]:
    node = Node(config)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def announced(config: NodeConfig) -> tuple[set[bytes], dict[str, Any]]:
    """The public keys of one run, and its status."""
    async with running(config) as node:
        own = [*node.pairing._keys.announced()]
        assert node.blind_keys is not None
        own += node.blind_keys.announced(node._clock.now())
        return {key.public for key in own}, await node.status()


async def stored(config: NodeConfig) -> list[bytes]:
    """What whoever has the store and its root reads of private halves."""
    opened = await vault.open_vault(config.store)
    try:
        return [value for space in (KEM, BFV) for value in (await opened.ledger.items(space)).values()]
    finally:
        await opened.ledger.close()


def test_the_store_and_its_root_do_not_open_them_and_the_chip_does(tmp_path: Path, tpm: SoftwareTpm) -> None:
    config = made(tmp_path, tpm)
    first, status = asyncio.run(announced(config))
    assert len(first) == 4, "three KEM keys and a BFV key"
    assert status["store"]["private_keys"] == "tpm"
    values = asyncio.run(stored(config))
    assert len(values) == 4
    assert all(value.startswith(SEALED) for value in values)
    slots = describe(config.store.root.with_name(vault.PRIVATE))
    assert [(slot["kind"], slot["grade"]) for slot in slots] == [("tpm2", Grade.SOFTWARE.value)]
    tpm.restart()
    again, _ = asyncio.run(announced(load(retold(config, tpm))))
    assert again == first, "the same chip opens them after it was off"


def retold(config: NodeConfig, tpm: SoftwareTpm) -> Path:
    """The configuration with where the TPM listens now."""
    lines = config.file.read_text().splitlines()
    config.file.write_text(
        "\n".join(f'tcti = "{tpm.tcti}"' if line.startswith("tcti") else line for line in lines) + "\n"
    )
    return config.file


def test_another_chip_ends_the_start_and_says_what_to_do(
    tmp_path: Path, tpm: SoftwareTpm, new_tpm: Callable[[str], SoftwareTpm]
) -> None:
    """The recovery slot still opens the store, so this is what keeps the private halves."""
    config = made(tmp_path, tpm)
    first, _ = asyncio.run(announced(config))
    other = load(retold(config, new_tpm("other")))
    opened = vault.sealing.open_root(other.store.root, vault.slots(other.store.slots))
    assert opened.kind == "credential", "the store opens by its recovery slot"
    with pytest.raises(SealError, match="private keys of destinations cannot be opened") as refused:
        asyncio.run(vault.open_private(other.store, "tpm"))
    assert vault.PRIVATE in refused.value.remedy
    other.store.root.with_name(vault.PRIVATE).unlink()
    second, _ = asyncio.run(announced(other))
    assert not first & second, "made anew"


def test_a_backup_has_nothing_that_opens_them(tmp_path: Path, tpm: SoftwareTpm) -> None:
    config = made(tmp_path, tpm)
    asyncio.run(announced(config))
    backups.back_up(config, tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert vault.PRIVATE not in names
    assert "root.slots" in names


def test_a_setting_without_a_chip_is_a_mistake_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(Mistakes, match="no key slot of the store names a TPM"):
        make_node(tmp_path / "node", make_ports(tmp_path / "pki"), schemes={"private_keys": "tpm"})
