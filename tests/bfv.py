"""BFV as tests need it: SEAL's secret key in the clear, whole ciphertexts, the published form of a hop."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest

from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair
from keyhaul.schemes.bfv import COEFFICIENTS, Bfv, Profile
from keyhaul.schemes.blind import Blind
from keyhaul.schemes.dense import Bits, Polynomial
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.seal import Seal, _words
from tests.neighbours import context

pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")

NOW = 1_800_000_000.0
PAIR = Pair(b"pair id of 16 B.", Secret(b"p" * 32), b"statement")


class Bare:
    """SEAL behind the dense form without any authentication: paper B's relay with a static key."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.seal = Seal(profile)
        self.public, self.secret = self.seal.generate()
        self._encryptor = self.seal._encryptor(self.public)
        self._decryptor = self.seal._decryptor(self.secret)

    def encrypt(self, bits: Bits) -> tuple[Polynomial, Polynomial]:
        """By SEAL's own encoding of the plaintext, scaled by SEAL."""
        terms = [f"1x^{at}" for at in np.flatnonzero(bits)[::-1]]
        plain = self.seal._seal.Plaintext(" + ".join(terms) or "0")
        first, second = _words(self._encryptor.encrypt(plain).to_string(), 2)
        return first, second

    def decrypt(self, first: Polynomial, second: Polynomial) -> Bits:
        return self.seal._bits(self._decryptor, first, second)

    def secret_coefficients(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """-1, 0 or 1 each, by decrypting what tells them: the test's own knowledge, not an attacker's."""
        return np.array([self._secret_coefficient(at) for at in range(COEFFICIENTS)], np.int64)

    def _secret_coefficient(self, at: int) -> int:
        for value in (-1, 1):
            if self.decrypt(*probe(at, value, self.profile))[0]:
                return value
        return 0


def probe(at: int, value: int, profile: Profile) -> tuple[Polynomial, Polynomial]:
    """A ciphertext that decrypts to zero, but for bit 0 if coefficient `at` of the secret is `value`.

    `(q/8) x^(1024 - at)` moves that coefficient to place 0 with its sign turned; alone it is too small
    to make a 1, and with q/5 added it does so if the signs agree.
    """
    q = profile.q
    first, second = np.zeros(COEFFICIENTS, np.uint32), np.zeros(COEFFICIENTS, np.uint32)
    first[0] = (-value * (q // 5)) % q
    power = COEFFICIENTS - at
    if power < COEFFICIENTS:
        second[power] = q // 8
    else:
        second[0] = q - q // 8  # x^1024 is -1
    return first, second


def noise(bare: Bare, first: Polynomial, second: Polynomial, bits: Bits) -> np.ndarray[Any, Any]:
    """The distance of every coefficient from where its bit puts it."""
    q, n = bare.profile.q, COEFFICIENTS
    product = np.zeros(2 * n, np.int64)
    for at, coefficient in enumerate(bare.secret_coefficients()):
        product[at : at + n] += coefficient * second.astype(np.int64)
    phase = first.astype(np.int64) + product[:n] - product[n:]
    distance = (phase - bits.astype(np.int64) * ((q + 1) // 2)) % q
    return np.where(distance > q // 2, distance - q, distance)


class Watched:
    """A Bfv that counts what it is asked to decrypt."""

    def __init__(self, inner: Bfv) -> None:
        self.inner = inner
        self.profile = inner.profile
        self.decryptions = 0

    def generate(self) -> tuple[bytes, bytes]:
        return self.inner.generate()

    def check_public(self, public: bytes) -> None:
        self.inner.check_public(public)

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        return self.inner.encrypt(public, plain)

    def zero(self, public: bytes) -> tuple[Polynomial, Polynomial]:
        return self.inner.zero(public)

    def decrypt(self, secret: bytes, upper: bytes, rest: bytes) -> bytes:
        self.decryptions += 1
        return self.inner.decrypt(secret, upper, rest)


def ring_of(bfv: Bfv) -> KeyRing:
    ring = KeyRing(bfv)
    ring.activate(ring.prepare(NOW))
    return ring


def blind_of(bfv: Bfv, ring: KeyRing | None = None) -> Blind:
    """Origin and destination in one."""
    held = ring or ring_of(bfv)
    return Blind(bfv, lambda destination: held.announced(NOW), held.own)


def vouched(number: int = 1, size: int = 256, hops: int = 3, **changes: Any) -> Context:
    route = ("vigo", *(f"relay-{at}" for at in range(hops - 1)), "bilbao")
    ids = changes.pop("key_ids", tuple(UUID(int=at + 1) for at in range(number)))
    return context(scheme="blind", key_ids=ids, size=size, route=route, **changes)
