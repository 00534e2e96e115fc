"""Secrets held for a neighbour that may never come for them: each knows its age, and there is a limit.

A reply that is lost, or a neighbour that is restored or burns what it has, leaves secrets behind that no
message will ever spend. Nobody can tell them from those that are still needed but by their age.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable

from keyhaul.errors import Spent
from keyhaul.ports import Change, Clock, Ledger

RENEW = 86_400.0
"""Seconds after which a node has what it got ready for sending confirmed or made anew (`links.refill`)."""
KEEP = 7 * 86_400.0
"""Seconds a secret is held for a neighbour.

The neighbour may have it ready for RENEW before it seals a message with it. That message is repeated,
byte for byte, until its deadline: `request_timeout` for keys (at most an hour), a day for acknowledgements
and voids (`letters.WORTH`). The other five days are for nodes that slept and clocks that disagree.
"""

_MARK = b"kept at "
_HEAD = struct.Struct(f">{len(_MARK)}sd")  # what is older than this format has no head


def dated(value: bytes, since: float) -> bytes:
    """A value as it is stored, with the Unix time since when it is held."""
    return _HEAD.pack(_MARK, since) + value


def undated(stored: bytes) -> tuple[bytes, float | None]:
    """The value, and since when; None for one of an earlier version."""
    if len(stored) < _HEAD.size or not stored.startswith(_MARK):
        return stored, None
    return stored[_HEAD.size :], _HEAD.unpack_from(stored)[1]


class Kept:
    """The secrets of one space of the ledger: at most about `most`, none older than `keep` seconds."""

    def __init__(self, space: str, ledger: Ledger, clock: Clock, most: int, keep: float = KEEP) -> None:
        self.space = space
        self._ledger = ledger
        self._clock = clock
        self._most = most
        self._keep = keep
        self._began = clock.now()
        self._added = 0  # since the last pruning

    @property
    def crowded(self) -> bool:
        """Whether so many were added since the last pruning that it is time for one."""
        return self._added > self._most // 4

    def put(self, change: Change, name: str, value: bytes) -> None:
        change.put(self.space, name, dated(value, self._clock.now()))
        self._added += 1

    async def get(self, name: str) -> bytes | None:
        stored = await self._ledger.item(self.space, name)
        return None if stored is None else undated(stored)[0]

    async def claimed(self, names: Iterable[str]) -> list[str]:
        """Which are here. The neighbour says that it still has its halves, so they are young again."""
        here, aged, now = [], {}, self._clock.now()
        for name in names:
            stored = await self._ledger.item(self.space, name)
            if stored is None:
                continue
            here.append(name)
            value, since = undated(stored)
            if since is None or abs(now - since) > self._keep / 14:  # not a write for every offer
                aged[name] = dated(value, now)
        await self._replace(aged)
        return here

    async def prune(self) -> list[str]:
        """Erase the old, and the oldest of too many; returns their names.

        Secrets of earlier versions count as made when the node started, and are given that time here.
        """
        now, self._added = self._clock.now(), 0
        ages: list[tuple[float, str]] = []
        strange: dict[str, bytes] = {}
        for name, stored in (await self._ledger.items(self.space)).items():
            value, since = undated(stored)
            if since is None:
                strange[name] = dated(value, since := self._began)
            elif since > now + self._keep:  # a clock was wrong by that much
                strange[name] = dated(value, since := now)
            ages.append((now - since, name))
        ages.sort()
        gone = [name for at, (age, name) in enumerate(ages) if at >= self._most or age > self._keep]
        forgotten = set(gone)
        await self._replace({name: stored for name, stored in strange.items() if name not in forgotten})
        if gone:
            async with self._ledger.edit() as change:
                for name in gone:
                    change.erase(self.space, name)
        return gone

    async def _replace(self, stored: dict[str, bytes]) -> None:
        if not stored:
            return
        # One that a message spends meanwhile must not come back. Then all wait for the next time.
        with contextlib.suppress(Spent):
            async with self._ledger.edit() as change:
                for name, value in stored.items():
                    change.spend(self.space, name)
                    change.put(self.space, name, value)
