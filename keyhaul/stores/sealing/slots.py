"""The chain of key slots: several independent ways to one root, tried in the recorded order, never downwards.

The idea is LUKS's: the root (32 random bytes) is made once and wrapped by every slot. A node normally has
one slot that opens unattended and one for recovery. What `create` recorded is what `open_root` accepts:
a slot that was sealed by a chip is not opened by a software TPM that took its place, and a slot that was
not recorded is not tried, so that breaking the chip does not choose a weaker way. Opening with a later
slot than the first is never silent: `Opened.warnings` says why.

All calls block (Argon2id: about 0.1 s; a hardware TPM: up to some seconds): keep them off an event loop.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing import keyfile
from keyhaul.stores.sealing.keyfile import MAX_SLOTS, RESTORE, ROOT_BYTES, Grade, KeyFile, Record


class Slot(Protocol):
    """One way to keep a root. Everything may raise SealError, `grade` too: it may have to ask a device."""

    @property
    def kind(self) -> str:
        """What the file calls it; a record is opened by a slot of the same kind."""

    @property
    def grade(self) -> Grade: ...

    @property
    def label(self) -> str:
        """Tells slots of one kind apart, for people and for `add_slot`; nothing secret."""

    def wrap(self, root: Secret) -> dict[str, Any]:
        """JSON-ready data that `unwrap` turns back into the root."""

    def unwrap(self, data: dict[str, Any]) -> Secret: ...

    def caveats(self) -> tuple[str, ...]:
        """What the operator must hear after each `wrap` or `unwrap`: weaknesses found while doing it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open root, by which kind of slot, at which grade; `warnings` belong in the log, loudly."""

    root: Secret
    kind: str
    grade: Grade
    warnings: tuple[str, ...]


def create(path: Path, slots: Sequence[Slot]) -> Opened:
    """Make a new root and wrap it in every usable slot, best first as given; the first one used is the grade.

    Slots that cannot be used are named in the warnings. SealError if the file exists, or if no slot works.
    """
    if os.path.lexists(path):
        raise keyfile.already_there(path)
    root = Secret(secrets.token_bytes(ROOT_BYTES))
    records: list[Record] = []
    problems: list[SealError] = []
    warnings: list[str] = []
    for slot in slots:
        try:
            records.append(_wrap(slot, root))
        except SealError as problem:
            problems.append(problem)
            warnings.append(f"{slot.kind} slot not used: {problem}")
        else:
            warnings.extend(slot.caveats())
    if not records:
        raise _none_worked("no key slot could be made", problems)
    keyfile.write_new(path, records, root)
    return Opened(root, records[0].kind, records[0].grade, tuple(warnings))


def open_root(path: Path, slots: Sequence[Slot]) -> Opened:
    """Open the root by the recorded slots in order, each with the given slots of its kind.

    SealError says what each slot lacked, or that the file was altered. Nothing is written.
    """
    file = keyfile.read(path)
    problems: list[SealError] = []
    for record in file.records:
        offered = [slot for slot in slots if slot.kind == record.kind]
        if not offered:
            problems.append(
                SealError(f"the {record.kind} slot is not configured", f"configure the {record.kind} slot")
            )
        for slot in offered:
            try:
                root = _unwrap(record, slot)
            except SealError as problem:
                problems.append(problem)
                continue
            return _confirmed(path, file, record, slot, root, problems)
    raise _none_worked(f"key-slot file {path} cannot be opened", problems)


def add_slot(path: Path, opened: Opened, slot: Slot) -> None:
    """Wrap the open root in one more slot; one of the same kind and label is replaced.

    This is also how a passphrase is changed, and how a TPM slot is sealed again to new PCR values.
    SealError leaves the file as it was.
    """
    file = keyfile.read(path)
    if not file.is_confirmed_by(opened.root):
        raise _altered(path)
    record = _wrap(slot, opened.root)
    records = list(file.records)
    for place, old in enumerate(records):
        if (old.kind, old.label) == (record.kind, record.label):
            records[place] = record
            break
    else:
        records.append(record)
    if len(records) > MAX_SLOTS:
        raise SealError(f"key-slot file {path} has {MAX_SLOTS} slots already", "replace one of them")
    keyfile.replace(path, records, opened.root)


def describe(path: Path) -> list[dict[str, Any]]:
    """Kind, grade and label of each slot, for status. Read without the root, so not yet authenticated."""
    return [
        {"kind": record.kind, "grade": record.grade.value, "label": record.label}
        for record in keyfile.read(path).records
    ]


def _wrap(slot: Slot, root: Secret) -> Record:
    data = slot.wrap(root)
    return Record(slot.kind, slot.grade, slot.label, data)


def _unwrap(record: Record, slot: Slot) -> Secret:
    """The root of one record, if the slot is at least what the record promises."""
    if slot.grade.is_below(record.grade):
        raise SealError(
            f"{record.kind} slot was sealed at grade {record.grade}, what answers now is {slot.grade}: "
            "refused as a downgrade",
            f"give the {record.grade} provider back, or open with the recovery slot and seal again",
        )
    root = slot.unwrap(record.data)
    if len(root) != ROOT_BYTES:
        raise SealError(f"the {record.kind} slot holds {len(root)} bytes, not {ROOT_BYTES}", RESTORE)
    return root


def _confirmed(
    path: Path, file: KeyFile, record: Record, slot: Slot, root: Secret, problems: Sequence[SealError]
) -> Opened:
    """The end of a good open. A file that fails its check is refused whole: no other slot is tried."""
    if not file.is_confirmed_by(root):
        root.wipe()
        raise _altered(path)
    warnings = [f"opened by the {record.kind} slot because: {problem}" for problem in problems]
    warnings.extend(slot.caveats())
    if loose := keyfile.loose_mode(path):
        warnings.append(loose)
    return Opened(root, record.kind, record.grade, tuple(warnings))


def _altered(path: Path) -> SealError:
    return SealError(
        f"key-slot file {path} was altered: slots, grades or parameters are not what this root signed",
        f"find out by whom, then {RESTORE}",
    )


def _none_worked(what: str, problems: Sequence[SealError]) -> SealError:
    """One error for the whole chain: every slot's cause, and the ways out."""
    if not problems:
        return SealError(what + ": no slot is configured", "configure at least one, such as a passphrase")
    remedies = list(dict.fromkeys(problem.remedy for problem in problems if problem.remedy))
    remedy = remedies[0] if len(remedies) == 1 else "either " + ", or ".join(remedies)
    return SealError(f"{what}: " + "; ".join(problem.cause for problem in problems), remedy)
