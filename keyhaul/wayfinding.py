"""The way between two nodes or two applications, explained as this node would take it now.

Keys that begin here are explained with what this node knows: ways that failed lately, what other nodes say of
themselves, the policy of the two applications. Ways that begin elsewhere are explained by the network alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keyhaul.detours import Detours
from keyhaul.errors import KeyhaulError, Malformed, NoSuchTarget
from keyhaul.explaining import Avoid, explain
from keyhaul.policy import LABELS_KNOWN, PathPolicy
from keyhaul.promise import Ask
from keyhaul.routing import Network
from keyhaul.site import Site
from keyhaul.ways import choose

PATIENCE = 2.0  # seconds to wait for what other nodes say of themselves


def ends(
    network: Network, policy: PathPolicy, source: str, destination: str, labels: Iterable[str]
) -> tuple[str, str, frozenset[str]]:
    """The two nodes, and what is demanded between them. Raises Malformed and NoSuchTarget.

    Each end is a node or an application; of two applications the policy counts.
    """
    demanded = frozenset(labels)
    if unknown := demanded - {*LABELS_KNOWN}:
        raise Malformed(f"no label {', '.join(sorted(unknown))[:64]}", f"use {', '.join(LABELS_KNOWN)}")
    if source not in network.domains and destination not in network.domains:
        demanded |= policy.demanded(source, [destination])
    return _node(network, source), _node(network, destination), demanded


def _node(network: Network, name: str) -> str:
    if name in network.domains:
        return name
    try:
        return network.home(name)
    except NoSuchTarget:
        raise NoSuchTarget(
            f"{name[:64]!r} is neither a node nor an SAE of this network", "check the name"
        ) from None


async def explained(
    site: Site,
    detours: Detours,
    network: Network,
    source: str,
    destination: str,
    avoid: Avoid = frozenset(),
    labels: Iterable[str] = (),
) -> dict[str, Any]:
    """`keyhaul.explaining.explain` for this node; `as_seen_by` is its name. Raises as `ends`."""
    here, there, demanded = ends(network, site.policy, source, destination, labels)
    now = site.clock.now()
    known: dict[str, Any] = {"avoid": avoid, "demanded": demanded, "default": site.settings.scheme}
    if here == site.name:
        known["failed"] = detours.avoided(now)
    if here == site.name != there and not avoid:
        try:
            ask = Ask(policy=demanded)
            known["chosen"], scheme = await choose(site, detours, there, ask, now + PATIENCE)
            known["scheme"] = scheme.name
        except KeyhaulError as error:
            known["problem"] = error.cause
    return {**explain(network, here, there, **known), "as_seen_by": site.name}
