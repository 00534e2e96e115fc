"""What parts of a node see of its configuration."""

from __future__ import annotations

import socket

from keyhaul import config
from keyhaul.messages.etsi020 import Dialect
from keyhaul.routing import Edge, Network
from keyhaul.site import ForeignPeer, Settings


def network(view: config.NetworkView) -> Network:
    """The network as routing knows it."""
    return Network(
        view.nodes,
        [Edge(link.a, link.b, link.kind, link.mode) for link in view.links],
        view.saes,
        {name: foreign.node for name, foreign in view.foreign.items()},
        view.costs,
    )


def delivery(settings: config.NodeConfig) -> Settings:
    """How the relay treats keys."""
    delivery = settings.delivery
    paper_a = delivery.profile == "paper-a"
    return Settings(
        release="immediate" if paper_a else delivery.release,
        scheme="paper-a" if paper_a else settings.schemes.default,
        request_timeout=delivery.request_timeout,
        ttl=delivery.ttl,
        retention=delivery.retention,
        void_delivered=delivery.void_delivered,
        key_size=settings.limits.key_size,
        pen=settings.extension_pen,
        max_key_count=settings.limits.max_key_count,
    )


def foreign(settings: config.NodeConfig) -> dict[str, ForeignPeer]:
    """Key managers of other makers, and the applications behind each."""
    behind = settings.network.foreign
    return {
        peer.name: ForeignPeer(
            peer.name,
            frozenset(
                name for name, at in behind.items() if at.node == settings.name and at.peer == peer.name
            ),
            Dialect(peer.dialect),
        )
        for peer in settings.peers
        if peer.kind == "plain"
    }


def url(settings: config.NodeConfig, name: str, listening: socket.socket) -> str:
    """Where a port is reached; `listening` tells the number that the system picked."""
    listener = dict(settings.listeners)[name]
    if listener.url is not None:
        return listener.url.rstrip("/")
    host = listener.host
    port = listening.getsockname()[1]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
