"""What a scheme turns keys into, what the origin vouches for, and the three verbs of a scheme.

Values and a Protocol; the schemes themselves are in `keyhaul.schemes`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.messages import labels
from keyhaul.messages.envelope import tag

TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Context:
    """What the origin vouches for besides the bits: everything a relay could otherwise swap.

    `size` is bits per key, `expires` whole Unix seconds, `route` the nodes from origin to destination,
    `carried` what the destination hands over beside the keys (`messages.carrying`), mostly nothing.
    """

    scheme: str
    origin: str
    destination: str
    initiator: str
    targets: tuple[str, ...]
    key_ids: tuple[UUID, ...]
    size: int
    expires: int
    route: tuple[str, ...]
    trust: tuple[tuple[str, str], ...]
    carried: bytes = b""

    def transcript(self) -> bytes:
        """One byte string for one context (msgpack arrays of fixed order are unambiguous)."""
        said: list[object] = [
            self.scheme,
            self.origin,
            self.destination,
            self.initiator,
            list(self.targets),
            [key_id.bytes for key_id in self.key_ids],
            self.size,
            self.expires,
            list(self.route),
            [list(pair) for pair in self.trust],
        ]
        if self.carried:
            said.append(self.carried)
        return msgspec.msgpack.encode(said)


@dataclass(frozen=True, slots=True, repr=False)
class Payload:
    """What travels: `head` in the clear of the inner message, `body` under the pads.

    `body` starts with one slice of `size` bits per key; what follows is the scheme's own (a tag).
    """

    scheme: str
    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Pair:
    """A secret that exactly one origin and one destination share, and how to tell the other end.

    `statement` is the origin's signed encapsulation; empty once the destination is known to hold it.
    """

    id: bytes
    secret: Secret
    statement: bytes = b""


NO_PAIR = Pair(b"", Secret(b""))
"""For the one scheme in which the origin authenticates nothing."""


class Scheme(Protocol):
    """The plug-in interface: three verbs and what they promise (design §2).

    `labels` name the promise; a path policy demands labels and refuses weaker schemes.
    """

    name: str
    labels: frozenset[str]
    authenticated: bool  # whether the origin vouches for the payload; only `paper-a` does without
    heavy: bool  # whether the ends compute so long over much key that the loop must not wait
    once: bool  # whether each payload has a pair secret of its own

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        """At the origin's node: keys of equal size to a payload without any pad yet."""

    def pad_bytes(self, payload: Payload) -> int:
        """How many bytes of pad one hop needs."""

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        """Take one pad off, put the next on. The origin has no `pad_in`, the destination no `pad_out`."""

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        """At the destination, all pads off: the keys. Raises Tampered before anything is stored."""


class Renewing(Protocol):
    """A scheme whose relays re-randomise what passes them."""

    def renew(self, payload: Payload, context: Context) -> Payload:
        """At a relay, no pad on: another form of the same keys. Raises Malformed or Unavailable."""

    def steady(self, payload: Payload) -> Payload:
        """What honest relays leave alone, for receipts."""


def renewing(scheme: Scheme) -> Renewing | None:
    """The scheme, if it is one of these."""
    return cast(Renewing, scheme) if hasattr(scheme, "renew") else None


def stream(pair: Pair, context: Context, label: bytes, length: int) -> bytes:
    """Bytes that only the two ends of a pair can make, others for each context and each label."""
    info = label + hashlib.sha384(context.transcript()).digest()
    key = HKDF(hashes.SHA384(), 48, pair.id, info).derive(pair.secret.reveal())
    return hashlib.shake_256(key).digest(length)


def origin_tag(pair: Pair, context: Context, *parts: bytes) -> bytes:
    """The origin's tag over context and payload under the pair's secret; it travels under the pad.

    A tag made from the key itself would end the information-theoretic claim on the wire if it went
    in the clear, and would let a relay substitute a key with a tag of its own (blind relay study, §5).
    """
    return tag(pair.secret.reveal(), labels.ORIGIN_TAG, pair.id, context.transcript(), *parts)


def check_origin_tag(pair: Pair, context: Context, given: bytes, *parts: bytes) -> None:
    """Raises Tampered, always the same way, unless the tag is the origin's."""
    if not hmac.compare_digest(origin_tag(pair, context, *parts), given):
        raise Tampered


def split_keys(body: bytes, context: Context) -> tuple[list[bytes], bytes]:
    """`(one slice a key, the rest)`. Raises Malformed when the body is too short."""
    width = context.size // 8
    end = width * len(context.key_ids)
    if len(body) < end:
        raise Malformed("the payload is shorter than the keys it announces")
    return [body[at : at + width] for at in range(0, end, width)], body[end:]
