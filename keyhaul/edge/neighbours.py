"""Which neighbour is at the other end of a connection: only its certificate says so, under TLS 1.3."""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

from cryptography.hazmat.primitives.serialization import Encoding

from keyhaul.edge import tls
from keyhaul.errors import Unauthorized
from keyhaul.identity import Federation, node_name

_known: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def neighbour_of(transport: asyncio.BaseTransport | None, federation: Federation | None) -> str:
    """The node or foreign KME at the other end, worked out once per connection.

    A name of the `federation` counts only from the CA of its own domain. Raises Unauthorized if another
    issued it, if the connection is closed or its certificate names no node, or if TLS is older than 1.3,
    which ETSI GS QKD 020 V1.1.1 demands of both sides.
    """
    handshake = transport.get_extra_info("ssl_object") if transport is not None else None
    name = _known.get(handshake) if handshake is not None else None
    if name is None:
        certificate = tls.peer_certificate(transport)
        name = node_name(certificate)
        if federation is not None and name in federation.domains:
            federation.verify(certificate.public_bytes(Encoding.DER), time.time())
        version = tls.negotiated(transport)["version"]
        if version != "TLSv1.3":
            raise Unauthorized(f"the connection is {version}", "nodes speak TLS 1.3 with each other")
        _known[handshake] = name
    return name
