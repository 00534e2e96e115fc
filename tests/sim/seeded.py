"""Makes a run repeatable: inside `seeded(n)` everything random in the process comes from `n`.

The kernel draws ids, nonces and keys from the operating system, jitter from `random`, and ML-KEM from
OpenSSL. The first two are replaced by generators of the seed. OpenSSL cannot be, so ML-KEM gets a
stand-in of the same sizes, which keeps no secret from anybody who knows the public key: no actor in a
simulation breaks a KEM. Whoever wants the real one runs the dialogues in this folder, which use it.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import structlog
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem

PUBLIC_BYTES, CIPHERTEXT_BYTES, SEED_BYTES = 1184, 1088, 64  # ML-KEM-768, FIPS 203


class StandInPublicKey:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @classmethod
    def from_public_bytes(cls, raw: bytes) -> StandInPublicKey:
        if len(raw) != PUBLIC_BYTES:
            raise ValueError("an encapsulation key has 1,184 bytes")
        return cls(raw)

    def public_bytes_raw(self) -> bytes:
        return self._raw

    def encapsulate(self) -> tuple[bytes, bytes]:
        ciphertext = os.urandom(CIPHERTEXT_BYTES)
        return _shared(self._raw, ciphertext), ciphertext


class StandInPrivateKey:
    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._public = hashlib.shake_128(b"stand-in" + seed).digest(PUBLIC_BYTES)

    @classmethod
    def generate(cls) -> StandInPrivateKey:
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def from_seed_bytes(cls, seed: bytes) -> StandInPrivateKey:
        return cls(seed)

    def private_bytes_raw(self) -> bytes:
        return self._seed

    def public_key(self) -> StandInPublicKey:
        return StandInPublicKey(self._public)

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """Another ciphertext gives another secret, as implicit rejection does."""
        return _shared(self._public, ciphertext)


def _shared(public: bytes, ciphertext: bytes) -> bytes:
    return hashlib.sha256(public + ciphertext).digest()


@contextmanager
def seeded(seed: int) -> Iterator[list[str]]:
    """Everything random comes from `seed` until the end; gives the log lines written meanwhile."""
    source, state, lines = random.Random(f"urandom {seed}"), random.getstate(), []
    random.seed(f"jitter {seed}")

    def keep(_: object, method: str, event: dict[str, object]) -> str:
        lines.append(f"{method} {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    try:
        with (
            patch.object(os, "urandom", source.randbytes),
            patch.object(mlkem, "MLKEM768PrivateKey", StandInPrivateKey),
            patch.object(mlkem, "MLKEM768PublicKey", StandInPublicKey),
            # Announced in every run and used in none: only its public half is looked at.
            patch.object(hpke, "MLKEM768X25519PrivateKey", lambda first, second: first),
        ):
            yield lines
    finally:
        structlog.configure(**before)
        random.setstate(state)
