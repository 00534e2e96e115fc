"""Rows of one batch that stand alike, as one record: one read and one write for up to 256 keys.

Key ids that share all but their last byte are mates. Mates that are created together and differ in
nothing but id and secret become a block; a block stays one as long as every change concerns all of it.
A row that goes its own way leaves: a row of its own is written, and from that commit on its slot counts
no more. The slot is zeroed a moment later (`TIDY_AFTER`), together with those of all mates that left
meanwhile: to write a record of some kilobytes anew for every key that is fetched cost more than all else
in fetching it. Until then the row stands against the slot: whoever reads a block from the database looks
which members have rows of their own, and opening a store zeroes what a crash left behind.

    members   the last bytes of the ids, ascending; never changes
    marks     the proofs of each member, in the order of their names in the data
    slots     24 random bytes, then a sealed secret for each member; or one byte 1 for each, if there
              are no secrets; zeros for those that left
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from keyhaul.errors import StaleRow, StoreUnavailable, Tampered
from keyhaul.keys import Ref, Row, Secret
from keyhaul.stores import records
from keyhaul.stores.engine import Decision, Engine, Record, Statement
from keyhaul.stores.fields import HEAD_BYTES, TAG_BYTES, FieldCipher, Opener

RECENT_BLOCKS = 512
LEAST = 2  # mates that make a block
TIDY_AFTER = 0.25  # seconds that a slot may outlive its member

COLUMNS = "name, leg, version, data, members, marks, live, width, slots"
_OF_NAME = f"SELECT {COLUMNS} FROM blocks WHERE name = ?"  # noqa: S608 - a constant
_INSERT = "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_MATES = "FROM rows WHERE key_id BETWEEN ? AND ? AND leg = ?"
_OUTSIDE = f"SELECT substr(key_id, 16) {_MATES}"
# The last condition: no member has a row of its own of which the writer does not know.
_REWRITE = (
    "UPDATE blocks SET version = ?, phase = ?, initiator = ?, first_target = ?,"  # noqa: S608 - constants
    " deadline = ?, expires = ?, data = ?, marks = ?, live = ?, width = ?, slots = ?"
    " WHERE name = ? AND leg = ? AND version = ?"
    f" AND (SELECT count(*) {_MATES} AND instr(members, substr(key_id, 16))) <= ?"
)
_TIDY = "UPDATE blocks SET live = ?, slots = ? WHERE name = ? AND leg = ? AND version = ?"
_CLEAR = "DELETE FROM blocks WHERE name = ? AND leg = ? AND version = ?"
_LEFT_BEHIND = (
    f"SELECT {', '.join('b.' + column for column in COLUMNS.split(', '))},"  # noqa: S608 - constants
    " group_concat(hex(substr(r.key_id, 16)), '') FROM blocks b CROSS JOIN rows r ON +r.leg = b.leg"
    " AND r.key_id BETWEEN CAST(b.name || x'00' AS BLOB) AND CAST(b.name || x'ff' AS BLOB)"
    " GROUP BY b.name, b.leg"
)


def name_of(key_id: UUID) -> bytes:
    """What mates share."""
    return (key_id.int >> 8).to_bytes(15, "big")


_Place = tuple[bytes, str]
"""Name and leg of a block."""


@dataclass(slots=True)
class Block:
    """A record of table `blocks`.

    `count`: rows that have not left. `width`: the length of each secret in bytes, 0 for none.
    """

    name: bytes
    leg: str
    version: int
    data: bytes
    members: bytes
    marks: bytes
    count: int
    width: int
    slots: bytearray
    _model: Row | None = None
    opener: Opener | None = None

    @property
    def stride(self) -> int:
        return self.width + TAG_BYTES if self.width else 1

    def start(self, at: int) -> int:
        """Where the slot of the member at `at` begins."""
        return (HEAD_BYTES if self.width else 0) + at * self.stride

    def slot(self, at: int) -> bytes:
        return bytes(self._slot(at))

    def _slot(self, at: int) -> bytearray:
        if not self.width:
            return self.slots[at : at + 1]
        stride = self.width + TAG_BYTES
        start = HEAD_BYTES + at * stride
        return self.slots[start : start + stride]

    def lives(self, at: int) -> bool:
        return any(self._slot(at))

    def live(self) -> list[int]:
        """Positions of those that have not left."""
        if self.count == len(self.members):
            return list(range(self.count))
        return [at for at in range(len(self.members)) if self.lives(at)]

    def position(self, key_id: UUID) -> int | None:
        """Where a mate stands; None if it was never here or left."""
        at = self.members.find(key_id.int & 0xFF)
        return at if at >= 0 and self.lives(at) else None

    def ref(self, at: int) -> Ref:
        return Ref(UUID(bytes=self.name + self.members[at : at + 1]), self.leg)

    def row(self, at: int, ref: Ref | None = None) -> Row:
        """A fresh row of one member, without its secret. Raises msgspec.MsgspecError."""
        if self._model is None:
            self._model = records.row_from(self.ref(at), self.version, self.data)
        row = self._model.draft()
        row.ref = ref or self.ref(at)
        if row.proofs:
            marks, each = self.mark(at), len(self.marks) // len(self.members) // len(row.proofs)
            row.proofs = {name: marks[n * each : (n + 1) * each] for n, name in enumerate(row.proofs)}
        return row

    def mark(self, at: int) -> bytes:
        """The proofs of a member, one after the other."""
        each = len(self.marks) // len(self.members)
        return self.marks[at * each : (at + 1) * each]

    def zero(self, positions: Iterable[int]) -> set[int]:
        """Let members go; returns who went, for those that went before are passed over."""
        went = set()
        for at in positions:
            if self.lives(at):
                start = self.start(at)
                self.slots[start : start + self.stride] = bytes(self.stride)
                self.count -= 1
                went.add(at)
        return went

    def leave(self, members: bytes) -> set[int]:
        """Let those go whose ids end with one of these bytes; others are no members."""
        return self.zero(at for member in members if (at := self.members.find(member)) >= 0)


@dataclass(slots=True)
class Plan:
    """What a commit does to blocks: statements now, and the cache once they are on disk."""

    statements: list[Statement] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """Those that are written as rows of their own; `left` are among them and were in a block so far."""
    left: set[Ref] = field(default_factory=set)
    leaving: list[tuple[Block, list[int]]] = field(default_factory=list)
    written: list[Block] = field(default_factory=list)


def block_of(record: Record) -> Block:
    """The block of a record of COLUMNS."""
    name, leg, version, data, members, marks, count, width, slots = record
    return Block(name, leg, version, data, members, marks, count, width, bytearray(slots))


def rows_of(record: Record) -> list[Row]:
    """All rows that a record of COLUMNS still holds, without secrets. Raises StoreUnavailable."""
    block = block_of(record)
    try:
        return [block.row(at) for at in block.live()]
    except msgspec.MsgspecError:
        raise altered(f"block {block.name.hex()}") from None


@dataclass(slots=True)
class _Untidy:
    """Members of a block, at this version, whose slots on disk outlived them."""

    version: int
    members: bytes
    positions: set[int] = field(default_factory=set)


class Blocks:
    """The blocks of one ledger. The most recent ones are kept in memory as they are on disk: sealed."""

    def __init__(self, engine: Engine, cipher: FieldCipher) -> None:
        self._engine = engine
        self._cipher = cipher
        self._recent: OrderedDict[bytes, dict[str, Block]] = OrderedDict()
        self._untidy: dict[_Place, _Untidy] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def open(self) -> None:
        """Zero the slots of those that left in an earlier run. Raises StoreUnavailable."""
        for statement in await self._engine.scan(_left_behind, _LEFT_BEHIND):
            if statement is not None:
                await self._engine.submit([statement])

    async def close(self) -> None:
        """Zero what is not zeroed yet, if the disk takes it; else the next `open` does."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(StoreUnavailable):
            await self.tidy()
        self._recent.clear()

    def of(self, name: bytes) -> dict[str, Block]:
        """The blocks of a name, by leg; remembered also where there are none."""
        found = self._recent.get(name)
        if found is None:
            read = map(block_of, self._engine.read(_OF_NAME, name))
            found = self._recent[name] = {block.leg: block for block in read if self._inhabited(block)}
            while len(self._recent) > RECENT_BLOCKS:
                self._recent.popitem(last=False)
        return found

    def _inhabited(self, block: Block) -> bool:
        """Whether anybody is left in a block that was just read."""
        outside = self._engine.read(_OUTSIDE, *_mates(block.name, block.leg))
        self._left(block, block.leave(b"".join(member for (member,) in outside)))
        return block.count > 0

    def gone(self) -> set[Ref]:
        """Who left, and still has a slot on disk that a scan may find."""
        return {
            Ref(UUID(bytes=name + untidy.members[at : at + 1]), leg)
            for (name, leg), untidy in self._untidy.items()
            for at in untidy.positions
        }

    def find(self, key_id: UUID) -> list[Row]:
        """The rows of one key id in blocks, without secrets."""
        found = [(block, block.position(key_id)) for block in self.of(name_of(key_id)).values()]
        return [_row(block, at) for block, at in found if at is not None]

    def row(self, ref: Ref) -> Row | None:
        """One row with its secret, if it is in a block."""
        block = self.of(name_of(ref.key_id)).get(ref.leg)
        at = None if block is None else block.position(ref.key_id)
        if block is None or at is None:
            return None
        row = _row(block, at, ref)
        if block.width:
            (row.secret,) = self.secrets(block, [at])
        return row

    def secrets(self, block: Block, positions: Sequence[int]) -> list[Secret]:
        """Fresh secrets of members. Raises StoreUnavailable if they were altered."""
        if block.opener is None:  # kept, as it is a good part of the cost of opening a single one
            block.opener = self._cipher.opener(bytes(block.slots[:HEAD_BYTES]), _place(block))
        try:
            opened = [block.opener.open(at, block.slot(at)) for at in positions]
        except Tampered:
            raise altered(f"block {block.name.hex()}") from None
        return [Secret.adopt(value) for value in opened]

    def whole(self, refs: Sequence[Ref]) -> tuple[Block, list[int]] | None:
        """The block whose rows are exactly `refs`, and their positions in this order."""
        block = self.of(name_of(refs[0].key_id)).get(refs[0].leg) if refs else None
        if block is None or any(ref.leg != block.leg or name_of(ref.key_id) != block.name for ref in refs):
            return None
        at = {member: position for position, member in enumerate(block.members)}
        positions = [at.get(ref.key_id.int & 0xFF, -1) for ref in refs]
        return (block, positions) if sorted(positions) == block.live() else None

    # -- writing ---------------------------------------------------------------------------------

    def plan(self, rows: Sequence[Row]) -> Plan:
        """How altered rows are written. Raises StaleRow for a row that is not the one read."""
        plan = Plan()
        together: defaultdict[tuple[bytes, str], list[Row]] = defaultdict(list)
        for row in rows:
            together[name_of(row.ref.key_id), row.ref.leg].append(row)
        for (name, leg), mates in together.items():
            block = self.of(name).get(leg)
            if block is not None:
                self._change(block, mates, plan)
            elif len(mates) >= LEAST and all(row.version == 0 for row in mates) and _alike(mates):
                mates.sort(key=lambda row: row.ref.key_id.int)
                self._create(name, leg, mates, plan)
            else:
                plan.rows.extend(mates)
        return plan

    def _create(self, name: bytes, leg: str, mates: Sequence[Row], plan: Plan) -> None:
        members = bytes(row.ref.key_id.int & 0xFF for row in mates)
        data, marks = records.row_data(mates[0], bare=True), b"".join(map(_marks, mates))
        block = Block(name, leg, 1, data, members, marks, len(members), 0, bytearray())
        self._seal(block, range(len(members)), [row.secret for row in mates])
        columns = (1, *records.columns(mates[0]))
        values = (name, leg, *columns, data, members, marks, len(members), block.width)
        miss = StaleRow(f"block {name.hex()} exists already")
        plan.statements.append(Statement(_INSERT, (*values, bytes(block.slots)), miss))
        plan.written.append(block)

    def _change(self, block: Block, mates: Sequence[Row], plan: Plan) -> None:
        inside: list[Row] = []
        at: list[int] = []
        for row in mates:
            position = block.position(row.ref.key_id)
            if position is None:
                plan.rows.append(row)
            elif row.version != block.version:
                raise StaleRow(f"a row of block {block.name.hex()} was written by somebody else")
            else:
                inside.append(row)
                at.append(position)
        if not at:
            return
        if len(at) == block.count >= LEAST and _alike(inside):
            marks = bytearray(len(block.members) * len(_marks(inside[0])))
            for row, position in zip(inside, at, strict=True):
                each = _marks(row)
                marks[position * len(each) : (position + 1) * len(each)] = each
            secrets = [row.secret for row in inside]
            self.rewrite(block, inside[0], at, secrets, plan, marks=bytes(marks))
            return
        plan.leaving.append((block, at))
        plan.left.update(row.ref for row in inside)
        plan.rows.extend(inside)

    def rewrite(
        self,
        block: Block,
        model: Row,
        positions: Sequence[int],
        secrets: Sequence[Secret | None],
        plan: Plan,
        *,
        marks: bytes | None = None,
    ) -> None:
        """All rows of a block become like `model`, each with the secret given for it, or with none.

        Without `marks` each keeps its proofs.
        """
        marks = block.marks if marks is None else marks
        data, version = records.row_data(model, bare=True), block.version + 1
        changed = Block(
            block.name, block.leg, version, data, block.members, marks, block.count, 0, bytearray()
        )
        self._seal(changed, positions, secrets)
        columns = (version, *records.columns(model))
        key = (block.name, block.leg, block.version, *_mates(block.name, block.leg))
        miss = StaleRow(f"block {block.name.hex()} was written by somebody else")
        inside = (len(positions), changed.width, bytes(changed.slots))
        values = (*columns, data, marks, *inside, *key, len(block.members) - len(positions))
        plan.statements.append(Statement(_REWRITE, values, miss))
        plan.written.append(changed)

    def _seal(self, block: Block, positions: Sequence[int], secrets: Sequence[Secret | None]) -> None:
        """Fill the slots of a block that has none yet."""
        kept = [secret for secret in secrets if secret is not None]
        block.width = len(kept[0]) if kept else 0
        block.slots = bytearray(block.start(len(block.members)))
        if not kept:
            for at in positions:
                block.slots[at] = 1
            return
        values = [(at, secret.reveal()) for at, secret in zip(positions, kept, strict=True)]
        head, sealed = self._cipher.seal_each(values, _place(block))
        block.slots[:HEAD_BYTES] = head
        for at, slot in zip(positions, sealed, strict=True):
            block.slots[block.start(at) : block.start(at + 1)] = slot

    def done(self, plan: Plan) -> None:
        """The plan is on disk."""
        for block in plan.written:
            self._untidy.pop((block.name, block.leg), None)  # all its slots were written anew
            if block.name in self._recent:
                self._recent[block.name][block.leg] = block
        for block, positions in plan.leaving:
            held = self._recent.get(block.name, {})
            if block.leg in held:
                held[block.leg].zero(positions)
                if not held[block.leg].count:
                    del held[block.leg]
            self._left(block, positions)

    def failed(self, plan: Plan) -> None:
        """Nobody knows what is on disk: it is read again."""
        for name in {block.name for block in plan.written} | {block.name for block, _ in plan.leaving}:
            self._recent.pop(name, None)

    # -- zeroing ---------------------------------------------------------------------------------

    def _left(self, block: Block, positions: Iterable[int]) -> None:
        place = (block.name, block.leg)
        if place not in self._untidy or self._untidy[place].version != block.version:
            self._untidy[place] = _Untidy(block.version, block.members)
        self._untidy[place].positions.update(positions)
        if not self._untidy[place].positions:
            del self._untidy[place]
        self._later()

    def _later(self) -> None:
        if self._untidy and self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(TIDY_AFTER, self._in_time)

    def _in_time(self) -> None:
        self._timer = None
        with contextlib.suppress(StoreUnavailable):  # of a read; the next one to leave begins anew
            self._zero()

    async def tidy(self) -> None:
        """Zero the slots of all who left so far. Raises StoreUnavailable."""
        if self._untidy:
            await self._zero()

    def _zero(self) -> Decision:
        statements = []
        for (name, leg), untidy in list(self._untidy.items()):
            block, key = self.of(name).get(leg), (name, leg, untidy.version)
            if block is None:
                statements.append(Statement(_CLEAR, key))
            else:  # if it is of a later version, nothing is touched
                statements.append(_tidied(block, untidy.version))
        done = {place: frozenset(untidy.positions) for place, untidy in self._untidy.items()}
        decision = self._engine.submit(statements)
        decision.add_done_callback(functools.partial(self._zeroed, done))
        return decision

    def _zeroed(self, done: Mapping[_Place, frozenset[int]], decision: asyncio.Future[int]) -> None:
        if decision.exception() is None:
            for place, positions in done.items():
                if place in self._untidy:
                    self._untidy[place].positions -= positions
                    if not self._untidy[place].positions:
                        del self._untidy[place]
        self._later()

    def forgotten(self) -> None:
        self._recent.clear()


