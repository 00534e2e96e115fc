"""Ways that failed lately, so that the next attempt takes another one where there is one.

Only the origin of keys chooses their way, so this is memory of one node and goes with it. A way is avoided
for a while and then tried again; when all ways to a destination have failed, all are forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

from keyhaul.errors import NoRoute
from keyhaul.site import Obstacles, View

LASTING = 60.0
"""Seconds a way that failed is avoided: a relay that went on to drop costs one failed attempt in each."""


class Detours:
    """The way from node `me` to each destination. Times are Unix seconds."""

    def __init__(self, me: str, view: View) -> None:
        self._me = me
        self._view = view
        self._failed: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        self._detour = lru_cache(1024)(self._find)  # asked for with every request

    def way(self, destination: str, now: float, avoid: Obstacles = frozenset()) -> tuple[str, ...]:
        """The nodes to go over, none of `avoid` among them or their links.

        Raises NoRoute, when there is no way at all.
        """
        if avoided := self._lately(destination, now):
            if found := self._detour(destination, avoided, avoid):
                return found
            if not avoid:
                self._failed.pop(destination, None)
        return self._view.hops(self._me, destination, avoid)

    def failed(self, hops: tuple[str, ...], now: float) -> None:
        """Keys that went this way did not arrive, or did not arrive in time."""
        self._failed[hops[-1]][hops] = now + LASTING

    def other(self, hops: tuple[str, ...], now: float) -> bool:
        """Whether there is a way to the end of `hops` besides these and those that failed lately."""
        return self._detour(hops[-1], self._lately(hops[-1], now) | {hops}, frozenset()) is not None

    def avoided(self, now: float) -> list[tuple[str, ...]]:
        """What operators may want to see."""
        return [hops for destination in list(self._failed) for hops in self._lately(destination, now)]

    def _find(
        self, destination: str, failed: frozenset[tuple[str, ...]], avoid: Obstacles
    ) -> tuple[str, ...] | None:
        try:
            return self._view.detour(self._me, destination, failed, avoid).hops
        except NoRoute:
            return None

    def _lately(self, destination: str, now: float) -> frozenset[tuple[str, ...]]:
        ways = self._failed.get(destination, {})
        for hops in [hops for hops, until in ways.items() if until <= now]:
            del ways[hops]
        return frozenset(ways)
