"""What nodes tell each other about themselves: signed descriptors, flooded from neighbour to neighbour.

A descriptor carries the public keys under which others send to its node, each named by a profile id that
stands for every parameter, and what the node takes part in. It is signed by the node's identity, so it may
come by way of nodes nobody trusts. Rules, all in `Directory.receive`:

1. the certificate is issued by an anchor of the federation, by the CA of the very domain that the
   configuration puts the node in, and names the node the descriptor is for;
2. the signature covers every byte of the body;
3. a descriptor that expired, or was issued too far in the future, is refused;
4. a sequence number never goes back: an older descriptor than the one held is ignored, and of two under
   one number the one whose bytes come later counts;
5. keys of profiles that are known here have their exact length, and no profile stands there twice;
6. what is new is passed on to every neighbour but the one it came from.

Pure: time comes in, messages go out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from keyhaul.errors import Malformed, Tampered, Unauthorized, Unavailable
from keyhaul.kem import KEMS
from keyhaul.messages import labels

CLOCK_SKEW = 300.0  # seconds a sender's clock may run ahead of ours
MAX_RECORDS = 4096
MAX_KEYS = 16  # of one descriptor
MAX_KEY_BYTES = 1 << 19  # of a key whose profile is not known here
MAX_WORDS = 32  # schemes and labels of one descriptor
ID_BYTES = 16

PUBLIC_BYTES: Mapping[str, int] = {
    **{name: sizes.public for name, sizes in KEMS.items()},
    "bfv-dense": 4353,
    "bfv-dense-25": 6401,
}
"""Bytes of a public key by profile id (`keyhaul.kem`, `keyhaul.schemes.bfv`)."""

BASELINE = ("trusted", "masked")
"""Schemes every node takes part in."""


def key_id(public: bytes) -> bytes:
    """The name of an announced key: 16 bytes of its hash, so that no two keys share one."""
    return hashlib.sha256(public).digest()[:ID_BYTES]


class Signer(Protocol):
    """A node's own identity."""

    @property
    def name(self) -> str: ...
    @property
    def der(self) -> bytes: ...
    def sign(self, message: bytes) -> bytes: ...


class Verified(Protocol):
    """A certificate that an anchor vouches for."""

    @property
    def name(self) -> str: ...
    @property
    def domain(self) -> str | None: ...
    def check(self, signature: bytes, message: bytes) -> None: ...


class Verifier(Protocol):
    """The federation's trust anchors."""

    def verify(self, der: bytes, now: float) -> Verified: ...


class PublicKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One announced key: a profile id, the key's bytes, and its epoch in Unix seconds."""

    profile: str
    public: bytes
    issued: float
    expires: float

    @property
    def id(self) -> bytes:
        return key_id(self.public)


class Descriptor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One node: its public keys, the schemes it takes part in, the labels it vouches for.

    `issued`, `expires`: Unix seconds. Keys of profiles unknown here are passed on and not used.
    """

    node: str
    domain: str
    sequence: int
    issued: float
    expires: float
    keys: tuple[PublicKey, ...]
    schemes: tuple[str, ...] = BASELINE
    labels: tuple[str, ...] = ()


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A descriptor as it travels: its bytes, the signer's certificate (DER), the signature."""

    body: bytes
    certificate: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """A descriptor that passed all rules, with the certificate that vouches for it.

    `before`: the keys that the node announced in the descriptor before.
    """

    descriptor: Descriptor
    signer: Verified
    record: Record
    before: tuple[PublicKey, ...] = ()

    @property
    def stamp(self) -> tuple[int, bytes]:
        """What names this descriptor among all of its node, see `Stamps`."""
        return self.descriptor.sequence, hashlib.sha256(self.record.body).digest()[:ID_BYTES]

    def key(self, profile: str, now: float) -> PublicKey:
        """The announced key of a profile. Raises Unavailable while there is none, or an expired one."""
        for key in self.descriptor.keys:
            if key.profile == profile and key.issued - CLOCK_SKEW <= now < key.expires:
                return key
        raise Unavailable(
            f"node {self.descriptor.node!r} announces no current {profile} key",
            "ask for another scheme or kem, or enable it there",
        )


Stamps = dict[str, tuple[int, bytes]]
"""By node, which descriptor somebody holds: its sequence number and 16 bytes of the hash of its body."""

_decode_body = msgspec.msgpack.Decoder(Descriptor).decode
_decode_told = msgspec.msgpack.Decoder(list[Record] | Stamps).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode


def encode_records(records: Sequence[Record]) -> bytes:
    """The body of one POST to a neighbour."""
    return msgspec.msgpack.encode(list(records))


def encode_stamps(stamps: Stamps) -> bytes:
    """The body of a POST that asks a neighbour which records it lacks."""
    return msgspec.msgpack.encode(stamps)


