"""BFV keys of a destination: prepared before announced, opened for a while, erased."""

from __future__ import annotations

import pytest

from keyhaul.errors import Malformed, Unavailable
from keyhaul.schemes.bfv import DENSE_25, Bfv, Profile
from keyhaul.schemes.keyring import EPOCH, OVERLAP, KeyPair, KeyRing, key_id

NOW = 1_800_000_000.0


class Counter:
    """Makes keys that are numbers; a ring asks for nothing else."""

    def __init__(self, profile: Profile = DENSE_25) -> None:
        self.profile = profile
        self.made = 0

    def generate(self) -> tuple[bytes, bytes]:
        self.made += 1
        return bytes([self.profile.id, self.made]), bytes([self.made]) * 4

    def check_public(self, public: bytes) -> None:
        raise AssertionError

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        raise AssertionError

    def decrypt(self, secret: bytes, upper: bytes, rest: bytes) -> bytes:
        raise AssertionError


def turn(ring: KeyRing, now: float) -> KeyPair:
    pair = ring.prepare(now)
    ring.activate(pair)
    return pair


def test_a_key_is_due_at_once_and_again_after_half_its_epoch() -> None:
    ring = KeyRing(Counter())
    assert ring.due(NOW)
    turn(ring, NOW)
    assert not ring.due(NOW + EPOCH / 2 - 1)
    assert ring.due(NOW + EPOCH / 2)


def test_a_prepared_key_is_neither_announced_nor_used() -> None:
    ring = KeyRing(Counter())
    first = turn(ring, NOW)
    second = ring.prepare(NOW + 1)
    assert ring.announced(NOW + 1) == first.public
    assert ring.own(second.id) is None
    ring.activate(second)
    assert ring.announced(NOW + 1) == second.public


def test_an_older_key_opens_until_its_overlap_ends() -> None:
    ring = KeyRing(Counter())
    first = turn(ring, NOW)
    turn(ring, NOW + EPOCH / 2)
    last = NOW + EPOCH + OVERLAP
    assert ring.own(first.id) is not None
    assert ring.expired(last - 1) == []
    assert ring.expired(last) == [first]
    ring.erase([first])
    assert ring.own(first.id) is None
    assert len(first.secret) == 0


def test_no_key_is_announced_beyond_its_epoch() -> None:
    ring = KeyRing(Counter())
    with pytest.raises(Unavailable):
        ring.announced(NOW)
    turn(ring, NOW)
    ring.announced(NOW + EPOCH - 1)
    with pytest.raises(Unavailable):
        ring.announced(NOW + EPOCH)


def test_a_restart_changes_nothing() -> None:
    bfv: Bfv = Counter()
    ring = KeyRing(bfv)
    pairs = [turn(ring, NOW), turn(ring, NOW + EPOCH / 2)]
    again = KeyRing(bfv)
    again.restore(pair.encoded() for pair in reversed(pairs))
    assert again.announced(NOW + EPOCH / 2) == pairs[1].public
    for pair in pairs:
        held = again.own(pair.id)
        assert held is not None
        assert held.same_as(pair.secret)
        assert bytes.fromhex(pair.name) == pair.id == key_id(pair.public)


def test_a_key_of_another_profile_waits_for_its_end_and_is_not_announced() -> None:
    old = turn(KeyRing(Counter(DENSE_25)), NOW)
    ring = KeyRing(Counter(Profile(id=9, q=3, width=2, security=128)))
    ring.restore([old.encoded()])
    assert ring.due(NOW)
    with pytest.raises(Unavailable):
        ring.announced(NOW)
    assert [pair.id for pair in ring.expired(NOW + EPOCH + OVERLAP)] == [old.id]


@pytest.mark.parametrize("value", [b"", b"\x90", b"\xc1", b"\x93\xc4\x00\xc4\x00\xa1x"])
def test_a_stored_value_that_cannot_be_read_is_malformed(value: bytes) -> None:
    with pytest.raises(Malformed):
        KeyRing(Counter()).restore([value])


def test_a_pair_does_not_print_its_secret() -> None:
    pair = turn(KeyRing(Counter()), NOW)
    assert "Secret(…)" in repr(pair)
