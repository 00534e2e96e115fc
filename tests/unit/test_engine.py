"""The engine under the durable ledger: who may open a file, what a batch promises, what an error undoes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from keyhaul.errors import SealError, StaleRow, StoreUnavailable
from keyhaul.keys import Secret, State
from keyhaul.ledger_samples import add, sample_ref, sample_row
from keyhaul.stores import database
from keyhaul.stores.engine import MAX_BATCH, Decision, Engine, Statement
from tests.stores import PAGE_KEY, fingerprint, make_store, open_store, run

PUT = "INSERT INTO items VALUES (?, ?, ?)"


def refused(path: Path, **keys: bytes) -> str:
    """The message with which opening is refused; every file beside the store must stay as it was."""
    before = fingerprint(path.parent)
    with pytest.raises(SealError) as caught:
        run(open_store(path, **keys))
    assert fingerprint(path.parent) == before
    assert caught.value.remedy
    return str(caught.value)


# -- opening ---------------------------------------------------------------------------------------


def test_files_are_the_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    async def story() -> set[int]:
        store = await open_store(tmp_path / "store.db")
        await add(store, sample_row(sample_ref(1)))
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        assert {"store.db", "store.db-wal", "store.db-shm"} <= {file.name for file in tmp_path.iterdir()}
        await store.close()
        return modes

    for mask in (0, 0o777):
        umask = os.umask(mask)
        try:
            assert run(story()) == {0o600}
        finally:
            os.umask(umask)
        for file in tmp_path.iterdir():
            file.unlink()


def test_nothing_readable_reaches_the_disk(tmp_path: Path) -> None:
    async def story() -> bytes:
        store = await open_store(tmp_path / "store.db")
        await add(store, sample_row(sample_ref(1), secret=Secret(b"a secret to look for" * 2)))
        found = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        await store.close()
        return found + (tmp_path / "store.db").read_bytes()

    found = run(story())
    assert len(found) > 20_000
    for text in (b"a secret to look for", b"sae-a", b"CREATE TABLE", b"SQLite format"):
        assert text not in found


def test_the_settings_that_durability_rests_on(tmp_path: Path) -> None:
    async def story() -> dict[str, object]:
        store = await open_store(tmp_path / "store.db")
        names = ("journal_mode", "synchronous", "secure_delete", "cipher_log_level")
        writer = store.engine._writer
        settings = {name: writer.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
        await store.close()
        return settings

    expected = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "cipher_log_level": "NONE"}
    assert run(story()) == expected


def test_the_incarnation_is_drawn_once(tmp_path: Path) -> None:
    async def incarnation(name: str) -> bytes:
        store = await open_store(tmp_path / name)
        await store.close()
        return store.incarnation

    first = run(incarnation("a.db"))
    assert len(first) == 16
    assert run(incarnation("a.db")) == first
    assert run(incarnation("b.db")) != first


def test_a_plain_sqlite_under_the_name_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "sqlcipher", sqlite3)
    assert "plain SQLite" in refused(tmp_path / "store.db")


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MIN_SQLITE", (99, 0, 0))
    assert "write-ahead log" in refused(tmp_path / "store.db")


@pytest.mark.parametrize("changed", [0, 40])
def test_a_wrong_key_is_refused(tmp_path: Path, changed: int) -> None:
    path = tmp_path / "store.db"
    make_store(path)
    key = bytearray(PAGE_KEY)
    key[changed] ^= 1
    assert "root secret" in refused(path, page_key=bytes(key))
    run(open_store(path))


@pytest.mark.parametrize(("page", "field"), [(47, 32), (48, 31)])
def test_keys_of_a_wrong_length_are_refused(tmp_path: Path, page: int, field: int) -> None:
    with pytest.raises(SealError, match="bytes instead of"):
        run(open_store(tmp_path / "store.db", bytes(page), bytes(field)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [0, 100, 4_096 + 50, -50])
def test_a_damaged_file_is_refused(tmp_path: Path, where: int) -> None:
    path = tmp_path / "store.db"
    make_store(path)
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 0x40
    path.write_bytes(damaged)
    assert "damaged" in refused(path)


@pytest.mark.parametrize("length", [0, 10, 16, 1_000, 4_096, 5_000, 12_288])
def test_a_cut_off_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "store.db"
    make_store(path)
    path.write_bytes(path.read_bytes()[:length])
    assert "restore" in refused(path)


def test_a_plain_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    plain = sqlite3.connect(path)
    plain.execute("CREATE TABLE rows (key_id)")
    plain.close()
    assert "plain SQLite" in refused(path)


def test_a_log_without_its_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    (tmp_path / "store.db-wal").write_bytes(b"transactions of a store that is gone")
    assert "missing" in refused(path)


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("UPDATE meta SET value = '3' WHERE name = 'schema'", "schema 3"),
        ("DELETE FROM meta", "schema"),
        ("DROP TABLE meta", "no such table"),
    ],
)
def test_a_store_of_another_version_is_refused(tmp_path: Path, statement: str, cause: str) -> None:
    path = tmp_path / "store.db"
    make_store(path)
    connection = database.connect(path, Secret(PAGE_KEY), writes=True)
    connection.execute(statement)
    connection.close()
    assert cause in refused(path)


def test_a_directory_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SealError, match="check the store's directory"):
        run(open_store(tmp_path / "nowhere" / "store.db"))


def test_a_store_in_use_is_refused_and_free_after_close(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "store.db"
        first = await open_store(path)
        with pytest.raises(SealError, match="in use"):
            await open_store(path)
        await add(first, sample_row(sample_ref(1)))
        await first.close()
        second = await open_store(path)
        assert await second.get(sample_ref(1)) is not None
        await second.close()

    run(story())


# -- batches ---------------------------------------------------------------------------------------


def test_changes_that_wait_share_a_commit_and_wake_the_loop_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        engine = await Engine.open(tmp_path / "store.db", Secret(PAGE_KEY))
        wakes = []
        call = engine._loop.call_soon_threadsafe
        monkeypatch.setattr(
            engine._loop, "call_soon_threadsafe", lambda *a, **k: (wakes.append(1), call(*a, **k))[1]
        )
        answers = [engine.submit([Statement(PUT, ("s", str(n), b""))]) for n in range(2_000)]
        assert await asyncio.gather(*answers) == [1] * 2_000
        assert engine.changes == 2_000
        assert 2_000 / MAX_BATCH <= engine.batches < 200
        assert len(wakes) == engine.batches
        await engine.close()

    run(story())


def test_an_impossible_change_fails_alone(tmp_path: Path) -> None:
    async def story() -> list[object]:
        engine = await Engine.open(tmp_path / "store.db", Secret(PAGE_KEY))
        values: list[tuple[object, ...]] = [
            ("s", "fine", b""),
            ("s", None, b""),
            ("s", "object", object()),
            ("s", "\ud800", b""),
            ("s", "too few"),
            ("s", 2**70, b""),
            ("s", "also fine", b""),
        ]
        answers = [
            engine.submit([Statement(PUT, ("twin", str(n), b"")), Statement(PUT, v)])
            for n, v in enumerate(values)
        ]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        kept = engine.read("SELECT name FROM items WHERE space = 'twin' ORDER BY name")
        assert kept == [("0",), ("6",)]
        await engine.close()
        return list(outcomes)

    outcomes = run(story())
    assert (outcomes[0], outcomes[-1]) == (2, 2)
    assert all(type(outcome) is StoreUnavailable for outcome in outcomes[1:-1])


def put_many(number: int) -> str:
    return f"INSERT INTO items VALUES {', '.join(['(?, ?, ?)'] * number)} ON CONFLICT DO NOTHING"


def test_records_of_one_kind_are_one_statement_and_a_refused_one_fails_alone(tmp_path: Path) -> None:
    def put(name: str) -> Statement:
        return Statement(put_many(1), ("many", name, b""), StaleRow(name), put_many)

    async def story() -> None:
        engine = await Engine.open(tmp_path / "store.db", Secret(PAGE_KEY))
        asked: list[str] = []
        assert engine._writer is not None
        engine._writer.set_trace_callback(asked.append)
        names = [f"{number:03}" for number in range(100)]
        changes = [[put(name)] for name in names]
        changes[50:50] = [[put("a"), Statement(PUT, ("many", "b", b"")), put("c")]]
        answers = [engine.submit(change) for change in changes]
        assert await asyncio.gather(*answers) == [1] * 50 + [3] + [1] * 50
        assert sum(text.startswith("INSERT") for text in asked) < 20
        assert not any("SAVEPOINT" in text for text in asked)

        answers = [engine.submit([put(name)]) for name in ("d", "050", "e")]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert (outcomes[0], outcomes[2]) == (1, 1)
        assert isinstance(outcomes[1], StaleRow)
        kept = [name for (name,) in engine.read("SELECT name FROM items WHERE space = 'many'")]
        assert sorted(kept) == sorted([*names, "a", "b", "c", "d", "e"])
        await engine.close()

    run(story())


def test_close_commits_what_is_queued_and_refuses_what_comes_later(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "store.db")
        adding = [asyncio.create_task(add(store, sample_row(sample_ref(n)))) for n in range(50)]
        await asyncio.sleep(0)
        await asyncio.gather(store.close(), store.close())
        await asyncio.gather(*adding)
        for late in (add(store, sample_row(sample_ref(99))), store.unfinished(), store.item("s", "n")):
            with pytest.raises(StoreUnavailable, match="closed"):
                await late
        assert sorted(file.name for file in tmp_path.iterdir()) == ["store.db", "store.db-lock"]
        again = await open_store(tmp_path / "store.db")
        assert len(await again.unfinished()) == 50
        await again.close()

    run(story())


def test_a_cancelled_step_keeps_its_lock_until_its_commit_is_decided(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "store.db")
        ref = sample_ref(1)
        await add(store, sample_row(ref, State.SENDING))
        gate, submitted, submit = Decision(), asyncio.Event(), store.engine.submit

        def undecided(statements: object) -> Decision:
            submitted.set()
            return gate

        store.engine.submit = undecided  # type: ignore[method-assign,assignment]

        async def step() -> None:
            async with store.edit(ref) as change:
                draft = change.rows[ref]
                assert draft is not None
                draft.state = State.SENT

        first = asyncio.create_task(step())
        await submitted.wait()
        second = asyncio.create_task(step())
        for _ in range(3):
            first.cancel()
            await asyncio.sleep(0)
        assert not first.done()
        assert len(store._locks) == 1
        store.engine.submit = submit  # type: ignore[method-assign]
        gate.set_exception(StoreUnavailable("the disk said no"))
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        row = await store.get(ref)
        assert row is not None
        assert (row.state, row.version) == (State.SENT, 2)
        assert len(store._locks) == 0
        await store.close()

    run(story())


# -- disk errors -----------------------------------------------------------------------------------


class FailingOnce:
    """A connection whose chosen statement meets a disk error, after doing its work or instead of it."""

    def __init__(self, connection: Any, statement: str, armed: list[str]) -> None:
        self.connection, self.statement, self.armed = connection, statement, armed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def cursor(self) -> FailingOnce:
        return FailingOnce(self.connection.cursor(), self.statement, self.armed)

    def execute(self, sql: str, *values: Any) -> Any:
        if self.armed and sql.startswith(self.statement):
            raise sqlcipher.OperationalError(self.armed.pop())
        return self.connection.execute(sql, *values)


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "RELEASE", "COMMIT"])
@pytest.mark.parametrize("errors", [1, 3])
def test_a_disk_error_fails_the_whole_batch_and_the_store_goes_on(
    tmp_path: Path, statement: str, errors: int
) -> None:
    async def story() -> None:
        armed: list[str] = []

        def connect(path: Path, key: Secret, *, writes: bool) -> Any:
            connection = database.connect(path, key, writes=writes)
            return FailingOnce(connection, statement, armed) if writes else connection

        engine = await Engine.open(tmp_path / "store.db", Secret(PAGE_KEY), connect)
        assert await engine.submit([Statement(PUT, ("s", "before", b""))]) == 1
        armed += ["disk I/O error"] * errors
        failed = 0
        while armed:
            answers = [engine.submit([Statement(PUT, ("s", f"{failed} {n}", b""))]) for n in range(5)]
            for outcome in await asyncio.gather(*answers, return_exceptions=True):
                assert isinstance(outcome, StoreUnavailable | int)
                failed += isinstance(outcome, StoreUnavailable)
        assert failed >= errors
        assert await engine.submit([Statement(PUT, ("s", "after", b""))]) == 1
        names = [name for (name,) in engine.read("SELECT name FROM items ORDER BY name")]
        assert {"after", "before"} <= set(names)
        assert engine.read("SELECT value FROM meta WHERE name = 'lost_batches'") == [(errors,)]
        await engine.close()

    run(story())


def test_a_full_database_fails_the_batch_and_recovers(tmp_path: Path) -> None:
    async def story() -> None:
        store = await open_store(tmp_path / "store.db")
        store.engine._writer.execute("PRAGMA max_page_count = 40")
        number = 0

        async def fill() -> None:
            nonlocal number
            for number in range(1_000):
                await add(store, sample_row(sample_ref(number), secret=Secret(bytes(8_192))))

        with pytest.raises(StoreUnavailable, match="full"):
            await fill()
        assert number > 2
        assert await store.get(sample_ref(number)) is None
        assert await store.get(sample_ref(number - 1)) is not None
        await add(store, sample_row(sample_ref(number)))
        await store.close()

    run(story())


DISK_FULL = """
import asyncio, resource, sys
from pathlib import Path
from keyhaul.errors import StoreUnavailable
from keyhaul.ledger_samples import add, sample_ref, sample_row
from tests.stores import open_store

