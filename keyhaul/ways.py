"""Which way keys go, and under which scheme: the cheapest way that keeps what is demanded of it.

First the usual way is looked at. If it lacks something, ways around the links and nodes that lack it are
searched, the cheapest first. If none has all, the error is that of the usual way: each hop and what it
lacks. Wishes lead nowhere else: they are honoured on the way that what is demanded leads to.
"""

from __future__ import annotations

import contextlib

from keyhaul.detours import Detours
from keyhaul.errors import ExtensionRefused, NoRoute, Unavailable
from keyhaul.messages.payload import Scheme
from keyhaul.promise import Ask, candidates, choose_scheme, needs_descriptors, obstacles
from keyhaul.site import Site

PATIENCE = 2.0  # seconds that a search waits for what the nodes of another way say of themselves
MOST_TRIED = 32  # ways looked at for one scheme

Hops = tuple[str, ...]


async def choose(
    site: Site, detours: Detours, destination: str, ask: Ask, deadline: float
) -> tuple[Hops, Scheme]:
    """The nodes to go over and the scheme. `deadline` in Unix seconds.

    Raises NoRoute, ExtensionRefused, or Unavailable where descriptors of the usual way do not come.
    """
    hops = detours.way(destination, site.clock.now())
    if needs_descriptors(site, hops, ask):
        await site.pairing.acquainted(hops, deadline)
    try:
        return hops, choose_scheme(site, hops, ask)
    except (ExtensionRefused, NoRoute):
        for name in candidates(site, hops, ask):
            if found := await _search(site, detours, hops, name, ask, deadline):
                return found, choose_scheme(site, found, ask)
        raise


async def _search(
    site: Site, detours: Detours, hops: Hops, name: str, ask: Ask, deadline: float
) -> Hops | None:
    """The cheapest way on which nothing stands against a scheme and what is demanded."""
    now, destination = site.clock.now(), hops[-1]
    avoid: frozenset[str | tuple[str, str]] = site.view.lacking(ask.demanded)
    for _ in range(MOST_TRIED):
        against = obstacles(site, hops, name, ask.demanded)
        if against is None:
            return None
        if not against:
            return hops
        avoid |= against
        try:
            hops = detours.way(destination, now, avoid)
        except NoRoute:
            return None
        if needs_descriptors(site, hops, ask):
            with contextlib.suppress(Unavailable):  # then the unknown node is an obstacle
                await site.pairing.acquainted(hops, min(deadline, now + PATIENCE))
    return None
