"""Makes a copy of a store safe to go on with, whatever keeps it: nothing that was said or used counts twice.

What a copy says about keys may have been overtaken: they may have been handed out since. So

    every key that was not final is expired, and its bits are gone: none is handed out a second time
    messages that were under way are dropped: they would go out under numbers that were used
    device keys, one-time keys and secrets of pairs are erased: no pad and no key is used twice
    the store gets a new incarnation: messages are numbered anew, under a name they never had
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from keyhaul import lifecycle
from keyhaul.keys import State
from keyhaul.ports import Ledger

INCARNATION_BYTES = 16
LASTING = ("seen/*", "directory", "audit", "rollback")
"""Spaces of items that stay good, as GLOB patterns; others hold what is used once, or was erased since."""

_FOR_EVER = 1e15  # Unix seconds


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of a copy: keys expired, messages dropped, one-time items erased, its new incarnation."""

    keys: int
    messages: int
    items: int
    incarnation: str


class Copy(Protocol):
    """What a kind of store does by itself with a copy that no node runs on."""

    async def drop_messages(self) -> int:
        """Empty the queue; returns how many there were."""

    async def erase_items(self, but: Sequence[str]) -> int:
        """Erase the items of all spaces that fit none of these GLOB patterns; returns how many."""

    async def rename(self, incarnation: bytes) -> None:
        """Count and number from now on under another name, of INCARNATION_BYTES."""


async def renew(ledger: Ledger, copy: Copy, now: float) -> Renewal:
    """Renew the copy that `ledger` reads and writes, at Unix time `now`.

    The copy must not be in place yet: a crash half-way leaves it half-renewed.
    """
    keys = await _expire(ledger, now)
    messages = await copy.drop_messages()
    items = await copy.erase_items(LASTING)
    incarnation = os.urandom(INCARNATION_BYTES)
    await copy.rename(incarnation)
    return Renewal(keys, messages, items, incarnation.hex())


async def _expire(ledger: Ledger, now: float) -> int:
    count = 0
    while refs := await ledger.due(_FOR_EVER):
        async with ledger.edit(*refs) as change:
            for ref in refs:
                row = change.rows[ref]
                if row is not None and lifecycle.may(row, State.EXPIRED):
                    lifecycle.step(row, State.EXPIRED, now)
                    count += 1
    return count
