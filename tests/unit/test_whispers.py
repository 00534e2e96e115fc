"""Whispers reach the destination and nobody else, whatever became of its keys in the meantime."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul import kem
from keyhaul.control import Descriptor, Directory, PublicKey, publish
from keyhaul.errors import Malformed, Tampered, Unavailable
from keyhaul.whispers import OVERHEAD, Whispers
from tests.neighbours import Anchors, Identity
from tests.unit.test_pairing import Clock

HERE, THERE = (kem.PrivateKey(kem.DEFAULT, bytes([at]) * 64) for at in (1, 2))


def directory(public: bytes, life: float = 3600.0) -> Directory:
    now = Clock().now()
    found = Directory(Anchors(), {"bilbao": "lab"})
    key = PublicKey(kem.DEFAULT, public, now, now + life)
    found.receive(publish(Descriptor("bilbao", "lab", 1, now, now + 9000, (key,)), Identity("bilbao")), now)
    return found


def whispers(own: kem.PrivateKey = HERE, public: bytes = HERE.public) -> Whispers:
    made = Whispers(directory(public), Clock())
    made.own = lambda kind, wanted: own if (kind, wanted) == (kem.DEFAULT, _id(own)) else None
    return made


def _id(key: kem.PrivateKey) -> bytes:
    return PublicKey(kem.DEFAULT, key.public, 0.0, 0.0).id


@given(st.binary(max_size=5000))
def test_what_is_said_is_heard(said: bytes) -> None:
    ends = whispers()
    sealed = ends.seal("bilbao", said)
    assert len(sealed) == len(said) + OVERHEAD
    assert said not in sealed or len(said) < 8
    assert ends.unseal(sealed) == said


def test_the_same_words_sound_different_each_time() -> None:
    ends = whispers()
    assert ends.seal("bilbao", b"said") != ends.seal("bilbao", b"said")


def test_nobody_else_hears_it() -> None:
    sealed = whispers(public=HERE.public).seal("bilbao", b"said")
    with pytest.raises(Tampered):
        whispers(own=THERE).unseal(sealed)
    with pytest.raises(Tampered):
        THERE.unseal(sealed[16:])
    with pytest.raises(Tampered):
        Whispers(directory(HERE.public), Clock()).unseal(sealed)


@pytest.mark.parametrize("at", [0, 16, 500, -1])
def test_a_whisper_that_was_changed_is_none(at: int) -> None:
    ends = whispers()
    sealed = bytearray(ends.seal("bilbao", b"said"))
    sealed[at] ^= 1
    with pytest.raises(Tampered):
        ends.unseal(bytes(sealed))


@pytest.mark.parametrize("sealed", [b"", bytes(16), bytes(OVERHEAD), _id(HERE), _id(HERE) + bytes(50)])
def test_bytes_that_are_no_whisper(sealed: bytes) -> None:
    with pytest.raises(Tampered):
        whispers().unseal(sealed)


def test_it_waits_for_a_key_of_the_destination() -> None:
    with pytest.raises(Unavailable):
        whispers().seal("nowhere", b"said")
    clock = Clock()
    late = Whispers(directory(HERE.public, life=60.0), clock)
    clock.time += 61.0
    with pytest.raises(Unavailable, match="announces no current ml-kem-768"):
        late.seal("bilbao", b"said")


def test_only_keys_of_one_kind_take_whispers() -> None:
    other = kem.PrivateKey("ml-kem-1024", bytes(64))
    with pytest.raises(Tampered):
        other.unseal(kem.seal(HERE.public, b"said"))
    with pytest.raises(Malformed):
        kem.seal(other.public, b"said")
