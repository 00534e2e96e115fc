"""BFV keys of a node: on disk before they are announced, erased after their life, replaced after refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from keyhaul import blindkeys
from keyhaul.blindkeys import LEAST_LIFE, SPACE, STREAK, BlindKeys, build
from keyhaul.config import BlindConfig
from keyhaul.control import Descriptor, Directory, publish
from keyhaul.errors import StoreUnavailable, Unavailable, Unsupported
from keyhaul.messages.payload import Scheme
from keyhaul.schemes.blind import NOTICE
from keyhaul.schemes.keyring import EPOCH, OVERLAP, KeyRing
from keyhaul.stores.memory import MemoryLedger
from keyhaul.whispers import Whispers
from tests.neighbours import Anchors, Identity
from tests.unit.test_keyring import Counter
from tests.unit.test_pairing import Clock


class Deaf(MemoryLedger):
    """A disk that is full, while `full`."""

    full = False

    def edit(self, *refs: Any) -> Any:
        if self.full:
            raise StoreUnavailable("the disk is full")
        return super().edit(*refs)


class Keys:
    """One node's keys, with how often it was told to hurry."""

    def __init__(self, ledger: MemoryLedger | None = None, clock: Clock | None = None) -> None:
        self.ledger, self.clock = ledger or MemoryLedger(), clock or Clock()
        self.ring = KeyRing(Counter())
        self.keys = BlindKeys(self.ring, self.ledger, self.clock)
        self.hurried = 0
        self.keys.hurry = self._hurry

    def _hurry(self) -> None:
        self.hurried += 1

    def announced(self) -> list[bytes]:
        return [key.public for key in self.keys.announced(self.clock.now())]

    async def stored(self) -> set[str]:
        return set(await self.ledger.items(SPACE))


def test_a_key_is_on_disk_before_it_is_announced() -> None:
    async def story() -> None:
        ledger = Deaf()
        here = Keys(ledger)
        ledger.full = True
        with pytest.raises(StoreUnavailable):
            await here.keys.rotate()
        with capture_logs():
            assert here.announced() == []
        ledger.full = False
        await here.keys.rotate()
        (key,) = here.keys.announced(here.clock.now())
        assert (key.profile, key.expires - key.issued) == ("bfv-dense-25", EPOCH)
        assert await here.stored() == {key.id.hex()}

    asyncio.run(story())


def test_a_key_lives_for_its_epoch_and_overlap_across_restarts_and_is_erased() -> None:
    async def story() -> None:
        here = Keys()
        await here.keys.rotate()
        first = here.keys.announced(here.clock.now())[0]
        here.clock.time += EPOCH / 2
        again = Keys(here.ledger, here.clock)
        await again.keys.start()
        assert again.announced() == [first.public]
        again.ring._bfv.made = 1  # type: ignore[attr-defined]
        await again.keys.rotate()
        second = again.keys.announced(here.clock.now())[0]
        assert second.id != first.id
        assert again.ring.own(first.id) is not None
        here.clock.time += EPOCH / 2 + OVERLAP - 1
        await again.keys.rotate()
        assert again.ring.own(first.id) is not None
        here.clock.time += 1
        await again.keys.rotate()
        assert again.ring.own(first.id) is None
        assert first.id.hex() not in await again.stored()

    asyncio.run(story())


def test_an_erasure_that_cannot_be_stored_is_not_believed() -> None:
    async def story() -> None:
        ledger = Deaf()
        here = Keys(ledger)
        await here.keys.rotate()
        first = here.keys.announced(here.clock.now())[0]
        here.clock.time += EPOCH + OVERLAP
        ledger.full = True
        with pytest.raises(StoreUnavailable):
            await here.keys.rotate()
        ledger.full = False
        assert here.ring.own(first.id) is not None
        await here.keys.rotate()
        assert here.ring.own(first.id) is None

    asyncio.run(story())


