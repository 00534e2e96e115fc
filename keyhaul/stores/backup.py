"""Copies a node's store while it runs or stands still, and renews a copy so that nothing in it counts twice.

A backup is as encrypted as the store: same pages, same keys, no key with it. Before a copy is put in place
it is renewed by the rules of `stores.renewal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores import database, renewal
from keyhaul.stores.database import DatabaseError
from keyhaul.stores.engine import Statement
from keyhaul.stores.renewal import Renewal
from keyhaul.stores.sqlcipher import SqlcipherLedger

Items = dict[tuple[str, str], bytes]


def copy(source: Path, target: Path, page_key: Secret) -> str:
    """A consistent copy of the store as it is at one moment; returns its incarnation in hex. Blocks.

    `source` may be in use by a running node, which goes on writing. Raises SealError; then there is no copy.
    """
    database.check_library()
    with _left_as_it_was(source):
        return _copy(source, target, page_key)


@contextlib.contextmanager
def _left_as_it_was(source: Path) -> Iterator[None]:
    """Remove the empty log and index that a reader leaves beside a store nobody has open."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(database.owned(source))
        except SealError:  # a node has it open, and these files are its own
            yield
            return
        beside = [source.with_name(source.name + end) for end in ("-wal", "-shm")]
        missing = [file for file in beside if not file.exists()]
        try:
            yield
        finally:
            for file in missing:
                file.unlink(missing_ok=True)


def _copy(source: Path, target: Path, page_key: Secret) -> str:
    if not source.is_file():
        raise SealError(f"{source} is not there", "check file in [store]")
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    try:
        with (
            contextlib.closing(database.keyed(source, page_key, "ro")) as reader,
            contextlib.closing(database.keyed(target, page_key, "rw")) as writer,
        ):
            reader.execute("PRAGMA query_only = ON")
            reader.execute("PRAGMA busy_timeout = 5000")
            found = reader.execute("SELECT value FROM meta WHERE name = 'incarnation'").fetchone()
            reader.backup(writer)  # one step over all pages, which in write-ahead mode stops nobody
            damage = writer.execute("PRAGMA cipher_integrity_check").fetchall()
        if damage:
            raise SealError(f"{source} is damaged: {damage[0][0]}", "restore an earlier backup")
        flush(target)
    except DatabaseError as error:
        target.unlink(missing_ok=True)
        raise database.refusal(source, error) from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return bytes(found[0]).hex()


class _Copy:
    """A `renewal.Copy` of the durable store."""

    def __init__(self, ledger: SqlcipherLedger) -> None:
        self._submit = ledger.engine.submit

    async def drop_messages(self) -> int:
        return await self._submit([Statement("DELETE FROM outbox", ())])

    async def erase_items(self, but: Sequence[str]) -> int:
        others = " AND ".join("space NOT GLOB ?" for _ in but)
        return await self._submit([Statement(f"DELETE FROM items WHERE {others}", tuple(but))])  # noqa: S608

    async def rename(self, incarnation: bytes) -> None:
        renamed = "UPDATE meta SET value = ? WHERE name = 'incarnation'"
        await self._submit([Statement(renamed, (incarnation,))])


async def renew(path: Path, page_key: Secret, field_key: Secret, items: Items) -> Renewal:
    """Make a copy safe to go on with; `items`, by space and name, are put in.

    The copy must not be in place yet: a crash half-way leaves it half-renewed.
    """
    ledger = await SqlcipherLedger.open(path, page_key=page_key, field_key=field_key)
    try:
        renewed = await renewal.renew(ledger, _Copy(ledger), time.time())
        async with ledger.edit() as change:
            for (space, name), value in items.items():
                change.put(space, name, value)
    finally:
        await ledger.close()
    await asyncio.to_thread(flush, path)
    return renewed


def flush(path: Path) -> None:
    """On disk, with its entry in the directory."""
    for name, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(name, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
