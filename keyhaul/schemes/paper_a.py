"""Scheme `paper-a`: the key travels bare inside the encrypted message, as in paper A §IV-A.

For measuring beside ours, and for nothing else: relays read the key and may replace it unnoticed, and
the message key is the paper's plain XOR of a QKD key and a Kyber secret (suite `PAPER_A` of the envelope).
"""

from __future__ import annotations

from collections.abc import Sequence

from keyhaul.errors import Tampered
from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair, Payload, split_keys


class PaperA:
    """Body: the keys. The envelope's encryption is all there is; its one-time pad is the message key."""

    name = "paper-a"
    labels: frozenset[str] = frozenset()
    authenticated = False
    heavy = False
    once = False

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        return Payload(self.name, b"", b"".join(key.reveal() for key in keys))

    def pad_bytes(self, payload: Payload) -> int:
        return len(payload.body)

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        return payload  # nothing lies below the message key

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        slices, rest = split_keys(payload.body, context)
        if rest:
            raise Tampered
        return [Secret(piece) for piece in slices]
