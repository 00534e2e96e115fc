"""Scheme `trusted` (paper A): every relay on the way holds the key in memory for a moment.

The baseline and the form foreign key managers understand. Even here the origin authenticates what it
sends, so a relay may read a key but cannot replace it.
"""

from __future__ import annotations

from collections.abc import Sequence

from keyhaul.errors import Tampered
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


class Trusted:
    """Body: keys, then the origin's 16-byte tag, all of it under the pads (48 B of pad a 32 B key)."""

    name = "trusted"
    labels: frozenset[str] = frozenset()
    authenticated = True
    heavy = False
    once = False

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        body = b"".join(key.reveal() for key in keys)
        return Payload(self.name, pair.id + pair.statement, body + origin_tag(pair, context, body))

    def pad_bytes(self, payload: Payload) -> int:
        return len(payload.body)

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        body = payload.body
        for pad in (pad_in, pad_out):
            if pad is not None:
                body = xor(body, pad)
        return Payload(payload.scheme, payload.head, body)

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        slices, given = split_keys(payload.body, context)
        if len(given) != TAG_BYTES:
            raise Tampered
        check_origin_tag(pair, context, given, payload.body[:-TAG_BYTES])
        return [Secret(piece) for piece in slices]
