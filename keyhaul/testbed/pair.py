"""One end of a linked pair of devices: who may use which bits, and which keys wait here to be fetched.

Both ends derive the same bits from the shared seed (`qkdlink.KeyStream`); what they must agree on is who uses
which position. The pool is free of direction, because two halves would give one-sided traffic half the rate
and a real pair gives all of it. So one end, the keeper, keeps the account (`qkdlink.Reservoir`); the other,
the mirror, asks it. Either way one enc_keys costs one round trip over the classical channel, which carries
ids and positions and never bits: the keeper announces what it took, the mirror reserves at the keeper, and
when enc_keys answers, the far end can already serve dec_keys.

A restart of the keeper starts a new run with a fresh account and new bits; a restart of the mirror forgets
the keys that waited there. Counters start from zero with the process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from keyhaul.errors import InsufficientKey, KeyNotFound, PeerUnreachable, Unauthorized
from keyhaul.testbed.qkdlink import Reservoir

NOT_FOUND = "one or more keys specified are not found on KME"
"""The wording 014 V1.1.1 fixes for dec_keys of an id that is unknown or already delivered."""


class Order(msgspec.Struct, frozen=True):
    """Keys of `size` bits that `master` asked for, to be fetched by every one of `slaves`."""

    key_ids: tuple[str, ...]
    size: int
    master: str
    slaves: tuple[str, ...]

    @property
    def bits(self) -> int:
        """All keys together, in bits."""
        return self.size * len(self.key_ids)


class Place(msgspec.Struct, frozen=True):
    """Where in the stream an order's bits lie: first bit, in the keeper's run (hex)."""

    run: str
    position: int


class Level(msgspec.Struct, frozen=True):
    """The keeper's account, in bits: produced == stored + taken + discarded."""

    run: str = ""
    produced: int = 0
    stored: int = 0
    taken: int = 0
    discarded: int = 0
    capacity: int = 0


class Announcement(msgspec.Struct, frozen=True):
    """Keeper to mirror: this order was taken from that place."""

    order: Order
    place: Place


class Reservation(msgspec.Struct, frozen=True):
    """Keeper's answer to a mirror's order; no place if too few bits are stored."""

    level: Level
    place: Place | None = None


class Line(msgspec.Struct, frozen=True):
    """Faults of the pair as one end sets them: no light on the fibre, or no key although there is light."""

    cut: bool = False
    dry: bool = False


_T = TypeVar("_T")


class Channel(Protocol):
    """The classical channel to the other end. Raises PeerUnreachable."""

    async def ask(self, verb: str, message: msgspec.Struct, answer: type[_T]) -> _T: ...


@dataclass(slots=True)
class Waiting:
    """A key that the far end handed out and some SAE at this end has not fetched yet."""

    key_id: str
    order: Order
    run: str
    position: int
    since: float
    remaining: set[str]


class Shelf:
    """Keys that wait at this end, in order of arrival. Times are seconds of one monotonic clock."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._waiting: dict[str, Waiting] = {}
        self.bits = 0
        self.expired_bits = 0
        self.expired_keys = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, order: Order, place: Place, now: float) -> None:
        """Make an order's keys fetchable."""
        self.expire(now)
        for index, key_id in enumerate(order.key_ids):
            position = place.position + index * order.size
            self._waiting[key_id.lower()] = Waiting(
                key_id, order, place.run, position, now, set(order.slaves)
            )
        self.bits += order.bits

    def take(
        self, key_ids: Sequence[str], master: str, caller: str, now: float, lag: float
    ) -> list[tuple[Waiting, bool]]:
        """The keys asked for, each with whether this was its last fetch; all of them or none.

        Keys announced less than `lag` seconds ago are not seen yet. Raises Unauthorized if one of them was
        not meant for `caller`, KeyNotFound if one is unknown, fetched or expired.
        """
        self.expire(now)
        found = [self._waiting.get(key_id.lower()) for key_id in key_ids]
        seen = [item for item in found if item and item.order.master == master and item.since + lag <= now]
        if any(caller not in item.order.slaves for item in seen):
            raise Unauthorized("the key was not meant for this SAE")
        if len({item.key_id for item in seen}) < len(found) or any(
            caller not in item.remaining for item in seen
        ):
            raise KeyNotFound(NOT_FOUND)
        return [(item, self._fetched(item, caller)) for item in seen]

    def expire(self, now: float) -> None:
        """Drop what nobody fetched within the time to live."""
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.since + self._ttl > now:
                return
            self._remove(oldest)
            self.expired_bits += oldest.order.size
            self.expired_keys += 1

    def _fetched(self, item: Waiting, caller: str) -> bool:
        item.remaining.discard(caller)
        if item.remaining:
            return False
        self._remove(item)
        return True

    def _remove(self, item: Waiting) -> None:
        del self._waiting[item.key_id.lower()]
        self.bits -= item.order.size


