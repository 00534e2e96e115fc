"""Profile `paper`: paper B's relay as published, to be measured and attacked; no node offers it.

Each key is a BFV ciphertext of its destination (n = 8,192, t = 65,537, q of 120 bits). Relays encrypt the
link keys for the destination too and add the ciphertexts; the destination takes what it decrypts modulo
2. On the wire a ciphertext is gzip and base64. As published, one key a ciphertext, and nothing vouches
for the origin. What follows from that, each with a test:

* accept or reject opens the destination's secret key (reaction attack);
* a relay puts a key of its own in the place of the origin's, or flips bits, and nobody notices;
* the destination sees how many link keys had a one at each place, not only their XOR;
* after 32,768 additions at one place the bit is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from keyhaul.errors import Malformed
from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair, Payload

MOST_TEXT = 1 << 20  # characters of one ciphertext; the published ones have 347,000
_HEAD = struct.Struct(">I")
_BETWEEN = b"\n"


class Text(Protocol):
    """What a worker's answer is used for."""

    @property
    def value(self) -> bytes: ...


class PaperBfv(Protocol):
    """BFV with encrypted link keys, every result packed as text; see `keyhaul.openfhe` for the real one."""

    def originate(self, public: bytes, key: bytes, pad: bytes = b"") -> Text: ...
    def relay(self, public: bytes, wire: bytes, pad_in: bytes = b"", pad_out: bytes = b"") -> Text: ...
    def deliver(self, public: bytes, secret: bytes, wire: bytes, size: int, pad: bytes = b"") -> Text: ...


class PaperB:
    """`public` gives the announced key of a destination, `own` this node's public and secret key.

    Relays need the library as well. The head names key size and destination, so that a relay knows for whom
    to encrypt its link keys. Whatever `bfv` raises comes through.
    """

    name = "blind-paper"
    labels: frozenset[str] = frozenset({"relay-blind"})
    authenticated = False
    heavy = True
    once = False

    def __init__(
        self,
        bfv: PaperBfv,
        public: Callable[[str], bytes],
        own: Callable[[], tuple[bytes, Secret]] | None = None,
    ) -> None:
        self._bfv = bfv
        self._public = public
        self._own = own

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        public = self._public(context.destination)
        texts = [self._bfv.originate(public, key.reveal()).value for key in keys]
        head = _HEAD.pack(context.size // 8) + context.destination.encode()
        return Payload(self.name, head, _BETWEEN.join(texts))

    def pad_bytes(self, payload: Payload) -> int:
        """Key bits only: nothing is authenticated. Raises Malformed."""
        size, _, texts = _parse(payload)
        return size * len(texts)

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        """Raises Malformed where OpenFHE refuses the ciphertext, Unavailable where it dies of it."""
        size, destination, texts = _parse(payload)
        public = self._public(destination)
        pads = zip(_cut(pad_in, size, len(texts)), _cut(pad_out, size, len(texts)), strict=True)
        moved = [
            self._bfv.relay(public, text, old, new).value
            for text, (old, new) in zip(texts, pads, strict=True)
        ]
        return Payload(payload.scheme, payload.head, _BETWEEN.join(moved))

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        """Whatever the ciphertexts decrypt to: there is no way to tell whether it is what the origin sent."""
        size, _, texts = _parse(payload)
        if self._own is None or size != context.size // 8 or len(texts) != len(context.key_ids):
            raise Malformed("the payload is not for these keys")
        public, secret = self._own()
        return [Secret(self._bfv.deliver(public, secret.reveal(), text, size).value) for text in texts]


def _parse(payload: Payload) -> tuple[int, str, list[bytes]]:
    """`(bytes a key, destination, ciphertexts)`."""
    texts = payload.body.split(_BETWEEN)
    if len(payload.head) <= _HEAD.size or max(map(len, texts)) > MOST_TEXT:
        raise Malformed("the payload has not the form of profile 'paper'")
    (size,) = _HEAD.unpack_from(payload.head)
    try:
        destination = payload.head[_HEAD.size :].decode()
    except UnicodeDecodeError:
        raise Malformed("the payload names no destination") from None
    return size, destination, texts


def _cut(pad: bytes | None, size: int, number: int) -> list[bytes]:
    """One piece a key; nothing for no pad."""
    if pad is None:
        return [b""] * number
    if len(pad) != size * number:
        raise Malformed("a pad is not as long as the keys")
    return [pad[at : at + size] for at in range(0, len(pad), size)]