def test_refusals_bring_the_next_key_early_with_an_alarm() -> None:
    async def story() -> None:
        here = Keys()
        await here.keys.rotate()
        first = here.announced()
        here.clock.time += LEAST_LIFE
        for _ in range(STREAK - 1):
            here.keys.refused("blind")
            here.keys.refused("masked")
        await here.keys.rotate()
        assert (here.announced(), here.hurried) == (first, 0)
        with capture_logs() as logs:
            here.keys.refused("blind")
        assert here.hurried == 1
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert "ALARM" in logs[0]["event"]
        await here.keys.rotate()
        assert here.announced() != first
        assert len(await here.stored()) == 2, "what is on its way under the old key can still be opened"

    asyncio.run(story())


def test_a_storm_of_refusals_cannot_make_keys_without_end() -> None:
    async def story() -> None:
        here = Keys()
        with capture_logs():
            for _ in range(10 * STREAK):
                here.keys.refused("blind")
                await here.keys.rotate()
                here.clock.time += LEAST_LIFE / STREAK / 2
        assert len(await here.stored()) <= 6

    asyncio.run(story())


# ---------------------------------------------------------------------- as a node builds it


def described(*keys: Any) -> Directory:
    directory = Directory(Anchors(), {"bilbao": "lab"})
    now = Clock().now()
    said = Descriptor("bilbao", "lab", 1, now, now + 9000, tuple(keys))
    directory.receive(publish(said, Identity("bilbao")), now)
    return directory


def made(
    wanted: BlindConfig,
    ledger: MemoryLedger | None = None,
    clock: Clock | None = None,
    directory: Directory | None = None,
) -> tuple[list[Scheme], BlindKeys | None]:
    ledger, clock, directory = ledger or MemoryLedger(), clock or Clock(), directory or described()
    return build(wanted, ledger, clock, directory, Whispers(directory, clock))


def test_it_is_off_unless_enabled_and_then_says_the_notice() -> None:
    with capture_logs() as logs:
        assert made(BlindConfig()) == ([], None)
    assert logs == []
    with capture_logs() as logs:
        schemes, _ = made(BlindConfig(enabled=True))
    assert [scheme.name for scheme in schemes] == ["blind"]
    assert logs[0]["patent_notice"] == NOTICE


def test_without_its_library_a_node_relays_only_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(settings: BlindConfig) -> Any:
        raise Unsupported("no library", "install it")

    monkeypatch.setattr(blindkeys, "_library", missing)
    with capture_logs() as logs:
        schemes, keys = made(BlindConfig(enabled=True, rerandomise=True))
    assert [scheme.name for scheme in schemes] == ["blind"], "without a library nothing is re-randomised"
    assert keys is None
    assert "only relays" in logs[-1]["event"]


@pytest.mark.parametrize("profile", ["dense", "dense-25"])
def test_an_origin_encrypts_for_whatever_profile_the_destination_announces(
    profile: str, tmp_path: Path
) -> None:
    pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")
    from tests.bfv import PAIR, vouched

    async def story() -> None:
        clock, ledger = Clock(), MemoryLedger()
        there = BlindConfig(True, profile)  # type: ignore[arg-type]
        (destination,), keys = made(there, ledger, clock)
        assert keys is not None
        await keys.start()
        await keys.rotate()
        directory = described(*keys.announced(clock.now()))
        (origin,), _ = made(BlindConfig(enabled=True), MemoryLedger(), clock, directory)
        context = vouched(number=3)
        from keyhaul.keys import Secret

        bits = [bytes([at]) * 32 for at in range(3)]
        payload = origin.originate([Secret(each) for each in bits], context, PAIR)
        assert [key.reveal() for key in destination.deliver(payload, context, PAIR)] == bits
        clock.time += EPOCH
        with pytest.raises(Unavailable, match="announces no current bfv"):
            origin.originate([Secret(bits[0])], vouched(), PAIR)

    with capture_logs():
        asyncio.run(story())
