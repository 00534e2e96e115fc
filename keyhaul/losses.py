"""What a restored node has not got any more is voided here before anybody can be given it.

A node that comes back from a backup has none of the keys that were sent to it since. Its neighbours and the
origins of those keys hear of it; what they hold for it is lost, whatever had been acknowledged before.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import structlog

from keyhaul.errors import Unavailable
from keyhaul.keys import Row
from keyhaul.pairing import ANEW
from keyhaul.ports import Spawn
from keyhaul.settlement import Settlement
from keyhaul.site import Site

log = structlog.get_logger("keyhaul.origin")

AGAIN = 1.0  # seconds until a store that could not save is asked again


class Losses:
    """The restored nodes for which not all is void yet that began here."""

    def __init__(self, site: Site, settlement: Settlement, spawn: Spawn) -> None:
        self._site = site
        self._settlement = settlement
        self._spawn = spawn
        self._heard: Counter[str] = Counter()  # restores, until all is void that was meant for the node

    async def start(self) -> None:
        """Go on with what an earlier run heard of."""
        for node in await self._site.ledger.items(ANEW):
            self.add(node)

    def concern(self, row: Row) -> bool:
        """Whether a key is lost and only not void yet."""
        return row.ref.leg == self._site.name and any(leg in self._heard for leg in row.legs)

    def add(self, node: str) -> None:
        """A node was restored."""
        self._heard[node] += 1
        if self._heard[node] == 1:
            self._spawn(self._void(node), f"void what {node} has lost")

    async def _void(self, node: str) -> None:
        """What is ready for a restored node and what is under way to it, until the store could save that.

        What was sent before this node heard of the restore went under keys that are no more, and it may have
        been acknowledged before. If there was another restore meanwhile, once more.
        """
        ledger, heard = self._site.ledger, 0
        while heard != self._heard[node]:
            heard = self._heard[node]
            try:
                rows = [*await ledger.unfinished(), *await ledger.deliverable()]
                await self._settlement.abandon(
                    [row.ref for row in rows if row.ref.leg == self._site.name and node in row.legs],
                    lost=True,
                )
                if heard == self._heard[node]:
                    async with ledger.edit() as change:
                        change.erase(ANEW, node)
            except Unavailable as error:
                heard = 0
                log.warning("what a restored node lost is not void yet", node=node, cause=error.cause)
                await asyncio.sleep(AGAIN)
        del self._heard[node]
