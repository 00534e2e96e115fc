"""Pair secrets as nodes make them, one a message: encapsulated to an announced key, signed by ML-DSA-65."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from keyhaul.control import Directory
from keyhaul.identity import Anchors, Federation, Identity
from keyhaul.messages.payload import Pair
from keyhaul.pairing import Pairing
from keyhaul.pki import Pki
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.benchmarks.paper_b_ways import ROUTE

Result = TypeVar("Result")
DOMAIN = "tecnalia"


class FreshPairs:
    """Origin and destination in memory; each message has an encapsulation and a signature of its own."""

    def __init__(self, origin: Pairing, destination: Pairing) -> None:
        self._origin = origin
        self._destination = destination

    def outgoing(self) -> Pair:
        """Encapsulated and signed now."""
        return _finished(self._origin.outgoing(ROUTE[-1], 0.0, once=True))

    def incoming(self, head: bytes) -> Pair:
        """Checked and decapsulated now; nothing is kept of a pair secret for one message."""
        return _finished(self._destination.incoming(head, ROUTE[0]))


@contextmanager
def fresh_pairs() -> Iterator[FreshPairs]:
    """Two nodes' pairings that know each other's descriptors."""
    domains = dict.fromkeys(ROUTE, DOMAIN)
    with tempfile.TemporaryDirectory(prefix="keyhaul-bench-") as folder:
        pki = Pki.create(Path(folder), [DOMAIN])
        ends = []
        for name in (ROUTE[0], ROUTE[-1]):
            files = pki.node(DOMAIN, name, ["localhost"])
            identity = Identity.load(files.cert.read_bytes(), files.key.read_bytes())
            directory = Directory(Federation(Anchors.load(files.ca.read_bytes()), domains), domains)
            pairing = Pairing(identity, DOMAIN, directory, MemoryLedger(), _Wall())
            _finished(pairing.start())
            ends.append((pairing, directory))
        (origin, near), (destination, far) = ends
        near.receive(destination.announce(), time.time())
        far.receive(origin.announce(), time.time())
        yield FreshPairs(origin, destination)


class _Wall:
    def now(self) -> float:
        return time.time()


def _finished(steps: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that has nothing to wait for: without an event loop's own time."""
    while True:
        try:
            wanted = steps.send(None)
        except StopIteration as done:
            result: Result = done.value
            return result
        if wanted is not None:
            raise RuntimeError("a pair secret had to be waited for")
