"""Encapsulation: both ends have one secret, nobody else does, and no garbage goes in or out."""

from __future__ import annotations

import pytest

from keyhaul import kem
from keyhaul.errors import Malformed, Tampered

NAMES = sorted(kem.KEMS)


def pair(name: str) -> kem.PrivateKey:
    return kem.PrivateKey(name, kem.generate(name))


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_have_one_secret_and_sizes_are_as_announced(name: str) -> None:
    own = pair(name)
    secret, ciphertext = kem.encapsulate(name, own.public)
    assert own.decapsulate(ciphertext) == secret
    assert len(secret) == kem.SECRET_BYTES
    assert len(own.public) == kem.KEMS[name].public
    assert len(ciphertext) == kem.KEMS[name].ciphertext
    again, other = kem.encapsulate(name, own.public)
    assert again != secret
    assert other != ciphertext


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_is_the_same_key(name: str) -> None:
    seed = kem.generate(name)
    one, two = kem.PrivateKey(name, seed), kem.PrivateKey(name, seed)
    secret, ciphertext = kem.encapsulate(name, one.public)
    assert one.public == two.public
    assert two.decapsulate(ciphertext) == secret
    assert kem.generate(name) != seed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [0, 500, 1087, -1])
def test_a_changed_ciphertext_gives_nothing_of_the_secret(name: str, at: int) -> None:
    own = pair(name)
    secret, ciphertext = kem.encapsulate(name, own.public)
    changed = bytearray(ciphertext)
    changed[at] ^= 1
    try:
        assert own.decapsulate(bytes(changed)) != secret
    except Tampered:
        assert name == "ml-kem-768+x25519", "plain ML-KEM rejects implicitly (FIPS 203 §6.3)"


@pytest.mark.parametrize("name", NAMES)
def test_another_holder_gets_another_secret(name: str) -> None:
    secret, ciphertext = kem.encapsulate(name, pair(name).public)
    try:
        assert pair(name).decapsulate(ciphertext) != secret
    except Tampered:
        assert name == "ml-kem-768+x25519"


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_exact(name: str) -> None:
    own = pair(name)
    _, ciphertext = kem.encapsulate(name, own.public)
    for wrong in (b"", ciphertext[:-1], ciphertext + b"\0"):
        with pytest.raises(Tampered):
            own.decapsulate(wrong)
    for wrong in (b"", own.public[:-1], own.public + b"\0"):
        with pytest.raises(Malformed):
            kem.encapsulate(name, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_key_out_of_range_is_malformed(name: str) -> None:
    """FIPS 203 §7.2: coefficients of an encapsulation key are below 3,329."""
    with pytest.raises(Malformed):
        kem.encapsulate(name, b"\xff" * kem.KEMS[name].public)


def test_a_half_of_x25519_that_fixes_the_secret_is_refused_or_harmless() -> None:
    """The all-zero point makes X25519's part a constant; ML-KEM's part is still there."""
    own = pair("ml-kem-768+x25519")
    try:
        secret, _ = kem.encapsulate("ml-kem-768+x25519", own.public[:1184] + bytes(32))
    except Malformed:
        return
    assert len(secret) == kem.SECRET_BYTES


def test_a_kem_that_is_not_known_is_malformed() -> None:
    with pytest.raises(Malformed):
        kem.encapsulate("ml-kem-512", bytes(800))
