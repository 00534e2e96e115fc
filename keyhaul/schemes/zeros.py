"""Encryptions of zero made ahead, each used once: to mask a key at an origin, to re-randomise at a relay.

Making one takes 0.4 to 0.9 ms, taking a ready one a microsecond. A zero that was used is gone: used twice it
would mask two keys alike, or let the two ciphertexts it was added to be told from each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from keyhaul.schemes.bfv import Bfv
from keyhaul.schemes.dense import Polynomial

READY, LOW = 32, 16  # zeros for one destination's key: refilled to READY when fewer than LOW are left
MOST_KEYS = 256


Aside = Callable[[Callable[[], None]], None]
"""Does some work later, in another thread where there is one."""


def nowhere(work: Callable[[], None]) -> None:
    """No work ahead: each zero is made when it is needed."""


class Zeros:
    """Pools by public key. `aside` is given the making of zeros that nobody waits for."""

    def __init__(self, bfv: Bfv, aside: Aside = nowhere) -> None:
        self.aside = aside
        self._bfv = bfv
        self._pools: dict[bytes, deque[tuple[Polynomial, Polynomial]]] = {}
        self._filling: set[bytes] = set()

    def take(self, public: bytes, number: int) -> tuple[Polynomial, Polynomial]:
        """`number` zeros in a row, which nobody has had. Raises Malformed if the key is none."""
        pool = self._pool(public)
        taken = [pool.popleft() if pool else self._bfv.zero(public) for _ in range(number)]
        if len(pool) < LOW and public not in self._filling:
            self._filling.add(public)
            self.aside(lambda: self.fill(public))
        firsts, seconds = zip(*taken, strict=True)
        return np.concatenate(firsts), np.concatenate(seconds)

    def fill(self, public: bytes) -> None:
        """Make what is missing; some 15 ms from empty."""
        try:
            pool = self._pool(public)
            while len(pool) < READY:
                pool.append(self._bfv.zero(public))
        finally:
            self._filling.discard(public)

    def ready(self, public: bytes) -> int:
        """How many are there."""
        return len(self._pools.get(public, ()))

    def _pool(self, public: bytes) -> deque[tuple[Polynomial, Polynomial]]:
        if public not in self._pools:
            if len(self._pools) >= MOST_KEYS:
                self._pools.pop(next(iter(self._pools)))
            self._pools[public] = deque()
        return self._pools[public]
