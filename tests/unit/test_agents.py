"""Two agents agree on keys whatever gets lost between them, and a program is locked when no key comes."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from keyhaul.consumers import agreement
from keyhaul.consumers.agreement import KEPT, TELLINGS, Age, Initiator, Responder, Step
from keyhaul.consumers.port import AgreedKey
from keyhaul.errors import KeyhaulError, KeyNotFound, PeerUnreachable, Refused, Unavailable
from keyhaul.keys import Secret
from keyhaul.messages.etsi014 import Delivered


@dataclass
class Nodes:
    """Both SAEs' nodes: a key is there once for each."""

    waiting: dict[UUID, bytes] = field(default_factory=dict)
    dry: bool = False
    bits: int = 256

    async def get_key(self, slave: str, *, size: int) -> list[Delivered]:
        if self.dry:
            raise Unavailable("no key")
        assert slave == "sae-b"
        key_id, bits = uuid4(), secrets.token_bytes(self.bits // 8)
        self.waiting[key_id] = bits
        return [Delivered(key_id, Secret(bits))]

    async def fetch_key(self, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        assert master == "sae-a"
        if key_ids[0] not in self.waiting:
            raise KeyNotFound("delivered already")
        return [Delivered(key_ids[0], Secret(self.waiting.pop(key_ids[0])))]


@dataclass
class Program:
    """Takes every key it holds, begins with the newest; `one`: holds one only, as WireGuard does."""

    key_bits: int = 256
    one: bool = False
    broken: bool = False
    keys: dict[UUID, bytes] = field(default_factory=dict)
    locked: int = 0
    most: int = 0

    @property
    def begins_with(self) -> bytes:
        return list(self.keys.values())[-1]

    async def held(self) -> list[UUID]:
        return [] if self.one else list(self.keys)

    async def install(self, key: AgreedKey) -> None:
        if self.broken:
            raise Unavailable("the program is broken")
        if self.one:
            self.keys.clear()
        self.keys[key.key_id] = key.bits.reveal()
        self.most = max(self.most, len(self.keys))

    async def drop(self, key_id: UUID) -> None:
        if self.broken:
            raise Unavailable("the program is broken")
        self.keys.pop(key_id, None)

    async def lock(self) -> None:
        self.locked += 1
        if self.broken:
            raise Unavailable("the program is broken")
        self.keys.clear()

    async def close(self) -> None: ...


@dataclass
class Wire:
    """Reaches the responder; the next calls do what `script` says: `before` and `after` lose a message,
    `dies` starts the responder anew before it could answer."""

    responder: Responder
    dies: Callable[[], None]
    script: list[str] = field(default_factory=list)
    told: list[tuple[Step, UUID]] = field(default_factory=list)

    async def tell(self, step: Step, key_id: UUID, in_use: UUID | None = None) -> None:
        fault = self.script.pop(0) if self.script else ""
        self.told.append((step, key_id))
        if fault == "before":
            raise PeerUnreachable("lost on the way there")
        await (self.responder.stage if step == "stage" else self.responder.settle)(key_id, in_use)
        if fault == "dies":
            self.dies()
        if fault in ("after", "dies"):
            raise PeerUnreachable("lost on the way back")


class Two:
    """Both ends, put together."""

    def __init__(self, one: bool = False) -> None:
        self.nodes = Nodes()
        self.a, self.b = Program(one=one), Program(one=one)
        self.renewals: list[str] = []
        self.restart_b()
        self.wire = Wire(self.responder, self.restart_b)
        self.restart_a()

    def restart_a(self) -> None:
        self.initiator = Initiator(self.nodes, "sae-b", self.wire, self.a, lambda: self.renewals.append("a"))

    def restart_b(self) -> None:
        self.responder = Responder(self.nodes, "sae-a", self.b, lambda: self.renewals.append("b"))
        if hasattr(self, "wire"):
            self.wire.responder = self.responder

    @property
    def works(self) -> bool:
        """What the initiator begins with, the responder takes."""
        return self.a.begins_with in self.b.keys.values()


def test_a_rotation_leaves_one_key_the_same_at_both_ends() -> None:
    async def story() -> None:
        two = Two()
        for _ in range(3):
            key_id = await two.initiator.rotate()
            assert list(two.a.keys) == list(two.b.keys) == [key_id]
            assert two.works
        assert two.a.most == two.b.most == 2  # the new one beside the old one, no more
        assert two.renewals == ["b", "a"] * 3

    asyncio.run(story())


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("one", [False, True])
def test_a_lost_message_is_said_again_and_does_no_harm(fault: str, one: bool) -> None:
    async def story() -> None:
        two = Two(one)
        await two.initiator.rotate()
        two.wire.script = [fault, fault, "", fault, fault]
        key_id = await two.initiator.rotate()
        assert list(two.a.keys) == list(two.b.keys) == [key_id]
        assert [step for step, _ in two.wire.told] == ["stage", "settle", *["stage"] * 3, *["settle"] * 3]

    asyncio.run(story())


def test_a_stage_that_nobody_confirms_changes_nothing_that_works() -> None:
    async def story() -> None:
        two = Two()
        first = await two.initiator.rotate()
        two.wire.script = ["after"] * TELLINGS
        with pytest.raises(PeerUnreachable):
            await two.initiator.rotate()
        assert list(two.a.keys) == [first]
        assert two.works
        await two.initiator.rotate()
        assert two.works
        assert len(two.b.keys) == 1

    asyncio.run(story())


def test_a_lost_settling_is_made_up_for_by_the_next_stage() -> None:
    async def story() -> None:
        two = Two()
        await two.initiator.rotate()
        for _ in range(6):
            two.wire.script = ["", *["before"] * TELLINGS]
            key_id = await two.initiator.rotate()
            assert two.works
            assert list(two.b.keys)[-1] == key_id
        assert two.b.most == 3
        assert len(two.b.keys) == 2  # what was in use when the newest came, and that one

    asyncio.run(story())


def test_after_a_restart_a_responder_asks_its_program_what_it_holds() -> None:
    async def story() -> None:
        two = Two()
        two.wire.script = ["", *["before"] * TELLINGS]
        key_id = await two.initiator.rotate()
        two.restart_b()
        await two.responder.stage(key_id)  # would raise KeyNotFound if it fetched again
        await two.responder.settle(key_id)
        await two.initiator.rotate()
        assert two.works

    asyncio.run(story())


def test_a_responder_that_forgot_a_staged_key_says_so_and_the_next_key_works() -> None:
    async def story() -> None:
        two = Two(one=True)
        two.wire.script = ["dies"]
        with pytest.raises(KeyNotFound):
            await two.initiator.rotate()
        await two.initiator.rotate()
        assert two.works

    asyncio.run(story())


def test_an_initiator_that_starts_anew_does_not_make_the_responder_hoard() -> None:
    async def story() -> None:
        two = Two()
        for _ in range(3 * KEPT):
            two.restart_a()
            two.a.keys.clear()  # a program that was started anew as well
            two.wire.script = ["after"] * TELLINGS
            with pytest.raises(PeerUnreachable):
                await two.initiator.rotate()
        assert len(two.b.keys) == KEPT + 1

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_lost_or_breaks_the_initiator_begins_with_what_the_responder_takes(seed: int) -> None:
    async def story() -> None:
        rng = random.Random(seed)
        two = Two()
        await two.initiator.rotate()
        done = 0
        for _ in range(40):
            two.wire.script = rng.choices(["", "before", "after"], k=6)
            two.nodes.dry = rng.random() < 0.2
            two.a.broken, two.b.broken = rng.random() < 0.2, rng.random() < 0.2
            if rng.random() < 0.1:
                two.restart_b()
            try:
                await two.initiator.rotate()
                done += 1
            except KeyhaulError:
                pass
            assert two.works
        two.wire.script, two.nodes.dry, two.a.broken, two.b.broken = [], False, False, False
        await two.initiator.rotate()
        assert list(two.a.keys) == list(two.b.keys)
        assert len(two.b.keys) == 1
        assert done

    asyncio.run(story())


def test_a_key_of_another_size_is_refused_and_not_installed() -> None:
    async def story() -> None:
        two = Two()
        two.nodes.bits = 128
        with pytest.raises(Refused, match="128 bits"):
            await two.initiator.rotate()
        assert not two.a.keys
        assert not two.b.keys

    asyncio.run(story())


def test_only_the_newest_key_is_settled() -> None:
    async def story() -> None:
        two = Two()
        first = await two.initiator.rotate()
        await two.initiator.rotate()
        for wrong in (first, uuid4()):
            with pytest.raises(Refused, match="not the newest"):
                await two.responder.settle(wrong)
        assert two.works

    asyncio.run(story())


def test_bits_are_wiped_once_they_are_installed() -> None:
    async def story() -> None:
        two, seen = Two(), list[Secret]()

        async def install(key: AgreedKey) -> None:
            seen.append(key.bits)

        two.a.install = two.b.install = install  # type: ignore[method-assign]
        await two.initiator.rotate()
        assert [len(bits) for bits in seen] == [0, 0]

    asyncio.run(story())


def test_failures_are_tried_again_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def story() -> None:
        two, stop = Two(), asyncio.Event()
        two.nodes.dry = True

        async def until(event: asyncio.Event, seconds: float) -> bool:
            pauses.append(seconds)
            two.nodes.dry = len(pauses) < 8
            if len(pauses) == 10:
                stop.set()
            return event.is_set()

        monkeypatch.setattr(agreement, "until", until)
        with capture_logs() as logs:
            await two.initiator.keep(600.0, stop)
        assert two.works
        assert {each["cause"] for each in logs if each["event"] == "no new key"} == {"no key"}

    asyncio.run(story())
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 600.0, 600.0]


def test_without_a_new_key_the_program_is_locked_and_with_one_it_works_again() -> None:
    async def story() -> None:
        two = Two()
        await two.initiator.rotate()
        expired = asyncio.Event()

        async def lock() -> None:
            await two.initiator.lock()
            expired.set()

        age = Age(0.02, lock=True)
        watching = asyncio.create_task(age.watch(lock))
        await asyncio.wait_for(expired.wait(), 60)
        assert two.a.locked == 1
        assert not two.a.keys
        await two.initiator.rotate()
        assert two.works
        expired.clear()
        age.renewed()
        await asyncio.wait_for(expired.wait(), 60)  # and the new one expires, too
        assert two.a.locked == 2
        watching.cancel()

    asyncio.run(story())


def test_a_program_that_does_not_lock_is_told_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "FIRST_PAUSE", 0.0)

    async def story() -> None:
        two, locked = Two(), asyncio.Event()
        await two.initiator.rotate()
        two.a.broken = True

        async def lock() -> None:
            two.a.broken = two.a.locked < 3
            await two.initiator.lock()
            locked.set()

        watching = asyncio.create_task(Age(0.01, lock=True).watch(lock))
        await asyncio.wait_for(locked.wait(), 60)
        assert two.a.locked == 4
        watching.cancel()

    asyncio.run(story())


def test_a_key_may_be_kept_if_that_is_wanted() -> None:
    async def story() -> None:
        two = Two()
        await two.initiator.rotate()
        with capture_logs() as logs:
            watching = asyncio.create_task(Age(0.01, lock=False).watch(two.initiator.lock))
            while not logs:
                await asyncio.sleep(0)
            watching.cancel()
        assert "stays" in logs[0]["event"]
        assert two.works
        assert two.a.locked == 0

    asyncio.run(story())
