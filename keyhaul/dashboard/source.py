"""What the page shows, wherever it comes from: one node's own view, or that of many."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec

from keyhaul.dashboard.arrange import arrange
from keyhaul.dashboard.faults import faults
from keyhaul.explaining import Avoid, explain
from keyhaul.routing import Network

Json = Mapping[str, Any]


class Source(Protocol):
    """Everything the page may ask. Nothing of it is secret; every answer is JSON."""

    async def network(self) -> Json:
        """Nodes with domains, positions and SAEs; links. What configurations say."""

    async def snapshot(self) -> Json:
        """Statuses of the nodes and their faults, now."""

    async def trace(self, key_id: UUID) -> Sequence[Json]:
        """Rows of one key, on every node asked."""

    async def send(self, source: str, destination: str) -> Json:
        """One key between the applications at two nodes, fetched at once. Raises Refused outside testbeds."""

    async def route(self, source: str, destination: str, avoid: Avoid) -> Json:
        """The way between two nodes or applications without some nodes and links, and why."""

    async def audit(self, most: int) -> Sequence[Json]:
        """The last lines of the audit logs of the nodes asked, oldest first, each with its `node`."""

    async def devices(self) -> Sequence[Json]:
        """Simulated devices whose knobs can be turned; empty outside a testbed."""

    async def turn(self, device: str, knobs: Json) -> Json:
        """Turn knobs of a simulated device. Raises Refused where there is none."""


def picture(network: Network) -> dict[str, Any]:
    """A network as the map draws it."""
    links = network.links()
    places = arrange(network.domains, [(edge.a, edge.b) for edge in links])
    return {
        "nodes": [
            {
                "name": name,
                "domain": domain,
                "saes": network.saes(name),
                "x": places[name][0],
                "y": places[name][1],
            }
            for name, domain in network.domains.items()
        ],
        "links": [{"a": edge.a, "b": edge.b, "kind": edge.kind, "mode": edge.mode} for edge in links],
    }


def united(pictures: Sequence[Json]) -> Json:
    """One picture of many, where configurations differ: all that any of them knows, placed anew."""
    if len(pictures) == 1:
        return pictures[0]
    nodes = {node["name"]: node for each in reversed(pictures) for node in each["nodes"]}
    links = {
        tuple(sorted((link["a"], link["b"]))): link for each in reversed(pictures) for link in each["links"]
    }
    places = arrange(nodes, links)
    return {
        "nodes": [
            {**node, "x": places[name][0], "y": places[name][1]} for name, node in sorted(nodes.items())
        ],
        "links": [links[ends] for ends in sorted(links)],
    }


def mark(drawn: Json) -> str:
    """A short name for a picture: two that differ have different ones."""
    return hashlib.sha256(msgspec.json.encode(drawn)).hexdigest()[:16]


def explained(network: Network, source: str, destination: str, avoid: Avoid) -> dict[str, Any]:
    """A route with its reasons; `hops` is empty where there is none."""
    return explain(network, source, destination, avoid=avoid)


def summed_up(statuses: Sequence[Json], now: float) -> dict[str, Any]:
    """A snapshot out of statuses; `now` in Unix seconds."""
    return {
        "time": now,
        "nodes": {str(status["name"]): status for status in statuses},
        "faults": [fault.plain() for fault in faults(statuses)],
    }
