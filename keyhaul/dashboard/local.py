"""One node's own view: the network as configured, and how this node stands in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography import x509

from keyhaul.dashboard.source import Json, mark, picture, summed_up
from keyhaul.errors import Refused
from keyhaul.explaining import Avoid
from keyhaul.routing import Network


class LocalSource:
    """`network` gives the one of the moment; `status` and `trace` are the node's own; see `Source`."""

    def __init__(
        self,
        network: Callable[[], Network],
        status: Callable[[], Awaitable[Json]],
        trace: Callable[[UUID], Awaitable[Sequence[Json]]],
        route: Callable[[str, str, Avoid], Awaitable[Json]],
        audit: Callable[[int], Awaitable[Sequence[Json]]],
    ) -> None:
        self._network = network
        self._status = status
        self._trace = trace
        self._route = route
        self._audit = audit
        self._drawn: tuple[Network, Json, str] | None = None

    async def network(self) -> Json:
        return self._draw()[1]

    def mark(self) -> str:
        """Another one when the network has become another."""
        return self._draw()[2]

    def _draw(self) -> tuple[Network, Json, str]:
        network = self._network()
        if self._drawn is None or self._drawn[0] is not network:  # a reload makes another object
            drawn = picture(network)
            self._drawn = network, drawn, mark(drawn)
        return self._drawn

    async def snapshot(self) -> Json:
        return summed_up([await self._status()], time.time())

    async def trace(self, key_id: UUID) -> Sequence[Json]:
        return await self._trace(key_id)

    async def send(self, source: str, destination: str) -> Json:
        raise Refused("a node asks for no keys of its own", "open the dashboard with --dir of a testbed")

    async def route(self, source: str, destination: str, avoid: Avoid) -> Json:
        return await self._route(source, destination, avoid)

    async def audit(self, most: int) -> Sequence[Json]:
        name = str((await self._status())["name"])
        return [{**line, "node": name} for line in await self._audit(most)]

    async def devices(self) -> Sequence[Json]:
        return []

    async def turn(self, device: str, knobs: Json) -> Json:
        raise Refused("a node has no say over devices", "open the dashboard with --dir of a testbed")


async def certificates(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """By port: the certificate's file, its subject, and the days it is good for (negative: expired)."""
    return await asyncio.to_thread(lambda: list(_certificates(files.items())))


def _certificates(files: Iterable[tuple[str, Path]]) -> Iterable[dict[str, Any]]:
    now = datetime.now(UTC)
    for port, file in files:
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError):
            yield {"port": port, "file": str(file), "subject": "cannot be read", "days_left": -1.0}
            continue
        left = certificate.not_valid_after_utc - now
        yield {
            "port": port,
            "file": str(file),
            "subject": certificate.subject.rfc4514_string(),
            "days_left": round(left.total_seconds() / 86_400, 2),
        }
