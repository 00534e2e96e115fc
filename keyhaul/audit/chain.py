"""The lines of an audit log: each names the hash of the line before, and signed checkpoints anchor the end.

    {"n":7,"at":"2026-01-02T03:04:05.678901Z","event":"delivery", … ,"prev":"<SHA-256 of line 6>"}

A line that is changed, removed, put in or moved breaks the chain after it. Cutting off the end breaks
nothing, so the node signs how far it came: in a line of its own (`checkpoint`), in the file `FILE.head`,
and in its encrypted store, which whoever can only write to the log cannot bring in line.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from keyhaul.errors import Malformed
from keyhaul.messages import labels

CHECKPOINT, CONTINUED, BEGIN = "checkpoint", "continued", "begin"
START = "0" * 64
_HEX = frozenset("0123456789abcdef")
_DIGITS = 18
"""The most that a line's number has."""
_RESERVED = frozenset({"n", "at", "event", "prev"})


class Signer(Protocol):
    @property
    def name(self) -> str: ...

    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Head:
    """The last line: its number, counted from 1, and its SHA-256 in hex. Number 0: no line yet."""

    n: int = 0
    hash: str = START

    def text(self) -> str:
        """As people and the store keep it: `number:hash`."""
        return f"{self.n}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """From `text()`. Raises Malformed."""
        number, colon, digest = text.partition(":")
        whole = number.isdecimal() and len(number) <= _DIGITS
        if not (whole and colon and len(digest) == 64 and set(digest) <= _HEX):
            raise Malformed(f"{text[:100]!r} is no head of an audit log", "write NUMBER:SHA256")
        return cls(int(number), digest)


def make(head: Head, at: float, event: str, fields: Mapping[str, Any]) -> tuple[bytes, Head]:
    """The next line, with its line feed, and the head after it. `at` in Unix seconds."""
    if clash := fields.keys() & _RESERVED:
        raise ValueError(f"fields {sorted(clash)} are the chain's own")
    moment = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    values = {"n": head.n + 1, "at": moment, "event": event, **fields, "prev": head.hash}
    line = msgspec.json.encode(values)
    return line + b"\n", Head(head.n + 1, hashlib.sha256(line).hexdigest())


def checkpoint(head: Head, at: float, signer: Signer, event: str = CHECKPOINT) -> tuple[bytes, Head]:
    """A line in which the node signs everything before it."""
    signature = signer.sign(signed(signer.name, head))
    return make(head, at, event, {"node": signer.name, "signature": b64encode(signature).decode()})


def signed(node: str, head: Head) -> bytes:
    """What a checkpoint's signature is over: that the line `head` was the node's last."""
    return labels.AUDIT_CHECKPOINT + msgspec.msgpack.encode([node, head.n, head.hash])


def read(line: bytes) -> dict[str, Any]:
    """One line without its line feed. Raises Malformed."""
    try:
        values = msgspec.json.decode(line)
    except (ValueError, RecursionError):  # msgspec.DecodeError, and what is not UTF-8
        values = None
    shapes = {"n": int, "at": str, "event": str, "prev": str}
    if (
        not isinstance(values, dict)
        or any(type(values.get(k)) is not kind for k, kind in shapes.items())
        or not 1 <= values["n"] < 10**_DIGITS
    ):
        raise Malformed("the line is not one of an audit log")
    return values


def signature_of(values: Mapping[str, Any]) -> bytes:
    """The signature in a checkpoint's line; empty if there is none that can be read."""
    try:
        return b64decode(str(values.get("signature", "")), validate=True)
    except ValueError:
        return b""


def digest(line: bytes) -> str:
    """The hash that the next line names."""
    return hashlib.sha256(line).hexdigest()
