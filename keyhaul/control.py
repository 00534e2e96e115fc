"""What nodes tell each other about themselves: signed descriptors, flooded from neighbour to neighbour.

A descriptor carries the public keys under which others send to its node. It is signed by the node's
identity, so it may come by way of nodes nobody trusts. Rules, all in `Directory.receive`:

1. the certificate is issued by an anchor of the federation, by the CA of the very domain that the
   configuration puts the node in, and names the node the descriptor is for;
2. the signature covers every byte of the body;
3. a descriptor that expired, or was issued too far in the future, is refused;
4. a sequence number never goes back: an older descriptor than the one held is ignored;
5. what is new is passed on to every neighbour but the one it came from.

Pure: time comes in, messages go out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from keyhaul.errors import Malformed, Tampered, Unauthorized, Unavailable
from keyhaul.messages import labels

CLOCK_SKEW = 300.0  # seconds a sender's clock may run ahead of ours
MAX_RECORDS = 4096
KEM_PUBLIC_BYTES = 1184  # ML-KEM-768 encapsulation key, FIPS 203
CIPHERTEXT_BYTES = 1088  # ML-KEM-768, FIPS 203


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


class Descriptor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One node's public keys. `issued`, `expires`: Unix seconds; `kem_public`: ML-KEM-768, 1,184 bytes."""

    node: str
    domain: str
    sequence: int
    issued: float
    expires: float
    kem_id: bytes
    kem_public: bytes


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A descriptor as it travels: its bytes, the signer's certificate (DER), the signature."""

    body: bytes
    certificate: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """A descriptor that passed all rules, with the certificate that vouches for it."""

    descriptor: Descriptor
    signer: Verified
    record: Record


_decode_body = msgspec.msgpack.Decoder(Descriptor).decode
_decode_records = msgspec.msgpack.Decoder(list[Record]).decode


def encode_records(records: Sequence[Record]) -> bytes:
    """The body of one POST to a neighbour."""
    return msgspec.msgpack.encode(list(records))


def decode_records(body: bytes) -> list[Record]:
    """Raises Malformed."""
    try:
        records = _decode_records(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not a list of records ({error})") from None
    if len(records) > MAX_RECORDS:
        raise Malformed(f"more than {MAX_RECORDS} records in one message")
    return records


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
        """Take in one record; the answer is what is new and should be flooded, or None.

        Raises Malformed, Unauthorized or Tampered; then nothing changed.
        """
        try:
            descriptor = _decode_body(record.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"the record holds no descriptor ({error})") from None
        held = self._known.get(descriptor.node)
        if held is not None and held.descriptor.sequence >= descriptor.sequence:
            return None
        # Written so that a NaN fails.
        if not (descriptor.issued <= now + CLOCK_SKEW and now < descriptor.expires < math.inf):
            raise Unauthorized(
                f"the descriptor of {descriptor.node!r} is expired or from the future",
                "check the clocks of both nodes",
            )
        if len(descriptor.kem_public) != KEM_PUBLIC_BYTES:
            raise Malformed("the descriptor's key has the wrong length")
        signer = self._anchors.verify(record.certificate, now)
        # Any CA of the federation could sign any name; only its own domain's nodes count.
        domain = self._domains.get(descriptor.node)
        if domain is None or not domain == descriptor.domain == signer.domain:
            raise Tampered
        if signer.name != descriptor.node:
            raise Tampered
        signer.check(record.signature, labels.DESCRIPTOR + record.body)
        self._known[descriptor.node] = known = Known(descriptor, signer, record)
        return known

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

    def nodes(self) -> list[str]:
        return sorted(self._known)
