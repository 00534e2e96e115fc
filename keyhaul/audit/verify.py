"""Finds out whether an audit log is whole: reads its files in order and names the first thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul.audit import chain
from keyhaul.audit.chain import Head
from keyhaul.errors import Malformed, Refused, Tampered

Check = Callable[[str, bytes, bytes], None]
"""Checks a signature: node, signature, message. Raises Tampered or Unauthorized."""


@dataclass(slots=True)
class Report:
    """A log that is whole: the lines from `first` to `head`, of which the last `uncovered` are not signed."""

    files: list[str]
    first: int
    head: Head
    checkpoints: int
    uncovered: int
    missing: int  # lines that the node itself says it could not write


def files_of(file: Path) -> list[Path]:
    """A log and what was rotated away from it, oldest first."""
    rotated = [
        path for path in file.parent.glob(f"{file.name}.*") if path.name[len(file.name) + 1 :].isdecimal()
    ]
    return [*sorted(rotated), file]


def verify(files: Sequence[Path], anchors: Sequence[Head] = (), check: Check | None = None) -> Report:
    """Read everything. Raises Refused, naming file and line, for whatever does not fit.

    `anchors` are lines that must be there: from `FILE.head`, or from the node itself. Without `check` the
    signatures of checkpoints are not looked at.
    """
    report = Report([str(file) for file in files], 0, Head(), 0, 0, 0)
    wanted = {anchor.n: anchor for anchor in anchors if anchor.n}
    for where, line in _lines(files):
        values = _next(where, line, report)
        if values["event"] in (chain.CHECKPOINT, chain.CONTINUED) and "signature" in values:
            _check(where, values, check)
            report.checkpoints += 1
            report.uncovered = 0
        else:
            report.uncovered += 1
        if values["event"] == "lines_missing":
            number = values.get("number")
            if type(number) is not int or number < 0:
                raise Refused(f"{where}: it does not say how many lines are missing", _CHANGED)
            report.missing += number
        report.head = Head(values["n"], chain.digest(line))
        if wanted.pop(values["n"], report.head) != report.head:
            raise Refused(f"{where} is not the line that the anchor names", "the log was written anew")
    if wanted:
        last = max(wanted)
        raise Refused(
            f"line {last} was written, but the log ends with line {report.head.n}",
            "its end was cut off, or this is an old copy",
        )
    return report


def _next(where: str, line: bytes, report: Report) -> dict[str, Any]:
    """The line, if it is the one that has to come now."""
    try:
        values = chain.read(line)
    except Malformed as error:
        raise Refused(f"{where}: {error.cause}", _CHANGED) from None
    if not report.head.n:
        if values["event"] not in (chain.BEGIN, chain.CONTINUED):
            raise Refused(f"{where}: the log does not begin here", "lines before this one were removed")
        if values["event"] == chain.BEGIN and (values["n"], values["prev"]) != (1, chain.START):
            raise Refused(f"{where}: the first line is not the first", _CHANGED)
        report.first = values["n"]
        return values
    if values["n"] != report.head.n + 1:
        text = f"{where}: line {values['n']} follows line {report.head.n}"
        raise Refused(text, "lines were removed, moved or put in")
    if values["prev"] != report.head.hash:
        raise Refused(f"{where}: the line before this one is not what it was", _CHANGED)
    return values


_CHANGED = "the file was changed after it was written"


def _check(where: str, values: dict[str, Any], check: Check | None) -> None:
    if check is None:
        return
    node, head = str(values.get("node", "")), Head(values["n"] - 1, values["prev"])
    try:
        check(node, chain.signature_of(values), chain.signed(node, head))
    except Tampered:
        raise Refused(f"{where}: the checkpoint is not signed by {node}", _CHANGED) from None


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        try:
            with file.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    where = f"{file.name}:{number}"
                    if not line.endswith(b"\n"):
                        raise Refused(f"{where}: the last line is not whole", "it was cut off in the middle")
                    yield where, line[:-1]
        except OSError as error:
            raise Refused(f"{file}: {error.strerror}", "check the path") from None
