"""testbed.json: where everything in a running testbed is, with absolute addresses and paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keyhaul.testbed.layout import PORTS, Certificates, Layout, pem_paths


def describe(
    layout: Layout,
    made: Certificates,
    urls: Mapping[str, Mapping[str, str]],
    pid_of: Callable[[str], int],
) -> dict[str, Any]:
    """The document. `urls` maps nodes and devices to their ports; `pid_of` gives 0 for what does not run."""
    nodes = layout.topology.nodes
    homes = {sae: node.name for node in nodes for sae in node.saes}
    return {
        "topology": layout.topology.name,
        "ca": _authorities(layout),
        "admin": pem_paths(made.admin),
        "nodes": [
            {
                "name": node.name,
                "domain": node.domain,
                **{f"{port}_url": urls[node.name][port] for port in PORTS},
                "pid": pid_of(node.name),
            }
            for node in nodes
        ],
        "saes": [
            {"id": sae, "node": node, "sae_url": urls[node]["sae"], **pem_paths(made.saes[sae])}
            for sae, node in homes.items()
        ],
        "devices": _devices(layout, made, urls, pid_of),
        "links": [{"a": link.a, "b": link.b, "kind": link.kind} for link in layout.topology.links],
    }


def _authorities(layout: Layout) -> dict[str, Any]:
    pki = layout.directory / "pki"
    per_domain = {
        role: {domain: str(pki / domain / "ca" / f"{role}.pem") for domain in layout.topology.domains}
        for role in ("sae", "admin", "device")
    }
    return {"node": str(pki / "node-anchors.pem"), **per_domain}


def _devices(
    layout: Layout,
    made: Certificates,
    urls: Mapping[str, Mapping[str, str]],
    pid_of: Callable[[str], int],
) -> list[dict[str, Any]]:
    return [
        {
            "name": spot.name,
            "node": spot.node,
            "link": spot.link.name,
            "url": urls[spot.name].get("operator", urls[spot.name]["device"]),
            "pid": pid_of(spot.name),
            "operator": pem_paths(made.operators[layout.domains[spot.link.a]]),
        }
        for spot in layout.spots
    ]
