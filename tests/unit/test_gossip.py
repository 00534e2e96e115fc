"""Gossip: what is new goes to everyone but where it came from; who was away or restored is told."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from keyhaul import gossip
from keyhaul.control import (
    Descriptor,
    Directory,
    Record,
    decode_told,
    encode_records,
    encode_stamps,
    publish,
)
from keyhaul.errors import Malformed, PeerUnreachable, StoreUnavailable, Tampered, Unauthorized
from keyhaul.pairing import Pairing
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock, run
from tests.descriptors import ANCHORS, DOMAINS, NOW, described, directory, record, records_of
from tests.neighbours import Identity


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
        self.deaf = self.old = False
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
            for each in records_of(body):
                said = msgspec.msgpack.decode(each.body, type=Descriptor)
                net[peer].heard.append((name, said.node, said.sequence))
            if net[peer].old and not isinstance(decode_told(body), list):
                raise Malformed("the body is not a list of records")
            return await net[peer].gossip.receive(name, body)

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
        net["derio"].directory.receive(record, LoopClock().now())
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


def test_a_neighbour_that_announces_itself_again_is_sent_nothing_it_has() -> None:
    async def story() -> None:
        net = await line()
        tasks = [asyncio.ensure_future(post.gossip.run()) for post in net.values()]
        await asyncio.sleep(5)
        derio = net["derio"]
        derio.heard.clear()
        derio.calls = 0
        await derio.gossip.announce()
        await asyncio.sleep(5)
        assert (derio.calls, derio.heard) == (1, []), "one question, no record"
        for task in tasks:
            task.cancel()

    run(story())


def test_a_restart_tells_neighbours_only_what_they_lack() -> None:
    async def story() -> None:
        net = await line()
        bilbao, derio = net["bilbao"], net["derio"]
        news = net["vigo"].pairing.announce()
        await bilbao.gossip.receive("vigo", encode_records([news]))
        await derio.gossip.receive("bilbao", encode_records([news]))
        later = net["vigo"].pairing.announce(10**15)
        await bilbao.gossip.receive("vigo", encode_records([later]))
        for neighbour in bilbao.gossip._neighbours.values():  # as if it ended here
            neighbour.owed.clear()
        task = asyncio.ensure_future(bilbao.gossip.run())
        await asyncio.sleep(5)
        assert [each[1:] for each in derio.heard if each[1] == "vigo"] == [("vigo", 10**15 + 1)]
        assert [each for each in net["vigo"].heard if each[1] == "vigo"] == []
        task.cancel()

    run(story())


@pytest.mark.parametrize("old", [True, False])
def test_a_neighbour_of_an_earlier_version_gets_everything(old: bool) -> None:
    async def story() -> None:
        net = await line()
        net["derio"].old = old
        tasks = [asyncio.ensure_future(post.gossip.run()) for post in net.values()]
        await asyncio.sleep(5)
        net["derio"].heard.clear()
        await net["derio"].gossip.announce()
        await asyncio.sleep(5)
        assert {about for _, about, _ in net["derio"].heard} == ({"vigo", "bilbao"} if old else set())
        for task in tasks:
            task.cancel()

    run(story())


def test_what_is_owed_goes_in_messages_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "LARGEST", 1)

    async def story() -> None:
        net = await line()
        tasks = [asyncio.ensure_future(net[name].gossip.run()) for name in ("vigo", "bilbao")]
        await asyncio.sleep(5)
        derio = net["derio"]
        assert derio.directory.nodes() == ["bilbao", "vigo"]
        assert derio.calls == 3, "a question, and one record at a time"
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


def test_a_restored_node_is_reminded_too_by_what_it_says_it_holds() -> None:
    """What it announced while it was cut off is no news to bilbao, so bilbao never asks for it."""

    async def story() -> None:
        net = await line()
        newest = net["derio"].pairing.announce(10**15)
        bilbao = net["bilbao"].gossip
        await bilbao.receive("vigo", encode_records([newest]))
        owed = bilbao._neighbours["derio"].owed
        owed.clear()
        for sequence, reminded in ((10**15 + 1, {}), (10**15, {"derio": newest})):
            await bilbao.receive("derio", encode_stamps({"derio": (sequence, bytes(16))}))
            assert owed == reminded

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


def test_what_the_disk_did_not_take_is_not_held_and_comes_again() -> None:
    """Else it would be gone after a restart, and nobody would say it once more (storms 5035876, 5063411)."""

    async def story() -> None:
        net = await line()
        vigo, bilbao = net["vigo"], net["bilbao"]
        edits = bilbao.ledger.edit

        def edit(*refs: Any) -> Any:
            raise StoreUnavailable("the disk is full")

        bilbao.ledger.edit = edit  # type: ignore[method-assign]
        task = asyncio.ensure_future(vigo.gossip.run())
        await asyncio.sleep(5)
        assert [about for _, about, _ in bilbao.heard][:2] == ["vigo", "vigo"], "told again and again"
        assert bilbao.directory.nodes() == []
        bilbao.ledger.edit = edits  # type: ignore[method-assign]
        await asyncio.sleep(gossip.LONGEST_PAUSE + 1)
        assert bilbao.directory.nodes() == ["vigo"]
        assert "vigo" in await bilbao.ledger.items(gossip.SPACE)
        task.cancel()

    run(story())


def test_of_two_descriptors_that_come_at_once_the_newer_one_is_kept_whatever_the_disk_is_doing() -> None:
    async def story() -> None:
        net = await line()
        bilbao, first = net["bilbao"], net["vigo"].pairing.announce()
        second = net["vigo"].pairing.announce(10**15)
        third = net["vigo"].pairing.announce(10**15 + 1)
        receive = bilbao.gossip.receive
        await asyncio.gather(
            receive("derio", encode_records([second])),
            receive("vigo", encode_records([third, first])),
            receive("derio", encode_records([first])),
        )
        (kept,) = (await bilbao.ledger.items(gossip.SPACE)).values()
        assert msgspec.msgpack.decode(kept, type=Record) == third
        assert bilbao.directory.get("vigo", LoopClock().now()).record == third

    run(story())


def test_a_neighbour_whose_news_come_from_another_is_asked_too_what_it_lacks() -> None:
    async def story() -> None:
        net: dict[str, Post] = {}
        vigo = Post("vigo", "lab", ["bilbao", "derio"], net)
        Post("bilbao", "north", ["vigo", "derio"], net)
        derio = Post("derio", "north", ["bilbao", "vigo"], net)
        for post in net.values():
            await post.pairing.start()
        task = asyncio.ensure_future(vigo.gossip.run())
        await asyncio.sleep(5)
        assert derio.directory.nodes() == ["vigo"]
        derio = Post("derio", "north", ["bilbao", "vigo"], net)  # it lost its disk, and all else
        await derio.pairing.start()
        await vigo.gossip.receive("bilbao", encode_records([derio.pairing.announce()]))
        await asyncio.sleep(5)
        assert "vigo" in derio.directory.nodes()
        task.cancel()

    run(story())
