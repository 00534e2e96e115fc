"""What a node's applications got lately: keys a second and how long they waited. Counts only, never ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

from keyhaul.errors import KeyhaulError
from keyhaul.messages.etsi014 import Delivered, Order, Standing

WINDOW = 120  # seconds of keys a second that are remembered
SAMPLES = 512  # waiting times that percentiles are taken from


class _Delivery(Protocol):
    async def request(self, order: Order) -> list[Delivered]: ...
    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]: ...
    async def status(self, master: str, slave: str) -> Standing: ...


class Activity:
    """A delivery that counts what passes. `now` gives seconds that only grow."""

    def __init__(self, delivery: _Delivery, now: Callable[[], float]) -> None:
        self._delivery = delivery
        self._now = now
        self._seconds: deque[tuple[int, int]] = deque()
        self._waits: deque[float] = deque(maxlen=SAMPLES)
        self.given = 0
        self.fetched = 0
        self.refused = 0
        self.last_refusal = ""

    async def request(self, order: Order) -> list[Delivered]:
        """As the delivery's; a request that fails counts as refused."""
        started = self._now()
        try:
            keys = await self._delivery.request(order)
        except KeyhaulError as error:
            self.refused += 1
            self.last_refusal = error.cause
            raise
        ended = self._now()
        self._waits.append(ended - started)
        self.given += len(keys)
        self._count(int(ended), len(keys))
        return keys

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        """As the delivery's."""
        keys = await self._delivery.fetch(caller, master, key_ids)
        self.fetched += len(keys)
        return keys

    async def status(self, master: str, slave: str) -> Standing:
        """As the delivery's."""
        return await self._delivery.status(master, slave)

    def _count(self, second: int, keys: int) -> None:
        if self._seconds and self._seconds[-1][0] == second:
            keys += self._seconds.pop()[1]
        self._seconds.append((second, keys))
        while self._seconds[0][0] <= second - WINDOW:
            self._seconds.popleft()

    def summary(self) -> dict[str, Any]:
        """Totals since the start, keys given in each of the last seconds (oldest first), waits in ms."""
        now = int(self._now())
        given = dict(self._seconds)
        return {
            "given_total": self.given,
            "fetched_total": self.fetched,
            "refused_total": self.refused,
            "last_refusal": self.last_refusal,
            "given_per_second": [given.get(second, 0) for second in range(now - WINDOW + 1, now + 1)],
            "wait_ms": self._percentiles(),
        }

    def _percentiles(self) -> dict[str, float | int]:
        waits = sorted(self._waits)
        if not waits:
            return {"samples": 0}
        shares = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))
        at = {name: waits[min(len(waits) - 1, int(share * len(waits)))] for name, share in shares}
        return {"samples": len(waits), **{name: round(value * 1000, 3) for name, value in at.items()}}
