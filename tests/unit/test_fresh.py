"""Scheme blind-fresh: relays change every bit of the ciphertext, and the destination still knows its origin.

What a relay adds it names to the destination alone; whatever it adds besides is refused before decryption.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul import kem
from keyhaul.control import key_id
from keyhaul.errors import Malformed, Tampered, Unavailable
from keyhaul.keys import Secret
from keyhaul.messages.payload import TAG_BYTES, Context, Pair, Payload, renewing
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE, DENSE_25, Profile
from keyhaul.schemes.fresh import Fresh, Notes, _firsts, _seconds
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.seal import Seal
from keyhaul.schemes.seal_whole import SealWhole
from keyhaul.schemes.zeros import LOW, READY, Zeros
from keyhaul.whispers import OVERHEAD
from tests.bfv import NOW, PAIR, Watched, ring_of, vouched
from tests.contracts.test_schemes import check_scheme
from tests.unit.test_blind import bits, keys_of

both = pytest.mark.parametrize("profile", [DENSE, DENSE_25], ids=lambda profile: f"{profile.width} bits")
TRAILER = 23
KEM = kem.PrivateKey("ml-kem-768", bytes(range(64)))


def notes() -> Notes:
    """To a destination that has one KEM key."""

    def unseal(sealed: bytes) -> bytes:
        if sealed[:16] != key_id(KEM.public):
            raise Tampered
        return KEM.unseal(sealed[16:])

    return Notes(lambda _, said: key_id(KEM.public) + kem.seal(KEM.public, said), unseal, OVERHEAD)


def fresh_of(bfv: Seal | Watched) -> Fresh:
    """Origin, relay and destination in one."""
    ring = ring_of(bfv)
    return Fresh(bfv, lambda destination: ring.announced(NOW), ring.own, notes())


def way(number: int = 1, size: int = 256, hops: int = 3, **changes: object) -> Context:
    return replace(vouched(number, size, hops, **changes), scheme="blind-fresh")


def travel(
    ends: Fresh,
    payload: Payload,
    context: Context,
    seed: int = 0,
    at_relay: Callable[[Payload], Payload] = lambda payload: payload,
) -> Payload:
    """Over all relays of the route, as `Relay` calls a scheme; `at_relay` alters what one passes on."""
    source, pad = random.Random(seed), None
    for _ in range(len(context.route) - 1):
        bare = ends.transit(payload, pad, None)
        if pad is not None:
            bare = at_relay(ends.renew(bare, context))
        pad = source.randbytes(ends.pad_bytes(bare))
        payload = ends.transit(bare, None, pad)
    return ends.transit(payload, pad, None)


# ---------------------------------------------------------------------- round trips


@both
def test_it_keeps_the_contract_of_schemes(profile: Profile) -> None:
    check_scheme(fresh_of(Seal(profile)))


@both
@pytest.mark.parametrize("hops", [1, 2, 3, 20])
def test_keys_arrive_over_relays_that_each_add_a_zero(profile: Profile, hops: int) -> None:
    ends = fresh_of(Seal(profile))
    for number, size in [(1, 8), (1, 256), (4, 256), (5, 256), (3, 1000)]:
        context, keys = way(number, size, hops), keys_of(hops, number, size)
        payload = ends.originate(keys, context, PAIR)
        assert bits(ends.deliver(travel(ends, payload, context, hops), context, PAIR)) == bits(keys)


_ENDS: list[Fresh] = []


@settings(max_examples=25, deadline=None)
@given(number=st.integers(1, 20), width=st.integers(1, 200), hops=st.integers(1, 6), seed=st.integers())
def test_keys_of_any_size_and_number_arrive(number: int, width: int, hops: int, seed: int) -> None:
    if not _ENDS:
        _ENDS.append(fresh_of(Seal()))
    (ends,) = _ENDS
    context, keys = way(number, width * 8, hops), keys_of(seed, number, width * 8)
    arrived = travel(ends, ends.originate(keys, context, PAIR), context, seed)
    assert bits(ends.deliver(arrived, context, PAIR)) == bits(keys)


def test_what_it_costs_on_the_wire() -> None:
    ends, context = fresh_of(Seal()), way(hops=4)
    payload = ends.originate(keys_of(1), context, PAIR)
    assert len(payload.body) == 32 + TAG_BYTES + 512 + 2176 + TRAILER
    assert ends.pad_bytes(payload) == 32 + TAG_BYTES, "pads pay for key bits and tag, as everywhere"
    renewed = ends.renew(payload, context)
    assert len(renewed.body) - len(payload.body) == OVERHEAD + 544 + 2176
    assert ends.pad_bytes(renewed) == 48


def test_the_relay_knows_it_by_its_protocol() -> None:
    ends = fresh_of(Seal())
    assert renewing(ends) is ends
    assert renewing(Masked()) is None


# ---------------------------------------------------------------------- what it hides


def test_nothing_of_a_ciphertext_stays_as_it_was() -> None:
    ends, context = fresh_of(Seal()), way(4)
    sent = ends.originate(keys_of(2, 4), context, PAIR)
    renewed = ends.renew(sent, context)
    before, after = sent.body, renewed.body
    parts = {"upper": (0, 128), "lower": (144, 144 + 2048), "seconds": (2192, 2192 + 2176)}
    for name, (start, end) in parts.items():
        one, other = (np.frombuffer(body[start:end], np.uint8) for body in (before, after))
        differing = int(np.unpackbits(one ^ other).sum())
        total = 8 * (end - start)
        assert abs(differing - total / 2) < 6 * (total / 4) ** 0.5, name
    assert before[128:144] == after[128:144], "the tag stays; it is under the pads"


def test_every_relay_still_has_a_ciphertext_of_the_keys() -> None:
    """Decrypted as it passes, without the notes: re-randomised, not masked."""
    bfv = SealWhole()
    ring = ring_of(bfv)
    ends = Fresh(bfv, lambda _: ring.announced(NOW), ring.own, notes())
    context, keys = way(4, hops=12), keys_of(3, 4)
    secret = ring.own(key_id(ring.announced(NOW)))
    assert secret is not None
    seen = []

    def look(bare: Payload) -> Payload:
        parts = ends._parse(bare.body)
        whole = _whole(_firsts(parts), _seconds(parts))
        seen.append(bfv.decrypt_whole(secret.reveal(), whole, CHUNK_BYTES))
        return bare

    travel(ends, ends.originate(keys, context, PAIR), context, at_relay=look)
    assert seen == [b"".join(bits(keys))] * 11


def _whole(first: object, second: object) -> bytes:
    from keyhaul.schemes import dense

    return dense.pack(first, DENSE) + dense.pack(second, DENSE)  # type: ignore[arg-type]


def test_what_lies_outside_the_pads_depends_on_no_key_bit() -> None:
    """So links of one-time pads keep their promise even towards somebody who breaks ring-LWE and ML-KEM."""
    bfv = Seal()
    ends, context = fresh_of(bfv), way(4)
    public = ends._public("bilbao")
    zeros = [bfv.zero(public) for _ in range(3)]
    arrived = []
    for seed in (4, 5):
        ends.zeros._pools.clear()
        ends.zeros._pool(public).extend(zeros)
        sent = ends.originate(keys_of(seed, 4), context, PAIR)
        twice = ends.renew(ends.renew(sent, context), replace(context, route=(*context.route, "more")))
        arrived.append(twice.body)
    end, note = 128 + TAG_BYTES, OVERHEAD + 128 * 17 + 2176
    one, other = (body[end : -2 * note - TRAILER] for body in arrived)
    assert one == other
    difference = bytes(a ^ b for a, b in zip(arrived[0][:128], arrived[1][:128], strict=True))
    both_keys = zip(b"".join(bits(keys_of(4, 4))), b"".join(bits(keys_of(5, 4))), strict=True)
    assert difference == bytes(a ^ b for a, b in both_keys), "an addition leaves the pads and keys alone"


def test_only_the_destination_reads_what_was_added() -> None:
    ends, context = fresh_of(Seal()), way()
    renewed = ends.renew(ends.originate(keys_of(6), context, PAIR), context)
    note = renewed.body[-TRAILER - OVERHEAD - 544 - 2176 : -TRAILER]
    other = kem.PrivateKey("ml-kem-768", bytes(64))
    with pytest.raises(Tampered):
        other.unseal(note[16:])
    assert len(KEM.unseal(note[16:])) == 544 + 2176


# ---------------------------------------------------------------------- attacks

LOWER = 32 + TAG_BYTES
SECONDS = LOWER + 512
NOTE = SECONDS + 2176


def _zero_that_is_not_named(ends: Fresh, payload: Payload) -> Payload:
    """An encryption of zero of the relay's own, beside the one it names."""
    context = way()
    again = ends.renew(replace(payload, body=_without_notes(payload.body)), context).body
    return replace(payload, body=again[:NOTE] + payload.body[NOTE:])


