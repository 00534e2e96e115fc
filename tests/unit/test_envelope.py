"""The envelope under attack: no bit of it can be changed, no key or pad of it comes twice."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyhaul.errors import Malformed, Tampered
from keyhaul.messages import envelope
from keyhaul.messages.envelope import Header, Material, Mode, Suite
from tests.vectors.make import PLAIN, SUITES, header, sealed

QUICK = settings(max_examples=150, deadline=None)
NAMES = sorted(SUITES)


def open_as(name: str, body: bytes) -> tuple[str, bytes]:
    return envelope.open_sealed(envelope.parse(body), SUITES[name][1])


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_counts(name: str) -> None:
    body = sealed(name)
    assert open_as(name, body) == PLAIN
    kem_start = body.index(SUITES[name][0].kem_ciphertext)
    for at in range(len(body)):
        # All bits everywhere but inside the long ciphertext, where one a byte will do.
        inside = kem_start <= at < kem_start + 1088
        for bit in (at % 8,) if inside else range(8):
            changed = bytearray(body)
            changed[at] ^= 1 << bit
            with pytest.raises((Tampered, Malformed)):
                open_as(name, bytes(changed))


@QUICK
@given(st.sampled_from(NAMES), st.data())
def test_cut_stretched_and_spliced_envelopes_are_refused(name: str, data: st.DataObject) -> None:
    body = sealed(name)
    at = data.draw(st.integers(0, len(body)))
    length = data.draw(st.integers(0, 40))
    changed = body[:at] + data.draw(st.binary(max_size=20)) + body[at + length :]
    if changed != body:
        with pytest.raises((Tampered, Malformed)):
            open_as(name, changed)


@QUICK
@given(st.binary(max_size=200))
@example(b"\x93\xc4\x00\xc4\x00\xc4\x00")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 5000)
def test_any_bytes_are_malformed_at_worst(body: bytes) -> None:
    with pytest.raises((Tampered, Malformed)):
        open_as("kem", body)


@QUICK
@given(
    st.text(max_size=20),
    st.binary(max_size=300),
    st.sampled_from(NAMES),
    st.integers(0, (1 << 63) - 1),
    st.text(max_size=10),
)
def test_round_trip(path: str, content: bytes, name: str, sequence: int, sender: str) -> None:
    head, material = SUITES[name]
    head = msgspec.structs.replace(head, sequence=sequence, sender=sender)
    body = envelope.seal(head, material, os.urandom(12), path, content)
    parsed = envelope.parse(body)
    assert parsed.header == head
    assert parsed.header_bytes == envelope.header_bytes(head)
    assert envelope.open_sealed(parsed, material) == (path, content)


def key_and_pad(head: Header, material: Material) -> tuple[bytes, bytes]:
    raw = envelope.header_bytes(head)
    return envelope.message_key(head, raw, material), envelope.pad(head, raw, material, 64)


@pytest.mark.parametrize("name", ["kem", "expanded", "otp"])
@pytest.mark.parametrize("change", [{"sequence": 70_001}, {"message_id": bytes(16)}, {"receiver": "derio"}])
def test_any_other_header_gives_other_keys_and_pads(name: str, change: dict[str, object]) -> None:
    head, material = SUITES[name]
    key, pad = key_and_pad(head, material)
    other_key, other_pad = key_and_pad(msgspec.structs.replace(head, **change), material)
    assert key != other_key
    assert pad != other_pad


@pytest.mark.parametrize("name", ["expanded", "otp"])
def test_the_message_key_needs_both_halves(name: str) -> None:
    head, good = SUITES[name]
    raw = envelope.header_bytes(head)
    keys = {
        envelope.message_key(head, raw, material)
        for material in (
            good,
            Material(bytes(32), good.pad_bits, good.kem_secret),
            Material(good.message_bits, good.pad_bits, bytes(32)),
            # Bits may not wander from one half into the other.
            Material(good.message_bits + good.kem_secret[:1], good.pad_bits, good.kem_secret[1:]),
        )
    }
    assert len(keys) == 4


def test_an_otp_pad_is_device_bits_xor_a_stream_of_the_kem_secret() -> None:
    head, good = SUITES["otp"]
    raw = envelope.header_bytes(head)
    blank = Material(good.message_bits, bytes(96), good.kem_secret)
    stream = envelope.pad(head, raw, blank, 64)
    assert envelope.pad(head, raw, good, 64) == envelope.xor(good.pad_bits[:64], stream)
    assert envelope.pad(head, raw, good, 10) == envelope.xor(good.pad_bits[:64], stream)[:10]
    assert stream != bytes(64)
    other_message_bits = Material(bytes(32), bytes(96), good.kem_secret)
    assert envelope.pad(head, raw, other_message_bits, 64) == stream, (
        "pad and message key share no device bit"
    )


def test_an_otp_pad_longer_than_its_device_bits_is_refused() -> None:
    head, material = SUITES["otp"]
    raw = envelope.header_bytes(head)
    assert len(envelope.pad(head, raw, material, 80)) == 80
    with pytest.raises(Malformed):
        envelope.pad(head, raw, material, 81)


@pytest.mark.parametrize("name", ["kem", "expanded"])
def test_a_stretched_pad_is_as_long_as_needed_and_never_the_message_key(name: str) -> None:
    head, material = SUITES[name]
    key, _ = key_and_pad(head, material)
    pad = envelope.pad(head, envelope.header_bytes(head), material, 100_000)
    assert len(pad) == 100_000
    assert key not in pad


def test_an_observer_sees_no_difference_between_keys_acks_and_voids() -> None:
    head, material = SUITES["kem"]
    bodies = [envelope.seal(head, material, bytes(12), path, b"x" * 32) for path in ("ack", "void")]
    for body in bodies:
        assert b"ack" not in body
        assert b"void" not in body
        assert b"x" * 8 not in body


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"suite": 0},
        {"message_id": b""},
        {"epoch": bytes(17)},
        {"sequence": 1 << 63},
        {"message_keys": tuple(map(str, range(65_537)))},
    ],
)
def test_a_header_out_of_range_is_malformed(change: dict[str, object]) -> None:
    head = header(**change)
    with pytest.raises(Malformed):
        envelope.parse(envelope.seal(head, SUITES["kem"][1], bytes(12), *PLAIN))


def test_paper_a_needs_keys_of_one_length() -> None:
    head = header(suite=Suite.PAPER_A, mode=Mode.EXPANDED)
    with pytest.raises(Malformed):
        envelope.seal(head, Material(bytes(64), b"", bytes(32)), bytes(12), *PLAIN)


@QUICK
@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_tags_do_not_confuse_where_parts_begin(left: list[bytes], right: list[bytes]) -> None:
    same = envelope.tag(b"k", b"label", *left) == envelope.tag(b"k", b"label", *right)
    assert same == (left == right)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_xor_wants_equal_lengths_and_undoes_itself(left: bytes, right: bytes) -> None:
    if len(left) == len(right):
        assert envelope.xor(envelope.xor(left, right), right) == left
    else:
        with pytest.raises(Malformed):
            envelope.xor(left, right)
