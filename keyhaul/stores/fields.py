"""Seals single values inside the encrypted database, each bound to the place it was saved in.

The page encryption of the database keeps pages secret on disk; SQLite still holds decrypted pages in
its caches. A value sealed here stays ciphertext there too, and it opens only beside the very metadata
it was saved with: whoever holds the page key but not the field key can neither read a value nor move
it to another row.

    value key  = HMAC-SHA-256(field key, label ‖ 12 random bytes)
    sealed     = 12 salt bytes ‖ 12 nonce bytes ‖ AES-256-GCM(value key, nonce, value, place)

SP 800-38D §8.3 allows 2^32 random nonces under one AES-GCM key, which a busy node's replay marks
use up within days. With a fresh key per write the 24 random bytes act as one nonce, the construction
of XAES-256-GCM with HMAC in place of CMAC: good for 2^80 writes, so nothing needs counting.

Values that are saved together share the 24 random bytes (`seal_each`): the number of a value is added to
the last byte of the nonce without carry, and stands in its associated data, so no nonce serves two.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyhaul.errors import SealError, Tampered
from keyhaul.keys import Secret

FIELD_KEY_BYTES = 32
HEAD_BYTES = 12 + 12
TAG_BYTES = 16
OVERHEAD_BYTES = HEAD_BYTES + TAG_BYTES
_LABEL = b"keyhaul/v1/store/field"
_EACH_LABEL = b"keyhaul/v1/store/fields"


class Opener:
    """Opens values that were sealed together, one by one."""

    __slots__ = ("_cipher", "_head", "_where")

    def __init__(self, cipher: AESGCM, head: bytes, where: bytes) -> None:
        self._cipher = cipher
        self._head = head
        self._where = where

    def open(self, number: int, sealed: bytes) -> bytearray:
        """A value by its number, in a buffer the caller may wipe. Raises Tampered."""
        value = bytearray(len(sealed) - TAG_BYTES)
        try:
            nonce = _nonce(self._head, number)
            self._cipher.decrypt_into(nonce, sealed, self._where + bytes((number,)), value)
        except InvalidTag:
            raise Tampered from None
        return value


class FieldCipher:
    """AES-256-GCM under keys derived from one 32-byte field key, of which it keeps a copy."""

    def __init__(self, field_key: Secret) -> None:
        if len(field_key) != FIELD_KEY_BYTES:
            raise SealError(f"the field key has {len(field_key)} bytes instead of {FIELD_KEY_BYTES}")
        self._key = bytearray(field_key.reveal())

    def seal(self, value: bytes, place: bytes) -> bytes:
        """`value` encrypted, authentic only together with `place`; 40 bytes longer."""
        prefix = os.urandom(24)
        return prefix + self._cipher(prefix).encrypt(prefix[12:], value, place)

    def open(self, sealed: bytes, place: bytes) -> bytearray:
        """The value in a buffer the caller may wipe. Raises Tampered if sealed for another place."""
        if len(sealed) < OVERHEAD_BYTES:
            raise Tampered
        value = bytearray(len(sealed) - OVERHEAD_BYTES)
        try:
            self._cipher(sealed).decrypt_into(sealed[12:24], sealed[24:], place, value)
        except InvalidTag:
            raise Tampered from None
        return value

    def seal_each(self, values: Iterable[tuple[int, bytes]], place: bytes) -> tuple[bytes, list[bytes]]:
        """Values with their numbers (0 to 255, each once): the head they share, and each one sealed."""
        head = os.urandom(HEAD_BYTES)
        cipher, where = self._cipher(head, _EACH_LABEL), hashlib.sha256(place).digest()
        return head, [
            cipher.encrypt(_nonce(head, number), value, where + bytes((number,))) for number, value in values
        ]

    def opener(self, head: bytes, place: bytes) -> Opener:
        """What opens the values of one `seal_each`; it holds a key of its own and outlives `wipe`."""
        return Opener(self._cipher(head, _EACH_LABEL), head, hashlib.sha256(place).digest())

    def wipe(self) -> None:
        """Overwrite the key; the cipher is of no use afterwards."""
        self._key[:] = bytes(len(self._key))

    def _cipher(self, sealed: bytes, label: bytes = _LABEL) -> AESGCM:
        return AESGCM(hmac.digest(self._key, label + sealed[:12], "sha256"))


def _nonce(head: bytes, number: int) -> bytes:
    return head[12:23] + bytes(((head[23] + number) & 0xFF,))
