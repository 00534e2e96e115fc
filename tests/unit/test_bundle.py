"""Several envelopes in one body and their verdicts, byte by byte: whole, torn, too many, told twice."""

from __future__ import annotations

import struct

import pytest

from keyhaul.errors import Malformed
from keyhaul.messages import bundle
from keyhaul.messages.bundle import Verdict, Verdicts

ENVELOPES = [b"one", b"", b"three" * 100]


def test_what_is_packed_comes_out() -> None:
    body = bundle.encode(ENVELOPES)
    assert body.startswith(b"\0\0\0\3one\0\0\0\0")
    assert bundle.decode(body) == ENVELOPES


def test_a_bundle_that_ends_elsewhere_is_torn() -> None:
    body = bundle.encode(ENVELOPES)
    whole = {7, 11, len(body)}
    for end in range(1, len(body)):
        if end not in whole:
            with pytest.raises(Malformed, match="torn"):
                bundle.decode(body[:end])
    with pytest.raises(Malformed, match="torn"):
        bundle.decode(b"\xff\xff\xff\xff" + bytes(100))


def test_a_bundle_is_neither_empty_nor_endless() -> None:
    with pytest.raises(Malformed, match="empty"):
        bundle.decode(b"")
    assert len(bundle.decode(bundle.encode([b"x"] * bundle.MOST))) == bundle.MOST
    with pytest.raises(Malformed, match="more than"):
        bundle.decode(bundle.encode([b"x"] * (bundle.MOST + 1)))
    with pytest.raises(Malformed, match="more than"):
        bundle.decode(bytes(8 * 2**20))


def test_room_counts_the_framing() -> None:
    assert bundle.room(bundle.MOST, 0)
    assert not bundle.room(bundle.MOST + 1, 0)
    assert bundle.room(2, bundle.LARGEST - 8)
    assert not bundle.room(2, bundle.LARGEST - 7)


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 1000])
def test_verdicts_are_read_from_any_pieces_in_any_order(piece: int) -> None:
    sent = [Verdict(2, 202, b""), Verdict(0, 400, b'{"title":"no"}'), Verdict(1, 503, b"later")]
    data = b"".join(bundle.encode_verdict(*each) for each in sent)
    verdicts = Verdicts(3)
    read = [each for at in range(0, len(data), piece) for each in verdicts.feed(data[at : at + piece])]
    assert read == sent
    assert not verdicts.open


def test_a_torn_answer_says_what_it_says_and_no_more() -> None:
    data = bundle.encode_verdict(1, 202) + bundle.encode_verdict(0, 400, b"problem")
    verdicts = Verdicts(2)
    assert list(verdicts.feed(data[:-1])) == [Verdict(1, 202, b"")]
    assert verdicts.open == {0}


@pytest.mark.parametrize(
    "lie",
    [
        bundle.encode_verdict(2, 202),
        bundle.encode_verdict(0, 202) * 2,
        bundle.encode_verdict(0, 100),
        bundle.encode_verdict(0, 600),
        struct.pack(">HHI", 0, 400, bundle.PROBLEM + 1),
    ],
    ids=["no such place", "told twice", "status 100", "status 600", "too long"],
)
def test_verdicts_that_cannot_be_end_the_reading(lie: bytes) -> None:
    with pytest.raises(Malformed):
        list(Verdicts(2).feed(lie))
