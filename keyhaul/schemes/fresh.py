"""Scheme `blind-fresh` (opt-in): `blind` whose relays re-randomise, each with a zero from its pool.

The body of a payload, in bytes (`n` of keys, `c` ciphertexts of 1,024 bits, modulus q of `w` bits):

    n             which half of [0, q - 1) each coefficient of the first polynomials lies in   under the pads
    16            the origin's tag                                                            under the pads
    n * (w - 1)   the place in its half, w - 1 bits each
    128 * w * c   the second polynomials, w bits a coefficient
    notes         of each relay so far: what it added, sealed for the destination
    16, 1, 4, 2   id of the destination's key, profile, `n`, number of notes (big endian)

First polynomials are added modulo q - 1, which is two halves: so a pad, which exchanges the halves, and an
addition do not disturb each other, and what lies below the pads depends on no key bit. Second ones are added
modulo q. Both can be taken back to the bit, and that is how the origin is checked although relays change
the ciphertext: the destination opens the notes, subtracts what they name, and has the origin's ciphertext or
refuses. It does so before the BFV key is touched. docs/blind.md says what this hides and what it costs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keyhaul.control import key_id
from keyhaul.errors import Malformed, Tampered, Unavailable
from keyhaul.keys import Secret
from keyhaul.messages.envelope import xor
from keyhaul.messages.payload import (
    TAG_BYTES,
    Context,
    Pair,
    Payload,
    check_origin_tag,
    origin_tag,
    split_keys,
)
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, PROFILES, Bfv, Profile
from keyhaul.schemes.dense import Polynomial
from keyhaul.schemes.zeros import Zeros

_TRAILER = struct.Struct(">16sBIH")
_VOUCHED = _TRAILER.size - 2  # bytes of the trailer that the origin's tag covers

# The places in half of [0, q - 1) are coefficients of one bit less.
_HALF = {each.id: Profile(each.id, (each.q - 1) // 2, each.width - 1, 0) for each in PROFILES.values()}


class Notes(NamedTuple):
    """How a relay tells a destination something that nobody else can read.

    `seal(destination, said)` raises Unavailable, `unseal(sealed)` raises Tampered; a sealed note is
    `overhead` bytes longer than what it says.
    """

    seal: Callable[[str, bytes], bytes]
    unseal: Callable[[bytes], bytes]
    overhead: int


@dataclass(frozen=True, slots=True)
class _Parts:
    profile: Profile
    size: int
    upper: bytes
    tag: bytes
    lower: bytes
    seconds: bytes
    notes: tuple[bytes, ...]
    key_id: bytes

    def vouched(self) -> bytes:
        """The part of the trailer that stays as the origin wrote it."""
        return _TRAILER.pack(self.key_id, self.profile.id, self.size, 0)[:_VOUCHED]

    def body(self) -> bytes:
        trailer = _TRAILER.pack(self.key_id, self.profile.id, self.size, len(self.notes))
        return b"".join((self.upper, self.tag, self.lower, self.seconds, *self.notes, trailer))


class Fresh:
    """Every node of the path needs the library: ends to encrypt and decrypt, relays to make zeros.

    `public` and `own` are those of `Blind`.
    """

    name = "blind-fresh"
    labels: frozenset[str] = frozenset({"relay-blind"})
    authenticated = True
    heavy = True
    once = False

    def __init__(
        self,
        bfv: Bfv,
        public: Callable[[str], bytes],
        own: Callable[[bytes], Secret | None],
        notes: Notes,
    ) -> None:
        self.zeros = Zeros(bfv)
        self._bfv = bfv
        self._public = public
        self._own = own
        self._notes = notes

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        """Raises Unavailable while no BFV key of the destination is known."""
        public = self._public(context.destination)
        plain = b"".join(key.reveal() for key in keys)
        profile, count = PROFILES[public[0]], 8 * len(plain)
        first, second = self.zeros.take(public, _chunks(len(plain)))
        upper, lower = _halved(first[:count], profile)
        seconds = dense.pack(second, profile)
        parts = _Parts(
            profile, len(plain), xor(upper, plain), bytes(TAG_BYTES), lower, seconds, (), key_id(public)
        )
        tag = origin_tag(pair, context, parts.upper, lower, seconds, parts.vouched())
        body = parts.body()
        body = body[: parts.size] + tag + body[parts.size + TAG_BYTES :]
        return Payload(self.name, pair.id + pair.statement, body)

    def pad_bytes(self, payload: Payload) -> int:
        """Key bits and tag; raises Malformed where the body has not exactly the length it says."""
        return self._parse(payload.body).size + TAG_BYTES

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        end = self.pad_bytes(payload)
        padded = payload.body[:end]
        for pad in (pad_in, pad_out):
            if pad is not None:
                padded = xor(padded, pad)
        return Payload(payload.scheme, payload.head, padded + payload.body[end:])

    def renew(self, payload: Payload, context: Context) -> Payload:
        """At a relay, no pad on: the same keys in another ciphertext, and a note for the destination.

        Raises Malformed for coefficients out of range or more notes than there are relays, Unavailable
        while no key of the destination of the payload's profile is known.
        """
        parts = self._parse(payload.body)
        public = self._public(context.destination)
        if public[0] != parts.profile.id:
            raise Unavailable(f"node {context.destination!r} announces no BFV key of this profile any more")
        if len(parts.notes) + 2 >= len(context.route):
            raise Malformed("the payload has been re-randomised more often than its route has relays")
        count = 8 * parts.size
        first, second = self.zeros.take(public, _chunks(parts.size))
        first = first[:count]
        upper, lower, seconds = _moved(parts, first, second)
        said = dense.pack(first, parts.profile) + dense.pack(second, parts.profile)
        note = self._notes.seal(context.destination, said)
        moved = _Parts(
            parts.profile, parts.size, upper, parts.tag, lower, seconds, (*parts.notes, note), parts.key_id
        )
        return Payload(payload.scheme, payload.head, moved.body())

    def steady(self, payload: Payload) -> Payload:
        """What honest relays leave alone: tag and trailer."""
        parts = self._parse(payload.body)
        return Payload(payload.scheme, payload.head, parts.tag + parts.vouched())

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        parts = self._parse(payload.body)
        if len(parts.notes) + 2 > len(context.route):
            raise Tampered
        for note in reversed(parts.notes):
            parts = self._taken_back(parts, self._notes.unseal(note))
        # Nothing that the origin did not send gets near the BFV key.
        check_origin_tag(pair, context, parts.tag, parts.upper, parts.lower, parts.seconds, parts.vouched())
        secret = self._own(parts.key_id)
        if secret is None or parts.profile.id != self._bfv.profile.id:
            raise Tampered
        plain = self._bfv.decrypt(secret.reveal(), parts.upper, _quarter(parts) + parts.seconds)
        slices, rest = split_keys(plain, context)
        if rest:
            raise Tampered
        return [Secret(piece) for piece in slices]

    def _taken_back(self, parts: _Parts, said: bytes) -> _Parts:
        profile, end = parts.profile, parts.size * parts.profile.width
        first = dense.unpack(said[:end], 8 * parts.size, profile)
        second = dense.unpack(said[end:], COEFFICIENTS * _chunks(parts.size), profile)
        ring = np.uint32(profile.q - 1)
        if first.size and int(first.max()) >= profile.q - 1:
            raise Malformed("a coefficient is out of range")
        negative = (np.uint32(profile.q) - second) % np.uint32(profile.q)
        upper, lower, seconds = _moved(parts, (ring - first) % ring, negative)
        return _Parts(profile, parts.size, upper, parts.tag, lower, seconds, (), parts.key_id)

    def _parse(self, body: bytes) -> _Parts:
        """Raises Malformed unless the body is as long as its trailer makes it."""
        if len(body) < _TRAILER.size:
            raise Malformed("the payload is shorter than its trailer")
        name, profile_id, size, number = _TRAILER.unpack(body[-_TRAILER.size :])
        profile = PROFILES.get(profile_id)
        if profile is None or not size:
            raise Malformed("the payload names a BFV profile that is not known here, or no keys")
        rest = _chunks(size) * profile.polynomial_bytes
        note = size * profile.width + rest + self._notes.overhead
        lengths = (size, TAG_BYTES, size * (profile.width - 1), rest, *(note,) * number)
        if len(body) != sum(lengths) + _TRAILER.size:
            raise Malformed("the payload has not the length it says")
        at, pieces = 0, []
        for length in lengths:
            pieces.append(body[at : at + length])
            at += length
        upper, tag, lower, seconds, *notes = pieces
        return _Parts(profile, size, upper, tag, lower, seconds, tuple(notes), name)


def _chunks(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def _halved(first: Polynomial, profile: Profile) -> tuple[bytes, bytes]:
    """`(upper, lower)` of coefficients below q - 1."""
    half = np.uint32((profile.q - 1) // 2)
    upper = (first >= half).astype(np.uint8)
    return dense.bytes_of(upper), dense.pack(first - upper * half, _HALF[profile.id])


def _firsts(parts: _Parts) -> Polynomial:
    lower = dense.unpack(parts.lower, 8 * parts.size, _HALF[parts.profile.id])
    joined: Polynomial = lower + dense.bits_of(parts.upper) * np.uint32((parts.profile.q - 1) // 2)
    return joined


def _seconds(parts: _Parts) -> Polynomial:
    return dense.unpack(parts.seconds, COEFFICIENTS * _chunks(parts.size), parts.profile)


def _moved(parts: _Parts, first: Polynomial, second: Polynomial) -> tuple[bytes, bytes, bytes]:
    """Upper halves, places, second polynomials after adding: modulo q - 1 and modulo q. Raises Malformed."""
    profile = parts.profile
    firsts = (_firsts(parts) + first) % np.uint32(profile.q - 1)
    seconds = (_seconds(parts) + second) % np.uint32(profile.q)
    return *_halved(firsts, profile), dense.pack(seconds, profile)


def _quarter(parts: _Parts) -> bytes:
    """The lower bit of each coefficient's quarter, as `Bfv.decrypt` takes it."""
    lower = dense.unpack(parts.lower, 8 * parts.size, _HALF[parts.profile.id])
    return dense.bytes_of((lower >= np.uint32((parts.profile.q - 1) // 4)).astype(np.uint8))
