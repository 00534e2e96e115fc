"""Scheme `trusted`: what lies under the pad, what a relay sees, what it cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.messages.payload import TAG_BYTES, Pair, check_origin_tag, origin_tag, split_keys
from keyhaul.schemes.trusted import Trusted
from tests.neighbours import context

PAIR = Pair(b"0123456789abcdef", Secret(b"s" * 32), b"statement")
KEYS = [Secret(b"\x11" * 32), Secret(b"\x22" * 32)]
SENT = Trusted().originate(KEYS, context(), PAIR)


def test_the_payload_is_keys_then_tag_and_the_head_names_the_pair() -> None:
    assert SENT.head == PAIR.id + b"statement"
    assert SENT.body[:64] == b"\x11" * 32 + b"\x22" * 32
    assert SENT.body[64:] == origin_tag(PAIR, context(), SENT.body[:64])
    assert Trusted().pad_bytes(SENT) == 64 + TAG_BYTES


def test_nothing_in_the_clear_is_made_from_the_key() -> None:
    other = Trusted().originate([Secret(bytes(32))] * 2, context(), PAIR)
    assert other.head == SENT.head


def test_without_pads_transit_changes_nothing() -> None:
    assert Trusted().transit(SENT, None, None) == SENT


def test_a_tag_of_the_wrong_length_is_tampered() -> None:
    for body in (SENT.body[:-1], SENT.body + b"\0", SENT.body[:64]):
        with pytest.raises(Tampered):
            Trusted().deliver(replace(SENT, body=body), context(), PAIR)


def test_a_body_shorter_than_its_keys_is_malformed() -> None:
    with pytest.raises(Malformed):
        Trusted().deliver(replace(SENT, body=SENT.body[:63]), context(), PAIR)
    with pytest.raises(Malformed):
        split_keys(b"", context())


def test_a_relay_with_a_key_and_a_tag_of_its_own_is_refused() -> None:
    own = Pair(PAIR.id, Secret(b"r" * 32))
    forged = Trusted().originate([Secret(b"\x33" * 32), Secret(b"\x44" * 32)], context(), own)
    with pytest.raises(Tampered):
        Trusted().deliver(forged, context(), PAIR)


def test_every_refusal_is_worded_alike() -> None:
    """A hint which check failed would be an oracle."""
    texts = set()
    for body in (SENT.body[:-1], bytes(80), SENT.body[:64] + bytes(16)):
        with pytest.raises(Tampered) as refused:
            Trusted().deliver(replace(SENT, body=body), context(), PAIR)
        texts.add(str(refused.value))
    assert texts == {"authentication failed"}


def test_the_tag_depends_on_the_pair_the_context_and_every_part() -> None:
    tags = [
        origin_tag(PAIR, context(), b"ab", b"c"),
        origin_tag(PAIR, context(), b"a", b"bc"),
        origin_tag(replace(PAIR, id=bytes(16)), context(), b"ab", b"c"),
        origin_tag(replace(PAIR, secret=Secret(bytes(32))), context(), b"ab", b"c"),
        origin_tag(PAIR, context(size=128), b"ab", b"c"),
    ]
    assert len(set(tags)) == len(tags)
    check_origin_tag(PAIR, context(), tags[0], b"ab", b"c")
    for wrong in (*tags[1:], b"", tags[0][:-1]):
        with pytest.raises(Tampered):
            check_origin_tag(PAIR, context(), wrong, b"ab", b"c")


def test_transcripts_tell_neighbouring_fields_apart() -> None:
    texts = {
        context(origin="ab", destination="c").transcript(),
        context(origin="a", destination="bc").transcript(),
        context(targets=("a", "b")).transcript(),
        context(targets=("ab",)).transcript(),
        context(targets=("a",), initiator="b").transcript(),
        context(trust=(("a", "b"),)).transcript(),
        context(trust=(("a", "b"), ("", ""))).transcript(),
    }
    assert len(texts) == 7
