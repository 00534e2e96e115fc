"""Opens what a node keeps: the root secret by its key slots, and the ledger under that root.

`init` makes both and records the grade; a start only ever opens. Nothing is overwritten, and nothing
weaker than what was recorded is accepted in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from keyhaul.config import SlotSource, StoreConfig
from keyhaul.destination import AsStored, Sealer
from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.ports import Ledger
from keyhaul.stores import sealing
from keyhaul.stores.sqlcipher import SqlcipherLedger

EPOCH = ("rollback", "epoch")
PRIVATE = "private.slots"

log = structlog.get_logger("keyhaul.vault")


@dataclass(slots=True)
class Vault:
    """An open ledger and how well its root is kept."""

    ledger: SqlcipherLedger
    kind: str
    grade: str
    warnings: tuple[str, ...]


def create_root(store: StoreConfig) -> sealing.Opened:
    """Make the key-slot file of a new node with every slot that works here. Raises SealError."""
    opened = sealing.create(store.root, slots(store.slots))
    if opened.kind.startswith("tpm"):
        counter(store, opened).define()
    return opened


async def open_vault(store: StoreConfig) -> Vault:
    """Unseal the root, open the ledger, and refuse a ledger that is older than its TPM counter."""
    opened = await asyncio.to_thread(sealing.open_root, store.root, slots(store.slots))
    for warning in opened.warnings:
        log.warning("root secret", kind=opened.kind, grade=opened.grade.value, caveat=warning)
    page_key = sealing.derive(opened.root, "store/page", 48)
    field_key = sealing.derive(opened.root, "store/field")
    try:
        ledger = await SqlcipherLedger.open(store.file, page_key=page_key, field_key=field_key)
        if opened.kind.startswith("tpm"):
            try:
                await _check_rollback(ledger, counter(store, opened))
            except BaseException:
                await ledger.close()
                raise
    finally:
        for secret in (page_key, field_key, opened.root):
            secret.wipe()
    return Vault(ledger, opened.kind, opened.grade.value, opened.warnings)


async def open_private(store: StoreConfig, wanted: str) -> Sealer:
    """What keeps the private halves of destination keys: the store alone, or a key that only the TPM opens.

    That key is in a slot file of its own, `private.slots`, made at the first start that wants it. It has no
    recovery slot: what it sealed is renewed, not restored. Raises SealError.
    """
    if wanted == "store":
        return AsStored()
    path = store.root.with_name(PRIVATE)
    source = next((source for source in store.slots if source.kind == "tpm"), None)
    if source is None:
        raise SealError("no slot of the store names a TPM", 'add one, or set private_keys = "store"')
    slot = _slot(source)

    def opened() -> sealing.Opened:
        return sealing.open_root(path, [slot]) if path.exists() else sealing.create(path, [slot])

    try:
        found = await asyncio.to_thread(opened)
    except SealError as error:
        raise SealError(
            f"private keys of destinations cannot be opened: {error.cause}",
            f"{error.remedy}; or remove {path}: then all of these keys are made anew",
        ) from None
    for warning in found.warnings:
        log.warning("private keys", kind=found.kind, grade=found.grade.value, caveat=warning)
    with found.root, sealing.derive(found.root, "private/halves") as key:
        return sealing.ItemSeal(key)


@contextlib.contextmanager
def keys(store: StoreConfig) -> Iterator[tuple[Secret, Secret, sealing.Opened]]:
    """The keys of a store's pages and fields, and the root they come from; wiped afterwards. Blocks.

    Raises SealError.
    """
    opened = sealing.open_root(store.root, slots(store.slots))
    page_key = sealing.derive(opened.root, "store/page", 48)
    field_key = sealing.derive(opened.root, "store/field")
    try:
        yield page_key, field_key, opened
    finally:
        for secret in (page_key, field_key, opened.root):
            secret.wipe()


def slots(sources: Sequence[SlotSource]) -> list[sealing.Slot]:
    """The configured ways to the root, in order."""
    return [_slot(source) for source in sources]


def _slot(source: SlotSource) -> sealing.Slot:
    if source.kind == "passphrase":
        return sealing.Passphrase(_asker(source, "passphrase"))
    if source.kind == "credential":
        path = source.file or sealing.systemd_credential(source.name)
        return sealing.Credential(path or Path(source.name))
    if source.kind == "tpm":
        return sealing.Tpm(source.tcti or sealing.default_tcti() or "device:/dev/tpmrm0", source.pcrs)
    if source.module is None:
        raise SealError("the pkcs11 slot names no module", "set module to the vendor's shared library")
    return sealing.Pkcs11(source.module, source.token, _asker(source, "PIN"), source.name)


def _asker(source: SlotSource, what: str) -> Callable[[], str]:
    """Reads a passphrase when it is needed: from a file, a descriptor, or the person at the terminal."""

    def ask() -> str:
        path = source.file
        if path is None and source.env is not None:
            named = os.environ.get(source.env)
            if named is None:
                raise SealError(f"environment variable {source.env} is not set", f"set it to the {what} file")
            path = Path(named)
        try:
            if path is not None:
                return path.read_text().rstrip("\n")
            if source.fd is not None:
                with os.fdopen(source.fd) as stream:
                    return stream.read().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SealError(f"the {what} cannot be read: {error}", "check the path and its mode") from None
        if sys.stdin is not None and sys.stdin.isatty():
            return getpass.getpass(f"keyhaul {what}: ")
        raise SealError(f"nobody can be asked for the {what}", "name a file or a descriptor in the slot")

    return ask


def counter(store: StoreConfig, opened: sealing.Opened) -> sealing.NvCounter:
    """The counter of the TPM whose slot opened the root."""
    source = next(source for source in store.slots if source.kind == "tpm")
    tcti = source.tcti or sealing.default_tcti() or "device:/dev/tpmrm0"
    return sealing.NvCounter(tcti, opened.root)


async def _check_rollback(ledger: Ledger, counter: sealing.Counter) -> None:
    """Compare the ledger with the TPM's counter and turn both one step on, crash-safe."""
    stored = await ledger.item(*EPOCH)
    loop = asyncio.get_running_loop()

    async def keep(epoch: tuple[int, int]) -> None:
        async with ledger.edit() as change:
            change.put(*EPOCH, f"{epoch[0]} {epoch[1]}".encode())

    def save(epoch: tuple[int, int]) -> None:
        asyncio.run_coroutine_threadsafe(keep(epoch), loop).result()

    def load() -> tuple[int, int] | None:
        if stored is None:
            return None
        current, following = stored.decode().split()
        return int(current), int(following)

    await asyncio.to_thread(sealing.Guard(load, save, counter).advance)
