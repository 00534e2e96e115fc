"""One-time ML-KEM-768 keys: published ahead in signed batches, used for one message, then erased.

Publishing ahead saves the round trip of an on-demand exchange (paper A §IV-B needs three socket
messages a hop, unauthenticated). The private half stays in the ledger until the message that used it
is safely stored, so a retry after a crash can still be opened; after that, never again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric import mlkem

from keyhaul.control import Signer, Verifier
from keyhaul.errors import Malformed, Tampered
from keyhaul.kem import KEMS
from keyhaul.links.kept import KEEP, Kept
from keyhaul.messages import labels
from keyhaul.ports import Change, Clock, Ledger

ID_BYTES = 16
MAX_BATCH = 256
MOST = 16 * MAX_BATCH
"""Unspent private halves held for one neighbour.

So the key of a message under way outlives at least fifteen full batches that are lost after it, about half
a minute of a neighbour's tries; without loss a neighbour has less than two batches.
"""
PARSED = 32
"""How many private halves are held ready to compute with, 8 KiB each; parsing another one takes 0.07 ms."""
_SIZES = KEMS["ml-kem-768"]


class OneTimeKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The public half of one key."""

    id: bytes
    public: bytes

    def encapsulate(self) -> tuple[bytes, bytes]:
        """`(secret of 32 bytes, ciphertext)`."""
        return mlkem.MLKEM768PublicKey.from_public_bytes(self.public).encapsulate()


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Public halves for one neighbour, signed by the node that holds the private ones."""

    keys: bytes
    certificate: bytes
    signature: bytes


def sign_batch(keys: Sequence[OneTimeKey], signer: Signer, receiver: str) -> Batch:
    """A batch that only `receiver` can use and only `signer` can have made."""
    body = msgspec.msgpack.encode(list(keys))
    return Batch(body, signer.der, signer.sign(_signed(signer.name, receiver, body)))


def check_batch(batch: Batch, anchors: Verifier, sender: str, receiver: str, now: float) -> list[OneTimeKey]:
    """The keys, if `sender` made them for `receiver`. Raises Unauthorized, Tampered or Malformed."""
    signer = anchors.verify(batch.certificate, now)
    if signer.name != sender:
        raise Tampered
    signer.check(batch.signature, _signed(sender, receiver, batch.keys))
    try:
        keys = msgspec.msgpack.decode(batch.keys, type=list[OneTimeKey])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"the batch of one-time keys cannot be read ({error})") from None
    if len(keys) > MAX_BATCH or any(
        len(key.id) != ID_BYTES or len(key.public) != _SIZES.public for key in keys
    ):
        raise Malformed("the batch of one-time keys has an entry out of range")
    return keys


def _signed(sender: str, receiver: str, body: bytes) -> bytes:
    return labels.KEM_BATCH + msgspec.msgpack.encode([sender, receiver]) + body


class OneTimeKeys:
    """The private halves that this node holds for one neighbour."""

    def __init__(
        self, peer: str, ledger: Ledger, clock: Clock, *, most: int = MOST, keep: float = KEEP
    ) -> None:
        """At most about `most` are held, for `keep` seconds."""
        self._space = f"kem/{peer}"
        self._ledger = ledger
        self._kept = Kept(self._space, ledger, clock, most, keep)
        self._warm: dict[bytes, mlkem.MLKEM768PrivateKey | bytes] = {}  # parsed, or the seed

    async def make(self, number: int) -> list[OneTimeKey]:
        """New key pairs, durable before anyone sees the public halves."""
        number = min(number, MAX_BATCH)
        pairs = []
        for _ in range(number):
            pairs.append(_generate())
            await asyncio.sleep(0)  # ~0.1 ms each: requests in between must not wait for the batch
        async with self._ledger.edit() as change:
            for key_id, key, _ in pairs:
                self._kept.put(change, key_id.hex(), key.private_bytes_raw())
        for key_id, key, _ in pairs:
            self._warm[key_id] = key if len(self._warm) < PARSED else key.private_bytes_raw()
        if self._kept.crowded:
            await self.prune()
        return [OneTimeKey(key_id, public) for key_id, _, public in pairs]

    async def prune(self) -> None:
        """Erase private halves that no message came for; a message that still comes is refused."""
        for name in await self._kept.prune():
            self._warm.pop(bytes.fromhex(name), None)

    async def decapsulate(self, key_id: bytes, ciphertext: bytes) -> bytes:
        """The secret of one message. Raises Malformed if the key is unknown or was used before."""
        if len(ciphertext) != _SIZES.ciphertext:
            raise Malformed("the KEM ciphertext has the wrong length")
        key = self._warm.get(key_id) or await self._kept.get(key_id.hex())
        if key is None:
            raise Malformed(
                "the message is sealed under a one-time key that is not here",
                "send the keys again as a new message",
            )
        if isinstance(key, bytes):
            key = mlkem.MLKEM768PrivateKey.from_seed_bytes(key)
        # A key used before may still be warm; spending it a second time fails the commit.
        return key.decapsulate(ciphertext)

    def spend(self, change: Change, key_id: bytes) -> None:
        """Erase the private half, in the commit that stores the message."""
        change.spend(self._space, key_id.hex())

    def cool(self, key_id: bytes) -> None:
        """Let go of the parsed key after its message was stored."""
        self._warm.pop(key_id, None)


def _generate() -> tuple[bytes, mlkem.MLKEM768PrivateKey, bytes]:
    key = mlkem.MLKEM768PrivateKey.generate()
    return os.urandom(ID_BYTES), key, key.public_key().public_bytes_raw()
