"""Opens one SQLCipher database file for one process, or says why not and leaves it as it was.

Everything that can refuse a file runs before anything may write to it: the library is checked first,
then the file is read through a read-only connection, and only a file that opened with the given key
and holds a schema we know is opened for writing. A new database is made under another name and put in
place complete, so that no crash leaves half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlcipher3 import dbapi2 as sqlcipher

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.records import BLOCKS, SCHEMA, SCHEMA_VERSION
from keyhaul.stores.renewal import INCARNATION_BYTES

PAGE_KEY_BYTES = 48
OLDEST_SCHEMA = 1
INTEGRITY_LIMIT_BYTES = 256 * 2**20
MIN_SQLITE = (3, 51, 3)  # earlier ones can lose a write-ahead log that two connections share

# The wheel has no type hints; a name of our own marks where its connections go.
Connection = Any
DatabaseError = sqlcipher.Error

_PLAIN = b"SQLite format 3\0"


def check_library() -> None:
    """Raise SealError unless the library encrypts: a plain one would take the key and ignore it."""
    connection = sqlcipher.connect(":memory:")
    try:
        version = connection.execute("PRAGMA cipher_version").fetchone()
    finally:
        connection.close()
    if not version or not version[0]:
        raise SealError(
            "the library installed as sqlcipher3 is plain SQLite and would store keys unencrypted",
            "install sqlcipher3 0.6.4 or later",
        )
    if sqlcipher.sqlite_version_info < MIN_SQLITE:
        raise SealError(
            f"SQLite {sqlcipher.sqlite_version} in sqlcipher3 can corrupt a write-ahead log",
            "install sqlcipher3 0.6.4 or later",
        )


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Keep other processes out of the database while the context lasts. Raises SealError if one is in.

    Row locks, replay windows and queues live in the process that has the database open, so a second
    one would break every promise. The lock is on a file of its own: closing any descriptor of the
    database file itself would silently drop the locks SQLite holds on it.
    """
    lock = path.with_name(path.name + "-lock")
    existed = lock.exists()
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise SealError(f"{lock} cannot be opened: {error.strerror}", "check the store's directory") from None
    try:
        _take_ownership(descriptor, lock)
        try:
            yield
        except SealError:
            if not existed:
                lock.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def _take_ownership(descriptor: int, lock: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A refused start removes the file it made; whoever opened that very file holds nothing.
        mine = os.path.samestat(os.fstat(descriptor), lock.stat())
    except OSError:
        mine = False
    if not mine:
        raise SealError(f"the store guarded by {lock} is in use", "stop the other process first")


def connect(path: Path, page_key: Secret, *, writes: bool) -> Connection:
    """A connection with our settings. Raises SealError for a wrong key or a damaged first page."""
    connection = keyed(path, page_key, "rw")
    try:
        # Readers wait only while the log is being reset, and one of them waits in the event loop.
        connection.execute(f"PRAGMA busy_timeout = {5000 if writes else 100}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA trusted_schema = OFF")
        if writes:
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL would leave commits in the page cache: after a power loss, keys that were
            # delivered would be there again, ready to be delivered a second time.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
        else:
            connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except DatabaseError as error:
        connection.close()
        raise refusal(path, error) from None
    return connection


def readable(path: Path, page_key: Secret) -> None:
    """Read the first page of a store that nobody has open, and leave all as it is. Raises SealError."""
    try:
        connection = keyed(path, page_key, "ro&immutable=1")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except DatabaseError as error:
        raise refusal(path, error) from None


def keyed(path: Path, page_key: Secret, mode: str) -> Connection:
    """A bare connection with its key set; `mode` is `ro`, `rw` or `rwc` of SQLite's URI file names."""
    connection = sqlcipher.connect(
        f"file:{quote(str(path))}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    literal = _key_literal(page_key)
    try:
        connection.set_key(literal)
    finally:
        literal[:] = bytes(len(literal))
    connection.execute("PRAGMA cipher_log_level = NONE")
    return connection


def _key_literal(page_key: Secret) -> bytearray:
    """`x'…'` in a buffer that can be wiped: a raw key and salt, so no time goes into a passphrase KDF."""
    digits = b"0123456789abcdef"
    literal = bytearray(b"x'")
    for byte in page_key.reveal():
        literal += bytes((digits[byte >> 4], digits[byte & 15]))
    return literal + b"'"


def prepare(path: Path, page_key: Secret) -> bytes:
    """Make the database if there is none, or check the one there; returns its incarnation (16 bytes).

    Raises SealError with cause and remedy; then nothing was overwritten, and nothing made.
    """
    if len(page_key) != PAGE_KEY_BYTES:
        raise SealError(f"the page key has {len(page_key)} bytes instead of {PAGE_KEY_BYTES}")
    log = path.with_name(path.name + "-wal")
    if not path.exists():
        if log.exists():
            # Its transactions would be replayed into whatever database is made beside it.
            raise SealError(
                f"{path} is missing but its write-ahead log {log.name} is there",
                "restore the database file, or move the log away to start with an empty store",
            )
        _create(path, page_key)
    _check_header(path, page_key)
    beside = [log, path.with_name(path.name + "-shm")]
    missing = [file for file in beside if not file.exists()]
    try:
        return _check_contents(path, page_key)
    except SealError:
        for file in missing:  # a connection that only reads makes them too, and leaves them
            file.unlink(missing_ok=True)
        raise


def _create(path: Path, page_key: Secret) -> None:
    fresh = path.with_name(path.name + ".new")
    try:
        for leftover in ("", "-wal", "-shm"):
            fresh.with_name(fresh.name + leftover).unlink(missing_ok=True)
        # SQLite gives its log and index files the mode of the database, whatever the umask is.
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
        _fill(keyed(fresh, page_key, "rw"))
        os.link(fresh, path)  # unlike a rename, this never replaces a file that came up meanwhile
        fresh.unlink()
        _sync_directory(path.parent)
    except (OSError, DatabaseError) as error:
        raise SealError(
            f"{path} cannot be made: {error}", "check the directory and the space on it"
        ) from None


def _fill(connection: Connection) -> None:
    with contextlib.closing(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        facts = {
            "schema": str(SCHEMA_VERSION).encode(),
            "incarnation": secrets.token_bytes(INCARNATION_BYTES),
            "lost_batches": b"0",
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_header(path: Path, page_key: Secret) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}", "check its owner and mode") from None
    if start == _PLAIN:
        raise SealError(
            f"{path} is a plain SQLite database, not an encrypted store",
            "name another file; keyhaul never stores keys in a plain one",
        )
    if len(start) < 16:
        raise SealError(f"{path} is empty or cut off", "restore the store from a backup")
    if start != page_key.reveal()[32:]:  # SQLCipher keeps the salt in clear at the start
        raise SealError(
            f"{path} was not made with this root secret, or its first page is damaged",
            "use the key-slot file that belongs to it, or restore both from one backup",
        )


def _check_contents(path: Path, page_key: Secret) -> bytes:
    # Read-only: on closing, a connection that may write would copy the log into a file it cannot read.
    connection = keyed(path, page_key, "ro")
    try:
        facts = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        version, incarnation = int(facts["schema"]), bytes(facts["incarnation"])
    except DatabaseError as error:
        raise refusal(path, error) from None
    except (KeyError, ValueError):
        raise SealError(f"{path} does not say which schema it has", "restore it from a backup") from None
    finally:
        connection.close()
    if version not in (OLDEST_SCHEMA, SCHEMA_VERSION):
        raise SealError(
            f"{path} has schema {version}, this keyhaul knows {SCHEMA_VERSION}",
            "start the version of keyhaul that wrote it, or a later one",
        )
    return incarnation


def check_pages(connection: Connection, path: Path) -> None:
    """Verify the authentication code of every page; raises SealError naming the first bad one.

    It comes after the log was copied into the file, because a power loss may leave a torn page that
    the log repairs. It takes about 20 µs a page of 4 KiB; files over 256 MiB are left to the check
    that every later read of a page does anyway.
    """
    if path.stat().st_size > INTEGRITY_LIMIT_BYTES:
        return
    damage = connection.execute("PRAGMA cipher_integrity_check").fetchall()
    if damage:
        raise SealError(f"{path} is damaged: {damage[0][0]}", "restore the store from a backup")


def settle(connection: Connection) -> None:
    """Copy the write-ahead log into the database and flush it, so that what we read is on disk.

    A log read back after a crash, or after a failed flush, may be in the page cache only.
    """
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise sqlcipher.OperationalError("the write-ahead log is in use")


def upgrade(connection: Connection) -> None:
    """Bring an older schema that `prepare` let pass to ours, whole or not at all."""
    (kept,) = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if int(kept) == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in BLOCKS:
        connection.execute(statement)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(SCHEMA_VERSION).encode(),))
    connection.execute("COMMIT")


def refusal(path: Path, error: Exception) -> SealError:
    return SealError(
        f"{path} cannot be opened ({error}): wrong key, cut off, damaged or not a keyhaul store",
        "check the root secret, then restore the store from a backup",
    )
