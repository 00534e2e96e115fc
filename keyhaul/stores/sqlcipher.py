"""The durable ledger: encrypted at rest twice, on disk before anything is promised.

Pages are encrypted by SQLCipher; secrets, bodies and named values are sealed once more, each bound
to its place (`fields`). The metadata of a row are authenticated with its secret. Rows are locked per
ref in this process, which the database file belongs to alone.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec

from keyhaul.errors import SealError, Spent, StaleRow, Taken, Tampered
from keyhaul.keys import Message, Ref, Row, Secret
from keyhaul.stores import blocks, records
from keyhaul.stores.blocks import Blocks, Plan, altered
from keyhaul.stores.change import Claim, Drop, Erase, Herd, Post, Put, Spend, StagedChange, Step
from keyhaul.stores.engine import Engine, Record, Statement
from keyhaul.stores.fields import FieldCipher
from keyhaul.stores.locks import RefLocks

FORGET_CHUNK = 512

# INDEXED BY makes a query that would read the whole table an error, whatever the planner thinks.
_ROWS = "SELECT key_id, leg, version, data FROM rows INDEXED BY rows_by_pair WHERE phase < 4 AND "
_VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_ROW = f"INSERT INTO rows VALUES {_VALUES} ON CONFLICT DO NOTHING"  # noqa: S608 - constants
_UPDATE_ROW = (
    "UPDATE rows SET version = ?, phase = ?, initiator = ?, first_target = ?, deadline = ?, expires = ?,"
    " data = ?, secret = ? WHERE key_id = ? AND leg = ? AND version = ?"
)
_EXPIRED = (
    "SELECT expires, key_id, leg FROM rows INDEXED BY rows_expiring WHERE phase < 3 AND expires <= ?"
    " ORDER BY expires, key_id, leg LIMIT ?"
)
_OVERDUE = (
    "SELECT deadline, key_id, leg FROM rows INDEXED BY rows_waiting WHERE phase = 1 AND deadline <= ?"
    " ORDER BY deadline, key_id, leg LIMIT ?"
)
_BLOCKS = f"SELECT {blocks.COLUMNS} FROM blocks INDEXED BY blocks_by_pair WHERE phase < 4 AND "  # noqa: S608
_EXPIRED_BLOCKS = (
    f"SELECT expires, {blocks.COLUMNS} FROM blocks INDEXED BY blocks_expiring"  # noqa: S608
    " WHERE phase < 3 AND expires <= ? ORDER BY expires, name, leg LIMIT ?"
)
_OVERDUE_BLOCKS = (
    f"SELECT deadline, {blocks.COLUMNS} FROM blocks INDEXED BY blocks_waiting"  # noqa: S608
    " WHERE phase = 1 AND deadline <= ? ORDER BY deadline, name, leg LIMIT ?"
)
_ENDED_BLOCKS = (
    "SELECT name, leg, version, live FROM blocks INDEXED BY blocks_ended WHERE phase >= 3 AND expires < ?"
)
# Most sweeps find nothing. One point read says so; the queries above take a turn of the scan thread each.
_ANY_DUE = (
    "SELECT EXISTS (SELECT 1 FROM rows INDEXED BY rows_expiring WHERE phase < 3 AND expires <= ?1)"
    " OR EXISTS (SELECT 1 FROM rows INDEXED BY rows_waiting WHERE phase = 1 AND deadline <= ?1)"
    " OR EXISTS (SELECT 1 FROM blocks INDEXED BY blocks_expiring WHERE phase < 3 AND expires <= ?1)"
    " OR EXISTS (SELECT 1 FROM blocks INDEXED BY blocks_waiting WHERE phase = 1 AND deadline <= ?1)"
)
_ANY_ENDED = (
    "SELECT EXISTS (SELECT 1 FROM rows INDEXED BY rows_ended WHERE phase >= 3 AND expires < ?1)"
    " OR EXISTS (SELECT 1 FROM blocks INDEXED BY blocks_ended WHERE phase >= 3 AND expires < ?1)"
)
_FORGET_BLOCK = "DELETE FROM blocks WHERE name = ? AND leg = ? AND version = ?"
_FORGET = (
    "DELETE FROM rows WHERE (key_id, leg) IN"
    " (SELECT key_id, leg FROM rows INDEXED BY rows_ended WHERE phase >= 3 AND expires < ? LIMIT ?)"
)
_INSERT_MESSAGE = "INSERT INTO outbox (id, data, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_INSERT_ITEM = "INSERT INTO items VALUES (?, ?, ?) ON CONFLICT DO "
_DELETE_ITEM = "DELETE FROM items WHERE space = ? AND name = ?"


@functools.cache
def _insert_rows(number: int) -> str:
    return f"INSERT INTO rows VALUES {', '.join([_VALUES] * number)} ON CONFLICT DO NOTHING"  # noqa: S608


@functools.cache
def _of_ids(columns: str, number: int) -> str:
    return f"SELECT key_id, leg, {columns} FROM rows WHERE key_id IN ({', '.join('?' * number)})"  # noqa: S608


RECENT_ROWS = 16_384
MOST_READ = 128  # rows of one point read
_Record = tuple[int, bytes, bytes | None]


class SqlcipherLedger:
    """A `ports.Ledger` in one SQLCipher file. Make it with `open`.

    `incarnation` (16 bytes) is drawn when the file is made and never changes: whoever counts in
    memory across restarts can tell a new store from an old one.
    """

    def __init__(self, engine: Engine, cipher: FieldCipher) -> None:
        self.engine = engine
        self.incarnation = engine.incarnation
        self._cipher = cipher
        self._locks = RefLocks()
        self.altered = 0  # values that were not what was written
        self._recent: OrderedDict[Ref, _Record] = OrderedDict()
        self._blocks = Blocks(engine, cipher)

    @classmethod
    async def open(cls, path: Path, *, page_key: Secret, field_key: Secret) -> SqlcipherLedger:
        """Open or make the store at `path`; 48 bytes of page key and salt, 32 bytes of field key.

        Both keys are copied: wipe yours afterwards. Raises SealError with cause and remedy when the
        library does not encrypt, or the file is not ours, damaged, in use, or of a later version.
        """
        cipher = FieldCipher(field_key)
        try:
            engine = await Engine.open(path, page_key)
        except SealError:
            cipher.wipe()
            raise
        ledger = cls(engine, cipher)
        try:
            await ledger._blocks.open()
        except BaseException:
            await ledger.close()
            raise
        return ledger

    # -- rows ------------------------------------------------------------------------------------

    async def get(self, ref: Ref) -> Row | None:
        # Asked once more: the row may have left its block between the first look and the second.
        return self._row(ref) or self._blocks.row(ref) or self._row(ref)

    async def find(self, *key_ids: UUID) -> list[Row]:
        found = [_without_secret(record) for record in self._records("version, data", key_ids)]
        for key_id in key_ids:
            found += self._blocks.find(key_id)
        return sorted(found, key=lambda row: row.ref.leg)

    def edit(self, *refs: Ref) -> _Edit:
        return _Edit(self, refs)

    async def begin(self, refs: Sequence[Ref]) -> tuple[StagedChange, list[Ref]]:
        """What an edit opens with, and the locks it holds."""
        held = await self._locks.take(refs)
        try:
            drafts = {ref: self._blocks.row(ref) for ref in refs}
            drafts |= self._rows([ref for ref, row in drafts.items() if row is None])
            return StagedChange(drafts), held
        except BaseException:
            self._locks.release(held)
            raise

    async def finish(self, change: StagedChange, held: list[Ref], *, commit: bool) -> None:
        """What an edit closes with."""
        try:
            if commit:
                await self._commit(change)
        finally:
            change.wipe_orphans()
            self._locks.release(held)

    @asynccontextmanager
    async def together(self, refs: Sequence[Ref]) -> AsyncIterator[Herd | None]:
        async with self._locks.hold(refs):
            found = self._blocks.whole(refs)
            if found is None:
                yield None
                return
            block, positions = found
            secrets = self._blocks.secrets(block, positions) if block.width else []
            herd = Herd(block.row(positions[0], refs[0]), secrets)
            yield herd
            if herd.altered():
                plan, kept = Plan(), herd.secrets if herd.keeps else [None] * len(positions)
                self._blocks.rewrite(block, herd.row, positions, kept, plan)
                await self._submit(plan, plan.statements)

    async def unfinished(self) -> list[Row]:
        return await self._scan("phase = 1")

    async def deliverable(self) -> list[Row]:
        return await self._scan("phase = 2")

    async def between(self, initiator: str, targets: frozenset[str]) -> list[Row]:
        firsts = sorted(targets | {""})
        places = ", ".join("?" * len(firsts))
        where = f"phase IN (0, 1, 2, 3) AND initiator = ? AND first_target IN ({places})"
        found = await self._scan(where, initiator, *firsts)
        return [row for row in found if targets.issuperset(row.targets)]

    async def _scan(self, where: str, *values: object) -> list[Row]:
        """Rows, and those in blocks. One that leaves its block meanwhile is seen twice rather than never."""
        gone = self._blocks.gone()
        inside = await self.engine.scan(blocks.rows_of, _BLOCKS + where, *values)
        alone = await self.engine.scan(_without_secret, _ROWS + where, *values)
        gone |= self._blocks.gone()
        found = {row.ref: row for mates in inside for row in mates if row.ref not in gone}
        found.update((row.ref, row) for row in alone)
        return list(found.values())

    async def due(self, now: float, limit: int = 256) -> list[Ref]:
        if not self.engine.read(_ANY_DUE, now)[0][0]:
            return []
        late: set[tuple[float, Ref]] = set()
        gone = self._blocks.gone()
        for query in (_EXPIRED_BLOCKS, _OVERDUE_BLOCKS):
            for mates in await self.engine.scan(_dated_refs, query, now, limit):
                late.update(mates)
        gone |= self._blocks.gone()
        late = {entry for entry in late if entry[1] not in gone}
        for query in (_EXPIRED, _OVERDUE):
            late.update(await self.engine.scan(_dated_ref, query, now, limit))
        return list(dict.fromkeys(ref for _, ref in sorted(late)))[:limit]

    async def forget(self, before: float) -> int:
        if not self.engine.read(_ANY_ENDED, before)[0][0]:
            return 0
        await self._blocks.tidy()  # a row stands against the slot it left, until that is zeroed
        total = 0
        for name, leg, version, live in await self.engine.scan(tuple, _ENDED_BLOCKS, before):
            if await self.engine.submit([Statement(_FORGET_BLOCK, (name, leg, version))]):
                total += live
        while True:  # in chunks, so that no batch waits for a long one
            count = await self.engine.submit([Statement(_FORGET, (before, FORGET_CHUNK))])
            total += count
            if total:
                self._recent.clear()
                self._blocks.forgotten()
            if count < FORGET_CHUNK:
                return total

    # -- messages and items ----------------------------------------------------------------------

    async def messages(self) -> list[Message]:
        return await self.engine.scan(self._message, "SELECT id, data, body FROM outbox ORDER BY seq")

    async def item(self, space: str, name: str) -> bytes | None:
        found = self.engine.read("SELECT value FROM items WHERE space = ? AND name = ?", space, name)
        return self._value(space, name, found[0][0]) if found else None

    async def items(self, space: str) -> dict[str, bytes]:
        def named(record: Record) -> tuple[str, bytes]:
            return record[0], self._value(space, *record)

        where = "SELECT name, value FROM items WHERE space = ? ORDER BY name"
        return dict(await self.engine.scan(named, where, space))

    async def close(self) -> None:
        """Commit what is under way, close the file, wipe the keys. Calling it again is fine."""
        await self._blocks.close()
        await self.engine.close()
        self._cipher.wipe()

    # -- committing ------------------------------------------------------------------------------

    async def _commit(self, change: StagedChange) -> None:
        rows = list(change.altered())
        plan = self._blocks.plan(rows)
        records_of = [self._record(row) for row in plan.rows]
        statements = [
            *plan.statements,
            *(
                self._write(row, record, new=row.version == 0 or row.ref in plan.left)
                for row, record in zip(plan.rows, records_of, strict=True)
            ),
            *(self._statement(step) for step in change.steps),
        ]
        if not statements:
            return
        for row in plan.rows:
            self._recent.pop(row.ref, None)
        await self._submit(plan, statements)  # the locks are held until it is decided, see Decision
        for row, record in zip(plan.rows, records_of, strict=True):
            self._remember(row.ref, record)
        for row in rows:
            row.version += 1

    async def _submit(self, plan: Plan, statements: Sequence[Statement]) -> None:
        try:
            await self.engine.submit(statements)
        except BaseException:
            self._blocks.failed(plan)
            raise
        self._blocks.done(plan)

    def _record(self, row: Row) -> _Record:
        """Version, data and sealed secret of the row as it will be stored."""
        version, data = row.version + 1, records.row_data(row)
        if row.secret is None:
            return version, data, None
        return (
            version,
            data,
            self._cipher.seal(row.secret.reveal(), records.row_place(row.ref, version, data)),
        )

    def _write(self, row: Row, record: _Record, *, new: bool) -> Statement:
        ref, (version, data, secret) = row.ref, record
        key = (ref.key_id.bytes, ref.leg)
        columns = (version, *records.columns(row), data, secret)
        stale = StaleRow(f"row {ref.key_id.hex}/{ref.leg} was written by somebody else")
        if new:
            return Statement(_INSERT_ROW, (*key, *columns), stale, _insert_rows)
        return Statement(_UPDATE_ROW, (*columns, *key, row.version), stale)

    def _statement(self, step: Step) -> Statement:
        match step:
            case Post(message):
                data = records.message_data(message)
                body = self._cipher.seal(message.body, records.message_place(message.id, data))
                queued = Taken(f"message {message.id} is queued already")
                return Statement(_INSERT_MESSAGE, (message.id.bytes, data, body), queued)
            case Drop(message_id):
                return Statement("DELETE FROM outbox WHERE id = ?", (message_id.bytes,))
            case Put(space, name, value):
                sealed = self._cipher.seal(value, records.item_place(space, name))
                return Statement(_INSERT_ITEM + "UPDATE SET value = excluded.value", (space, name, sealed))
            case Claim(space, name, value):
                sealed = self._cipher.seal(value, records.item_place(space, name))
                taken = Taken(f"{space}/{name} is taken")
                return Statement(_INSERT_ITEM + "NOTHING", (space, name, sealed), taken)
            case Spend(space, name):
                return Statement(_DELETE_ITEM, (space, name), Spent(f"{space}/{name} is spent"))
            case Erase(space, name):
                return Statement(_DELETE_ITEM, (space, name))

    # -- decoding --------------------------------------------------------------------------------

    def _records(self, columns: str, key_ids: Sequence[UUID]) -> Iterator[Record]:
        """Id, leg and these columns of the rows of some ids, in as few reads as it takes."""
        for start in range(0, len(key_ids), MOST_READ):
            some = [key_id.bytes for key_id in key_ids[start : start + MOST_READ]]
            # One id again and again, so that there are few statements to prepare.
            some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            yield from self.engine.read(_of_ids(columns, len(some)), *some)

    def _row(self, ref: Ref) -> Row | None:
        return self._rows([ref])[ref]

    def _rows(self, refs: Sequence[Ref]) -> dict[Ref, Row | None]:
        """Rows that are in no block, or None for those that are nowhere."""
        found = {ref: self._recent.get(ref) for ref in refs}
        unread = {(ref.key_id.bytes, ref.leg): ref for ref, record in found.items() if record is None}
        ids = [ref.key_id for ref in unread.values()]
        for key_id, leg, *record in self._records("version, data, secret", ids):
            if (ref := unread.get((key_id, leg))) is not None:
                version, data, secret = record
                found[ref] = version, data, secret
        return {ref: None if record is None else self._opened(ref, record) for ref, record in found.items()}

    def _opened(self, ref: Ref, record: _Record) -> Row:
        version, data, sealed = record
        row = _decoded(ref, version, data)
        if sealed is not None:
            value = self._unseal(sealed, records.row_place(ref, version, data), f"row {ref}")
            row.secret = Secret(value)
            value[:] = bytes(len(value))
        return row

    def _remember(self, ref: Ref, record: _Record) -> None:
        """Rows are read again soon after they were written, and each commit empties the reader's pages.

        Only what is on disk is kept, as it is on disk: sealed. This process alone writes the file.
        """
        self._recent[ref] = record
        while len(self._recent) > RECENT_ROWS:
            self._recent.popitem(last=False)

    def _message(self, record: Record) -> Message:
        message_id, data = UUID(bytes=record[0]), record[1]
        what = f"message {message_id}"
        body = self._unseal(record[2], records.message_place(message_id, data), what)
        try:
            return records.message_from(message_id, data, bytes(body))
        except msgspec.MsgspecError:
            raise altered(what) from None

    def _value(self, space: str, name: str, sealed: bytes) -> bytes:
        return bytes(self._unseal(sealed, records.item_place(space, name), f"{space}/{name}"))

    def _unseal(self, sealed: bytes, place: bytes, what: str) -> bytearray:
        try:
            return self._cipher.open(sealed, place)
        except Tampered:
            self.altered += 1
            raise altered(what) from None


class _Edit:
    """The context of an edit; a class, because a generator costs several times as much."""

    __slots__ = ("_change", "_held", "_ledger", "_refs")

    def __init__(self, ledger: SqlcipherLedger, refs: Sequence[Ref]) -> None:
        self._ledger = ledger
        self._refs = refs

    async def __aenter__(self) -> StagedChange:
        self._change, self._held = await self._ledger.begin(self._refs)
        return self._change

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self._ledger.finish(self._change, self._held, commit=kind is None)


def _without_secret(record: Record) -> Row:
    key_id, leg, version, data = record
    return _decoded(Ref(UUID(bytes=key_id), leg), version, data)


def _dated_refs(record: Record) -> list[tuple[float, Ref]]:
    block = blocks.block_of(record[1:])
    return [(record[0], block.ref(at)) for at in block.live()]


def _dated_ref(record: Record) -> tuple[float, Ref]:
    return record[0], Ref(UUID(bytes=record[1]), record[2])


def _decoded(ref: Ref, version: int, data: bytes) -> Row:
    try:
        return records.row_from(ref, version, data)
    except msgspec.MsgspecError:
        raise altered(f"row {ref}") from None
