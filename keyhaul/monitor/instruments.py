"""Reads a running node for monitoring: its status, and the counters of its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from cryptography import x509
from prometheus_client import Histogram

from keyhaul.activity import Activity
from keyhaul.edge.accepting import Traffic
from keyhaul.edge.posting import HttpPeers
from keyhaul.links.sealed import SealedLink
from keyhaul.messages.etsi014 import Delivered, Order, Standing
from keyhaul.outbox import Outbox
from keyhaul.stores.sqlcipher import SqlcipherLedger

LAG_EVERY = 1.0  # seconds


@dataclass(slots=True)
class Instruments:
    """Where the numbers come from. `certificates` are the files whose end is watched, by their use."""

    status: Callable[[], Awaitable[Mapping[str, Any]]]
    traffic: Mapping[str, Traffic]
    events: Mapping[str, int]
    outbox: Outbox
    links: Mapping[str, SealedLink]
    peers: HttpPeers
    names: Sequence[str]  # of all neighbours
    ledger: SqlcipherLedger
    activity: Activity
    certificates: Mapping[str, Path]
    lag: float = field(default=0.0, init=False)

    async def reading(self) -> dict[str, Any]:
        """Everything `metrics` and `health` look at; `ready` is left to them."""
        engine = self.ledger.engine
        return {
            **await self.status(),
            "traffic": self.traffic,
            "events": self.events,
            "hops": self.outbox.outcomes,
            "hop_seconds": self.outbox.seconds,
            "peers": self.names,
            "supplies": {peer: link.supplies() for peer, link in self.links.items()},
            "skew": self.peers.skew,
            "given": self.activity.given,
            "fetched": self.activity.fetched,
            "altered": self.ledger.altered,
            "engine": {
                "batches": engine.batches,
                "changes": engine.changes,
                "failures": engine.failures,
                "broken": engine.broken,
            },
            "lag": self.lag,
            **await asyncio.to_thread(self._files),
        }

    def _files(self) -> dict[str, Any]:
        database = self.ledger.engine.path
        log = database.with_name(database.name + "-wal")
        return {
            "sizes": {"database": _size(database), "log": _size(log)},
            "expiry": {use: _expiry(file) for use, file in self.certificates.items()},
        }

    async def watch(self) -> None:
        """Measure how late tasks run, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_EVERY)
            self.lag = max(0.0, loop.time() - before - LAG_EVERY)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _expiry(file: Path) -> float:
    """Unix time; 0 if the file cannot be read, as if it had ended long ago."""
    try:
        found = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        found = datetime.fromtimestamp(0, UTC)
    return found.timestamp()


class _Delivery(Protocol):
    async def request(self, order: Order) -> list[Delivered]: ...
    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]: ...
    async def status(self, master: str, slave: str) -> Standing: ...


class TimedDelivery:
    """A delivery whose calls are timed; those that fail as well."""

    def __init__(self, delivery: _Delivery, seconds: Histogram) -> None:
        self._delivery = delivery
        self._request = seconds.labels("enc_keys")
        self._fetch = seconds.labels("dec_keys")

    async def request(self, order: Order) -> list[Delivered]:
        """As the delivery's."""
        with self._request.time():
            return await self._delivery.request(order)

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        """As the delivery's."""
        with self._fetch.time():
            return await self._delivery.fetch(caller, master, key_ids)

    async def status(self, master: str, slave: str) -> Standing:
        """As the delivery's."""
        return await self._delivery.status(master, slave)