def _without_notes(body: bytes) -> bytes:
    return body[:NOTE] + body[-TRAILER:-2] + bytes(2)


def _name_of_another_zero(ends: Fresh, payload: Payload) -> Payload:
    context = way()
    other = ends.renew(ends.originate(keys_of(8), context, PAIR), context).body
    return replace(payload, body=payload.body[:NOTE] + other[NOTE:-TRAILER] + payload.body[-TRAILER:])


def _no_note(ends: Fresh, payload: Payload) -> Payload:
    return replace(payload, body=_without_notes(payload.body))


def _garbage_note(ends: Fresh, payload: Payload) -> Payload:
    length = len(payload.body) - NOTE - TRAILER
    return replace(payload, body=payload.body[:NOTE] + bytes(length) + payload.body[-TRAILER:])


def _note_out_of_range(ends: Fresh, payload: Payload) -> Payload:
    note = ends._notes.seal("bilbao", b"\xff" * (544 + 2176))
    return replace(payload, body=payload.body[:NOTE] + note + payload.body[-TRAILER:])


def _note_of_q_minus_1(ends: Fresh, payload: Payload) -> Payload:
    from keyhaul.schemes import dense

    first = dense.pack(np.full(256, DENSE.q - 1, np.uint32), DENSE)
    note = ends._notes.seal("bilbao", first + bytes(2176))
    return replace(payload, body=payload.body[:NOTE] + note + payload.body[-TRAILER:])


