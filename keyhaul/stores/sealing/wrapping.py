"""How a slot writes and reads its data: base64 members, and the root under AES-256-GCM."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing.keyfile import RESTORE, ROOT_BYTES

NONCE_BYTES = 12
TAG_BYTES = 16
WRAPPED_BYTES = ROOT_BYTES + TAG_BYTES


class WrongKey(SealError):
    """Authentic decryption failed: the key is another one, or the bytes were changed."""


def associated(kind: str) -> bytes:
    """The associated data of a wrapped root: a blob of one kind of slot is none of another."""
    return f"keyhaul root v1 {kind}".encode()


def wrap_under(key: bytes, root: Secret, kind: str) -> dict[str, Any]:
    """The root (32 bytes) under a 32-byte key that serves this one wrapping."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, root.reveal(), associated(kind))
    return {"nonce": encode(nonce), "sealed": encode(sealed)}


def unwrap_under(key: bytes, data: dict[str, Any], kind: str) -> Secret:
    """The root again. WrongKey if the key does not fit."""
    nonce = decode(data, "nonce", NONCE_BYTES)
    sealed = decode(data, "sealed", WRAPPED_BYTES)
    try:
        return Secret(AESGCM(key).decrypt(nonce, sealed, associated(kind)))
    except InvalidTag:
        raise WrongKey(f"the {kind} slot does not open with this key") from None


def encode(value: bytes) -> str:
    """Base64 (RFC 4648, 4) for a JSON member."""
    return base64.b64encode(value).decode("ascii")


def decode(data: dict[str, Any], name: str, size: int | None = None, at_most: int = 4096) -> bytes:
    """A base64 member of exactly `size` bytes, or of 1 to `at_most` bytes. SealError otherwise."""
    try:
        value = base64.b64decode(data[name], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise damaged(name) from None
    if (size is not None and len(value) != size) or not 1 <= len(value) <= at_most:
        raise damaged(name)
    return value


def damaged(name: str) -> SealError:
    """The slot's data does not have the shape that `wrap` gave it."""
    return SealError(f"the data of the key slot is damaged ({name})", RESTORE)
