"""OpenFHE's binary form read and written by hand: noise of a ciphertext, and ciphertexts nobody encrypted.

For measurements and for relays that misbehave; nothing here takes part in delivering keys. A polynomial is
stored once for each prime of the modulus: n (8 bytes), n values of 8 bytes, the prime. The values are those
at the odd powers of a root of unity, bit-reversed; the root of a prime stands behind 2n, n and the prime.
Little endian throughout. All of it was found by looking, so what is stored otherwise is refused.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from keyhaul.errors import Malformed

_WORD = 8


@dataclass(frozen=True, slots=True)
class Limb:
    """A polynomial modulo one prime: where its `n` values begin in the blob, and the prime."""

    at: int
    n: int
    q: int

    @property
    def end(self) -> int:
        return self.at + self.n * _WORD

    def values(self, blob: bytes) -> array[int]:
        return array("Q", blob[self.at : self.end])


@dataclass(frozen=True, slots=True)
class Noise:
    """How far a ciphertext's coefficients are from where its plaintext puts them, and how far they may be."""

    deviation: float
    largest: int
    limit: int


def unpacked(wire: bytes) -> bytes:
    """OpenFHE's binary form of a ciphertext as it travels."""
    return gzip.decompress(base64.b64decode(wire))


def packed(blob: bytes) -> bytes:
    """The other way round; at gzip's lowest level, which is as good to read."""
    return base64.b64encode(gzip.compress(blob, 1))


def limbs(blob: bytes, n: int) -> list[Limb]:
    """All of a blob, in order: for a ciphertext those of its first polynomial, then those of its second."""
    found, at, head = [], 0, struct.pack("<Q", n)
    while (at := blob.find(head, at)) >= 0:
        start = at + _WORD
        end = start + n * _WORD
        if end + _WORD <= len(blob):
            (q,) = struct.unpack_from("<Q", blob, end)
            values = array("Q", blob[start:end])
            if q % (2 * n) == 1 and max(values) < q:
                found.append(Limb(start, n, q))
                at = end
                continue
        at += 1
    return found


def modulus(blob: bytes, n: int) -> int:
    """Product of the primes of a ciphertext."""
    product = 1
    for limb in _halves(blob, n)[0]:
        product *= limb.q
    return product


def altered(ciphertext: bytes, n: int, first: Sequence[int], second: Sequence[int]) -> bytes:
    """The ciphertext with these coefficients, any integers, added to those of its two polynomials.

    No encryption and no key: what a relay sends that wants to see what becomes of it.
    """
    blob = bytearray(ciphertext)
    for polynomial, half in zip((first, second), _halves(ciphertext, n), strict=True):
        for limb in half:
            more = _values([value % limb.q for value in polynomial], limb.q, _root(ciphertext, limb))
            sums = ((a + b) % limb.q for a, b in zip(limb.values(ciphertext), more, strict=True))
            blob[limb.at : limb.end] = array("Q", sums).tobytes()
    return bytes(blob)


def cleared(ciphertext: bytes, n: int) -> bytes:
    """The ciphertext with nothing in its two polynomials."""
    blob = bytearray(ciphertext)
    for limb in itertools.chain(*_halves(ciphertext, n)):
        blob[limb.at : limb.end] = bytes(limb.n * _WORD)
    return bytes(blob)


def noise(ciphertext: bytes, secret: bytes, n: int, t: int) -> Noise:
    """Of a ciphertext as OpenFHE makes them, by the secret key; `t` is the plaintext modulus."""
    first, second = _halves(ciphertext, n)
    q, phase = 1, [0] * n
    for one, two, key in zip(first, second, limbs(secret, n), strict=True):
        if not one.q == two.q == key.q:
            raise Malformed("this version of OpenFHE stores polynomials in another way")
        values = zip(one.values(ciphertext), two.values(ciphertext), key.values(secret), strict=True)
        residues = _coefficients([(a + b * s) % one.q for a, b, s in values], one.q, _root(ciphertext, one))
        lift = q * pow(q, -1, one.q)  # Chinese remainders: 0 modulo q so far, 1 modulo this prime
        phase = [old + (new - old) * lift for old, new in zip(phase, residues, strict=True)]
        q *= one.q
    distances = [_distance(value % q, q, t) for value in phase]
    return Noise(
        (sum(distance * distance for distance in distances) / n) ** 0.5,
        max(map(abs, distances)),
        q // (2 * t),
    )


def _halves(blob: bytes, n: int) -> tuple[list[Limb], list[Limb]]:
    found = limbs(blob, n)
    if not found or len(found) % 2:
        raise Malformed("this version of OpenFHE stores ciphertexts in another way")
    return found[: len(found) // 2], found[len(found) // 2 :]


def _root(blob: bytes, limb: Limb) -> int:
    head = struct.pack("<IIQ", 2 * limb.n, limb.n, limb.q)
    at = blob.find(head)
    root = struct.unpack_from("<Q", blob, at + len(head))[0] if at >= 0 else 0
    if pow(root, limb.n, limb.q) != limb.q - 1:
        raise Malformed("this version of OpenFHE stores roots of unity in another way")
    return int(root)


def _values(coefficients: list[int], q: int, root: int) -> list[int]:
    """The negacyclic transform; its result is in bit-reversed order."""
    n, values = len(coefficients), coefficients[:]
    twiddles, blocks, span = _twiddles(n, q, root), 1, n // 2
    while span:
        for block in range(blocks):
            twiddle, start = twiddles[blocks + block], 2 * block * span
            for at in range(start, start + span):
                low, high = values[at], values[at + span] * twiddle
                values[at], values[at + span] = (low + high) % q, (low - high) % q
        blocks, span = blocks * 2, span // 2
    return values


def _coefficients(values: Sequence[int], q: int, root: int) -> list[int]:
    """The inverse of `_values`."""
    n, found = len(values), [*values]
    twiddles, blocks, span = _twiddles(n, q, pow(root, -1, q)), n // 2, 1
    while blocks:
        for block in range(blocks):
            twiddle, start = twiddles[blocks + block], 2 * block * span
            for at in range(start, start + span):
                low, high = found[at], found[at + span]
                found[at], found[at + span] = (low + high) % q, (low - high) * twiddle % q
        blocks, span = blocks // 2, span * 2
    scale = pow(n, -1, q)
    return [value * scale % q for value in found]


@cache
def _twiddles(n: int, q: int, root: int) -> list[int]:
    """The powers of the root in bit-reversed order."""
    width = n.bit_length() - 1
    return [pow(root, _reversed(at, width), q) for at in range(n)]


def _reversed(number: int, width: int) -> int:
    return int(f"{number:0{width}b}"[::-1], 2)


def _distance(value: int, q: int, t: int) -> int:
    """From the nearest image of a plaintext coefficient, a multiple of q/t."""
    nearest = (value * t + q // 2) // q
    return value - (nearest * q + t // 2) // t
