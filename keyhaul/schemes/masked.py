"""Scheme `masked`: no relay ever sees a key; the default wherever there is one on the way.

The keys are XORed with a stream that only the origin and the destination can make: from the pair secret
that the origin encapsulated to the destination's signed ML-KEM key. Relays move the masked keys from
pad to pad as in `trusted`. Against relays this is computational (ML-KEM-768), on the wire it is whatever
the pads are. Each batch has a stream of its own, bound to everything the origin vouches for, so the same keys
under other ids or for other SAEs unmask to noise.

Two forms, which differ in the pair secret alone. Epoch: one serves all batches of an hour. Batch (`once`):
each batch has one encapsulation and one signature of its own and nothing is kept, so a secret that leaks
opens one batch; it costs 4.6 kB and two signature operations a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from keyhaul.errors import Tampered
from keyhaul.keys import Secret
from keyhaul.messages import labels
from keyhaul.messages.envelope import xor
from keyhaul.messages.payload import (
    TAG_BYTES,
    Context,
    Pair,
    Payload,
    check_origin_tag,
    origin_tag,
    split_keys,
    stream,
)


class Masked:
    """Body: masked keys, then the origin's 16-byte tag over them, all of it under the pads."""

    name = "masked"
    labels: frozenset[str] = frozenset({"relay-blind"})
    authenticated = True
    heavy = False

    def __init__(self, *, once: bool = False) -> None:
        self.once = once

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        bare = b"".join(key.reveal() for key in keys)
        masked = xor(bare, stream(pair, context, labels.MASK_STREAM, len(bare)))
        return Payload(self.name, pair.id + pair.statement, masked + origin_tag(pair, context, masked))

    def pad_bytes(self, payload: Payload) -> int:
        return len(payload.body)

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        body = payload.body
        for pad in (pad_in, pad_out):
            if pad is not None:
                body = xor(body, pad)
        return Payload(payload.scheme, payload.head, body)

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        masked, given = payload.body[:-TAG_BYTES], payload.body[-TAG_BYTES:]
        # Who sent it is settled before anything is unmasked (blind relay study, §5).
        check_origin_tag(pair, context, given, masked)
        bare = xor(masked, stream(pair, context, labels.MASK_STREAM, len(masked)))
        slices, rest = split_keys(bare, context)
        if rest:
            raise Tampered
        return [Secret(piece) for piece in slices]
