"""Keys relayed ahead as a master gets them: in blocks, and from memory while a block lasts.

A block leaves the pool marked as handed out, in one commit before its first key is given; so most
requests wait for no disk. A crash burns what is left of two blocks at most: a key is given never twice,
sometimes not at all.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence

from keyhaul import lifecycle
from keyhaul.errors import StoreUnavailable
from keyhaul.keys import MASTER, Ref, Row, Secret, State
from keyhaul.messages.etsi014 import Delivered
from keyhaul.pools import Pools
from keyhaul.ports import Spawn
from keyhaul.shelves import Pool
from keyhaul.site import Site

LEFT = 0.1  # share of its life that a key still has when a master gets it: its slaves have to come, too


class _Hand:
    """Keys of one pool that are marked as handed out, for the requests to come."""

    def __init__(self) -> None:
        self._keys: deque[tuple[float, Delivered]] = deque()
        self.reaching = asyncio.Lock()
        self.dropped = 0  # times everything was let go of

    def __len__(self) -> int:
        return len(self._keys)

    def hold(self, keys: Iterable[Delivered], until: float) -> None:
        """Keys that may be given until Unix time `until`."""
        self._keys.extend((until, key) for key in keys)

    def drop(self) -> None:
        """Wipe all, also what is on its way here."""
        self.dropped += 1
        while self._keys:
            self._keys.popleft()[1].bits.wipe()

    def give(self, number: int, now: float) -> list[Delivered]:
        """All of `number` keys, or none; what is too old by now is let go of."""
        keys = self._keys
        while keys and keys[0][0] <= now:
            keys.popleft()[1].bits.wipe()
        if len(keys) < number:
            return []
        return [keys.popleft()[1] for _ in range(number)]


class Stock:
    """The pools of one node, and what was taken out of them and not yet asked for."""

    def __init__(self, site: Site, pools: Pools, spawn: Spawn) -> None:
        self._site = site
        self._pools = pools
        self._spawn = spawn
        self._hands: defaultdict[Pool, _Hand] = defaultdict(_Hand)

    def __iter__(self) -> Iterator[Pool]:
        """The pools that keys were taken out of."""
        return iter(self._hands)

    def count(self, pool: Pool) -> int:
        """Keys that a request could have at once."""
        hand = self._hands.get(pool)
        return self._pools.count(pool) + (len(hand) if hand is not None else 0)

    def let_go(self) -> None:
        """What was taken out and not asked for is burned: the rules it was made under may not hold."""
        for hand in self._hands.values():
            hand.drop()

    def lose(self, pool: Pool) -> None:
        """Nothing that was taken out of this pool is of use any more."""
        if pool in self._hands:
            self._hands[pool].drop()

    async def take(self, pool: Pool, number: int) -> list[Delivered]:
        """All of `number` keys, or none: then they have to be made."""
        now = self._site.clock.now()
        hand, block = self._hands[pool], self._pools.block(pool)
        while not (keys := hand.give(number, now)):
            if number * 2 > block:  # most of a block each: nothing is gained by taking turns
                if not await self._reach(pool, hand):
                    return []
                continue
            async with hand.reaching:
                if len(hand) < number and not await self._reach(pool, hand):
                    return []
        if len(hand) * 4 < block * 3 and self._pools.count(pool) and not hand.reaching.locked():
            self._spawn(self._reach_ahead(pool, hand), "reach into pool")
        return keys

    async def _reach_ahead(self, pool: Pool, hand: _Hand) -> None:
        """Take the next block before the last key of this one is asked for."""
        async with hand.reaching:
            if len(hand) * 4 < self._pools.block(pool) * 3:
                await self._reach(pool, hand)

    async def _reach(self, pool: Pool, hand: _Hand) -> bool:
        """Put the next block of the pool into its hand; False if there is none."""
        dropped = hand.dropped
        while refs := self._pools.pop(pool):
            try:
                keys, until = await self._taken_out(refs)
            except StoreUnavailable:
                self._pools.add(pool, refs)  # nothing was marked, so they are as ready as before
                raise
            if hand.dropped != dropped:  # while the disk was written
                for key in keys:
                    key.bits.wipe()
                dropped = hand.dropped
            elif keys:
                hand.hold(keys, until)
                return True
        return False

    async def _taken_out(self, refs: Sequence[Ref]) -> tuple[list[Delivered], float]:
        """A block marked as handed out: its unused keys, and the Unix time until which they may be given."""
        async with self._site.ledger.together(refs) as herd:
            if herd is not None and self._unused(herd.row):
                keys, until = _delivered(herd.row, refs, herd.secrets), self._until(herd.row)
                lifecycle.given(herd.row, MASTER, self._site.clock.now())
            else:
                keys, until = [], 0.0
        return (keys, until) if herd is not None else await self._one_by_one(refs)

    async def _one_by_one(self, refs: Sequence[Ref]) -> tuple[list[Delivered], float]:
        """Keys of a block that do not all stand alike any more: those that are still unused."""
        keys: list[Delivered] = []
        until = float("inf")
        async with self._site.ledger.edit(*refs) as change:
            for ref in refs:
                row = change.rows[ref]
                if row is not None and row.secret is not None and self._unused(row):
                    keys += _delivered(row, [ref], [Secret(row.secret.reveal())])
                    until = min(until, self._until(row))
                    lifecycle.given(row, MASTER, self._site.clock.now())
        return keys, until

    def _until(self, row: Row) -> float:
        return row.expires - LEFT * self._site.settings.ttl

    def _unused(self, row: Row) -> bool:
        current = self._until(row) > self._site.clock.now()
        return row.state is State.DELIVERABLE and MASTER in row.waiting and current


def _delivered(row: Row, refs: Sequence[Ref], bits: Sequence[Secret]) -> list[Delivered]:
    trust = dict(row.trust)
    return [Delivered(ref.key_id, secret, trust) for ref, secret in zip(refs, bits, strict=True)]
