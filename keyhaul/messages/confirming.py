"""The destination's word to the origin that it holds a key: one tag a key, which no relay can make.

Acknowledgements travel hop by hop, and each hop believes its neighbour. So the destination adds a tag under
the secret it shares with the origin; relays hand it on as they got it. The origin knows what it must be
before the key leaves, and releases no key without it.

In the place of a proof a failure may have the word that a neighbour could not open what was sent: the devices
of that link disagree, and the same keys sent again would go under others. It is advice, no proof.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from keyhaul.messages import labels
from keyhaul.messages.envelope import tag
from keyhaul.messages.etsi020 import MAX_IDS, Ack, AckStatus
from keyhaul.messages.payload import TAG_BYTES, Context, Pair
from keyhaul.messages.wrapping import name

VERSION = 1

UNOPENED = b"unopened"

Saes = tuple[str, tuple[str, ...]]
"""Initiator and targets."""


class _Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    proofs: str


def confirmations(pair: Pair, context: Context) -> dict[UUID, bytes]:
    """What the destination confirms each key with, 16 bytes; bound to everything the origin vouched for."""
    secret, transcript = pair.secret.reveal(), hashlib.sha384(context.transcript()).digest()
    return {
        key_id: tag(secret, labels.CONFIRMATION, pair.id, transcript, key_id.bytes)
        for key_id in context.key_ids
    }


def acks(
    outcomes: Sequence[tuple[UUID, bytes]],
    status: AckStatus,
    saes: Saes,
    pen: int,
) -> list[Ack]:
    """Acknowledgements of keys that share status, initiator and targets, with their proofs.

    Keys without a proof (`b""`) go by themselves, as plain 020 has them.
    """
    bare = tuple(key_id for key_id, proof in outcomes if not proof)
    unopened = tuple(key_id for key_id, proof in outcomes if proof == UNOPENED)
    proved = [(key_id, proof) for key_id, proof in outcomes if proof not in (b"", UNOPENED)]
    found = [Ack(bare, status, *saes)] if bare else []
    if unopened:
        found.append(Ack(unopened, status, *saes, extension={_unopened(pen): msgspec.Raw(b"true")}))
    for start in range(0, len(proved), MAX_IDS):
        part = proved[start : start + MAX_IDS]
        said = _Extension(VERSION, base64.b64encode(b"".join(proof for _, proof in part)).decode())
        extension: dict[str, Any] = {name(pen): msgspec.Raw(msgspec.json.encode(said))}
        found.append(Ack(tuple(key_id for key_id, _ in part), status, *saes, extension=extension))
    return found


def _unopened(pen: int) -> str:
    return f"E{pen}_unopened"


def proofs_of(ack: Ack, pen: int) -> list[bytes]:
    """One proof for each key id of an acknowledgement, or `UNOPENED`; `b""` where none can be read."""
    nothing = [b""] * len(ack.key_ids)
    if ack.status is AckStatus.FAILED and _unopened(pen) in ack.extension:
        return [UNOPENED] * len(ack.key_ids)
    raw = ack.extension.get(name(pen))
    if raw is None:
        return nothing
    try:
        said = msgspec.json.decode(raw, type=_Extension)
        proofs = base64.b64decode(said.proofs, validate=True)
    except (msgspec.MsgspecError, ValueError):  # not base64, not UTF-8
        return nothing
    if said.v != VERSION or len(proofs) != TAG_BYTES * len(ack.key_ids):
        return nothing
    return [proofs[at : at + TAG_BYTES] for at in range(0, len(proofs), TAG_BYTES)]