class End(ABC):
    """What both kinds of end share: the shelf, the faults, and the last account known."""

    def __init__(self, channel: Channel, shelf: Shelf, clock: Callable[[], float]) -> None:
        self._channel = channel
        self._clock = clock
        self.shelf = shelf
        self.mine = Line()
        self.theirs = Line()

    @property
    def cut(self) -> bool:
        """Whether either end sees no light: no production, no classical channel."""
        return self.mine.cut or self.theirs.cut

    @property
    def dry(self) -> bool:
        """Whether either end says that there is no key."""
        return self.mine.dry or self.theirs.dry

    async def disturb(self, line: Line) -> bool:
        """Set this end's faults and tell the far end; False if it could not be told."""
        self.mine = line
        self.settle()
        try:
            # Faults are the testbed's doing, not the pair's: they are told even over a cut channel.
            await self._channel.ask("line", line, Level)
        except PeerUnreachable:
            return False
        return True

    def disturbed(self, line: Line) -> None:
        """The far end's faults changed."""
        self.theirs = line
        self.settle()

    @abstractmethod
    def settle(self) -> None:
        """Make the supply follow the faults; only the keeper has one."""

    async def reserve(self, order: Order) -> Place:
        """Fresh bits for an order, already announced to the far end.

        Raises InsufficientKey, or PeerUnreachable while the classical channel is down.
        """
        if self.cut:
            raise PeerUnreachable("the classical channel of the pair is down")
        if self.dry:
            raise _too_few(order, 0)
        return await self._reserve(order)

    @abstractmethod
    async def _reserve(self, order: Order) -> Place: ...

    @abstractmethod
    async def level(self) -> Level:
        """The pair's account, as well as this end can know it now."""


class Keeper(End):
    """The end that keeps the account."""

    def __init__(
        self, reservoir: Reservoir, run: bytes, channel: Channel, shelf: Shelf, clock: Callable[[], float]
    ) -> None:
        super().__init__(channel, shelf, clock)
        self._reservoir = reservoir
        self._run = run.hex()

    def settle(self) -> None:
        now = self._clock()
        if self.cut or self.dry:
            self._reservoir.pause(now)
        else:
            self._reservoir.resume(now)
        if self.dry:
            self._reservoir.drain(now)

    def account(self) -> Level:
        """The account now."""
        self._reservoir.advance(self._clock())
        r = self._reservoir
        return Level(self._run, r.produced, r.stored, r.taken, r.discarded, r.capacity)

    async def level(self) -> Level:
        return self.account()

    async def _reserve(self, order: Order) -> Place:
        place = self._take(order)
        if place is None:
            raise _too_few(order, self._reservoir.stored)
        try:
            await self._channel.ask("announce", Announcement(order, place), Level)
        except PeerUnreachable:
            # The far end may or may not know the keys: they must not be handed out here.
            self._reservoir.burn(order.bits)
            raise
        return place

    def serve(self, order: Order) -> Reservation:
        """Reserve for the mirror: the keys wait here from now on."""
        place = self._take(order)
        if place is not None:
            self.shelf.put(order, place, self._clock())
        return Reservation(self.account(), place)

    def _take(self, order: Order) -> Place | None:
        position = self._reservoir.take(order.bits, self._clock())
        return None if position is None else Place(self._run, position)


class Mirror(End):
    """The end that asks the keeper."""

    def __init__(self, channel: Channel, shelf: Shelf, clock: Callable[[], float]) -> None:
        super().__init__(channel, shelf, clock)
        self._last = Level()

    def settle(self) -> None:
        """The supply is the keeper's."""

    async def level(self) -> Level:
        try:
            self._last = await self._channel.ask("level", self.mine, Level)
        except PeerUnreachable:
            return self._last
        return self._last

    async def _reserve(self, order: Order) -> Place:
        answer = await self._channel.ask("reserve", order, Reservation)
        self._last = answer.level
        if answer.place is None:
            raise _too_few(order, answer.level.stored)
        return answer.place

    def announced(self, announcement: Announcement) -> None:
        """The keeper took keys that will be fetched here."""
        self.shelf.put(announcement.order, announcement.place, self._clock())


def _too_few(order: Order, stored: int) -> InsufficientKey:
    return InsufficientKey(
        "not enough key material available", key_bits_requested=order.bits, key_bits_available=stored
    )