def _garbage(ends: Fresh, payload: Payload) -> Payload:
    source = random.Random(9)
    noise = ends.renew(ends.originate(keys_of(9), way(), PAIR), way()).body
    return replace(payload, body=source.randbytes(32) + payload.body[32:LOWER] + noise[LOWER:])


def _flip(at: int) -> Callable[[Fresh, Payload], Payload]:
    def flip(ends: Fresh, payload: Payload) -> Payload:
        body = bytearray(payload.body)
        body[at] ^= 1
        return replace(payload, body=bytes(body))

    return flip


ATTACKS = {
    "a zero that is not named": _zero_that_is_not_named,
    "the name of another zero": _name_of_another_zero,
    "no note": _no_note,
    "a note of garbage": _garbage_note,
    "a note with coefficients out of range": _note_out_of_range,
    "a note with the one value too many": _note_of_q_minus_1,
    "garbage": _garbage,
    "a key bit": _flip(0),
    "the tag": _flip(32),
    "a place in a half": _flip(LOWER),
    "a second polynomial": _flip(SECONDS),
    "a note": _flip(NOTE + 1500),
    "the name of the BFV key": _flip(-TRAILER),
    "the number of notes": _flip(-1),
    "a key of its own with a tag of its own": lambda ends, payload: replace(
        ends.originate([Secret(b"k" * 32)], way(), Pair(PAIR.id, Secret(bytes(32)), PAIR.statement)),
        head=payload.head,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_relay_that_cheats_is_refused_before_anything_is_decrypted(attack: str) -> None:
    bfv = Watched(Seal())
    ends, context = fresh_of(bfv), way(hops=2)
    payload = ends.renew(ends.originate(keys_of(7), context, PAIR), context)
    assert bits(ends.deliver(payload, context, PAIR)) == bits(keys_of(7)), "honest, it is delivered"
    assert bfv.decryptions == 1
    with pytest.raises((Tampered, Malformed)):
        ends.deliver(ATTACKS[attack](ends, payload), context, PAIR)
    assert bfv.decryptions == 1


def test_whatever_a_relay_names_truly_is_taken_back() -> None:
    """It need not be an encryption of zero; naming garbage harms nobody."""
    bfv = Watched(Seal())
    ends, context = fresh_of(bfv), way(hops=2)
    source = np.random.default_rng(10)

    class Wild(Watched):
        def zero(self, public: bytes) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
            wild = source.integers(0, DENSE.q - 1, (2, COEFFICIENTS), np.uint32)
            return wild[0], wild[1]

    relay = Fresh(Wild(bfv.inner), ends._public, ends._own, ends._notes)
    payload = relay.renew(ends.originate(keys_of(10), context, PAIR), context)
    assert bits(ends.deliver(payload, context, PAIR)) == bits(keys_of(10))


def test_the_reaction_attack_never_gets_as_far_as_the_key() -> None:
    """The submissions that open a bare key, with true notes and with none."""
    from keyhaul.schemes import dense
    from tests.bfv import probe

    bfv = Watched(Seal())
    ends, context = fresh_of(bfv), way(hops=2)
    honest = ends.originate([Secret(bytes(32))], context, PAIR)
    verdicts = set()
    for at in range(0, COEFFICIENTS, 16):
        for value in (-1, 1):
            first, second = probe(at, value, DENSE)
            half = np.uint32((DENSE.q - 1) // 2)
            upper = (first[:256] >= half).astype(np.uint8)
            lower = dense.pack(first[:256] - upper * half, replace(DENSE, q=int(half), width=16))
            body = dense.bytes_of(upper) + honest.body[32:48] + lower + dense.pack(second, DENSE)
            forged = replace(honest, body=body + honest.body[-TRAILER:])
            for each in (forged, ends.renew(forged, context)):
                with pytest.raises(Tampered) as refusal:
                    ends.deliver(each, context, PAIR)
                verdicts.add(str(refusal.value))
    assert verdicts == {"authentication failed"}
    assert bfv.decryptions == 0


def test_no_more_notes_than_there_are_relays() -> None:
    ends, context = fresh_of(Seal()), way(hops=3)
    payload = ends.originate(keys_of(11), context, PAIR)
    twice = ends.renew(ends.renew(payload, context), context)
    assert bits(ends.deliver(twice, context, PAIR)) == bits(keys_of(11))
    with pytest.raises(Malformed, match="more often than its route has relays"):
        ends.renew(twice, context)
    with pytest.raises(Tampered):
        ends.deliver(twice, replace(context, route=context.route[1:]), PAIR)


def test_three_thousand_mutations_are_refused_and_nothing_falls_over() -> None:
    bfv = Watched(Seal())
    ends, context, source = fresh_of(bfv), way(2, hops=2), random.Random(12)
    payload = ends.renew(ends.originate(keys_of(12, 2), context, PAIR), context)
    for _ in range(3_000):
        body = bytearray(payload.body)
        for _ in range(source.randint(1, 4)):
            body[source.randrange(len(body))] ^= source.randint(1, 255)
        del body[source.choice([len(body), len(body), source.randrange(len(body))]) :]
        if bytes(body) == payload.body:
            continue
        with pytest.raises((Tampered, Malformed)):
            ends.deliver(replace(payload, body=bytes(body)), context, PAIR)
    assert bfv.decryptions == 0


def test_a_relay_refuses_what_is_no_ciphertext_and_waits_for_a_key() -> None:
    ends, context = fresh_of(Seal()), way()
    payload = ends.originate(keys_of(13), context, PAIR)
    bad = replace(payload, body=payload.body[:SECONDS] + b"\xff" * 2176 + payload.body[NOTE:])
    with pytest.raises(Malformed, match="out of range"):
        ends.renew(bad, context)
    other = fresh_of(Seal(DENSE_25))
    with pytest.raises(Unavailable, match="of this profile any more"):
        other.renew(payload, context)


def test_keys_cannot_be_swapped_or_sent_again_under_another_id() -> None:
    ends, ids = fresh_of(Seal()), (UUID(int=1), UUID(int=2))
    context = way(key_ids=ids)
    payload = ends.renew(ends.originate(keys_of(14, 2), context, PAIR), context)
    for changed in (replace(context, key_ids=ids[::-1]), replace(context, initiator="sae-x")):
        with pytest.raises(Tampered):
            ends.deliver(payload, changed, PAIR)


# ---------------------------------------------------------------------- receipts


def test_receipts_follow_tag_and_name_through_honest_relays_and_no_further() -> None:
    ends, context = fresh_of(Seal()), way()
    payload = ends.originate(keys_of(15), context, PAIR)
    renewed = ends.renew(payload, context)
    assert ends.steady(renewed) == ends.steady(payload)
    flipped = _flip(32)(ends, renewed)
    assert ends.steady(flipped) != ends.steady(payload)
    ciphertext = replace(renewed, body=bytes([renewed.body[0] ^ 1]) + renewed.body[1:])
    assert ends.steady(ciphertext) == ends.steady(payload), "what a relay may change, receipts cannot follow"


# ---------------------------------------------------------------------- the pool


def test_every_zero_is_used_once_and_the_pool_is_filled_aside() -> None:
    bfv = Seal()
    public, _ = bfv.generate()
    owed: list[Callable[[], None]] = []
    zeros = Zeros(bfv, owed.append)
    assert zeros.ready(public) == 0
    first = zeros.take(public, 3)
    assert first[0].shape == first[1].shape == (3 * COEFFICIENTS,)
    assert len(owed) == 1
    owed.pop()()
    assert zeros.ready(public) == READY
    taken = [zeros.take(public, 1)[1].tobytes() for _ in range(READY - LOW)]
    assert owed == []
    taken += [zeros.take(public, 1)[1].tobytes() for _ in range(2 * LOW)]
    assert len(owed) == 1, "asked for once, however often it is low"
    assert len(set(taken)) == len(taken)


def test_zeros_are_zero_and_have_no_value_too_many() -> None:
    bfv = SealWhole()
    public, secret = bfv.generate()
    zeros = Zeros(bfv)
    for _ in range(50):
        first, second = zeros.take(public, 1)
        assert int(first.max()) < DENSE.q - 1
        assert bfv.decrypt_whole(secret, _whole(first, second), CHUNK_BYTES) == bytes(CHUNK_BYTES)
    with pytest.raises(Malformed):
        zeros.take(b"\1nonsense", 1)
