"""Which neighbour is at the other end of a connection: only its certificate says so, under TLS 1.3."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from keyhaul.edge import tls
from keyhaul.errors import Unauthorized
from keyhaul.identity import domain, node_name

_known: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def neighbour_of(transport: asyncio.BaseTransport | None, domains: Mapping[str, str]) -> str:
    """The node or foreign KME at the other end, worked out once per connection.

    `domains` maps the federation's nodes to their domains: any CA of the federation could sign any name,
    so a node's certificate counts only if the CA of its own domain issued it. Raises Unauthorized if it
    did not, if the connection is closed or its certificate names no node, or if TLS is older than 1.3,
    which ETSI GS QKD 020 V1.1.1 demands of both sides.
    """
    handshake = transport.get_extra_info("ssl_object") if transport is not None else None
    name = _known.get(handshake) if handshake is not None else None
    if name is None:
        certificate = tls.peer_certificate(transport)
        name = node_name(certificate)
        if name in domains and domain(certificate) != domains[name]:
            raise Unauthorized(
                f"the certificate for {name} comes from domain {domain(certificate)}, not {domains[name]}",
                "have it issued by the CA of the node's own domain",
            )
        version = tls.negotiated(transport)["version"]
        if version != "TLSv1.3":
            raise Unauthorized(f"the connection is {version}", "nodes speak TLS 1.3 with each other")
        _known[handshake] = name
    return name
