"""The dense form of BFV polynomials: as many bits a coefficient as the modulus has, nothing else.

Arrays of numpy and bytes; no FHE library. Whatever comes in as bytes is checked before it is used: exact
length, every coefficient below the modulus. Bit `i` of a polynomial's bytes, counted from the lowest
bit of the first byte, belongs to coefficient `i // width`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyhaul.errors import Malformed
from keyhaul.schemes.bfv import Profile

Polynomial = npt.NDArray[np.uint32]
Bits = npt.NDArray[np.uint8]

_WORD = 32  # bits of a coefficient in an array


def pack(polynomial: Polynomial, profile: Profile) -> bytes:
    """Dense bytes of a polynomial whose coefficients are below `q` and a multiple of 8 in number."""
    octets = polynomial.astype("<u4", copy=False).view(np.uint8).reshape(-1, _WORD // 8)
    bits = np.unpackbits(octets, axis=1, count=profile.width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(data: bytes, count: int, profile: Profile) -> Polynomial:
    """`count` coefficients, a multiple of 8. Raises Malformed: wrong length, or one is not below `q`."""
    if len(data) * 8 != count * profile.width:
        raise Malformed("a polynomial has the wrong length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(count, profile.width)
    wide = np.zeros((count, _WORD), np.uint8)
    wide[:, : profile.width] = bits
    polynomial: Polynomial = np.packbits(wide, axis=1, bitorder="little").view("<u4").reshape(count)
    if count and int(polynomial.max()) >= profile.q:
        raise Malformed("a coefficient is out of range")
    return polynomial


def bits_of(data: bytes) -> Bits:
    """One bit a coefficient, lowest bit of the first byte first."""
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")


def bytes_of(bits: Bits) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def add_plain(first: Polynomial, bits: Bits, profile: Profile) -> Polynomial:
    """Add plaintext bits to the first polynomial of a ciphertext, modulo `q`.

    The hop as published: a relay adds `pad_in xor pad_out` once. The scale is q/2 rounded up, so two
    additions in one coefficient leave one unit of noise. `blind` does not travel like this, because
    that unit tells someone who broke BFV something about the pads; it is here to be measured.
    """
    scale = np.uint32((profile.q + 1) // 2)
    total: Polynomial = (first + bits * scale) % np.uint32(profile.q)
    return total


def quarters(first: Polynomial, profile: Profile) -> tuple[Bits, Bits] | None:
    """`(upper, lower)`: the number of the quarter of [0, q - 1) that each coefficient lies in.

    None when a coefficient is q - 1, the one value too many. The four quarters are equally long
    (q is 1 modulo 2,048), so of a uniform coefficient that is not q - 1 the upper bit is uniform
    whatever the lower one is; without that the mask over a key bit would be biased by 1/q.
    """
    quarter = first // np.uint32((profile.q - 1) // 4)
    if quarter.size and int(quarter.max()) > 3:
        return None
    return (quarter >> 1).astype(np.uint8), (quarter & 1).astype(np.uint8)


def centres(upper: Bits, lower: Bits, profile: Profile) -> Polynomial:
    """The middle of each quarter: at most q/8 away from what was there.

    Decryption tolerates q/4. What remains, 15,104 for `dense`, is 130 standard deviations of the noise
    of a fresh ciphertext.
    """
    step = np.uint32((profile.q - 1) // 4)
    quarter = (upper.astype(np.uint32) << np.uint32(1)) | lower
    polynomial: Polynomial = quarter * step + step // np.uint32(2)
    return polynomial
