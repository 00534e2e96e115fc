"""Secrets for the holder of an announced key: three kinds of encapsulation, each named by a profile id.

`ml-kem-768` and `ml-kem-1024` are FIPS 203 as they are. `ml-kem-768+x25519` holds if either of the two
holds: a fresh secret is encrypted by HPKE (RFC 9180) under its hybrid KEM. All of it is the library's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from keyhaul.errors import Malformed, Tampered
from keyhaul.messages import labels

SECRET_BYTES = 32
_SEED_768, _PUBLIC_768 = 64, 1184
_SEALING = hpke.Suite(hpke.KEM.MLKEM768, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM)
_HPKE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a public key and of a ciphertext."""

    public: int
    ciphertext: int


KEMS = {
    "ml-kem-768": Sizes(_PUBLIC_768, 1088),
    "ml-kem-1024": Sizes(1568, 1568),
    "ml-kem-768+x25519": Sizes(_PUBLIC_768 + 32, 1088 + 32 + SECRET_BYTES + 16),
}
"""Profile ids; FIPS 203 table 3, RFC 7748, and the AEAD tag of HPKE's ciphertext."""

DEFAULT = "ml-kem-768"
SEAL_OVERHEAD = KEMS[DEFAULT].ciphertext + 16
"""Bytes that `seal` adds: encapsulation and AEAD tag."""


class PrivateKey:
    """The half that opens what others encapsulated. `public` is what they need for it."""

    def __init__(self, kem: str, seed: bytes) -> None:
        """Raises ValueError for a seed of another kind."""
        self.kem = kem
        self._key: Any
        if kem == "ml-kem-768":
            self._key = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
            self.public = self._key.public_key().public_bytes_raw()
        elif kem == "ml-kem-1024":
            self._key = mlkem.MLKEM1024PrivateKey.from_seed_bytes(seed)
            self.public = self._key.public_key().public_bytes_raw()
        else:
            first = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:_SEED_768])
            second = x25519.X25519PrivateKey.from_private_bytes(seed[_SEED_768:])
            self._key = hpke.MLKEM768X25519PrivateKey(first, second)
            self.public = first.public_key().public_bytes_raw() + second.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte secret. Raises Tampered for what nobody encapsulated, as far as that can be seen.

        ML-KEM alone answers any ciphertext of the right length, a wrong one with a random secret.
        """
        if len(ciphertext) != KEMS[self.kem].ciphertext:
            raise Tampered
        if self.kem != "ml-kem-768+x25519":
            return bytes(self._key.decapsulate(ciphertext))
        try:
            secret = _HPKE.decrypt(ciphertext, self._key, labels.HYBRID_KEM)
        except (InvalidTag, ValueError):
            raise Tampered from None
        return secret

    def unseal(self, sealed: bytes) -> bytes:
        """What `seal` was given. Raises Tampered."""
        if self.kem != DEFAULT:
            raise Tampered
        try:
            return bytes(_SEALING.decrypt(sealed, self._key, labels.NOTE))
        except (InvalidTag, ValueError):
            raise Tampered from None


def generate(kem: str) -> bytes:
    """The seed of a new key pair, from the operating system."""
    return os.urandom(_SEED_768 + 32 if kem == "ml-kem-768+x25519" else _SEED_768)


def encapsulate(kem: str, public: bytes) -> tuple[bytes, bytes]:
    """`(secret, ciphertext)` for the holder of a public key. Raises Malformed if it is none."""
    if kem not in KEMS or len(public) != KEMS[kem].public:
        raise Malformed(f"this is no public key of {kem!r}")
    try:
        if kem == "ml-kem-768":
            return mlkem.MLKEM768PublicKey.from_public_bytes(public).encapsulate()
        if kem == "ml-kem-1024":
            return mlkem.MLKEM1024PublicKey.from_public_bytes(public).encapsulate()
        both = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public[:_PUBLIC_768]),
            x25519.X25519PublicKey.from_public_bytes(public[_PUBLIC_768:]),
        )
        secret = os.urandom(SECRET_BYTES)
        return secret, _HPKE.encrypt(secret, both, labels.HYBRID_KEM)
    except ValueError:
        raise Malformed(f"this is no public key of {kem!r}") from None


def seal(public: bytes, said: bytes) -> bytes:
    """A message for the holder of an `ml-kem-768` key (HPKE, RFC 9180). Raises Malformed if it is none."""
    if len(public) != _PUBLIC_768:
        raise Malformed("this is no public key of 'ml-kem-768'")
    try:
        return _SEALING.encrypt(said, mlkem.MLKEM768PublicKey.from_public_bytes(public), labels.NOTE)
    except ValueError:
        raise Malformed("this is no public key of 'ml-kem-768'") from None
