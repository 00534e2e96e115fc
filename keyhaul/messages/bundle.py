"""Several sealed envelopes in one body, and what became of each; numbers are unsigned and big-endian.

    bundle    (length: 4 bytes, envelope) ...                              1 to MOST envelopes
    verdicts  (place: 2 bytes, status: 2 bytes, length: 4 bytes, problem) ...

A verdict says of which envelope it is, counted from 0; each comes once, as soon as it is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from keyhaul.errors import Malformed

MOST = 32
"""Envelopes in one bundle."""
LARGEST = 256 * 1024
"""Bytes of a bundle made here; what would make it larger goes in the next one, or alone."""
PROBLEM = 64 * 1024
"""Bytes of one problem."""

_LENGTH = struct.Struct(">I")
_VERDICT = struct.Struct(">HHI")


class Verdict(NamedTuple):
    """What became of one envelope: an HTTP status, and a problem document unless it was accepted."""

    place: int
    status: int
    problem: bytes


def room(number: int, size: int) -> bool:
    """Whether so many envelopes with so many bytes in all may be one bundle."""
    return number <= MOST and size + number * _LENGTH.size <= LARGEST


def encode(envelopes: Sequence[bytes]) -> bytes:
    """The body for these envelopes."""
    return b"".join(part for each in envelopes for part in (_LENGTH.pack(len(each)), each))


def decode(body: bytes) -> list[bytes]:
    """The envelopes of a body. Raises Malformed if it is torn or empty, or holds more than MOST."""
    found: list[bytes] = []
    at = 0
    while at < len(body):
        start = at + _LENGTH.size
        end = start + int.from_bytes(body[at:start], "big")
        if end > len(body):
            raise Malformed("the bundle is torn")
        if len(found) == MOST:
            raise Malformed(f"the bundle holds more than {MOST} envelopes")
        found.append(body[start:end])
        at = end
    if not found:
        raise Malformed("the bundle is empty")
    return found


def encode_verdict(place: int, status: int, problem: bytes = b"") -> bytes:
    """One verdict as it is sent."""
    return _VERDICT.pack(place, status, len(problem)) + problem


class Verdicts:
    """Reads verdicts of a bundle of `number` envelopes from pieces that end anywhere."""

    def __init__(self, number: int) -> None:
        self.open = set(range(number))
        """Places without a verdict so far."""
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[Verdict]:
        """The verdicts that are complete with this piece.

        Raises Malformed if one is not of this bundle, came before, or cannot be: then all after it is void.
        """
        data, at = self._rest + piece, 0
        while len(data) - at >= _VERDICT.size:
            place, status, length = _VERDICT.unpack_from(data, at)
            if place not in self.open or not 200 <= status <= 599 or length > PROBLEM:
                raise Malformed("these are not the verdicts of the bundle")
            start = at + _VERDICT.size
            if start + length > len(data):
                break
            at = start + length
            self.open.remove(place)
            yield Verdict(place, status, data[start:at])
        self._rest = data[at:]
