"""The dense form of BFV polynomials: exact, checked, understood by SEAL, and additions stay harmless."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.errors import Malformed
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE, DENSE_25, PROFILES, Profile
from tests.bfv import Bare, noise

both = pytest.mark.parametrize("profile", [DENSE, DENSE_25], ids=lambda profile: f"{profile.width} bits")


def polynomial(seed: int, profile: Profile, count: int = COEFFICIENTS) -> dense.Polynomial:
    return np.random.default_rng(seed).integers(0, profile.q, count, dtype=np.uint32)


# ---------------------------------------------------------------------- bytes


@both
def test_profiles_are_what_their_names_say(profile: Profile) -> None:
    assert PROFILES[profile.id] is profile
    assert profile.q.bit_length() == profile.width
    assert profile.q % (2 * COEFFICIENTS) == 1
    assert all(profile.q % divisor for divisor in range(3, int(profile.q**0.5) + 1, 2))


@both
@given(count=st.integers(0, 64).map(lambda eighth: eighth * 8), seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_back(profile: Profile, count: int, seed: int) -> None:
    original = polynomial(seed, profile, count)
    data = dense.pack(original, profile)
    assert len(data) * 8 == count * profile.width
    assert np.array_equal(dense.unpack(data, count, profile), original)


@both
def test_coefficients_lie_one_after_the_other_from_the_lowest_bit(profile: Profile) -> None:
    original = polynomial(1, profile)
    number = sum(int(value) << (at * profile.width) for at, value in enumerate(original))
    assert dense.pack(original, profile) == number.to_bytes(profile.polynomial_bytes, "little")


@both
def test_a_coefficient_that_is_not_below_the_modulus_is_refused(profile: Profile) -> None:
    for at, value in [(0, profile.q), (511, profile.q), (1023, (1 << profile.width) - 1)]:
        bad = polynomial(2, profile)
        bad[at] = value
        with pytest.raises(Malformed):
            dense.unpack(dense.pack(bad, profile), COEFFICIENTS, profile)
    largest = np.full(COEFFICIENTS, profile.q - 1, np.uint32)
    assert np.array_equal(dense.unpack(dense.pack(largest, profile), COEFFICIENTS, profile), largest)


@both
def test_a_byte_too_many_or_too_few_is_refused(profile: Profile) -> None:
    data = dense.pack(polynomial(3, profile), profile)
    for wrong in (data[:-1], data + b"\0", b"", data * 2):
        with pytest.raises(Malformed):
            dense.unpack(wrong, COEFFICIENTS, profile)


@both
@given(data=st.binary(max_size=200), count=st.integers(0, 12).map(lambda eighth: eighth * 8))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused(profile: Profile, data: bytes, count: int) -> None:
    try:
        read = dense.unpack(data, count, profile)
    except Malformed:
        return
    assert dense.pack(read, profile) == data


# ---------------------------------------------------------------------- SEAL


@both
def test_seal_decrypts_what_travelled_in_dense_form(profile: Profile) -> None:
    bare = Bare(profile)
    bits = dense.bits_of(random.Random(4).randbytes(CHUNK_BYTES))
    first, second = bare.encrypt(bits)
    wire = dense.pack(first, profile), dense.pack(second, profile)
    back = [dense.unpack(data, COEFFICIENTS, profile) for data in wire]
    assert np.array_equal(back[0], first)
    assert np.array_equal(back[1], second)
    assert np.array_equal(bare.decrypt(*back), bits)


@both
def test_dense_additions_mean_what_seals_mean(profile: Profile) -> None:
    """Δ of SEAL is q/2 rounded for each coefficient; ours differs from it by at most one unit of noise."""
    bare = Bare(profile)
    seal, source = bare.seal._seal, random.Random(5)
    key, pad = dense.bits_of(source.randbytes(CHUNK_BYTES)), dense.bits_of(source.randbytes(CHUNK_BYTES))
    first, second = bare.encrypt(key)
    ours = dense.add_plain(first, pad, profile)
    theirs = seal.Ciphertext()
    header = bare.seal._ciphertext_header
    theirs.load_bytes(
        bare.seal._context, header + first.astype("<u8").tobytes() + second.astype("<u8").tobytes()
    )
    plain = seal.Plaintext(" + ".join(f"1x^{at}" for at in np.flatnonzero(pad)[::-1]))
    summed = seal.Evaluator(bare.seal._context).add_plain(theirs, plain)
    library = np.frombuffer(summed.to_string()[-2 * 8 * COEFFICIENTS :], "<u8")[:COEFFICIENTS]
    difference = (ours.astype(np.int64) - library.astype(np.int64)) % profile.q
    assert set(np.unique(difference)) <= {0, 1, profile.q - 1}
    assert np.array_equal(bare.decrypt(ours, second), key ^ pad)


@both
def test_ten_thousand_hops_of_additions_still_decrypt(profile: Profile) -> None:
    """The published hop: noise grows by one unit at most for two additions in one coefficient."""
    bare, source = Bare(profile), np.random.default_rng(6)
    key = source.integers(0, 2, COEFFICIENTS, dtype=np.uint8)
    first, second = bare.encrypt(key)
    before = noise(bare, first, second, key)
    pads = source.integers(0, 2, (10_000, COEFFICIENTS), dtype=np.uint8)
    for pad in pads:
        first = dense.add_plain(first, pad, profile)
    total = np.bitwise_xor.reduce(pads) ^ key
    assert np.array_equal(bare.decrypt(first, second), total)
    grown = noise(bare, first, second, total) - before
    assert grown.min() >= 0
    assert grown.max() <= 10_000 // 2 + 1
    assert np.abs(before).max() < 1_566, "13.5 standard deviations of a fresh ciphertext"


def test_an_addition_leaves_a_trace_of_what_was_added() -> None:
    """Why `blind` travels in quarters: in this form 1 + 1 is not 0 + 0."""
    zero, one = np.zeros(8, np.uint32), np.ones(8, np.uint8)
    twice = dense.add_plain(dense.add_plain(zero, one, DENSE), one, DENSE)
    assert set(twice) == {1}


# ---------------------------------------------------------------------- quarters


@both
def test_the_four_quarters_are_equally_long(profile: Profile) -> None:
    step = (profile.q - 1) // 4
    assert step * 4 == profile.q - 1
    edges = np.array([0, step - 1, step, 2 * step - 1, 2 * step, 3 * step, 4 * step - 1], np.uint32)
    found = dense.quarters(edges, profile)
    assert found is not None
    assert (2 * found[0] + found[1]).tolist() == [0, 0, 1, 1, 2, 3, 3]


@both
def test_the_one_value_too_many_is_not_put_into_a_quarter(profile: Profile) -> None:
    values = polynomial(7, profile)
    values[values == profile.q - 1] = 0
    assert dense.quarters(values, profile) is not None
    values[1000] = profile.q - 1
    assert dense.quarters(values, profile) is None


@both
def test_centres_are_never_further_away_than_an_eighth(profile: Profile) -> None:
    values = polynomial(8, profile) % np.uint32(profile.q - 1)
    found = dense.quarters(values, profile)
    assert found is not None
    distance = dense.centres(*found, profile).astype(np.int64) - values.astype(np.int64)
    assert np.abs(distance).max() <= profile.q // 8


@both
def test_flipping_an_upper_bit_adds_half_the_modulus(profile: Profile) -> None:
    bare = Bare(profile)
    source = random.Random(9)
    flips = dense.bits_of(source.randbytes(CHUNK_BYTES))
    first, second = bare.encrypt(np.zeros(COEFFICIENTS, np.uint8))
    found = dense.quarters(first % np.uint32(profile.q - 1), profile)
    assert found is not None
    upper, lower = found
    assert np.array_equal(bare.decrypt(dense.centres(upper ^ flips, lower, profile), second), flips)
