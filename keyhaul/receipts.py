"""Receipts made binding: hash-chained, and signed in batches off the path of keys.

Every row of a key holds the digests of what this node took in and passed on (`messages.receipts`). Here their
hashes are collected, and every few seconds sealed: a seal holds the hashes, the hash of the seal before it,
and the node's signature. So a node cannot later change, remove or date back what it said, and whoever holds a
seal can show it to others. One signature serves all keys of `EVERY` seconds; an operator who asks for a
trace has what is pending sealed at once.

A crash loses what was not sealed yet: such receipts are shown, and shown as unsealed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from keyhaul.control import Signer, Verifier
from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Row
from keyhaul.messages import labels, receipts
from keyhaul.ports import Clock, Ledger

EVERY = 10.0  # seconds between seals, if there is anything to seal
MOST = 4_096  # hashes in one seal
LATE = 30.0  # seconds after which a receipt should have been sealed
_SPACE, _HEAD = "receipts", "head"
_START = bytes(32)


class _Seal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: str
    number: int
    at: float
    before: bytes
    hashes: list[bytes]


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes
    certificate: bytes
    signature: bytes


class _Head(msgspec.Struct, frozen=True, array_like=True):
    number: int = 0
    hash: bytes = _START
    oldest: int = 1


class Receipts:
    """The chain of one node. `keep` is how many seconds seals stay; times are Unix seconds."""

    def __init__(self, signer: Signer, ledger: Ledger, clock: Clock, keep: float) -> None:
        self._signer = signer
        self._ledger = ledger
        self._clock = clock
        self._keep = keep
        self._pending: list[bytes] = []
        self._sealed_at = 0.0
        self._sealing = asyncio.Lock()

    def note(self, row: Row) -> None:
        """A message was taken in or sent: any row of it, after its commit."""
        said = {
            "node": self._signer.name,
            "leg": row.ref.leg,
            "upstream": row.upstream,
            "peers": row.peers,
            "took": row.took.hex(),
            "passed": {name: value.hex() for name, value in row.passed.items()},
            "created": row.created,
        }
        self._pending.append(_hash(said))

    async def seal_if_due(self) -> None:
        """Called once a second."""
        if self._clock.now() - self._sealed_at >= EVERY or len(self._pending) >= MOST:
            await self.seal()

    async def seal(self) -> None:
        """Chain and sign what is pending; nothing happens if nothing is. Raises StoreUnavailable."""
        async with self._sealing:
            while hashes := self._pending[:MOST]:
                await self._seal(hashes)
                del self._pending[: len(hashes)]

    async def _seal(self, hashes: list[bytes]) -> None:
        now = self._sealed_at = self._clock.now()
        head = await self._head()
        body = msgspec.msgpack.encode(_Seal(self._signer.name, head.number + 1, now, head.hash, hashes))
        signature = self._signer.sign(labels.RECEIPT_SEAL + body)
        sealed = msgspec.msgpack.encode(_Sealed(body, self._signer.der, signature))
        oldest = await self._expired(head, now)
        following = _Head(head.number + 1, hashlib.sha256(body).digest(), oldest)
        async with self._ledger.edit() as change:
            change.put(_SPACE, str(head.number + 1), sealed)
            change.put(_SPACE, _HEAD, msgspec.msgpack.encode(following))
            for number in range(head.oldest, oldest):
                change.erase(_SPACE, str(number))

    async def evidence(self, row: Mapping[str, Any]) -> bytes | None:
        """The seal that binds this node to a row's receipt, or None: not sealed before a crash, or pruned."""
        head, wanted = await self._head(), _hash(row)
        low, high = head.oldest, head.number + 1
        while low < high:  # the first seal made after the row was
            middle = (low + high) // 2
            seal = await self._read(middle)
            low, high = (low, middle) if seal is None or seal[0].at >= row["created"] else (middle + 1, high)
        for number in range(low, head.number + 1):
            found = await self._read(number)
            if found is None or found[0].at > row["created"] + LATE + EVERY:
                return None
            if wanted in found[0].hashes:
                return found[1]
        return None

    async def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row's summary with `seal`, its evidence in base64, or None."""
        found = await self.evidence(row)
        return {**row, "seal": None if found is None else base64.b64encode(found).decode()}

    async def _head(self) -> _Head:
        kept = await self._ledger.item(_SPACE, _HEAD)
        return _Head() if kept is None else msgspec.msgpack.decode(kept, type=_Head)

    async def _read(self, number: int) -> tuple[_Seal, bytes] | None:
        kept = await self._ledger.item(_SPACE, str(number))
        if kept is None:
            return None
        return msgspec.msgpack.decode(msgspec.msgpack.decode(kept, type=_Sealed).body, type=_Seal), kept

    async def _expired(self, head: _Head, now: float) -> int:
        """The first seal that stays, a hundred more than before at most."""
        for number in range(head.oldest, min(head.oldest + 100, head.number + 1)):
            found = await self._read(number)
            if found is not None and found[0].at + self._keep > now:
                return number
        return min(head.oldest + 100, head.number + 1)


def check(row: Mapping[str, Any], evidence: bytes, anchors: Verifier, now: float) -> tuple[int, bytes]:
    """That a node signed this row's receipt: `(number of the seal, hash of the seal before it)`.

    Raises Tampered or Malformed; Unauthorized for a certificate that no anchor vouches for.
    """
    try:
        sealed = msgspec.msgpack.decode(evidence, type=_Sealed)
        seal = msgspec.msgpack.decode(sealed.body, type=_Seal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Malformed("the seal of a receipt cannot be read") from None
    signer = anchors.verify(sealed.certificate, now)
    signer.check(sealed.signature, labels.RECEIPT_SEAL + sealed.body)
    if signer.name != seal.node or seal.node != row["node"] or _hash(row) not in seal.hashes:
        raise Tampered
    return seal.number, seal.before


def _hash(row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(receipts.statement(row)).digest()