def decode_told(body: bytes) -> list[Record] | Stamps:
    """What a neighbour posted: records, or the stamps of those it holds. Raises Malformed."""
    try:
        told: list[Record] | Stamps = _decode_told(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is neither records nor stamps of records ({error})") from None
    if len(told) > MAX_RECORDS:
        raise Malformed(f"more than {MAX_RECORDS} records in one message")
    return told


def encode_names(nodes: Sequence[str]) -> bytes:
    """The answer to stamps: of which nodes the records are wanted."""
    return msgspec.msgpack.encode(list(nodes))


def decode_names(body: bytes) -> list[str]:
    """Raises Malformed."""
    try:
        return _decode_names(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"the answer is not a list of nodes ({error})") from None


def publish(descriptor: Descriptor, signer: Signer) -> Record:
    """Sign a descriptor of one's own."""
    body = msgspec.msgpack.encode(descriptor)
    return Record(body, signer.der, signer.sign(labels.DESCRIPTOR + body))


class Directory:
    """The newest authentic descriptor of every node, and what to pass on."""

    def __init__(self, anchors: Verifier, domains: Mapping[str, str]) -> None:
        self._anchors = anchors
        self._domains = domains  # node -> domain
        self._known: dict[str, Known] = {}

    def receive(self, record: Record, now: float) -> Known | None:
        """Hold one record; the answer is what is new and should be flooded, or None. Raises like `check`."""
        known = self.check(record, now)
        if known is not None:
            self.take(known)
        return known

    def check(self, record: Record, now: float) -> Known | None:
        """What `take` would hold from now on, if this record is newer than what is held; nothing changes.

        Raises Malformed, Unauthorized or Tampered.
        """
        try:
            descriptor = _decode_body(record.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"the record holds no descriptor ({error})") from None
        held = self._known.get(descriptor.node)
        if held is not None and _order(held.descriptor, held.record) >= _order(descriptor, record):
            return None
        # Written so that a NaN fails.
        if not (descriptor.issued <= now + CLOCK_SKEW and now < descriptor.expires < math.inf):
            raise Unauthorized(
                f"the descriptor of {descriptor.node!r} is expired or from the future",
                "check the clocks of both nodes",
            )
        _check_content(descriptor)
        signer = self._anchors.verify(record.certificate, now)
        # Any CA of the federation could sign any name; only its own domain's nodes count.
        domain = self._domains.get(descriptor.node)
        if domain is None or not domain == descriptor.domain == signer.domain:
            raise Tampered
        if signer.name != descriptor.node:
            raise Tampered
        signer.check(record.signature, labels.DESCRIPTOR + record.body)
        return Known(descriptor, signer, record, held.descriptor.keys if held is not None else ())

    def take(self, known: Known) -> None:
        """Hold what was checked, unless something newer came meanwhile."""
        node = known.descriptor.node
        self._known[node] = newest(known, self._known.get(node))

    def change(self, domains: Mapping[str, str]) -> None:
        """Another network: what was known of nodes that are not in it, or in another domain, is forgotten."""
        self._domains = domains
        self._known = {
            name: known for name, known in self._known.items() if domains.get(name) == known.descriptor.domain
        }

    def overtaken(self, record: Record) -> Known | None:
        """What is held of the node that a record speaks of, if that is newer. Raises Malformed."""
        try:
            descriptor = _decode_body(record.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"the record holds no descriptor ({error})") from None
        held = self._known.get(descriptor.node)
        if held is not None and _order(held.descriptor, held.record) > _order(descriptor, record):
            return held
        return None

    def newer(self, node: str, stamps: Stamps) -> Known | None:
        """What is held of a node, if these stamps are of somebody who holds an older one."""
        held, stamp = self._known.get(node), stamps.get(node)
        return None if held is None or stamp is None or held.descriptor.sequence <= stamp[0] else held

    def get(self, node: str, now: float) -> Known:
        """The descriptor of a node. Raises Unavailable while none, or only an expired one, is known."""
        known = self._known.get(node)
        if known is None or known.descriptor.expires <= now:
            raise Unavailable(
                f"the public keys of node {node!r} have not arrived here",
                "it is down, cut off, or its certificate is of another federation",
            )
        return known

    def __contains__(self, node: str) -> bool:
        return node in self._known

    def known(self, now: float = 0.0) -> list[Known]:
        """All that a new neighbour should hear: what has not expired at Unix time `now`."""
        return [known for known in self._known.values() if known.descriptor.expires > now]

    def lacking(self, stamps: Stamps) -> list[str]:
        """Of which nodes of the network somebody with these stamps holds something newer, or other."""
        return [node for node, stamp in stamps.items() if node in self._domains and self._lacks(node, stamp)]

    def _lacks(self, node: str, stamp: tuple[int, bytes]) -> bool:
        held = self._known.get(node)
        if held is None or held.descriptor.sequence < stamp[0]:
            return True
        return held.descriptor.sequence == stamp[0] and held.stamp != stamp

    def nodes(self) -> list[str]:
        return sorted(self._known)


def newest(known: Known, other: Known | None) -> Known:
    """Of two descriptors of one node the one that all will hold."""
    both = known if other is None else other, known
    return max(both, key=lambda each: _order(each.descriptor, each.record))


def _order(descriptor: Descriptor, record: Record) -> tuple[int, bytes]:
    """Which of two is newer. A restored node may use a number twice: all hold the same one."""
    return descriptor.sequence, record.body


def _check_content(descriptor: Descriptor) -> None:
    """Raises Malformed for keys that cannot be what their profile says, or too much of anything."""
    profiles = [key.profile for key in descriptor.keys]
    if len(profiles) > MAX_KEYS or len(set(profiles)) < len(profiles):
        raise Malformed("the descriptor has too many keys, or two of one profile")
    for key in descriptor.keys:
        wanted = PUBLIC_BYTES.get(key.profile)
        if len(key.public) > MAX_KEY_BYTES or wanted not in (None, len(key.public)):
            raise Malformed("a key of the descriptor has the wrong length")
        # Written so that a NaN fails.
        if not key.issued < key.expires < math.inf:
            raise Malformed("a key of the descriptor has no time")
    if len(descriptor.schemes) + len(descriptor.labels) > MAX_WORDS:
        raise Malformed("the descriptor names too many schemes and labels")
