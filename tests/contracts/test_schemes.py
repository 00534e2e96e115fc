"""The contract of a scheme that authenticates, and every scheme of ours run against it.

A new scheme joins by one line in SCHEMES. What the contract promises: keys come out at the destination
exactly as they went in at the origin, whatever pads lie on the way, and nothing else ever comes out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.messages.payload import Context, Pair, Payload, Scheme, origin_tag
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from tests.neighbours import context

SCHEMES: list[Scheme] = [Trusted(), Masked()]
PAIR = Pair(b"pair id of 16 B.", Secret(b"p" * 32), b"statement")


class Journey:
    """Keys on their way from an origin to a destination over relays that do their part."""

    def __init__(self, scheme: Scheme, seed: int, *, hops: int, number: int, size: int) -> None:
        self.random = random.Random(seed)
        self.scheme = scheme
        self.keys = [Secret(self.random.randbytes(size // 8)) for _ in range(number)]
        route = ("vigo", *(f"relay-{at}" for at in range(hops - 1)), "bilbao")
        ids = tuple(UUID(int=self.random.getrandbits(128)) for _ in range(number))
        self.context = context(scheme=scheme.name, key_ids=ids, size=size, route=route)
        self.sent = scheme.originate(self.keys, self.context, PAIR)
        self.hops = hops

    def travel(self, at_relay: Callable[[Payload], Payload] = lambda payload: payload) -> Payload:
        """The payload without pads at the destination; `at_relay` may alter it where no pad lies on it."""
        payload, pad = self.sent, None
        for _ in range(self.hops):
            bare = self.scheme.transit(payload, pad, None)
            assert pad is None or bare.body != payload.body, "a pad changes nothing"
            altered = at_relay(bare)
            pad = self.random.randbytes(self.scheme.pad_bytes(altered))
            payload = self.scheme.transit(altered, None, pad)
        return self.scheme.transit(payload, pad, None)

    def deliver(self, payload: Payload, vouched: Context | None = None, pair: Pair = PAIR) -> list[bytes]:
        return [key.reveal() for key in self.scheme.deliver(payload, vouched or self.context, pair)]

    def bits(self) -> list[bytes]:
        return [key.reveal() for key in self.keys]


def check_scheme(scheme: Scheme, seed: int = 0) -> None:
    """Everything a scheme must keep, on one journey of each kind. Raises AssertionError."""
    for hops, number, size in [(1, 1, 8), (2, 128, 256), (3, 2, 65_536), (20, 3, 1024)]:
        arrives_as_sent(Journey(scheme, seed, hops=hops, number=number, size=size))
    journey = Journey(scheme, seed, hops=3, number=3, size=128)
    no_bit_can_be_changed(journey)
    nothing_vouched_for_can_be_changed(journey)
    only_the_origin_can_send(journey)
    nothing_but_whole_payloads(journey)


def arrives_as_sent(journey: Journey) -> None:
    assert journey.deliver(journey.travel()) == journey.bits()
    scheme, random_ = journey.scheme, journey.random
    length = scheme.pad_bytes(journey.sent)
    old, new = random_.randbytes(length), random_.randbytes(length)
    under_old = scheme.transit(journey.sent, None, old)
    swapped = scheme.transit(under_old, old, new)
    assert swapped == scheme.transit(scheme.transit(under_old, old, None), None, new)
    assert scheme.transit(swapped, new, None) == journey.sent
    width = journey.context.size // 8
    assert len(swapped.body) >= width * len(journey.keys), "one slice a key, at least"
    if width >= 16:
        for bits in journey.bits():
            assert bits not in under_old.body, "a key shows through its pad"
            assert bits not in journey.sent.head, "a key shows in what travels without a pad"


def no_bit_can_be_changed(journey: Journey) -> None:
    for at in range(len(journey.sent.body)):
        body = bytearray(journey.sent.body)
        body[at] ^= 1 << (at % 8)
        refuses(journey, replace(journey.sent, body=bytes(body)))


def nothing_vouched_for_can_be_changed(journey: Journey) -> None:
    vouched = journey.context
    ids = vouched.key_ids
    changes: list[dict[str, Any]] = [
        {"scheme": vouched.scheme + "x"},
        {"origin": "derio"},
        {"destination": "derio"},
        {"initiator": "sae-x"},
        {"targets": (*vouched.targets, "sae-x")},
        {"targets": ()},
        {"key_ids": (ids[1], ids[0], *ids[2:])},
        {"key_ids": (UUID(int=99), *ids[1:])},
        {"key_ids": ids[:-1]},
        {"size": vouched.size // 2},
        {"expires": vouched.expires + 1},
        {"route": (vouched.route[0], "derio", vouched.route[-1])},
        {"route": tuple(reversed(vouched.route))},
        {"trust": (("relays", "information-theoretic"),)},
        {"trust": ()},
    ]
    for change in changes:
        refuses(journey, journey.sent, vouched=replace(vouched, **change))


def only_the_origin_can_send(journey: Journey) -> None:
    """A relay that makes keys, payload and tag of its own, with any secret but the pair's."""
    vouched, scheme = journey.context, journey.scheme
    own_keys = [Secret(bytes(vouched.size // 8)) for _ in journey.keys]
    for secret in (bytes(32), b"x" * 32, PAIR.id * 2, b""):
        relay = Pair(PAIR.id, Secret(secret), PAIR.statement)
        refuses(journey, scheme.originate(own_keys, vouched, relay))
        refuses(journey, scheme.originate(journey.keys, vouched, relay))
    body = b"".join(key.reveal() for key in own_keys)
    self_made = origin_tag(Pair(PAIR.id, Secret(body[:32])), vouched, body)  # a tag made from the key
    refuses(journey, replace(journey.sent, body=body + self_made))
    other = Pair(b"another pair id.", Secret(PAIR.secret.reveal()))
    refuses(journey, journey.sent, pair=other)


def nothing_but_whole_payloads(journey: Journey) -> None:
    body = journey.sent.body
    for length in (0, 1, 15, 16, 17, len(body) // 2, len(body) - 16, len(body) - 1):
        refuses(journey, replace(journey.sent, body=body[:length]))
    refuses(journey, replace(journey.sent, body=body + b"\0"))
    with pytest.raises(Malformed):
        journey.scheme.transit(journey.sent, bytes(journey.scheme.pad_bytes(journey.sent) - 1), None)


def refuses(journey: Journey, payload: Payload, *, vouched: Context | None = None, pair: Pair = PAIR) -> None:
    """Tampered, or Malformed for what is too short to hold its keys; the relay treats both alike."""
    with pytest.raises((Tampered, Malformed)):
        journey.deliver(payload, vouched, pair)


# ---------------------------------------------------------------------- ours


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_scheme_keeps_the_contract(scheme: Scheme) -> None:
    check_scheme(scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("hops", range(1, 21))
def test_keys_arrive_over_any_number_of_hops(scheme: Scheme, hops: int) -> None:
    random_ = random.Random(hops)
    number, size = random_.randint(1, 128), random_.choice((8, 64, 256, 1000, 4096))
    arrives_as_sent(Journey(scheme, hops, hops=hops, number=number, size=size))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_a_relay_cannot_change_what_it_carries(scheme: Scheme) -> None:
    def flip(payload: Payload) -> Payload:
        return replace(payload, body=bytes([payload.body[0] ^ 1]) + payload.body[1:])

    journey = Journey(scheme, 1, hops=2, number=2, size=256)
    with pytest.raises(Tampered):
        journey.deliver(journey.travel(_once(flip)))


def _once(alter: Callable[[Payload], Payload]) -> Callable[[Payload], Payload]:
    left = [alter]
    return lambda payload: left.pop()(payload) if left else payload


class _Forgetful(Trusted):
    """Checks nothing: what the contract is for."""

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        width = context.size // 8
        return [Secret(payload.body[at * width : (at + 1) * width]) for at in range(len(context.key_ids))]


class _OnlyKeys(Trusted):
    """Vouches for the keys but not for the rest."""

    def originate(self, keys: Sequence[Secret], context: Context, pair: Pair) -> Payload:
        return super().originate(keys, _bare(context), pair)

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> list[Secret]:
        return super().deliver(payload, _bare(context), pair)


def _bare(vouched: Context) -> Context:
    return replace(vouched, initiator="", targets=(), expires=0, route=(), trust=())


class _Bare(Trusted):
    """Puts no pad on."""

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        return payload


@pytest.mark.parametrize("scheme", [_Forgetful(), _OnlyKeys(), _Bare()], ids=lambda s: type(s).__name__)
def test_the_contract_finds_schemes_that_break_it(scheme: Scheme) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_scheme(scheme)