async def story():
    store = await open_store(Path(sys.argv[1]))
    await add(store, sample_row(sample_ref(0)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    number = 0
    try:
        while True:
            number += 1
            await add(store, sample_row(sample_ref(number)))
    except StoreUnavailable:
        pass
    for _ in range(3):
        assert await store.get(sample_ref(number)) is None
        assert await store.get(sample_ref(number - 1)) is not None
        try:
            # Rows of different sizes stay rows of their own, and are many pages.
            await add(store, *(sample_row(sample_ref(n), size=n) for n in range(10_000, 11_000)))
        except StoreUnavailable:
            continue
        raise AssertionError("a change went through although the disk is full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await add(store, sample_row(sample_ref(number)))
    assert len(await store.unfinished()) == number + 1
    await store.close()
    print("recovered after", number)

asyncio.run(story())
"""


def test_writes_the_system_refuses_lose_nothing_and_work_again_later(tmp_path: Path) -> None:
    # A limit on the size of files makes real write calls fail; it holds for a whole process.
    child = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path / "store.db")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("recovered after")


def test_a_store_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    make_store(path)
    connection = database.connect(path, Secret(PAGE_KEY), writes=True)
    connection.execute("DROP TABLE blocks")
    connection.execute("UPDATE meta SET value = '1' WHERE name = 'schema'")
    connection.close()

    async def story() -> None:
        for _ in range(2):
            store = await open_store(path)
            rows = [sample_row(sample_ref(number)) for number in range(900, 904)]
            async with store.edit(*(row.ref for row in rows)) as change:
                if change.rows[rows[0].ref] is None:
                    change.rows.update({row.ref: row for row in rows})
            assert {row.ref for row in rows} <= {row.ref for row in await store.unfinished()}
            await store.close()

    asyncio.run(story())
