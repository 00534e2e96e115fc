"""Nodes that also take part in profiles no node offers: for `keyhaul bench paper-b`, never for production.

    python -m keyhaul.cli.published serve --config node.toml

Added are `blind-paper` and `blind-lean` where their libraries are, and `masked-batch`: `masked` with a pair
secret a message, beside the form that the node is configured for. Public BFV keys lie as files beside the
nodes' folders of one testbed, which belongs to one user; secret ones stay in memory. Library calls hold up
the event loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from keyhaul.config.write import write
from keyhaul.errors import Unavailable, Unsupported
from keyhaul.keys import Secret
from keyhaul.messages.payload import Scheme
from keyhaul.node import Node
from keyhaul.openfhe import OpenFhe
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.lean import Lean
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.paper_b import PaperB

log = structlog.get_logger("keyhaul.published")


class MaskedBatch(Masked):
    """A name of its own for the form with a pair secret a message."""

    name = "masked-batch"

    def __init__(self) -> None:
        super().__init__(once=True)


class Shelf:
    """Public keys of one profile, by node."""

    def __init__(self, folder: Path, profile: str) -> None:
        self._folder = folder
        self._profile = profile
        self._read: dict[str, bytes] = {}

    def put(self, node: str, public: bytes) -> None:
        write(self._file(node), public.hex())

    def get(self, node: str) -> bytes:
        """Raises Unavailable."""
        if node not in self._read:
            try:
                self._read[node] = bytes.fromhex(self._file(node).read_text())
            except OSError:
                raise Unavailable(f"node {node!r} has no key of profile {self._profile}") from None
        return self._read[node]

    def _file(self, node: str) -> Path:
        return self._folder / f"{node}.{self._profile}"


def take_part(folder: Path) -> None:
    """Make every node of this process take part in the further schemes; `folder` holds their public keys."""
    patched: Any = Node
    build = patched._build_relay

    def extended(node: Any) -> None:
        build(node)
        further = [*_paper(node.config.name, folder), *_lean(node.config.name, folder), MaskedBatch()]
        # What the node has of its own stays as it is.
        node.site.schemes = {scheme.name: scheme for scheme in further} | dict(node.site.schemes)
        node.pairing._schemes = tuple(node.site.schemes)  # what it announces

    patched._build_relay = extended


def _paper(name: str, folder: Path) -> list[Scheme]:
    try:
        fhe = OpenFhe()
    except Unsupported as missing:
        log.warning("profile paper is left out", cause=str(missing))
        return []
    public, secret = fhe.generate()
    shelf, own = Shelf(folder, "paper"), Secret(secret)
    shelf.put(name, public)
    return [PaperB(fhe, shelf.get, lambda: (public, own))]


def _lean(name: str, folder: Path) -> list[Scheme]:
    try:
        from keyhaul.schemes.seal_whole import SealWhole

        bfv = SealWhole()
    except (ImportError, Unsupported) as missing:
        log.warning("profile lean is left out", cause=str(missing))
        return []
    ring, shelf = KeyRing(bfv), Shelf(folder, "lean")
    ring.activate(ring.prepare(0.0))
    shelf.put(name, ring.announced(0.0))
    return [Lean(bfv, shelf.get, ring.own)]
