"""Copies a node's store while it runs or stands still, and renews a copy so that nothing in it counts twice.

A backup is as encrypted as the store: same pages, same keys, no key with it. What a restored copy says
about keys may have been overtaken: they may have been handed out since. So before it is put in place

    every key that was not final is expired, and its bits are gone: none is handed out a second time
    messages that were under way are dropped: they would go out under numbers that were used
    device keys, one-time keys and secrets of pairs are erased: no pad and no key is used twice
    the store gets a new incarnation: messages are numbered anew, under a name they never had
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keyhaul import lifecycle
from keyhaul.errors import SealError
from keyhaul.keys import Secret, State
from keyhaul.stores import database
from keyhaul.stores.database import INCARNATION_BYTES, DatabaseError
from keyhaul.stores.engine import Statement
from keyhaul.stores.sqlcipher import SqlcipherLedger

_FOR_EVER = 1e15  # Unix seconds
_LASTING = ("seen/*", "directory", "audit", "rollback")
"""Spaces of items that stay good, as GLOB patterns; others hold what is used once, or was erased since."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of a copy: keys expired, messages dropped, one-time items erased, its new incarnation."""

    keys: int
    messages: int
    items: int
    incarnation: str


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


Items = dict[tuple[str, str], bytes]


async def renew(path: Path, page_key: Secret, field_key: Secret, items: Items) -> Renewal:
    """Make a copy safe to go on with; see the module docstring. `items`, by space and name, are put in.

    The copy must not be in place yet: a crash half-way leaves it half-renewed.
    """
    ledger = await SqlcipherLedger.open(path, page_key=page_key, field_key=field_key)
    try:
        keys = await _expire(ledger)
        submit = ledger.engine.submit
        messages = await submit([Statement("DELETE FROM outbox", ())])
        others = " AND ".join("space NOT GLOB ?" for _ in _LASTING)
        erased = await submit([Statement(f"DELETE FROM items WHERE {others}", _LASTING)])  # noqa: S608
        incarnation = secrets.token_bytes(INCARNATION_BYTES)
        renamed = "UPDATE meta SET value = ? WHERE name = 'incarnation'"
        await submit([Statement(renamed, (incarnation,))])
        async with ledger.edit() as change:
            for (space, name), value in items.items():
                change.put(space, name, value)
    finally:
        await ledger.close()
    await asyncio.to_thread(flush, path)
    return Renewal(keys, messages, erased, incarnation.hex())


async def _expire(ledger: SqlcipherLedger) -> int:
    count, now = 0, time.time()
    while refs := await ledger.due(_FOR_EVER):
        async with ledger.edit(*refs) as change:
            for ref in refs:
                row = change.rows[ref]
                if row is not None and lifecycle.may(row, State.EXPIRED):
                    lifecycle.step(row, State.EXPIRED, now)
                    count += 1
    return count


def flush(path: Path) -> None:
    """On disk, with its entry in the directory."""
    for name, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(name, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
