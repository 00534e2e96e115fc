"""Why keys go the way they go: each hop with cost and labels, the other ways and what speaks against them.

Pure: the network as one node knows it, what is demanded, and what has failed lately, come in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keyhaul.errors import NoRoute
from keyhaul.routing import SYMBOLS, Network, Route

Avoid = frozenset[str | tuple[str, str]]

MOST_PIECES = 128  # links and relays of a way that are looked round
MOST_OTHERS = 5  # other ways that are told
READABLE = frozenset({"trusted", "paper-a"})
"""Schemes under which relays can read keys; all others have the label `relay-blind`."""


def usual_scheme(default: str, hops: Sequence[str]) -> str:
    """The scheme of a way where nobody names one, `default` being the configuration's."""
    if default != "auto":
        return default
    return "masked" if len(hops) > 2 else "trusted"


def explain(
    network: Network,
    source: str,
    destination: str,
    *,
    avoid: Avoid = frozenset(),
    demanded: frozenset[str] = frozenset(),
    default: str = "auto",
    chosen: tuple[str, ...] | None = None,
    scheme: str = "",
    failed: Iterable[tuple[str, ...]] = (),
    problem: str = "",
) -> dict[str, Any]:
    """A way in JSON: `hops`, `picture`, `cost`, `scheme`, `links`, `alternatives`, `problem`, `explanation`.

    `chosen` and `scheme` are those of a node that runs; else the cheapest way that has what is demanded.
    `failed` ways are avoided for a while. With a `problem`, or where there is no way, `hops` is empty, and
    `links` are those of the way that would be usual, if there is one.
    """
    route = None
    try:
        if chosen is not None:
            route = network.follow(chosen)
        elif not problem:
            route = network.route(source, destination, avoid | network.lacking(demanded))
    except NoRoute as none:
        problem = none.cause
    usual = route or _usual(network, source, destination, avoid)
    scheme = scheme or usual_scheme(default, usual.hops if usual else ())
    told: dict[str, Any] = {
        "from": source,
        "to": destination,
        "without": sorted(item if isinstance(item, str) else "|".join(sorted(item)) for item in avoid),
        "demanded": sorted(demanded),
        "hops": list(route.hops) if route else [],
        "picture": route.picture() if route else "",
        "cost": route.cost if route else None,
        "scheme": scheme if route else "",
        "problem": "" if route else problem,
        "links": _links(network, usual, scheme, demanded) if usual else [],
        "alternatives": _others(network, usual, bool(route), avoid, demanded, list(failed)) if usual else [],
    }
    return {**told, "explanation": "\n".join(lines(told))}


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    if told["demanded"]:
        yield f"demanded: {', '.join(told['demanded'])}"
    if told["problem"]:
        yield f"{told['from']} to {told['to']}: no route, {told['problem']}"
        if told["links"]:
            yield "what lacks, on the way that would be usual:"
    else:
        hops = len(told["links"])
        yield f"{told['picture']}  cost {told['cost']:g}, {hops} hop(s), scheme {told['scheme']}"
    for link in told["links"]:
        held = " ".join(link["labels"]) or "no label"
        lacks = f"  LACKS {' '.join(link['lacks'])}" if link["lacks"] else ""
        cost = f"{link['kind']} {link['cost']:g}, so far {link['so_far']:g}"
        yield f"  {link['a']} {SYMBOLS[link['kind']]} {link['b']}: {cost}  [{held}]{lacks}"
    if told["hops"] and not told["links"]:
        yield "  no link needed"
    elif told["alternatives"]:
        yield "other ways:"
    elif told["links"]:
        yield "there is no other way"
    for other in told["alternatives"]:
        yield f"  {other['picture']}  cost {other['cost']:g}: {'; '.join(other['why_not'])}"


def _usual(network: Network, source: str, destination: str, avoid: Avoid) -> Route | None:
    try:
        return network.route(source, destination, avoid)
    except NoRoute:
        return None


def _links(network: Network, route: Route, scheme: str, demanded: frozenset[str]) -> list[dict[str, Any]]:
    """Each hop with what it costs, promises and lacks."""
    blind = frozenset({"relay-blind"}) if scheme not in READABLE or len(route.hops) == 2 else frozenset[str]()
    links, so_far = [], 0.0
    for a, b in itertools.pairwise(route.hops):
        edge, cost = network.edge(a, b), network.follow((a, b)).cost
        so_far += cost
        held = edge.labels | blind
        links.append(
            {
                "a": a,
                "b": b,
                "kind": edge.kind,
                "mode": edge.mode,
                "cost": cost,
                "so_far": so_far,
                "labels": sorted(held),
                "lacks": sorted(demanded - held),
            }
        )
    return links


def _others(
    network: Network,
    route: Route,
    taken: bool,
    avoid: Avoid,
    demanded: frozenset[str],
    failed: Sequence[tuple[str, ...]],
) -> list[dict[str, Any]]:
    """The cheapest ways round each link and relay of the way, and why they are not the one."""
    found: dict[tuple[str, ...], Route] = {}
    pieces: list[str | tuple[str, str]] = [*itertools.pairwise(route.hops), *route.hops[1:-1]]
    for piece in pieces[:MOST_PIECES]:
        other = _usual(network, route.hops[0], route.hops[-1], avoid | {piece})
        if other is not None:
            found[other.hops] = other
    cheapest = _usual(network, route.hops[0], route.hops[-1], avoid)
    if cheapest is not None:
        found[cheapest.hops] = cheapest
    found.pop(route.hops, None)
    ordered = sorted(found.values(), key=lambda other: (other.cost, len(other.hops), other.hops))
    return [
        {
            "picture": other.picture(),
            "hops": list(other.hops),
            "cost": other.cost,
            "why_not": list(_against(network, route if taken else None, other, demanded, failed)),
        }
        for other in ordered[:MOST_OTHERS]
    ]


def _against(
    network: Network,
    route: Route | None,
    other: Route,
    demanded: frozenset[str],
    failed: Sequence[tuple[str, ...]],
) -> Iterator[str]:
    """What speaks against another way; `route` is the one that is taken, if there is one."""
    if other.hops in failed:
        yield "failed within the last minute"
    lacking = network.lacking(demanded)
    for a, b in itertools.pairwise(other.hops):
        if {(a, b), (b, a)} & lacking:
            missing = ", ".join(sorted(demanded - network.edge(a, b).labels - {"relay-blind"}))
            yield f"hop {a} to {b} lacks {missing}"
    if route is None:
        yield "see above what stands against every way"
        return
    shared = [node for node in other.hops[1:-1] if node in route.hops]
    if other.cost > route.cost:
        yield f"costs {other.cost - route.cost:g} more"
    elif other.cost == route.cost and len(other.hops) > len(route.hops):
        yield "as cheap, over more hops"
    elif other.cost == route.cost:
        yield "as cheap and as short; the order of names decides, so that all nodes agree"
    if shared:
        yield f"shares {', '.join(shared)}"


def parted(text: str) -> str | tuple[str, str]:
    """What `a` or `a|b` names: a node, or the link of two."""
    a, bar, b = text.partition("|")
    return (a, b) if bar else a
