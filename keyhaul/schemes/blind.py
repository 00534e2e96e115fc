"""Scheme `blind` (paper B, opt-in): keys travel as BFV ciphertexts of their destination; relays add pads.

The body of a payload, in bytes (`n` of keys, `c` ciphertexts of 1,024 bits):

    n         upper bits of the first polynomials, in which the key bits lie    under the pads
    16        the origin's tag over all of the ciphertext and the context       under the pads
    n         lower bits of the first polynomials                               \\
    2176 * c  the second polynomials, 17 bits a coefficient                      | alike at every hop
    16, 1, 4  id of the destination's key, profile, `n` (big endian)            /

A relay adds `pad_in xor pad_out` to the plaintext inside the ciphertext. Where a bit is added as half the
modulus and the modulus is four quarters, that is an XOR of the upper bits: exact, without noise, without a
library, the same over 1 hop or 10,000. So the destination gets the origin's ciphertext back to the bit and
checks the tag over all of it before it decrypts anything: with that, altering a ciphertext to see whether
it is refused tells nothing about the BFV key. On the wire the upper bits are under a one-time pad, and
nothing else depends on the keys.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from keyhaul.control import key_id
from keyhaul.errors import Malformed, Tampered, Unavailable, Unsupported
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
from keyhaul.notice import NOTICE
from keyhaul.schemes.bfv import PROFILES, Bfv

__all__ = ["NOTICE", "Blind"]

_TRAILER = struct.Struct(">16sBI")


class _Parts(NamedTuple):
    upper: bytes
    tag: bytes
    rest: bytes
    trailer: bytes
    key_id: bytes


def _nobody(destination: str) -> bytes:
    raise Unavailable(f"node {destination!r} announces no BFV key")


def _none(_: bytes) -> Secret | None:
    return None


class Blind:
    """`bfv` is None at a node that only relays; there is nothing a relay needs a library for.

    `public` gives the announced BFV key of a destination, as authentic as its descriptor, or raises
    Unavailable. `own` gives this node's secret key of an id, or None when it has none (any more).
    """

    name = "blind"
    labels: frozenset[str] = frozenset({"relay-blind"})
    authenticated = True
    heavy = True
    once = False

    def __init__(
        self,
        bfv: Bfv | None = None,
        public: Callable[[str], bytes] = _nobody,
        own: Callable[[bytes], Secret | None] = _none,
    ) -> None:
        self._bfv = bfv
        self._public = public
        self._own = own

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        """Raises Unavailable while no BFV key of the destination is known, Unsupported without a library."""
        bfv = self._ends()
        public = self._public(context.destination)
        plain = b"".join(key.reveal() for key in keys)
        upper, rest = bfv.encrypt(public, plain)
        trailer = _TRAILER.pack(key_id(public), public[0], len(plain))
        tag = origin_tag(pair, context, upper, rest, trailer)
        return Payload(self.name, pair.id + pair.statement, upper + tag + rest + trailer)

    def pad_bytes(self, payload: Payload) -> int:
        """Key bits and tag; raises Malformed where the body has not exactly the length it says."""
        return len(_parse(payload.body).upper) + TAG_BYTES

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        end = self.pad_bytes(payload)
        padded = payload.body[:end]
        for pad in (pad_in, pad_out):
            if pad is not None:
                padded = xor(padded, pad)
        return Payload(payload.scheme, payload.head, padded + payload.body[end:])

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        parts = _parse(payload.body)
        # Nothing that the origin did not send gets near the BFV key.
        check_origin_tag(pair, context, parts.tag, parts.upper, parts.rest, parts.trailer)
        bfv, secret = self._ends(), self._own(parts.key_id)
        if secret is None or parts.trailer[16] != bfv.profile.id:
            raise Tampered
        slices, rest = split_keys(bfv.decrypt(secret.reveal(), parts.upper, parts.rest), context)
        if rest:
            raise Tampered
        return [Secret(piece) for piece in slices]

    def _ends(self) -> Bfv:
        if self._bfv is None:
            raise Unsupported(
                "this node relays scheme 'blind' but is no origin or destination of it",
                "install keyhaul with the extra 'blind' and enable the scheme here",
            )
        return self._bfv


def _parse(body: bytes) -> _Parts:
    """Raises Malformed unless the body is as long as its trailer makes it."""
    if len(body) < _TRAILER.size:
        raise Malformed("the payload is shorter than its trailer")
    trailer = body[-_TRAILER.size :]
    name, profile_id, size = _TRAILER.unpack(trailer)
    profile = PROFILES.get(profile_id)
    if profile is None:
        raise Malformed("the payload names a BFV profile that is not known here")
    end = size + TAG_BYTES
    if len(body) != end + profile.rest_bytes(size) + _TRAILER.size or not size:
        raise Malformed("the payload has not the length it says")
    return _Parts(body[:size], body[size:end], body[end : -_TRAILER.size], trailer, name)
