"""Descriptors: the rules of the directory, each broken once, and what gossip does with the rest."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
import pytest

from keyhaul import gossip
from keyhaul.control import (
    CLOCK_SKEW,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_RECORDS,
    MAX_WORDS,
    PUBLIC_BYTES,
    Descriptor,
    Directory,
    Known,
    PublicKey,
    Record,
    decode_records,
    encode_records,
    publish,
)
from keyhaul.errors import Malformed, PeerUnreachable, StoreUnavailable, Tampered, Unauthorized, Unavailable
from keyhaul.messages import labels
from keyhaul.pairing import Pairing
from keyhaul.schemes.bfv import PROFILES
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock, run
from tests.neighbours import Anchors, Identity

NOW = 1_800_000_000.0
DOMAINS = {"vigo": "lab", "bilbao": "north", "derio": "north"}
ANCHORS = Anchors(frozenset({"lab", "north", None}))


def key(profile: str = "ml-kem-768", fill: bytes = b"\0", **changes: Any) -> PublicKey:
    fields = {"public": fill * PUBLIC_BYTES.get(profile, 9), "issued": NOW, "expires": NOW + 3600}
    return PublicKey(profile, **{**fields, **changes})


def described(node: str = "vigo", domain: str = "lab", **changes: Any) -> Descriptor:
    fields: dict[str, Any] = {
        "node": node,
        "domain": domain,
        "sequence": 10,
        "issued": NOW,
        "expires": NOW + 3600,
        "keys": (key(),),
    }
    return Descriptor(**{**fields, **changes})


def record(signer: Identity | None = None, **changes: Any) -> Record:
    return publish(described(**changes), signer or Identity("vigo"))


def directory() -> Directory:
    return Directory(ANCHORS, DOMAINS)


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
        decode_records(body)


def test_a_flood_of_records_is_malformed() -> None:
    small = Record(b"", b"", b"")
    assert len(decode_records(encode_records([small] * MAX_RECORDS))) == MAX_RECORDS
    with pytest.raises(Malformed):
        decode_records(encode_records([small] * (MAX_RECORDS + 1)))


# rule 6: what is new is passed on, to everyone but where it came from


class Post:
    """A node of a network of gossips, with neighbours that may be deaf."""

    def __init__(
        self,
        name: str,
        domain: str,
        neighbours: list[str],
        net: dict[str, Post],
        clock: LoopClock | None = None,
    ) -> None:
        self.net = net
        self.deaf = False
        self.heard: list[tuple[str, str, int]] = []
        self.calls = 0
        self.ledger = MemoryLedger()
        clock = clock or LoopClock()
        self.directory = Directory(ANCHORS, DOMAINS)
        self.pairing = Pairing(Identity(name, domain), domain, self.directory, self.ledger, clock)

        async def call(peer: str, body: bytes) -> bytes:
            if net[peer].deaf:
                raise PeerUnreachable(f"{peer} does not answer")
            net[peer].calls += 1
            for each in decode_records(body):
                said = msgspec.msgpack.decode(each.body, type=Descriptor)
                net[peer].heard.append((name, said.node, said.sequence))
            await net[peer].gossip.receive(name, body)
            return b""

        self.gossip = gossip.Gossip(neighbours, call, self.directory, self.pairing, self.ledger, clock)
        net[name] = self


async def line() -> dict[str, Post]:
    """vigo - bilbao - derio."""
    net: dict[str, Post] = {}
    Post("vigo", "lab", ["bilbao"], net)
    Post("bilbao", "north", ["vigo", "derio"], net)
    Post("derio", "north", ["bilbao"], net)
    for post in net.values():
        await post.pairing.start()
        await post.gossip.start()
    return net


def test_a_neighbour_that_joins_hears_everything_and_one_that_left_nothing() -> None:
    async def story() -> None:
        net: dict[str, Post] = {}
        Post("vigo", "lab", ["bilbao"], net)
        Post("bilbao", "north", ["vigo"], net)
        derio = Post("derio", "north", [], net)
        for post in net.values():
            await post.pairing.start()
            await post.gossip.start()
        tasks = [asyncio.ensure_future(net[name].gossip.run()) for name in ("vigo", "bilbao")]
        await asyncio.sleep(5)
        assert derio.heard == []
        net["bilbao"].gossip.join("derio")
        await asyncio.sleep(5)
        assert derio.directory.nodes() == ["bilbao", "vigo"]
        net["bilbao"].gossip.leave("derio")
        net["bilbao"].gossip.leave("nobody")
        derio.heard.clear()
        await net["vigo"].gossip.announce()
        await asyncio.sleep(5)
        assert ("vigo", "vigo") in {each[:2] for each in net["bilbao"].heard}
        assert derio.heard == []
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(story())


def test_another_network_makes_a_directory_forget_whom_it_does_not_hold() -> None:
    held = directory()
    for name, domain in DOMAINS.items():
        held.receive(record(Identity(name, domain), node=name, domain=domain), NOW)
    held.change({"vigo": "lab", "bilbao": "elsewhere"})
    assert held.nodes() == ["vigo"]
    with pytest.raises(Tampered):
        held.receive(record(Identity("derio", "north"), node="derio", domain="north"), NOW)
    held.change(DOMAINS)
    assert held.receive(record(Identity("derio", "north"), node="derio", domain="north"), NOW) is not None


def test_descriptors_reach_everyone_and_nobody_hears_its_own() -> None:
    async def story() -> None:
        net = await line()
        tasks = [asyncio.ensure_future(post.gossip.run()) for post in net.values()]
        await asyncio.sleep(5)
        for name, post in net.items():
            assert post.directory.nodes() == ["bilbao", "derio", "vigo"]
            assert all(about != name for _, about, _ in post.heard), "a node was told its own descriptor"
            assert len(set(post.heard)) <= len(post.heard) < 12, "descriptors go round in circles"
        for task in tasks:
            task.cancel()

    run(story())


def test_a_deaf_neighbour_hears_the_newest_when_it_is_back() -> None:
    async def story() -> None:
        net = await line()
        net["derio"].deaf = True
        tasks = [asyncio.ensure_future(net[name].gossip.run()) for name in ("vigo", "bilbao")]
        await asyncio.sleep(2000)
        net["derio"].deaf = False
        await asyncio.sleep(20)
        newest = net["vigo"].directory.get("vigo", LoopClock().now()).descriptor.sequence
        assert net["derio"].directory.get("vigo", LoopClock().now()).descriptor.sequence == newest
        assert len([about for _, about, _ in net["derio"].heard if about == "vigo"]) == 1
        for task in tasks:
            task.cancel()

    run(story())


def test_the_first_word_goes_at_once_and_what_follows_on_its_heels_goes_together() -> None:
    async def story() -> None:
        net = await line()
        tasks = [asyncio.ensure_future(post.gossip.run()) for post in net.values()]
        await asyncio.sleep(5)
        derio = net["derio"]
        derio.calls = 0
        await net["bilbao"].gossip.announce()
        await asyncio.sleep(0.01)
        assert derio.calls == 1
        for _ in range(9):
            await net["bilbao"].gossip.announce()
            await asyncio.sleep(0.01)
        await asyncio.sleep(5)
        assert derio.calls == 2
        held, own = (net[name].directory.get("bilbao", LoopClock().now()) for name in ("derio", "bilbao"))
        assert held.descriptor == own.descriptor, "the newest"
        for task in tasks:
            task.cancel()

    run(story())


def test_a_neighbour_is_not_told_what_it_says_itself() -> None:
    async def story() -> None:
        net = await line()
        net["derio"].deaf = True
        task = asyncio.ensure_future(net["bilbao"].gossip.run())
        record = net["vigo"].pairing.announce()
        await net["bilbao"].gossip.receive("vigo", encode_records([record]))
        await asyncio.sleep(5)
        await net["bilbao"].gossip.receive("derio", encode_records([record]))
        net["derio"].deaf = False
        await asyncio.sleep(20)
        assert {about for _, about, _ in net["derio"].heard} == {"bilbao"}
        task.cancel()

    run(story())


def test_a_bad_record_does_not_keep_the_good_ones_out() -> None:
    async def story() -> None:
        net = await line()
        now = LoopClock().now()
        bad = publish(described(expires=now - 1, issued=now - 9), Identity("vigo"))
        good = net["derio"].pairing.announce()
        with pytest.raises(Unauthorized):
            await net["bilbao"].gossip.receive("vigo", encode_records([bad, good]))
        assert net["bilbao"].directory.nodes() == ["derio"]
        assert list(await net["bilbao"].ledger.items(gossip.SPACE)) == ["derio"]

    run(story())


def test_an_expired_descriptor_is_not_repeated_for_ever() -> None:
    async def story() -> None:
        net = await line()
        net["derio"].deaf = True
        now = LoopClock().now()
        soon_over = publish(described(issued=now, expires=now + 60), Identity("vigo"))
        await net["bilbao"].gossip.receive("vigo", encode_records([soon_over]))
        task = asyncio.ensure_future(net["bilbao"].gossip.run())
        await asyncio.sleep(120)
        net["derio"].deaf = False
        await asyncio.sleep(120)
        assert {about for _, about, _ in net["derio"].heard} == {"bilbao"}
        assert len(net["derio"].heard) == 1
        task.cancel()

    run(story())


def test_a_neighbour_that_comes_back_is_told_everything() -> None:
    async def story() -> None:
        net = await line()
        tasks = [asyncio.ensure_future(post.gossip.run()) for post in net.values()]
        await asyncio.sleep(5)
        tasks[2].cancel()
        fresh = Post("derio", "north", ["bilbao"], net)  # it lost its memory
        await fresh.pairing.start()
        tasks.append(asyncio.ensure_future(fresh.gossip.run()))
        await asyncio.sleep(20)
        assert fresh.directory.nodes() == ["bilbao", "derio", "vigo"]
        for task in tasks:
            task.cancel()

    run(story())


def test_a_node_that_was_restored_with_its_clock_behind_goes_beyond_what_it_said_before() -> None:
    async def story() -> None:
        net = await line()
        tasks = [asyncio.ensure_future(post.gossip.run()) for post in net.values()]
        await asyncio.sleep(2000)
        tasks[2].cancel()
        before = net["bilbao"].directory.get("derio", LoopClock().now()).descriptor
        behind = LoopClock(LoopClock().offset - 250)
        fresh = Post("derio", "north", ["bilbao"], net, behind)
        await fresh.pairing.start()
        tasks.append(asyncio.ensure_future(fresh.gossip.run()))
        await asyncio.sleep(20)
        for name in ("bilbao", "vigo", "derio"):
            found = net[name].directory.get("derio", LoopClock().now()).descriptor
            assert found.sequence > before.sequence
            assert found.keys == tuple(fresh.pairing._keys.announced()), "the keys it has now"
        told = [about for _, about, _ in fresh.heard if about == "derio"]
        assert len(told) == 1, "one reminder is enough"
        for task in tasks:
            task.cancel()

    run(story())


@pytest.mark.parametrize("peer", ["vigo", "derio"])
def test_only_the_node_itself_is_reminded_of_what_it_said(peer: str) -> None:
    async def story() -> None:
        net = await line()
        old = net["vigo"].pairing.announce()
        await asyncio.sleep(1)
        new = net["vigo"].pairing.announce()
        await net["bilbao"].gossip.receive("vigo", encode_records([new]))
        net["bilbao"].gossip._neighbours["derio"].owed.clear()
        await net["bilbao"].gossip.receive(peer, encode_records([old]))
        owed = {name: dict(each.owed) for name, each in net["bilbao"].gossip._neighbours.items()}
        assert owed == {"derio": {}, "vigo": {"vigo": new} if peer == "vigo" else {}}

    run(story())


def test_a_restored_node_is_reminded_by_a_neighbour_that_was_restored_with_it() -> None:
    """bilbao, its only neighbour, has forgotten what derio said last, and hears it from vigo."""

    async def story() -> None:
        net = await line()
        newest = net["derio"].pairing.announce(10**15)
        await net["bilbao"].gossip.receive("vigo", encode_records([newest]))
        owed = net["bilbao"].gossip._neighbours["derio"].owed
        assert owed == {"derio": newest}
        await net["derio"].gossip.receive("bilbao", encode_records([newest]))
        await net["derio"].gossip.announce()
        known = net["derio"].directory.get("derio", LoopClock().now())
        assert known.descriptor.sequence == 10**15 + 2

    run(story())


def test_a_restart_reads_what_was_known_and_checks_it_again() -> None:
    async def story() -> None:
        net = await line()
        now = LoopClock().now()
        bilbao = net["bilbao"]
        good, forged = net["vigo"].pairing.announce(), net["derio"].pairing.announce()
        await bilbao.gossip.receive("vigo", encode_records([good]))
        async with bilbao.ledger.edit() as change:
            bad = Record(forged.body, forged.certificate, bytes(32))
            change.put(gossip.SPACE, "derio", msgspec.msgpack.encode(bad))
            change.put(gossip.SPACE, "nonsense", b"\xc1")
        again = Directory(ANCHORS, DOMAINS)

        async def nobody(peer: str, body: bytes) -> bytes:
            raise PeerUnreachable(peer)

        await gossip.Gossip([], nobody, again, bilbao.pairing, bilbao.ledger, LoopClock()).start()
        assert again.nodes() == ["vigo"]
        assert again.get("vigo", now).record == good

    run(story())


def test_a_store_that_fails_delays_an_announcement_and_does_not_end_them() -> None:
    async def story() -> None:
        net = await line()
        vigo, edits = net["vigo"], net["vigo"].ledger.edit
        full = [True]

        def edit(*refs: Any) -> Any:
            if full[0]:
                raise StoreUnavailable("the disk is full")
            return edits(*refs)

        vigo.ledger.edit = edit  # type: ignore[method-assign]
        task = asyncio.ensure_future(vigo.gossip.run())
        await asyncio.sleep(60)
        assert net["bilbao"].directory.nodes() == []
        full[0] = False
        await asyncio.sleep(gossip.LONGEST_PAUSE + 1)
        assert net["bilbao"].directory.nodes() == ["vigo"]
        task.cancel()

    run(story())
