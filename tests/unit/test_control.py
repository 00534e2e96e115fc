"""Descriptors: the rules of the directory, each broken once, and what gossip does with the rest."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from keyhaul.control import (
    CLOCK_SKEW,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_RECORDS,
    MAX_WORDS,
    PUBLIC_BYTES,
    Directory,
    Known,
    Record,
    decode_names,
    decode_told,
    encode_names,
    encode_records,
    encode_stamps,
)
from keyhaul.errors import Malformed, Tampered, Unauthorized, Unavailable
from keyhaul.messages import labels
from keyhaul.schemes.bfv import PROFILES
from tests.descriptors import NOW, described, directory, key, record
from tests.neighbours import Identity


def refused(bad: Record, error: type[Exception], held: Directory | None = None) -> None:
    """`bad` raises and changes nothing."""
    held = held or directory()
    before = [known.record for known in held.known()]
    with pytest.raises(error):
        held.receive(bad, NOW)
    assert [known.record for known in held.known()] == before


def test_a_good_descriptor_is_new_once() -> None:
    held = directory()
    known = held.receive(record(), NOW)
    assert isinstance(known, Known)
    assert known.descriptor == described()
    assert held.receive(record(), NOW) is None, "what is not new is not passed on"
    assert "vigo" in held
    assert held.get("vigo", NOW) is known
    assert held.nodes() == ["vigo"]


# rule 1: an anchor of the federation, the CA of the node's own domain, the node's own name


def test_a_certificate_of_no_anchor_is_refused() -> None:
    refused(record(Identity("vigo", "elsewhere")), Unauthorized)


def test_the_ca_of_another_domain_cannot_speak_for_a_node() -> None:
    refused(record(Identity("vigo", "north")), Tampered)
    refused(record(Identity("vigo", "north"), domain="north"), Tampered)


def test_a_descriptor_that_claims_another_domain_is_refused() -> None:
    refused(record(domain="north"), Tampered)


def test_a_node_cannot_speak_for_another_of_its_domain() -> None:
    refused(record(Identity("derio", "north"), node="bilbao", domain="north"), Tampered)


@pytest.mark.parametrize("domain", ["lab", ""])
def test_a_node_the_configuration_does_not_know_is_refused(domain: str) -> None:
    """Also when its CA names no organisation: nothing must not match nothing."""
    refused(record(Identity("mallory", domain or None), node="mallory", domain=domain), Tampered)


# rule 2: the signature covers every byte


@pytest.mark.parametrize("at", range(0, 1240, 13))
def test_every_byte_of_the_body_is_signed(at: int) -> None:
    good = record()
    body = bytearray(good.body)
    body[at % len(body)] ^= 0x01
    changed = Record(bytes(body), good.certificate, good.signature)
    with pytest.raises((Tampered, Malformed, Unauthorized)):
        directory().receive(changed, NOW)


def test_an_unsigned_descriptor_is_refused() -> None:
    good = record()
    refused(Record(good.body, good.certificate, b""), Tampered)
    refused(Record(good.body, good.certificate, bytes(32)), Tampered)


def test_a_signature_for_another_purpose_does_not_count() -> None:
    good = record()
    for label in (b"", labels.PAIR_STATEMENT, labels.KEM_BATCH):
        refused(Record(good.body, good.certificate, Identity("vigo").sign(label + good.body)), Tampered)


# rule 3: neither expired nor from the future


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": NOW},
        {"expires": NOW - 1},
        {"issued": NOW + CLOCK_SKEW + 1},
        {"expires": math.nan},
        {"issued": math.nan},
        {"expires": math.inf},
    ],
    ids=repr,
)
def test_a_descriptor_of_another_time_is_refused(changes: dict[str, Any]) -> None:
    refused(record(**changes), Unauthorized)


def test_a_clock_may_run_ahead_a_little() -> None:
    assert directory().receive(record(issued=NOW + CLOCK_SKEW), NOW) is not None


def test_a_descriptor_that_expired_since_is_not_used_or_passed_on() -> None:
    held = directory()
    held.receive(record(), NOW)
    with pytest.raises(Unavailable):
        held.get("vigo", NOW + 3600)
    assert held.known(NOW + 3600) == []
    assert len(held.known(NOW)) == 1
    with pytest.raises(Unavailable):
        held.get("bilbao", NOW)


# rule 4: a sequence number never goes back


@pytest.mark.parametrize("sequence", [9, -1])
def test_an_older_descriptor_changes_nothing(sequence: int) -> None:
    held = directory()
    held.receive(record(), NOW)
    assert held.receive(record(sequence=sequence, keys=(key(fill=b"x"),)), NOW) is None
    assert held.get("vigo", NOW).descriptor.keys == (key(),)


def test_of_two_under_one_number_every_node_holds_the_same() -> None:
    """A node that was restored may use a number twice; it hears of the other one and goes beyond it."""
    one, other = record(), record(keys=(key(fill=b"x"),))
    for first, second in ((one, other), (other, one)):
        held = directory()
        held.receive(first, NOW)
        held.receive(second, NOW)
        assert held.get("vigo", NOW).record == other
        overtaken = held.overtaken(one)
        assert overtaken is not None
        assert overtaken.record == other
        assert held.overtaken(other) is None
        assert held.overtaken(record(sequence=11)) is None
    with pytest.raises(Malformed):
        directory().overtaken(Record(b"\xc1", b"", b""))
    assert directory().overtaken(one) is None


def test_a_newer_descriptor_takes_the_place_of_the_old_one() -> None:
    held = directory()
    held.receive(record(), NOW)
    assert held.receive(record(sequence=11, keys=(key(fill=b"x"),)), NOW) is not None
    assert held.get("vigo", NOW).descriptor.keys == (key(fill=b"x"),)


def test_a_forged_newer_descriptor_does_not_displace_the_good_one() -> None:
    held = directory()
    held.receive(record(), NOW)
    refused(record(Identity("vigo", "north"), sequence=99), Tampered, held)
    assert held.receive(record(sequence=11), NOW) is not None


# bytes


@pytest.mark.parametrize("body", [b"", b"\x90", b"\xff", msgspec.msgpack.encode(["vigo", "lab"])])
def test_a_body_that_is_no_descriptor_is_malformed(body: bytes) -> None:
    signer = Identity("vigo")
    refused(Record(body, signer.der, signer.sign(labels.DESCRIPTOR + body)), Malformed)


# rule 5: keys are what their profile says


@pytest.mark.parametrize("profile", sorted(PUBLIC_BYTES))
@pytest.mark.parametrize("change", [-1, 1])
def test_a_key_of_the_wrong_length_is_malformed(profile: str, change: int) -> None:
    for length in (0, PUBLIC_BYTES[profile] + change):
        refused(record(keys=(key(profile, public=bytes(length)),)), Malformed)


@pytest.mark.parametrize(
    "epoch",
    [
        {"expires": NOW},
        {"expires": NOW - 1},
        {"expires": math.inf},
        {"expires": math.nan},
        {"issued": math.nan},
    ],
    ids=repr,
)
def test_a_key_without_a_time_of_its_own_is_malformed(epoch: dict[str, float]) -> None:
    refused(record(keys=(key(**epoch),)), Malformed)


def test_a_profile_stands_there_once() -> None:
    refused(record(keys=(key(), key(fill=b"x"))), Malformed)


def test_a_descriptor_has_a_bounded_size() -> None:
    refused(record(keys=tuple(key(f"future-{at}") for at in range(MAX_KEYS + 1))), Malformed)
    refused(record(keys=(key("future", public=bytes(MAX_KEY_BYTES + 1)),)), Malformed)
    refused(record(schemes=("x",) * MAX_WORDS, labels=("y",)), Malformed)


def test_a_key_of_a_profile_that_is_not_known_here_is_passed_on_and_not_read() -> None:
    held = directory()
    future = key("bfv-of-next-year", public=b"anything")
    known = held.receive(record(keys=(future, key())), NOW)
    assert known is not None
    assert known.descriptor.keys == (future, key())
    assert known.key("ml-kem-768", NOW) == key()


@pytest.mark.parametrize("moment", [NOW - CLOCK_SKEW - 1, NOW + 3600])
def test_a_key_is_used_within_its_epoch_only(moment: float) -> None:
    held = directory()
    held.receive(record(expires=NOW + 90_000, keys=(key(),)), NOW)
    assert held.get("vigo", NOW).key("ml-kem-768", NOW + 3599) == key()
    with pytest.raises(Unavailable, match="no current ml-kem-768 key"):
        held.get("vigo", NOW).key("ml-kem-768", moment)
    with pytest.raises(Unavailable, match="no current bfv-dense key"):
        held.get("vigo", NOW).key("bfv-dense", NOW)


def test_sizes_of_bfv_keys_are_those_of_their_profiles() -> None:
    assert {each.name: each.public_bytes for each in PROFILES.values()} == {
        name: size for name, size in PUBLIC_BYTES.items() if name.startswith("bfv")
    }


@pytest.mark.parametrize("body", [b"", b"\x93", b'{"a":1}', msgspec.msgpack.encode([[b"", b""]]), b"\xc1"])
def test_records_that_cannot_be_read_are_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode_told(body)


def test_a_flood_of_records_is_malformed() -> None:
    small = Record(b"", b"", b"")
    assert len(decode_told(encode_records([small] * MAX_RECORDS))) == MAX_RECORDS
    with pytest.raises(Malformed):
        decode_told(encode_records([small] * (MAX_RECORDS + 1)))


def test_what_somebody_holds_is_compared_by_number_and_content() -> None:
    held = directory()
    known = held.receive(record(), NOW)
    assert known is not None
    sequence, digest = known.stamp
    assert held.lacking({"vigo": known.stamp}) == []
    assert held.lacking({"vigo": (sequence - 1, b"")}) == []
    assert held.lacking({"vigo": (sequence + 1, digest)}) == ["vigo"]
    assert held.lacking({"vigo": (sequence, bytes(16))}) == ["vigo"]
    assert held.lacking({"bilbao": (0, b""), "nowhere": (1, b"")}) == ["bilbao"]


def test_stamps_and_names_travel_and_nonsense_is_malformed() -> None:
    stamps = {"vigo": (7, bytes(16)), "bilbao": (0, b"")}
    assert decode_told(encode_stamps(stamps)) == stamps
    assert decode_names(encode_names(["vigo"])) == ["vigo"]
    for body in (b"", b"\x93", b"\x91\xa1\xff"):
        with pytest.raises(Malformed):
            decode_names(body)
    with pytest.raises(Malformed):
        decode_told(encode_stamps({str(number): (0, b"") for number in range(MAX_RECORDS + 1)}))
