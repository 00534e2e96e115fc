"""Scheme blind: keys arrive whole, relays and wiretappers get nothing, and whatever is altered is refused."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.errors import Malformed, Tampered, Unavailable, Unsupported
from keyhaul.keys import Secret
from keyhaul.messages.etsi020 import decode_ext_keys, encode_ext_keys
from keyhaul.messages.payload import TAG_BYTES, Context, Pair, Payload, origin_tag
from keyhaul.messages.wrapping import Wrapping, unwrap, wrap
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE, DENSE_25, Profile
from keyhaul.schemes.blind import NOTICE, Blind
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.seal import Seal
from tests.bfv import PAIR, Bare, Watched, blind_of, probe, ring_of, vouched
from tests.contracts.test_schemes import check_scheme

both = pytest.mark.parametrize("profile", [DENSE, DENSE_25], ids=lambda profile: f"{profile.width} bits")
TRAILER = 21  # bytes: key id, profile, length


def keys_of(seed: int, number: int = 1, size: int = 256) -> list[Secret]:
    source = random.Random(seed)
    return [Secret(source.randbytes(size // 8)) for _ in range(number)]


def travel(
    payload: Payload,
    hops: int,
    seed: int = 0,
    at_relay: Callable[[Payload], Payload] = lambda payload: payload,
) -> Payload:
    """Over relays that have no BFV at all; `at_relay` alters what one passes on, under its pads."""
    relay, source, pad = Blind(), random.Random(seed), None
    for _ in range(hops):
        following = source.randbytes(relay.pad_bytes(payload))
        payload, pad = at_relay(relay.transit(payload, pad, following)), following
    return relay.transit(payload, pad, None)


def bits(keys: list[Secret]) -> list[bytes]:
    return [key.reveal() for key in keys]


# ---------------------------------------------------------------------- round trips


@both
def test_it_keeps_the_contract_of_schemes(profile: Profile) -> None:
    check_scheme(blind_of(Seal(profile)))


@pytest.mark.parametrize("hops", [*range(1, 51)])
def test_keys_arrive_over_any_number_of_hops(hops: int, ends: Blind) -> None:
    number, size = random.Random(hops).choice([(1, 8), (1, 128), (1, 256), (4, 256), (5, 256), (3, 1000)])
    context, keys = vouched(number, size, hops), keys_of(hops, number, size)
    payload = ends.originate(keys, context, PAIR)
    assert bits(ends.deliver(travel(payload, hops, hops), context, PAIR)) == bits(keys)


def test_ten_thousand_hops_give_back_the_origins_ciphertext_to_the_bit(ends: Blind) -> None:
    context, keys = vouched(4), keys_of(1, 4)
    payload = ends.originate(keys, context, PAIR)
    arrived = travel(payload, 10_000)
    assert arrived == payload
    assert bits(ends.deliver(arrived, context, PAIR)) == bits(keys)


@settings(max_examples=40, deadline=None)
@given(number=st.integers(1, 40), width=st.integers(1, 300), hops=st.integers(1, 6), seed=st.integers())
def test_keys_of_any_size_and_number_arrive(number: int, width: int, hops: int, seed: int) -> None:
    ends = _shared()
    context, keys = vouched(number, width * 8, hops), keys_of(seed, number, width * 8)
    payload = ends.originate(keys, context, PAIR)
    assert bits(ends.deliver(travel(payload, hops, seed), context, PAIR)) == bits(keys)


def test_pads_cover_key_bits_and_tag_and_nothing_else(ends: Blind) -> None:
    for number, size in [(1, 256), (4, 256), (128, 256), (1, 8)]:
        payload = ends.originate(keys_of(2, number, size), vouched(number, size), PAIR)
        plain = number * size // 8
        assert ends.pad_bytes(payload) == plain + TAG_BYTES
        ciphertexts = -(-plain // CHUNK_BYTES)
        assert len(payload.body) == 2 * plain + TAG_BYTES + ciphertexts * 2176 + TRAILER
    assert len(ends.originate(keys_of(2), vouched(), PAIR).body) == 2_277


def test_it_travels_inside_a_020_message_like_any_scheme(ends: Blind) -> None:
    context, keys = vouched(3), keys_of(3, 3)
    payload = travel(ends.originate(keys, context, PAIR), 1)
    transfer = wrap(Wrapping(context, payload, 1.8e9), "https://vigo/ack", 32473)
    assert all(len(key.value) == 32 for key in transfer.keys)
    back = unwrap(decode_ext_keys(encode_ext_keys(transfer)), 32473)
    assert back is not None
    assert back.payload == payload
    assert bits(ends.deliver(back.payload, back.context, PAIR)) == bits(keys)


# ---------------------------------------------------------------------- secrecy


def test_only_the_padded_half_depends_on_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """So an observer who breaks BFV as well learns the pads' sum with the keys, which pads hide."""
    bfv = Seal()
    ends = blind_of(bfv)
    zero = bfv._zero(bfv._encryptor(ends._public("bilbao")), COEFFICIENTS)
    monkeypatch.setattr(bfv, "_zero", lambda _, count: (zero[0][:count], zero[1][:count], zero[2]))
    one, other = keys_of(4, 4), keys_of(5, 4)
    first, second = (ends.originate(keys, vouched(4), PAIR) for keys in (one, other))
    end = ends.pad_bytes(first)
    assert first.head == second.head
    assert first.body[end:] == second.body[end:]
    difference = bytes(a ^ b for a, b in zip(first.body[:128], second.body[:128], strict=True))
    expected = (a ^ b for a, b in zip(b"".join(bits(one)), b"".join(bits(other)), strict=True))
    assert difference == bytes(expected)