def altered(what: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{what} was altered or moved in the database, or the field key is not the one it was sealed with",
        "stop the node, find out who wrote to the database file, restore the store from a backup",
    )


def _mates(name: bytes, leg: str) -> tuple[bytes, bytes, str]:
    """The first and the last id that mates could have, and the leg."""
    return name + b"\x00", name + b"\xff", leg


def _tidied(block: Block, version: int) -> Statement:
    key = (block.name, block.leg, version)
    return (
        Statement(_TIDY, (block.count, bytes(block.slots), *key)) if block.count else Statement(_CLEAR, key)
    )


def _left_behind(record: Record) -> Statement | None:
    """What zeroes the slots of a block's members that have rows of their own; None if all are zero."""
    block = block_of(record[:-1])
    return _tidied(block, block.version) if block.leave(bytes.fromhex(record[-1])) else None


def _row(block: Block, at: int, ref: Ref | None = None) -> Row:
    try:
        return block.row(at, ref)
    except msgspec.MsgspecError:
        raise altered(f"block {block.name.hex()}") from None


def _alike(rows: Sequence[Row]) -> bool:
    """Whether rows differ in nothing but ids, the values of their secrets, and those of their proofs."""
    first, *others = rows
    said, width, lengths = _said(first), _width(first), _lengths(first)
    return (
        width != 0
        and len({*lengths.values()}) <= 1
        and all(
            _width(row) == width and _said(row) == said and [*_lengths(row).items()] == [*lengths.items()]
            for row in others
        )
    )


_said = operator.attrgetter(
    *(
        each.name
        for each in dataclasses.fields(Row)
        if each.name not in ("ref", "secret", "proofs", "version")
    )
)
"""What rows of a block share; of proofs they share the names."""


def _width(row: Row) -> int:
    """Length of the secret; -1 if there is none (an empty secret, 0, has no slot)."""
    return -1 if row.secret is None else len(row.secret)


def _lengths(row: Row) -> dict[str, int]:
    return {name: len(proof) for name, proof in row.proofs.items()}


def _marks(row: Row) -> bytes:
    return b"".join(row.proofs.values())


def _place(block: Block) -> bytes:
    return records.block_place(block.name, block.leg, block.version, block.members, block.data, block.marks)
