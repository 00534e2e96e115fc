"""Noise of a ciphertext against the number of relays it passed, read with the secret key; never assumed.

Every hop takes one random link key off and puts another one on, for all places of a ciphertext. A ciphertext
is lost at a place whose noise passes the limit, so what counts is the largest noise of all places.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from keyhaul.openfhe import OpenFhe, layout
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE
from keyhaul.schemes.dense import Polynomial
from keyhaul.schemes.seal_whole import SealWhole

PUBLISHED_N, PUBLISHED_T = 8192, 65_537
Coefficients = npt.NDArray[np.int64]
_Moved = TypeVar("_Moved")


@dataclass(frozen=True, slots=True)
class Point:
    """Largest noise of all places after `hops` relays, and the noise at which a bit is wrong."""

    hops: int
    largest: float
    limit: float

    @property
    def bits_left(self) -> float:
        """How often it may double."""
        return math.log2(self.limit / self.largest) if self.largest else math.inf


def published(marks: Iterable[int], fhe: OpenFhe) -> list[Point]:
    """Profile `paper`: two additions of fresh ciphertexts a hop."""
    public, secret = fhe.generate()
    pad = bytes(CHUNK_BYTES // 4)
    wire, done, points = fhe.originate(public, os.urandom(len(pad)), pad).value, 0, []
    for mark in marks:
        while done < mark:
            step = min(100, mark - done)
            wire, pad = fhe.walk(public, wire, pad, step)
            done += step
        found = layout.noise(layout.unpacked(wire), secret, PUBLISHED_N, PUBLISHED_T)
        points.append(Point(mark, found.largest, found.limit))
    return points


def lean(marks: Iterable[int], bfv: SealWhole) -> list[Point]:
    """Profile `lean`: one addition of a plaintext a hop, by the library."""
    public, secret = bfv.generate()
    plain, key = os.urandom(CHUNK_BYTES), coefficients(bfv, secret)

    def read(hops: int, ciphertext: bytes, pad: bytes) -> Point:
        first, second = _polynomials(ciphertext)
        return _point(hops, first, _times(key, second), _xor(plain, pad))

    return _walk(marks, bfv.encrypt_whole(public, plain), bfv.add_plain_whole, read)


def modulo(marks: Iterable[int], bfv: SealWhole) -> list[Point]:
    """`dense` as published: adds q/2 modulo q, in numpy."""
    public, secret = bfv.generate()
    plain = os.urandom(CHUNK_BYTES)
    begin, second = _polynomials(bfv.encrypt_whole(public, plain))
    turned = _times(coefficients(bfv, secret), second)

    def move(first: Polynomial, both: bytes) -> Polynomial:
        return dense.add_plain(first, dense.bits_of(both), DENSE)

    def read(hops: int, first: Polynomial, pad: bytes) -> Point:
        return _point(hops, first, turned, _xor(plain, pad))

    return _walk(marks, begin, move, read)


def quartered(marks: Iterable[int], bfv: SealWhole) -> list[Point]:
    """Profile `dense`: an XOR of the upper bits of quarters. The noise includes what quarters leave out."""
    public, secret = bfv.generate()
    plain = os.urandom(CHUNK_BYTES)
    begin, rest = bfv.encrypt(public, plain)
    lower = dense.bits_of(rest[:CHUNK_BYTES])
    second = dense.unpack(rest[CHUNK_BYTES:], COEFFICIENTS, DENSE)
    turned = _times(coefficients(bfv, secret), second)

    def read(hops: int, upper: bytes, pad: bytes) -> Point:
        first = dense.centres(dense.bits_of(upper), lower, DENSE)
        return _point(hops, first, turned, _xor(plain, pad))

    return _walk(marks, begin, _xor, read)


def _walk(
    marks: Iterable[int],
    moved: _Moved,
    move: Callable[[_Moved, bytes], _Moved],
    read: Callable[[int, _Moved, bytes], Point],
) -> list[Point]:
    """From relay to relay, each with a fresh pad; read at each of the marks."""
    pad, done, points = bytes(CHUNK_BYTES), 0, []
    for mark in marks:
        while done < mark:
            following = os.urandom(CHUNK_BYTES)
            moved, pad, done = move(moved, _xor(pad, following)), following, done + 1
        points.append(read(mark, moved, pad))
    return points


def _polynomials(ciphertext: bytes) -> tuple[Polynomial, Polynomial]:
    half = DENSE.polynomial_bytes
    return (
        dense.unpack(ciphertext[:half], COEFFICIENTS, DENSE),
        dense.unpack(ciphertext[half:], COEFFICIENTS, DENSE),
    )


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


def coefficients(bfv: SealWhole, secret: bytes) -> Coefficients:
    """Those of a secret key, -1, 0 or 1, from two ciphertexts whose decryption tells them."""
    answers = []
    for value in (-1, 1):
        first = np.full(COEFFICIENTS, (-value * (DENSE.q // 5)) % DENSE.q, np.uint32)
        second = np.zeros(COEFFICIENTS, np.uint32)
        second[0] = DENSE.q - DENSE.q // 5  # every coefficient in its place, its sign turned
        told = bfv.decrypt_whole(secret, dense.pack(first, DENSE) + dense.pack(second, DENSE), CHUNK_BYTES)
        answers.append(dense.bits_of(told).astype(np.int64))
    found: Coefficients = answers[1] - answers[0]
    return found


def _times(key: Coefficients, second: Polynomial) -> Coefficients:
    """Their product modulo x^1024 + 1."""
    product = np.zeros(2 * COEFFICIENTS, np.int64)
    for at in np.flatnonzero(key):
        product[at : at + COEFFICIENTS] += key[at] * second.astype(np.int64)
    turned: Coefficients = product[:COEFFICIENTS] - product[COEFFICIENTS:]
    return turned


def _point(hops: int, first: Polynomial, turned: Coefficients, plain: bytes) -> Point:
    q, bits = DENSE.q, dense.bits_of(plain).astype(np.int64)
    distance = (first.astype(np.int64) + turned - bits * ((q + 1) // 2)) % q
    largest = int(np.minimum(distance, q - distance).max())
    return Point(hops, largest, q / 4)
