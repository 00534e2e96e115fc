"""The contract of a link between two of our nodes, and every kind of ours run against it.

A new kind joins by one line in KINDS: a function that makes both ends on the two ledgers it is given.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from keyhaul.errors import Conflict, Malformed, Spent, Taken, Tampered
from keyhaul.messages.envelope import Mode, Suite, xor
from keyhaul.ports import Grant, Ledger, Link, Opened
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock, run
from tests.neighbours import Devices, End, introduce

Make = Callable[[Ledger, Ledger], Awaitable[tuple[Link, Link]]]
"""Makes both ends, `a` and `b`, on their ledgers, ready to send; called again, it is a restart of both."""


@dataclass
class Wire:
    """Two ends of a link, and what a careful node does with them."""

    make: Make
    ledgers: tuple[MemoryLedger, MemoryLedger] = field(
        default_factory=lambda: (MemoryLedger(), MemoryLedger())
    )
    pads: list[bytes] = field(default_factory=list)

    async def start(self) -> Wire:
        self.a, self.b = await self.make(*self.ledgers)
        return self

    async def grant(self, pad_bytes: int = 48) -> Grant:
        return await self.a.grant(pad_bytes, deadline=LoopClock().now() + 5)

    async def send(self, content: bytes = b"content", pad_bytes: int = 48) -> bytes:
        """An envelope from `a`, with what it used up spent."""
        grant = await self.grant(pad_bytes)
        self.pads.append(grant.pad())
        body = grant.seal("ext_keys", content)
        async with self.ledgers[0].edit() as change:
            grant.spend(change)
        return body

    async def accept(self, opened: Opened) -> None:
        async with self.ledgers[1].edit() as change:
            opened.spend(change)

    async def receive(self, body: bytes) -> Opened | None:
        """Open at `b` and accept."""
        opened = await self.b.open(body)
        if opened is not None:
            await self.accept(opened)
        return opened


async def what_is_sealed_is_opened(wire: Wire) -> None:
    for content, length in ((b"", 1), (b"x" * 100_000, 48), (b"again", 31)):
        opened = await wire.receive(await wire.send(content, length))
        assert opened is not None
        assert (opened.sender, opened.path, opened.content) == ("a", "ext_keys", content)
        assert opened.pad(length) == wire.pads[-1]
        assert opened.pad(length) == opened.pad(length)
        assert len(wire.pads[-1]) == length


async def a_message_without_a_pad_goes_through(wire: Wire) -> None:
    grant = await wire.grant(0)
    body = grant.seal("ack", b"[]")
    async with wire.ledgers[0].edit() as change:
        grant.spend(change)
    opened = await wire.receive(body)
    assert opened is not None
    assert (opened.path, opened.content) == ("ack", b"[]")


async def a_duplicate_is_nothing_new(wire: Wire) -> None:
    body = await wire.send()
    assert await wire.receive(body) is not None
    for _ in range(3):
        assert await wire.b.open(body) is None
    await wire.start()
    assert await wire.b.open(body) is None, "also after a restart"


async def an_opened_message_that_was_not_accepted_can_be_opened_again(wire: Wire) -> None:
    body = await wire.send(b"once more")
    first = await wire.b.open(body)
    assert first is not None
    await wire.start()  # a crash before the commit
    again = await wire.receive(body)
    assert again is not None
    assert again.content == b"once more"
    assert again.pad(48) == first.pad(48) == wire.pads[-1]


async def two_copies_at_once_are_accepted_once(wire: Wire) -> None:
    body = await wire.send()
    one, two = await wire.b.open(body), await wire.b.open(body)
    assert one is not None
    assert two is not None
    await wire.accept(two)
    with pytest.raises((Taken, Spent)):
        await wire.accept(one)
    assert await wire.b.open(body) is None


async def messages_may_overtake_each_other(wire: Wire) -> None:
    bodies = [await wire.send(str(number).encode()) for number in range(6)]
    order = list(range(6))
    random.Random(3).shuffle(order)
    for number in order:
        opened = await wire.receive(bodies[number])
        assert opened is not None
        assert opened.content == str(number).encode()
        assert opened.pad(48) == wire.pads[number]


async def no_pad_comes_twice(wire: Wire) -> None:
    for _ in range(3):
        for _ in range(4):
            await wire.receive(await wire.send())
        await wire.start()
    assert len(set(wire.pads)) == len(wire.pads) == 12
    for one in wire.pads:
        for other in wire.pads:
            if one is not other:
                zeros = sum(byte == 0 for byte in xor(one, other))
                assert zeros < 8, "two pads share bytes"


async def a_message_is_for_its_receiver_only(wire: Wire) -> None:
    body = await wire.send()
    with pytest.raises((Tampered, Malformed)):
        await wire.a.open(body)  # reflected to its sender


async def no_byte_of_it_can_be_changed(wire: Wire) -> None:
    body = await wire.send()
    for at in range(0, len(body), max(1, len(body) // 97)):
        changed = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
        with pytest.raises((Tampered, Malformed)):
            await wire.b.open(changed)
    assert await wire.receive(body) is not None, "attempts to forge it cost the real message nothing"


async def a_cancelled_grant_disturbs_nobody(wire: Wire) -> None:
    seen = await wire.grant()
    lost_pad, lost_body = seen.pad(), seen.seal("ext_keys", b"never sent")
    seen.cancel()
    (await wire.grant()).cancel()
    opened = await wire.receive(await wire.send())
    assert opened is not None
    assert lost_pad not in wire.pads
    assert lost_body


async def labels_and_kind_are_known(wire: Wire) -> None:
    assert wire.a.peer == "b"
    assert wire.a.kind in ("qkd", "pqc")
    assert wire.a.symbol in ("=", "-")
    assert wire.a.labels <= {"its-wire", "pq", "qkd"}
    assert wire.a.labels == wire.b.labels
    level = wire.a.level()
    assert level is None or level > 0


RULES: tuple[Callable[[Wire], Awaitable[None]], ...] = (
    what_is_sealed_is_opened,
    a_message_without_a_pad_goes_through,
    a_duplicate_is_nothing_new,
    an_opened_message_that_was_not_accepted_can_be_opened_again,
    two_copies_at_once_are_accepted_once,
    messages_may_overtake_each_other,
    no_pad_comes_twice,
    a_message_is_for_its_receiver_only,
    no_byte_of_it_can_be_changed,
    a_cancelled_grant_disturbs_nobody,
    labels_and_kind_are_known,
)


async def check_link(make: Callable[[], Make]) -> None:
    """Every rule, each on fresh ledgers and devices. Raises AssertionError."""
    for rule in RULES:
        await rule(await Wire(make()).start())


# ---------------------------------------------------------------------- ours


def sealed(mode: Mode | None, *, ahead: bool = True) -> Make:
    """Sealed links; without a mode there is no device behind them."""
    devices = Devices() if mode is not None else None
    options: dict[str, Any] = {"low": 2, "high": 24, "ahead": ahead} if devices else {}

    async def make(near: Ledger, far: Ledger) -> tuple[Link, Link]:
        assert isinstance(near, MemoryLedger)
        assert isinstance(far, MemoryLedger)
        ends = [
            End(me, peer, ledger, devices, mode=mode or Mode.KEM, **options)
            for me, peer, ledger in (("a", "b", near), ("b", "a", far))
        ]
        for end in ends:
            end.peer_keys._high = 24
        await introduce(*ends)
        return ends[0].link, ends[1].link

    return make


KINDS: dict[str, Callable[[], Make]] = {
    "kem": lambda: sealed(None),
    "expanded": lambda: sealed(Mode.EXPANDED),
    "otp": lambda: sealed(Mode.OTP),
}


@pytest.mark.parametrize("kind", KINDS)
def test_link_keeps_the_contract(kind: str) -> None:
    run(check_link(KINDS[kind]))


def test_on_demand_links_seal_and_open_too() -> None:
    async def story() -> None:
        for rule in (what_is_sealed_is_opened, a_duplicate_is_nothing_new, messages_may_overtake_each_other):
            await rule(await Wire(sealed(Mode.EXPANDED, ahead=False)).start())

    run(story())


def test_the_contract_finds_a_link_that_forgets_what_it_received() -> None:
    async def forgetful(near: Ledger, far: Ledger) -> tuple[Link, Link]:
        return await sealed(None)(near, MemoryLedger())

    async def story() -> None:
        wire = await Wire(forgetful).start()
        with pytest.raises((AssertionError, Malformed, Spent)):
            await a_duplicate_is_nothing_new(wire)

    run(story())


def test_another_message_under_a_used_number_is_a_conflict() -> None:
    async def story() -> None:
        ledgers = MemoryLedger(), MemoryLedger()
        wire = await Wire(sealed(None), ledgers).start()
        assert await wire.receive(await wire.send()) is not None
        async with ledgers[0].edit() as change:
            change.erase("sequence", "b")  # the sender lost its memory
        await wire.start()
        body = await wire.send()
        with pytest.raises(Conflict):
            await wire.b.open(body)

    run(story())


def test_two_messages_under_one_number_at_once_are_not_both_accepted() -> None:
    async def story() -> None:
        ledgers = MemoryLedger(), MemoryLedger()
        wire = await Wire(sealed(None), ledgers).start()
        first = await wire.send(b"first")
        async with ledgers[0].edit() as change:
            change.erase("sequence", "b")
        await wire.start()
        one, two = await wire.b.open(first), await wire.b.open(await wire.send(b"second"))
        assert one is not None
        assert two is not None
        await wire.accept(two)
        with pytest.raises(Taken):
            await wire.accept(one)

    run(story())


def test_suites_do_not_mix() -> None:
    async def story() -> None:
        for near, far in ((Suite.PAPER_A, Suite.HKDF_SHA384), (Suite.HKDF_SHA384, Suite.PAPER_A)):
            devices = Devices()
            a = End("a", "b", MemoryLedger(), devices, suite=near)
            b = End("b", "a", MemoryLedger(), devices, suite=far)
            await introduce(a, b)
            grant = await a.link.grant(48, deadline=LoopClock().now() + 5)
            with pytest.raises(Tampered):
                await b.link.open(grant.seal("ext_keys", b""))

    run(story())
