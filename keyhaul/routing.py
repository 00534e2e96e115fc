"""Which way a key goes: a graph of nodes and links, Dijkstra tables at start and A* on demand.

Paper A §IV-D computes routes with Dijkstra at start-up and falls back to A* while running. Here the tables
answer every question about the network as configured, and A* those that must avoid some nodes or links. Both
give the cheapest route, among equally cheap ones one with the fewest hops; the tables then prefer names in
alphabetical order. The same network and question have the same answer on every node.

The A* estimate is the table's distance in the whole network: avoiding something can only make a way longer,
so the estimate never exceeds the truth and the answer stays the cheapest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rustworkx

from keyhaul.errors import NoRoute, NoSuchTarget

SYMBOLS: Mapping[str, str] = {"qkd": "=", "pqc": "-", "plain": "~"}
COSTS: Mapping[str, float] = {"qkd": 1.0, "pqc": 2.0}

_OF_LINKS = frozenset({"its-wire", "qkd"})  # labels that the configuration alone decides
_HOP = 1e-6  # breaks ties of cost in favour of fewer hops; costs below 0.001 are refused by the configuration


@dataclass(frozen=True, slots=True)
class Edge:
    """One link between two nodes; `mode` is the pad mode."""

    a: str
    b: str
    kind: str
    mode: str = "expanded"

    @property
    def labels(self) -> frozenset[str]:
        """What it gives against wiretappers; as `ports.Link.labels`."""
        wire = {"its-wire"} if self.kind == "qkd" and self.mode == "otp" else set[str]()
        return frozenset({"pq"} | wire | ({"qkd"} if self.kind == "qkd" else set()))


@dataclass(frozen=True, slots=True)
class Route:
    """A way through the network: `hops` are its nodes, both ends included; `kinds` its links."""

    hops: tuple[str, ...]
    kinds: tuple[str, ...]
    cost: float

    def picture(self) -> str:
        """As people read it: `1=2-3=4`, where `=` is a quantum and `-` a post-quantum link."""
        pairs = zip(self.kinds, self.hops[1:], strict=True)
        return self.hops[0] + "".join(SYMBOLS[kind] + node for kind, node in pairs)


class Network:
    """The network as one configuration describes it. Unchangeable: another configuration, another network.

    `nodes` maps names to domains, `saes` SAE ids to nodes, `foreign` SAE ids to their gateway nodes. `avoid`,
    wherever it appears, holds node names and `(a, b)` pairs of linked nodes in any order.
    """

    def __init__(
        self,
        nodes: Mapping[str, str],
        links: Iterable[Edge],
        saes: Mapping[str, str],
        foreign: Mapping[str, str] | None = None,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self.domains = dict(nodes)
        self._names = sorted(nodes)
        self._index = {name: index for index, name in enumerate(self._names)}
        self._homes = {**(foreign or {}), **saes}
        self._foreign = frozenset(foreign or ())
        self._costs = {**COSTS, **(costs or {})}
        self._edges: dict[frozenset[str], Edge] = {}
        self._graph: Any = rustworkx.PyGraph(multigraph=False)
        self._graph.add_nodes_from(self._names)
        for edge in sorted(links, key=lambda edge: sorted((edge.a, edge.b))):
            self._edges[frozenset((edge.a, edge.b))] = edge
            weight = self._costs[edge.kind] + _HOP
            self._graph.add_edge(self._index[edge.a], self._index[edge.b], weight)
        self._everything = sum(self._graph.edges()) + 1.0
        self._tables = {name: self._distances(index) for name, index in self._index.items()}

    def route(
        self, source: str, destination: str, avoid: frozenset[str | tuple[str, str]] = frozenset()
    ) -> Route:
        """The cheapest way from one node to another. Raises NoRoute with the reason."""
        for name in (source, destination):
            if name not in self._index:
                raise NoRoute(
                    f"{name} is not a node of this network", "check its name in the network's nodes"
                )
        if destination not in self._tables[source]:
            raise self._separated(source, destination)
        hops = self._search(source, destination, avoid) if avoid else self._walk(source, destination)
        if not hops:
            raise self._blocked(source, destination, avoid)
        return self.follow(hops)

    def hops(
        self, source: str, destination: str, avoid: frozenset[str | tuple[str, str]] = frozenset()
    ) -> tuple[str, ...]:
        """The nodes from source to destination. Raises NoRoute."""
        return self.route(source, destination, avoid).hops

    def detour(
        self,
        source: str,
        destination: str,
        failed: Iterable[tuple[str, ...]],
        avoid: frozenset[str | tuple[str, str]] = frozenset(),
    ) -> Route:
        """The cheapest of the ways that share fewest relays, and fewest links, with those that failed.

        Raises NoRoute when every other way leads over all that failed, or over what to avoid.
        """
        self.route(source, destination, avoid)  # says it if there is none at all
        failed = list(failed)
        relays = {node for hops in failed for node in hops[1:-1]}
        links = {frozenset(pair) for hops in failed for pair in itertools.pairwise(hops)}
        rest = self._without(avoid)
        for pair, edge in self._edges.items():
            if not rest.has_edge(self._index[edge.a], self._index[edge.b]):
                continue
            shared = sum(1 for node in pair if node in relays) + (pair in links)
            a, b = self._index[edge.a], self._index[edge.b]
            rest.update_edge(a, b, self._weight(edge.a, edge.b) + shared * self._everything)
        found = rustworkx.dijkstra_shortest_paths(
            rest, self._index[source], self._index[destination], weight_fn=float
        )
        hops = tuple(self._names[index] for index in found[self._index[destination]])
        if hops in failed:
            raise NoRoute(
                f"there is no other way from {source} to {destination}", "add a link around the relays"
            )
        return self.follow(hops)

    def picture(self, hops: tuple[str, ...]) -> str:
        """A path as people read it; nodes that are not linked here are joined by `~`."""
        text = hops[0] if hops else ""
        for a, b in itertools.pairwise(hops):
            edge = self._edges.get(frozenset((a, b)))
            text += (SYMBOLS[edge.kind] if edge else "~") + b
        return text

    def labels(self, hops: tuple[str, ...]) -> list[frozenset[str]]:
        """What each link on the way promises against wiretappers; nothing where there is no link."""
        edges = (self._edges.get(frozenset(pair)) for pair in itertools.pairwise(hops))
        return [edge.labels if edge else frozenset() for edge in edges]

    def lacking(self, labels: frozenset[str]) -> frozenset[str | tuple[str, str]]:
        """The links that cannot keep one of these labels against wiretappers."""
        wanted = labels & _OF_LINKS
        return frozenset((edge.a, edge.b) for edge in self._edges.values() if wanted - edge.labels)

    def home(self, sae_id: str) -> str:
        """The node that serves an SAE, or the gateway to it. Raises NoSuchTarget."""
        try:
            return self._homes[sae_id]
        except KeyError:
            raise NoSuchTarget(
                f"no node of this network serves SAE {sae_id!r}", "check the id, or register the SAE"
            ) from None

    def foreign(self, sae_id: str) -> bool:
        """Whether an SAE sits behind a key manager of another maker."""
        return sae_id in self._foreign

    def saes(self, node: str) -> list[str]:
        """The SAE ids a node serves or is the gateway to, in order."""
        return sorted(sae for sae, home in self._homes.items() if home == node)

    def edge(self, a: str, b: str) -> Edge:
        """The link between two neighbours. Raises NoRoute."""
        try:
            return self._edges[frozenset((a, b))]
        except KeyError:
            raise NoRoute(f"{a} and {b} are not linked", "route over nodes between them") from None

    def links(self) -> list[Edge]:
        """All links, in the order of their names."""
        return list(self._edges.values())

    def neighbours(self, node: str) -> list[str]:
        """The nodes linked with one, in order."""
        return sorted(self._graph[i] for i in self._graph.neighbors(self._index[node]))

    def follow(self, hops: tuple[str, ...]) -> Route:
        """The route over these nodes. Raises NoRoute where two of them are not linked."""
        kinds = tuple(self.edge(a, b).kind for a, b in itertools.pairwise(hops))
        return Route(hops, kinds, sum(self._costs[kind] for kind in kinds))

    def _distances(self, index: int) -> dict[str, float]:
        lengths = rustworkx.dijkstra_shortest_path_lengths(self._graph, index, float)
        return {self._names[index]: 0.0} | {self._names[i]: length for i, length in lengths.items()}

    def _walk(self, source: str, destination: str) -> tuple[str, ...]:
        """Follow the table: of the neighbours that lie on a cheapest way, the first by name."""
        to_go = self._tables[destination]
        hops = [source]
        while hops[-1] != destination:
            here = hops[-1]
            hops.append(
                next(
                    name
                    for name in self.neighbours(here)
                    if abs(self._weight(here, name) + to_go[name] - to_go[here]) < _HOP / 2
                )
            )
        return tuple(hops)

    def _search(
        self, source: str, destination: str, avoid: frozenset[str | tuple[str, str]]
    ) -> tuple[str, ...] | None:
        """A* in what is left without `avoid`; None if the two are separated there."""
        if avoid & {source, destination}:
            return None
        rest = self._without(avoid)
        to_go = self._tables[destination]
        try:
            found = rustworkx.astar_shortest_path(
                rest,
                self._index[source],
                lambda name: bool(name == destination),
                float,
                lambda name: to_go.get(name, 0.0),
            )
        except rustworkx.NoPathFound:
            return None
        return tuple(self._names[index] for index in found)

    def _without(self, avoid: frozenset[str | tuple[str, str]]) -> Any:
        rest = self._graph.copy()
        for item in avoid:
            names = (item,) if isinstance(item, str) else item
            indices = [self._index[name] for name in names if name in self._index]
            if isinstance(item, str):
                rest.remove_nodes_from(indices)
            elif len(indices) == 2 and rest.has_edge(*indices):
                rest.remove_edge(*indices)
        return rest

    def _weight(self, a: str, b: str) -> float:
        return self._costs[self.edge(a, b).kind] + _HOP

    def _separated(self, source: str, destination: str) -> NoRoute:
        for name in (source, destination):
            if len(self._tables[name]) == 1:
                return NoRoute(f"{name} has no links at all", "link it with another node")
        island = ", ".join(sorted(self._tables[source]))
        return NoRoute(
            f"no link leads from {{{island}}} towards {destination}", "add a link between the two parts"
        )

    def _blocked(self, source: str, destination: str, avoid: frozenset[str | tuple[str, str]]) -> NoRoute:
        names = sorted(item if isinstance(item, str) else "/".join(sorted(item)) for item in avoid)
        cause = f"every way from {source} to {destination} leads over {', '.join(names)}"
        return NoRoute(cause, "wait until one of them is back, or add a link around them")