def test_neither_half_of_a_coefficient_leans_to_a_side() -> None:
    """Upper bit of 0 keys, over 200 ciphertexts: half of them, for either lower bit (6 deviations)."""
    bfv = Seal()
    public, _ = bfv.generate()
    uppers, lowers = [], []
    for _ in range(200):
        upper, rest = bfv.encrypt(public, bytes(CHUNK_BYTES))
        uppers.append(dense.bits_of(upper))
        lowers.append(dense.bits_of(rest[:CHUNK_BYTES]))
    upper_bits, lower_bits = np.concatenate(uppers), np.concatenate(lowers)
    for lower in (0, 1):
        chosen = upper_bits[lower_bits == lower]
        assert abs(int(chosen.sum()) - len(chosen) / 2) < 6 * (len(chosen) / 4) ** 0.5


def test_equal_keys_look_different_each_time(ends: Blind) -> None:
    first, second = (ends.originate(keys_of(6), vouched(), PAIR).body for _ in range(2))
    assert first[:32] != second[:32]
    assert first[48:-TRAILER] != second[48:-TRAILER]


def test_two_forked_processes_do_not_encrypt_alike() -> None:
    """OpenFHE's generator is copied by fork(), and an observer reads K1 xor K2; SEAL asks the system."""
    code = (
        "import os, sys; from keyhaul.schemes.seal import Seal; bfv = Seal(); public, _ = bfv.generate(); "
        "bfv.encrypt(public, bytes(32)); child = os.fork(); "
        "sys.stdout.write(bfv.encrypt(public, bytes(32))[0].hex() + chr(10)); sys.stdout.flush(); "
        "child and os.waitpid(child, 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    one, other = process.stdout.split()
    assert len(one) == len(other) == 64
    assert one != other


def test_a_ciphertext_with_the_one_value_too_many_is_made_again() -> None:
    bfv = Seal()
    made = []

    class Encryptor:
        def encrypt_zero(self) -> Any:
            made.append(1)
            words = np.zeros(2 * COEFFICIENTS, "<u8")
            words[100] = DENSE.q - 1 if len(made) < 3 else 7
            return type("Ciphertext", (), {"to_string": lambda self: b"header" + words.tobytes()})()

    bfv._zero(Encryptor(), COEFFICIENTS)
    assert len(made) == 3
    made.clear()
    bfv._zero(Encryptor(), 64)
    assert len(made) == 1, "coefficients that do not travel do not matter"


# ---------------------------------------------------------------------- attacks


def _flip(payload: Payload) -> Payload:
    return replace(payload, body=bytes([payload.body[0] ^ 1]) + payload.body[1:])


def _noise(payload: Payload) -> Payload:
    """Paper B §6: a relay makes the ciphertext too noisy to decrypt. Here: doubles, modulo q."""
    at = 2 * 32 + TAG_BYTES
    second = dense.unpack(payload.body[at : at + 2176], COEFFICIENTS, DENSE)
    doubled = dense.pack(second * np.uint32(2) % np.uint32(DENSE.q), DENSE)
    return replace(payload, body=payload.body[:at] + doubled + payload.body[at + 2176 :])


def _out_of_range(payload: Payload) -> Payload:
    at = 2 * 32 + TAG_BYTES
    return replace(payload, body=payload.body[:at] + b"\xff" * 2176 + payload.body[at + 2176 :])


def _other_key(payload: Payload) -> Payload:
    return replace(payload, body=payload.body[:-TRAILER] + bytes(16) + payload.body[-5:])


def _other_profile(payload: Payload) -> Payload:
    return replace(payload, body=payload.body[:-5] + b"\2" + payload.body[-4:])


@pytest.mark.parametrize("attack", [_flip, _noise, _out_of_range, _other_key, _other_profile])
def test_an_altered_ciphertext_is_refused_before_it_is_decrypted(
    attack: Callable[[Payload], Payload],
) -> None:
    bfv = Watched(Seal())
    ends, context = blind_of(bfv), vouched()
    payload = ends.originate(keys_of(7), context, PAIR)
    pad = random.Random(7).randbytes(48)
    altered = attack(ends.transit(payload, None, pad))
    with pytest.raises((Tampered, Malformed)):
        ends.deliver(ends.transit(altered, pad, None), context, PAIR)
    assert bfv.decryptions == 0


@pytest.mark.parametrize("secret", [bytes(32), b"key made up by a relay, 32 bytes"])
def test_a_relay_cannot_put_a_key_of_its_own_in_its_place(secret: bytes) -> None:
    """It can encrypt to the destination, whose key is public; it cannot make the origin's tag."""
    bfv = Watched(Seal())
    ends, context = blind_of(bfv), vouched()
    forged = ends.originate([Secret(b"k" * 32)], context, Pair(PAIR.id, Secret(secret), PAIR.statement))
    with pytest.raises(Tampered):
        ends.deliver(travel(forged, 2), context, PAIR)
    assert bfv.decryptions == 0


def test_keys_cannot_be_swapped_within_or_between_payloads(ends: Blind) -> None:
    ids = (UUID(int=1), UUID(int=2))
    context, keys = vouched(key_ids=ids), keys_of(8, 2)
    body = ends.originate(keys, context, PAIR).body
    swapped = body[32:64] + body[:32] + body[64:]
    with pytest.raises(Tampered):
        ends.deliver(Payload("blind", PAIR.id, swapped), context, PAIR)
    with pytest.raises(Tampered):
        ends.deliver(Payload("blind", PAIR.id, body), replace(context, key_ids=(ids[1], ids[0])), PAIR)
    one, two = (vouched(key_ids=(key_id,)) for key_id in ids)
    other = ends.originate([keys[1]], two, PAIR)
    with pytest.raises(Tampered):
        ends.deliver(other, one, PAIR)


def test_the_second_half_of_another_ciphertext_does_not_fit(ends: Blind) -> None:
    context = vouched()
    one, two = (ends.originate(keys_of(seed), context, PAIR).body for seed in (9, 10))
    with pytest.raises(Tampered):
        ends.deliver(Payload("blind", PAIR.id, one[:48] + two[48:]), context, PAIR)


def test_a_replay_for_other_keys_or_another_way_is_refused(ends: Blind) -> None:
    context = vouched()
    payload = ends.originate(keys_of(11), context, PAIR)
    for change in ({"key_ids": (UUID(int=9),)}, {"expires": context.expires + 1}, {"initiator": "sae-x"}):
        with pytest.raises(Tampered):
            ends.deliver(payload, replace(context, **change), PAIR)


def test_trust_statements_cannot_be_taken_from_another_scheme(ends: Blind) -> None:
    context = vouched()
    masked = Masked().originate(keys_of(12), context, PAIR)
    with pytest.raises((Tampered, Malformed)):
        ends.deliver(masked, context, PAIR)


# ---------------------------------------------------------------------- the reaction attack


def test_accept_or_reject_opens_a_static_key_that_nothing_protects() -> None:
    """Paper B's relay with a tag made from the key: about 1,700 submissions, the whole secret key."""
    bare, submissions = Bare(DENSE), 0
    nothing = np.zeros(256, np.uint8)  # the key the relay pretends to send, and whose tag it makes

    def accepts(ciphertext: tuple[dense.Polynomial, dense.Polynomial]) -> bool:
        nonlocal submissions
        submissions += 1
        return np.array_equal(bare.decrypt(*ciphertext)[:256], nothing)

    found = np.zeros(COEFFICIENTS, np.int64)
    for at in range(COEFFICIENTS):
        for value in (-1, 1):
            if not accepts(probe(at, value, DENSE)):
                found[at] = value
                break
    assert submissions < 1_900
    key = dense.bits_of(random.Random(13).randbytes(CHUNK_BYTES))
    assert np.array_equal(_decrypt(found, *bare.encrypt(key)), key), "the relay reads every key from now on"


def _decrypt(secret: Any, first: dense.Polynomial, second: dense.Polynomial) -> dense.Bits:
    """By schoolbook multiplication, from a secret key that was found out."""
    product = np.zeros(2 * COEFFICIENTS, np.int64)
    for at, coefficient in enumerate(secret):
        product[at : at + COEFFICIENTS] += coefficient * second.astype(np.int64)
    phase = (first + product[:COEFFICIENTS] - product[COEFFICIENTS:]) % DENSE.q
    return ((phase > DENSE.q // 4) & (phase < DENSE.q - DENSE.q // 4)).astype(np.uint8)


def test_the_same_submissions_tell_nothing_about_a_key_of_blind() -> None:
    bfv = Watched(Seal())
    ends, context = blind_of(bfv), vouched()
    honest = ends.originate([Secret(bytes(32))], context, PAIR)
    trailer = honest.body[-TRAILER:]
    verdicts = set()
    for at in range(0, COEFFICIENTS, 8):
        for value in (-1, 1):
            first, second = probe(at, value, DENSE)
            upper, lower = dense.quarters(first[:256], DENSE) or pytest.fail("not a quarter")
            rest = dense.bytes_of(lower) + dense.pack(second, DENSE)
            body = dense.bytes_of(upper) + honest.body[32:48] + rest + trailer
            verdicts.add(_verdict(ends, Payload("blind", honest.head, body), context))
    assert verdicts == {"authentication failed"}
    assert bfv.decryptions == 0


def test_authenticating_the_second_polynomial_alone_would_not_do() -> None:
    """Shifting the first one and watching tells the noise, an equation in the secret key each time."""
    bare = Bare(DENSE)
    secret = bare.secret_coefficients()
    first, second = bare.encrypt(np.zeros(COEFFICIENTS, np.uint8))
    product = np.zeros(2 * COEFFICIENTS, np.int64)
    for at, coefficient in enumerate(secret):
        product[at : at + COEFFICIENTS] += coefficient * second.astype(np.int64)
    noise = int((first[0] + product[0] - product[COEFFICIENTS]) % DENSE.q)
    noise -= DENSE.q if noise > DENSE.q // 2 else 0

    def accepted(shift: int) -> bool:
        moved = first.copy()
        moved[0] = (int(first[0]) + shift) % DENSE.q
        return not bare.decrypt(moved, second)[0]

    low, high = 0, DENSE.q // 2  # accepted, refused
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    assert abs((DENSE.q // 4 - low) - noise) <= 2


def _verdict(ends: Blind, payload: Payload, context: Context) -> str:
    try:
        ends.deliver(payload, context, PAIR)
    except Tampered as refusal:
        return str(refusal)
    return "accepted"


def test_an_origin_and_its_own_application_read_the_key_of_an_epoch() -> None:
    """What `blind` does not stop, and docs/blind.md says so: BFV is not safe against chosen ciphertexts.

    An origin may authenticate what it likes; its application at the destination sees what comes of it.
    Two payloads of 1,024 bits tell them the destination's secret key, and with it everybody's keys.
    """
    bfv = Seal()
    ring = ring_of(bfv)
    ends, context = blind_of(bfv, ring), vouched(4)
    trailer = ends.originate(keys_of(14, 4), context, PAIR).body[-TRAILER:]
    answers = []
    for value in (-1, 1):
        first = np.full(COEFFICIENTS, (-value * (DENSE.q // 5)) % DENSE.q, np.uint32)
        second = np.zeros(COEFFICIENTS, np.uint32)
        second[0] = DENSE.q - DENSE.q // 5  # every coefficient of the secret in its place, sign turned
        upper, lower = dense.quarters(first, DENSE) or pytest.fail("not a quarter")
        parts = dense.bytes_of(upper), dense.bytes_of(lower) + dense.pack(second, DENSE)
        body = parts[0] + origin_tag(PAIR, context, *parts, trailer) + parts[1] + trailer
        delivered = ends.deliver(Payload("blind", PAIR.id, body), context, PAIR)
        answers.append(dense.bits_of(b"".join(bits(delivered))).astype(np.int64))
    opened = answers[1] - answers[0]
    victim = ends.originate(keys_of(15, 4), context, Pair(b"of other origins", Secret(b"q" * 32))).body
    first = dense.centres(dense.bits_of(victim[:128]), dense.bits_of(victim[144:272]), DENSE)
    second = dense.unpack(victim[272 : 272 + 2176], COEFFICIENTS, DENSE)
    assert dense.bytes_of(_decrypt(opened, first, second)) == b"".join(bits(keys_of(15, 4)))


# ---------------------------------------------------------------------- hostile bytes


def test_three_thousand_mutations_are_refused_and_nothing_falls_over() -> None:
    bfv = Watched(Seal())
    ends, context, source = blind_of(bfv), vouched(5), random.Random(15)
    payload = ends.originate(keys_of(15, 5), context, PAIR)
    for _ in range(3_000):
        body = _mutated(payload.body, source)
        with pytest.raises((Tampered, Malformed)):
            ends.deliver(Payload("blind", payload.head, body), context, PAIR)
    assert bfv.decryptions == 0


def test_three_thousand_mutations_behind_a_true_tag_are_keys_or_malformed() -> None:
    """A lying origin: what SEAL is given is ciphertext by form, so nothing but wrong keys comes of it."""
    bfv, source = Seal(), random.Random(16)
    public, secret = bfv.generate()
    upper, rest = bfv.encrypt(public, bytes(32))
    seen = set()
    for _ in range(3_000):
        try:
            seen.add(len(bfv.decrypt(secret, upper, _mutated(rest, source))))
        except Malformed:
            seen.add(-1)
    assert seen == {-1, 32}


def test_degenerate_ciphertexts_decrypt_to_something() -> None:
    """Zero everywhere, largest everywhere: no error of the library's comes through."""
    bfv = Seal()
    _, secret = bfv.generate()
    largest = dense.pack(np.full(COEFFICIENTS, DENSE.q - 1, np.uint32), DENSE)
    for upper in (bytes(32), b"\xff" * 32):
        for second in (bytes(2176), largest):
            assert len(bfv.decrypt(secret, upper, upper + second)) == 32


def _mutated(data: bytes, source: random.Random) -> bytes:
    body = bytearray(data)
    kind = source.randrange(4)
    at = source.randrange(len(body))
    if kind == 0:
        body[at] ^= 1 << source.randrange(8)
    elif kind == 1:
        del body[at : at + source.randrange(1, 40)]
    elif kind == 2:
        body[at:at] = source.randbytes(source.randrange(1, 40))
    else:
        body[at : at + 30] = b"\xff" * len(body[at : at + 30])
        body[0] ^= 1
    return bytes(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2_400))
def test_no_body_makes_a_relay_fall_over(body: bytes) -> None:
    payload = Payload("blind", b"", body)
    try:
        length = Blind().pad_bytes(payload)
    except Malformed:
        return
    assert len(Blind().transit(payload, bytes(length), None).body) == len(body)


def test_a_public_key_that_is_none_is_malformed() -> None:
    bfv = Seal()
    public, _ = bfv.generate()
    bfv.check_public(public)
    wrong = [public[:-1], public + b"\0", b"\2" + public[1:], b"", public[:1] + b"\xff" * (len(public) - 1)]
    for each in wrong:
        with pytest.raises(Malformed):
            bfv.check_public(each)
        with pytest.raises(Malformed):
            bfv.encrypt(each, bytes(32))


# ---------------------------------------------------------------------- keys and availability


def test_a_payload_opens_while_its_key_is_held_and_not_after() -> None:
    bfv = Seal()
    ring = ring_of(bfv)
    ends, context = blind_of(bfv, ring), vouched()
    payload = ends.originate(keys_of(17), context, PAIR)
    later = 1_800_000_000.0 + 1800
    ring.activate(ring.prepare(later))
    assert bits(ends.deliver(payload, context, PAIR)) == bits(keys_of(17))
    ring.erase(ring.expired(later + 5400))
    with pytest.raises(Tampered):
        ends.deliver(payload, context, PAIR)


def test_a_secret_key_survives_being_stored() -> None:
    bfv = Seal()
    ring = ring_of(bfv)
    context = vouched()
    payload = blind_of(bfv, ring).originate(keys_of(18), context, PAIR)
    held = next(iter(ring._pairs.values()))
    again = Seal()
    restored = ring_of(again)
    restored.restore([held.encoded()])
    assert bits(blind_of(again, restored).deliver(payload, context, PAIR)) == bits(keys_of(18))


def test_a_node_that_only_relays_says_so_when_it_is_asked_for_more(ends: Blind) -> None:
    context = vouched()
    payload = ends.originate(keys_of(19), context, PAIR)
    with pytest.raises(Unsupported, match="extra 'blind'"):
        Blind().originate(keys_of(19), context, PAIR)
    with pytest.raises(Unsupported, match="extra 'blind'"):
        Blind().deliver(payload, context, PAIR)
    with pytest.raises(Unavailable, match="bilbao"):
        Blind(Seal()).originate(keys_of(19), context, PAIR)


def test_relaying_loads_neither_numpy_nor_seal() -> None:
    """A relay stays small: no array library, no FHE library."""
    code = (
        "import sys; from keyhaul.schemes.blind import Blind; Blind(); "
        "sys.exit(any(name in sys.modules for name in ('numpy', 'seal')))"
    )
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == 0


def test_a_missing_library_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seal", None)
    with pytest.raises(Unsupported, match="extra 'blind'"):
        Seal()


def test_parameters_that_the_library_does_not_take_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="profile 9"):
        Seal(Profile(id=9, q=65_537, width=17, security=192))


def test_the_notice_names_the_application_and_its_owners() -> None:
    for word in ("EP24383397.7", "Tecnalia", "UPV/EHU", "European Patent Office", "masked"):
        assert word in NOTICE


_ENDS: list[Blind] = []


def _shared() -> Blind:
    if not _ENDS:
        _ENDS.append(blind_of(Seal()))
    return _ENDS[0]


@pytest.fixture(name="ends")
def _ends() -> Blind:
    return _shared()
