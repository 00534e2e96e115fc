"""The key-slot file on disk: JSON, mode 0600, replaced whole or not at all, its meaning under a MAC.

    {"version": 1,
     "slots": [{"kind": "tpm2", "grade": "hardware", "label": "…", "data": {…}}, …],
     "check": "<hex HMAC-SHA-256 over version and slots, keyed from the root>"}

The check can be made and verified only by whoever has the root, so a grade edited upwards or downwards,
a slot taken out or a parameter changed shows when the file is opened. Nothing in the file is secret by
itself, yet whoever copies it can guess at a passphrase offline: hence the mode.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from keyhaul.errors import SealError
from keyhaul.keys import Secret

VERSION = 1
ROOT_BYTES = 32
MAX_FILE_BYTES = 256 * 1024
MAX_SLOTS = 16
MAX_DEPTH = 8  # of a slot's data
MAX_NAME = 200  # characters of a kind or label
RESTORE = "restore the file from its backup; nothing was changed"


class Grade(enum.StrEnum):
    """What stands between the root and somebody who copies this machine's disk.

    `hardware`: a chip that does not give it away. `external`: something kept elsewhere, a credential
    handed in by the service manager or an HSM. `software`: a passphrase, or a TPM or token in software.
    """

    HARDWARE = "hardware"
    EXTERNAL = "external"
    SOFTWARE = "software"

    def is_below(self, other: Grade) -> bool:
        """Whether trusting this instead of `other` would be a downgrade."""
        ladder = (Grade.SOFTWARE, Grade.EXTERNAL, Grade.HARDWARE)
        return ladder.index(self) < ladder.index(other)


@dataclass(frozen=True, slots=True)
class Record:
    """One slot as the file keeps it; `data` is what the slot's `wrap` returned."""

    kind: str
    grade: Grade
    label: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What was read: the records in order of preference, and the check value (32 bytes)."""

    records: tuple[Record, ...]
    check: bytes

    def is_confirmed_by(self, root: Secret) -> bool:
        """Whether the content is what somebody with this root wrote."""
        return hmac.compare_digest(self.check, _check(self.records, root))


def derive(root: Secret, label: str, length: int = 32) -> Secret:
    """A key of `length` bytes (at most 8,160) for one purpose: HKDF-Expand with SHA-256 (RFC 5869, 2.3).

    The extract step is left out on purpose: the root is uniformly random (RFC 5869, 3.3). Labels in use:
    `store/page` (48 bytes: key and salt), `store/field`, `audit/mac`, `seal/check`, `seal/counter`;
    of the root in `private.slots`: `private/halves`.
    """
    info = b"keyhaul v1 " + label.encode()
    return Secret(HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(root.reveal()))


def read(path: Path) -> KeyFile:
    """Parse the file, trusting nothing. SealError: missing, truncated, damaged or of another version."""
    text = _read_text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise SealError(f"key-slot file {path} is truncated", RESTORE) from None
        raise SealError(f"key-slot file {path} is damaged at line {error.lineno}", RESTORE) from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, thousands of brackets
        raise _damaged(path, "no JSON that this release wrote") from None
    if not isinstance(document, dict):
        raise _damaged(path, "not an object")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        shown = version if type(version) is int else "unknown"
        raise SealError(
            f"key-slot file {path} has version {shown}, this release reads version {VERSION}",
            "use the release that wrote it; nothing was changed",
        )
    return _parse(path, document)


def write_new(path: Path, records: Sequence[Record], root: Secret) -> None:
    """Create the file, on disk when this returns. SealError if anything is there already."""
    with _written(path, records, root) as temporary:
        try:
            os.link(temporary, path)  # unlike rename, never replaces what is there
        except FileExistsError:
            raise already_there(path) from None


def replace(path: Path, records: Sequence[Record], root: Secret) -> None:
    """Put a new version in place of the file: after a crash the old or the new one is there, whole."""
    with _written(path, records, root) as temporary:
        os.rename(temporary, path)


def already_there(path: Path) -> SealError:
    """The refusal to overwrite."""
    return SealError(
        f"{path} exists already and is never overwritten",
        "to start anew, move it away together with the store it opens",
    )


def loose_mode(path: Path) -> str | None:
    """A warning if others than the owner can read the file."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return (
            f"key-slot file {path} has mode {mode:04o}; make it 0600, or others can guess at its passphrase"
        )
    return None


def _check(records: Sequence[Record], root: Secret) -> bytes:
    """HMAC-SHA-256 over the canonical form of the whole content, 32 bytes."""
    content = {"version": VERSION, "slots": [asdict(record) for record in records]}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    with derive(root, "seal/check") as key:
        return hmac.digest(key.reveal(), canonical, "sha256")


@contextlib.contextmanager
def _written(path: Path, records: Sequence[Record], root: Secret) -> Iterator[str]:
    """A complete, synced temporary file beside `path`; on leaving, the directory is synced too."""
    document = {
        "version": VERSION,
        "slots": [asdict(record) for record in records],
        "check": _check(records, root).hex(),
    }
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_directory(path.parent)
    except OSError as error:
        raise SealError(
            f"cannot write key-slot file {path}: {error.strerror}",
            "check the directory, its owner and its space",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SealError(
            f"there is no key-slot file {path}",
            "run `keyhaul init` for a new node, or restore it from its backup",
        ) from None
    except OSError as error:
        raise SealError(
            f"cannot read key-slot file {path}: {error.strerror}", "check its owner and mode"
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise _damaged(path, f"larger than {MAX_FILE_BYTES} bytes")
    if not raw.strip():
        raise SealError(f"key-slot file {path} is empty", RESTORE)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(path, "not text") from None


def _parse(path: Path, document: dict[str, Any]) -> KeyFile:
    slots = document.get("slots")
    if set(document) != {"version", "slots", "check"} or not isinstance(slots, list):
        raise _damaged(path, "members missing or unknown")
    if not 1 <= len(slots) <= MAX_SLOTS:
        raise _damaged(path, f"{len(slots)} slots, expected 1 to {MAX_SLOTS}")
    try:
        check = bytes.fromhex(document["check"])
    except (TypeError, ValueError):
        raise _damaged(path, "the check value is not hexadecimal") from None
    return KeyFile(tuple(_parse_record(path, number, slot) for number, slot in enumerate(slots)), check)


def _parse_record(path: Path, number: int, slot: object) -> Record:
    if not isinstance(slot, dict) or set(slot) != {"kind", "grade", "label", "data"}:
        raise _damaged(path, f"slot {number}: members missing or unknown")
    for name in ("kind", "label"):
        value = slot[name]
        if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
            raise _damaged(path, f"slot {number}: {name} is not a short printable text")
    if slot["grade"] not in list(Grade) or not isinstance(slot["data"], dict):
        raise _damaged(path, f"slot {number}: grade or data")
    if not _is_shallow(slot["data"]):
        raise _damaged(path, f"slot {number}: data nested without end")
    return Record(slot["kind"], Grade(slot["grade"]), slot["label"], slot["data"])


def _is_shallow(data: dict[str, Any]) -> bool:
    """Whether whatever walks the data comes to its end; no slot nests its own more than twice."""
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return not level


def _damaged(path: Path, what: str) -> SealError:
    return SealError(f"key-slot file {path} is damaged ({what})", RESTORE)
