"""Seals single values of the store under a key that is not made from the store's root.

For private halves that only one chip shall open: whoever has the store and its root, from a backup and
a recovery passphrase, say, has them as ciphertext still.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyhaul.destination import SEALED
from keyhaul.keys import Secret

_NONCE = 12  # bytes


class ItemSeal:
    """AES-256-GCM; place and name of a value are authenticated, so none can be put in another's place."""

    def __init__(self, key: Secret) -> None:
        self._cipher = AESGCM(key.reveal())

    def seal(self, space: str, name: str, value: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return SEALED + nonce + self._cipher.encrypt(nonce, value, _place(space, name))

    def unseal(self, space: str, name: str, value: bytes) -> bytes | None:
        """None for what was sealed under another key, or not at all."""
        start = len(SEALED)
        if not value.startswith(SEALED):
            return None
        nonce, sealed = value[start : start + _NONCE], value[start + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, sealed, _place(space, name))
        except (InvalidTag, ValueError):
            return None


def _place(space: str, name: str) -> bytes:
    return f"{space}\0{name}".encode()
