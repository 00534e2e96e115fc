"""Profile lean: keys arrive whole, alterations are refused, and its noise is what it is said to be."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Payload
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE, DENSE_25, Profile
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.lean import Lean
from keyhaul.schemes.seal import Seal
from keyhaul.schemes.seal_whole import SealWhole
from tests.bfv import NOW, PAIR, Bare, noise, probe, ring_of
from tests.bfv import vouched as of_blind
from tests.contracts.test_schemes import Journey

TRAILER = 21  # bytes: key id, profile, length
CIPHERTEXT = 4_352
WAYS = [(1, 1, 8), (4, 1, 256), (3, 9, 128), (20, 5, 1000), (2, 128, 256)]


def lean_of(bfv: SealWhole, ring: KeyRing | None = None) -> Lean:
    held = ring or ring_of(bfv)
    return Lean(bfv, lambda destination: held.announced(NOW), held.own)


def vouched(number: int = 1, size: int = 256, **changes: Any) -> Context:
    return replace(of_blind(number, size, **changes), scheme="blind-lean")


def keys_of(seed: int, number: int = 1, size: int = 256) -> list[Secret]:
    source = random.Random(seed)
    return [Secret(source.randbytes(size // 8)) for _ in range(number)]


def bits(keys: list[Secret]) -> list[bytes]:
    return [key.reveal() for key in keys]


@pytest.fixture(scope="module")
def ends() -> Lean:
    return lean_of(SealWhole())


@pytest.mark.parametrize("profile", [DENSE, DENSE_25], ids=lambda profile: f"{profile.width} bits")
@pytest.mark.parametrize(
    ("hops", "number", "size"), [(1, 1, 8), (4, 1, 256), (3, 9, 128), (20, 5, 1000), (2, 128, 256)]
)
def test_keys_arrive(profile: Profile, hops: int, number: int, size: int) -> None:
    journey = Journey(lean_of(SealWhole(profile)), hops, hops=hops, number=number, size=size)
    assert journey.deliver(journey.travel()) == journey.bits()


def test_one_addition_moves_a_key_from_pad_to_pad(ends: Lean) -> None:
    context, keys = vouched(2), keys_of(1, 2)
    source, payload = random.Random(2), ends.originate(keys, context, PAIR)
    assert ends.pad_bytes(payload) == 64 + 16
    one, two = source.randbytes(80), source.randbytes(80)
    direct = ends.transit(ends.transit(payload, None, one), one, two)
    around = ends.transit(ends.transit(ends.transit(payload, None, one), one, None), None, two)
    for moved in (direct, around):
        assert bits(ends.deliver(ends.transit(moved, two, None), context, PAIR)) == bits(keys)
    with pytest.raises(Tampered):
        ends.deliver(direct, context, PAIR)


def test_a_body_is_ciphertexts_tag_and_trailer(ends: Lean) -> None:
    for number, size, count in [(1, 256, 1), (4, 256, 1), (5, 256, 2), (128, 256, 32), (1, 8, 1)]:
        payload = ends.originate(keys_of(3, number, size), vouched(number, size), PAIR)
        assert len(payload.body) == count * CIPHERTEXT + 16 + TRAILER


def test_key_bits_are_not_in_the_clear_and_equal_keys_look_different(ends: Lean) -> None:
    one, two = (ends.originate(keys_of(4), vouched(), PAIR).body for _ in range(2))
    assert keys_of(4)[0].reveal() not in one
    assert one[:CIPHERTEXT] != two[:CIPHERTEXT]


def test_the_wire_shows_no_pad_to_who_sees_one_link_only(ends: Lean) -> None:
    """Half of the first polynomial's coefficients lie in either half of [0, q), whatever the pad is."""
    payload = ends.originate(keys_of(5, 4), vouched(4), PAIR)
    ones = ends.transit(payload, None, b"\xff" * 144)
    first = dense.unpack(ones.body[: CIPHERTEXT // 2], COEFFICIENTS, DENSE)
    assert abs(int((first > DENSE.q // 2).sum()) - 512) < 6 * 16


# ---------------------------------------------------------------------- alterations


def _altered(payload: Payload, at: int) -> Payload:
    body = bytearray(payload.body)
    body[at] ^= 1
    return replace(payload, body=bytes(body))


def test_keys_tag_second_polynomial_and_trailer_cannot_be_altered(ends: Lean) -> None:
    context = vouched()
    payload = ends.originate(keys_of(6), context, PAIR)
    flipped = ends.transit(payload, b"\1" + bytes(47), None)
    end = CIPHERTEXT + 16 + TRAILER
    places = [*range(CIPHERTEXT // 2, CIPHERTEXT, 99), *range(CIPHERTEXT, end)]
    for broken in (flipped, *(_altered(payload, at) for at in places)):
        with pytest.raises((Tampered, Malformed)):
            ends.deliver(broken, context, PAIR)


def test_nothing_vouched_for_can_be_changed(ends: Lean) -> None:
    context = vouched(2)
    payload = ends.originate(keys_of(7, 2), context, PAIR)
    ids = context.key_ids
    for change in (
        {"key_ids": ids[::-1]},
        {"initiator": "sae-x"},
        {"expires": 1},
        {"size": 128},
        {"key_ids": ids[:1]},
    ):
        with pytest.raises((Tampered, Malformed)):
            ends.deliver(payload, replace(context, **change), PAIR)
    own = ends.originate(
        keys_of(8, 2), context, replace(PAIR, secret=Secret(b"a relay's own secret, 32 bytes.."))
    )
    with pytest.raises(Tampered):
        ends.deliver(own, context, PAIR)


def test_the_probes_that_open_paper_are_all_refused(ends: Lean) -> None:
    """The tag covers the second polynomial: what is made up is refused, whatever it decrypts to."""
    context = vouched()
    honest = ends.originate([Secret(bytes(32))], context, PAIR)
    verdicts = set()
    for at in range(0, COEFFICIENTS, 16):
        for value in (-1, 1):
            first, second = probe(at, value, DENSE)
            body = dense.pack(first, DENSE) + dense.pack(second, DENSE) + honest.body[CIPHERTEXT:]
            with pytest.raises(Tampered) as refused:
                ends.deliver(replace(honest, body=body), context, PAIR)
            verdicts.add(str(refused.value))
    assert verdicts == {"authentication failed"}


def test_a_shifted_first_polynomial_is_accepted_until_it_is_too_far(ends: Lean) -> None:
    """Why no node offers this profile: how far is one equation in noise and secret key, a message each."""
    context = vouched()
    payload = ends.originate(keys_of(9), context, PAIR)
    first = dense.unpack(payload.body[: CIPHERTEXT // 2], COEFFICIENTS, DENSE)
    fates = []
    for shift in (1, DENSE.q // 8, DENSE.q // 2):
        moved = first.copy()
        moved[0] = (int(first[0]) + shift) % DENSE.q
        shifted = replace(payload, body=dense.pack(moved, DENSE) + payload.body[CIPHERTEXT // 2 :])
        try:
            fates.append(bits(ends.deliver(shifted, context, PAIR)) == bits(keys_of(9)))
        except Tampered:
            fates.append(False)
    assert fates == [True, True, False]


@pytest.mark.parametrize(
    "body", [b"", bytes(20), bytes(21), bytes(CIPHERTEXT + 37), b"\xff" * (CIPHERTEXT + 37)]
)
def test_what_is_no_payload_is_malformed(ends: Lean, body: bytes) -> None:
    with pytest.raises(Malformed):
        ends.pad_bytes(Payload("blind-lean", b"", body))


def test_coefficients_out_of_range_never_reach_the_library(ends: Lean) -> None:
    payload = ends.originate(keys_of(10), vouched(), PAIR)
    wild = replace(payload, body=b"\xff" * CIPHERTEXT + payload.body[CIPHERTEXT:])
    for step in (lambda: ends.transit(wild, bytes(48), None), lambda: ends.deliver(wild, vouched(), PAIR)):
        with pytest.raises(Malformed, match="out of range"):
            step()


def test_ciphertexts_for_a_key_that_is_not_ours_are_refused(ends: Lean) -> None:
    payload = lean_of(SealWhole()).originate(keys_of(11), vouched(), PAIR)
    with pytest.raises(Tampered):
        ends.deliver(payload, vouched(), PAIR)


# ---------------------------------------------------------------------- the library underneath


def test_the_librarys_addition_is_that_of_the_dense_form() -> None:
    bfv = SealWhole()
    public, _ = bfv.generate()
    source = random.Random(12)
    ciphertext, pad = bfv.encrypt_whole(public, source.randbytes(CHUNK_BYTES)), source.randbytes(CHUNK_BYTES)
    moved = bfv.add_plain_whole(ciphertext, pad)
    half = CIPHERTEXT // 2
    first = dense.unpack(ciphertext[:half], COEFFICIENTS, DENSE)
    assert moved[:half] == dense.pack(dense.add_plain(first, dense.bits_of(pad), DENSE), DENSE)
    assert moved[half:] == ciphertext[half:] == bfv.second_polynomials(moved)


def test_a_hop_leaves_at_most_a_unit_of_noise() -> None:
    bfv, bare, source = SealWhole(), Bare(DENSE), random.Random(13)
    plain = source.randbytes(CHUNK_BYTES)
    ciphertext = bfv.encrypt_whole(bare.public, plain)
    begin = _noise(bare, ciphertext, plain)
    pad, hops = bytes(CHUNK_BYTES), 200
    for _ in range(hops):
        following = source.randbytes(CHUNK_BYTES)
        both = bytes(a ^ b for a, b in zip(pad, following, strict=True))
        ciphertext, pad = bfv.add_plain_whole(ciphertext, both), following
    now = bytes(a ^ b for a, b in zip(plain, pad, strict=True))
    grown = _noise(bare, ciphertext, now) - begin
    assert 0 < grown.mean() < hops / 2
    assert grown.min() >= 0
    assert grown.max() <= hops
    assert bfv.decrypt_whole(bare.secret, ciphertext, CHUNK_BYTES) == now


def _noise(bare: Bare, ciphertext: bytes, plain: bytes) -> np.ndarray[Any, Any]:
    half = CIPHERTEXT // 2
    first, second = (dense.unpack(ciphertext[at : at + half], COEFFICIENTS, DENSE) for at in (0, half))
    return noise(bare, first, second, dense.bits_of(plain))


def test_a_key_of_dense_opens_a_ciphertext_of_lean() -> None:
    public, secret = Seal().generate()
    bfv = SealWhole()
    ciphertext = bfv.encrypt_whole(public, b"k" * 200)
    assert bfv.decrypt_whole(secret, ciphertext, 200) == b"k" * 200
    for length in (len(ciphertext) - 1, len(ciphertext) + 1, CIPHERTEXT, 0):
        with pytest.raises(Malformed):
            bfv.decrypt_whole(secret, ciphertext[:length] + bytes(max(0, length - len(ciphertext))), 200)


def test_ids_of_other_keys_do_not_open_a_payload(ends: Lean) -> None:
    context = vouched(key_ids=(UUID(int=7),))
    payload = ends.originate(keys_of(14), context, PAIR)
    assert bits(ends.deliver(payload, context, PAIR)) == bits(keys_of(14))
    with pytest.raises(Tampered):
        ends.deliver(payload, vouched(key_ids=(UUID(int=8),)), PAIR)
