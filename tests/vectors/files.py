"""Vector files: `name: value` lines, the first `expect`, then an empty line and the bytes in hex.

`expect` is `ok`, `tampered` or `malformed`. Values are text; bytes among them are hex.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Vector:
    """One file; `path` is relative to this folder, the folder in it is the format."""

    path: str
    fields: dict[str, str]
    body: bytes

    @property
    def expect(self) -> str:
        return self.fields["expect"]

    def bytes_of(self, name: str) -> bytes:
        return bytes.fromhex(self.fields[name])

    def text(self) -> str:
        lines = [f"{name}: {value}".rstrip() for name, value in self.fields.items()]
        return "\n".join([*lines, "", *textwrap.wrap(self.body.hex(), 96)]) + "\n"


def read(path: Path) -> Vector:
    head, _, body = path.read_text().partition("\n\n")
    fields = {}
    for line in head.splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    return Vector(path.relative_to(FOLDER).as_posix(), fields, bytes.fromhex("".join(body.split())))


def read_all(kind: str) -> list[Vector]:
    return [read(path) for path in sorted((FOLDER / kind).glob("*.txt"))]
