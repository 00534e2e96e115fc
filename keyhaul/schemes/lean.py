"""Profile `lean`: paper B's relay with small parameters, a binary frame and plaintext additions; see below.

The library works at every node, as in the paper, but a relay adds `pad_in xor pad_out` once, as a plaintext,
instead of encrypting both, and ciphertexts travel as plain bits instead of gzip and base64. A step on the
way from `paper` to `dense`, to be measured; no node offers it. It differs from `dense` in what adding modulo
an odd q costs (docs/blind.md, "Why not modulo q"): traces of the pads in the noise, and a first polynomial
that the destination cannot check. The tag covers the second one and the keys, which ends the reaction attack
of `paper`; but it is checked after decryption, so a relay that shifts a coefficient of the first one and sees
whether the key was refused learns something of its noise.

The body, in bytes (`n` of keys, `c` ciphertexts of 1,024 bits):

    4352 * c   ciphertexts, 17 bits a coefficient     the pads lie inside
    16         the origin's tag                       under the pads
    16, 1, 4   id of the destination's key, profile, `n` (big endian)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from keyhaul.errors import Malformed, Tampered
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
from keyhaul.schemes.bfv import Profile
from keyhaul.schemes.keyring import key_id

_TRAILER = struct.Struct(">16sBI")


class WholeBfv(Protocol):
    """BFV at every node; see `keyhaul.schemes.seal_whole` for what each method promises."""

    profile: Profile

    def ciphertext_bytes(self, size: int) -> int: ...
    def encrypt_whole(self, public: bytes, plain: bytes) -> bytes: ...
    def add_plain_whole(self, ciphertexts: bytes, pad: bytes) -> bytes: ...
    def decrypt_whole(self, secret: bytes, ciphertexts: bytes, size: int) -> bytes: ...
    def second_polynomials(self, ciphertexts: bytes) -> bytes: ...


class _Parts(NamedTuple):
    ciphertexts: bytes
    tag: bytes
    trailer: bytes
    key_id: bytes
    size: int


class Lean:
    """`public` gives the BFV key of a destination, `own` this node's secret key of an id, as in `Blind`."""

    name = "blind-lean"
    labels: frozenset[str] = frozenset({"relay-blind"})
    authenticated = True
    heavy = True
    once = False

    def __init__(
        self, bfv: WholeBfv, public: Callable[[str], bytes], own: Callable[[bytes], Secret | None]
    ) -> None:
        self._bfv = bfv
        self._public = public
        self._own = own

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        public = self._public(context.destination)
        plain = b"".join(key.reveal() for key in keys)
        ciphertexts = self._bfv.encrypt_whole(public, plain)
        trailer = _TRAILER.pack(key_id(public), self._bfv.profile.id, len(plain))
        tag = self._tag(pair, context, ciphertexts, trailer, plain)
        return Payload(self.name, pair.id + pair.statement, ciphertexts + tag + trailer)

    def pad_bytes(self, payload: Payload) -> int:
        """Key bits and tag; raises Malformed where the body has not exactly the length it says."""
        return self._parse(payload.body).size + TAG_BYTES

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        """One addition, whether one pad changes or two. Raises Malformed."""
        parts = self._parse(payload.body)
        pad = bytes(parts.size + TAG_BYTES)
        for each in (pad_in, pad_out):
            if each is not None:
                pad = xor(pad, each)
        moved = self._bfv.add_plain_whole(parts.ciphertexts, pad[: parts.size])
        return Payload(
            payload.scheme, payload.head, moved + xor(parts.tag, pad[parts.size :]) + parts.trailer
        )

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        parts = self._parse(payload.body)
        secret = self._own(parts.key_id)
        if secret is None:
            raise Tampered
        plain = self._bfv.decrypt_whole(secret.reveal(), parts.ciphertexts, parts.size)
        seconds = self._bfv.second_polynomials(parts.ciphertexts)
        check_origin_tag(pair, context, parts.tag, seconds, parts.trailer, plain)
        slices, rest = split_keys(plain, context)
        if rest:
            raise Tampered
        return [Secret(piece) for piece in slices]

    def _tag(self, pair: Pair, context: Context, ciphertexts: bytes, trailer: bytes, plain: bytes) -> bytes:
        return origin_tag(pair, context, self._bfv.second_polynomials(ciphertexts), trailer, plain)

    def _parse(self, body: bytes) -> _Parts:
        if len(body) < _TRAILER.size:
            raise Malformed("the payload is shorter than its trailer")
        name, profile, size = _TRAILER.unpack(body[-_TRAILER.size :])
        end = self._bfv.ciphertext_bytes(size)
        if profile != self._bfv.profile.id or not size or len(body) != end + TAG_BYTES + _TRAILER.size:
            raise Malformed("the payload has not the length or the profile it says")
        return _Parts(body[:end], body[end : -_TRAILER.size], body[-_TRAILER.size :], name, size)
