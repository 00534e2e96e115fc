"""How each link stands: what is ready, what its device says of its store, what went wrong lately.

Devices are asked for their status every few seconds, which costs no key: a device that has run dry or fell
silent is known before the bits that are ready are gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keyhaul.errors import KeyhaulError
from keyhaul.links.etsi014 import Device
from keyhaul.links.sealed import SealedLink
from keyhaul.outbox import Outbox

ASK_EVERY = 5.0  # seconds between two questions to a device
TREND = 60.0  # seconds over which the use of a link is measured
DEVICE_TREND = 600.0  # and of the store of a device, which fills in bursts


class Trend:
    """Levels over the last `window` seconds, and when they will be at nothing. Times in seconds."""

    def __init__(self, window: float = TREND) -> None:
        self._window = window
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, bits: int) -> None:
        """Remember a level."""
        self._seen.append((now, bits))
        while self._seen[0][0] < now - self._window:
            self._seen.popleft()

    def rate(self) -> float | None:
        """Bits a second that came, or went if negative; None while too little is known."""
        return self._rate_since(0)

    def _rate_since(self, at: int) -> float | None:
        if not self._seen or self._seen[-1][0] - self._seen[0][0] < self._window / 2:
            return None
        (first, before), (last, now) = self._seen[at], self._seen[-1]
        return (now - before) / (last - first) if last > first else None

    def hours_left(self) -> float | None:
        """Hours until nothing is left at that rate; None while the level holds or grows.

        What fell once and grows since is not on its way to nothing, so the last half has to fall, too.
        """
        rates = self._rate_since(0), self._rate_since(len(self._seen) // 2)
        falling = [rate for rate in rates if rate is not None and rate < 0]
        return self._seen[-1][1] / -max(falling) / 3600 if len(falling) == len(rates) else None


@dataclass(slots=True)
class DeviceSeen:
    """The last answer of one device: bits in its store (None: it does not say), or why there was none."""

    device: Device
    stored_bits: int | None = None
    trouble: str = ""
    trend: Trend = field(default_factory=lambda: Trend(DEVICE_TREND))


class Standing:
    """The links of one node, and its `devices` of the moment by neighbour, which `run` asks for ever."""

    def __init__(
        self, links: Mapping[str, SealedLink], devices: Callable[[], Mapping[str, Device]], outbox: Outbox
    ) -> None:
        self._links = links
        self._now = devices
        self._outbox = outbox
        self._levels: dict[str, Trend] = {}
        self.devices: dict[str, DeviceSeen] = {}
        """By neighbour; without those that have not been asked yet."""

    def links(self) -> list[dict[str, Any]]:
        """One entry per link, for the status of the node."""
        sent = self._sent()
        return [self._link(peer, sent.get(peer, 0)) for peer in self._links]

    def _sent(self) -> Mapping[str, int]:
        sent: dict[str, int] = {}
        for (peer, _, became), number in self._outbox.outcomes.items():
            if became == "accepted":
                sent[peer] = sent.get(peer, 0) + number
        return sent

    def _link(self, peer: str, sent: int) -> dict[str, Any]:
        link = self._links[peer]
        level, trouble, now = link.level(), link.trouble(), time.monotonic()
        supplies = link.supplies()
        seen = self.devices.get(peer)
        left = None
        if level is not None:
            falling = self._levels.setdefault(peer, Trend(TREND))
            falling.note(now, level)
            # The level falls and rises between refills; that it falls means something while they fail.
            left = falling.hours_left() if trouble else None
            if left is None and seen is not None:
                left = seen.trend.hours_left()
        return {
            "peer": peer,
            "kind": link.kind,
            "mode": link.mode.value,
            "level_bits": level,
            "hours_left": left,
            "trouble": trouble,
            "offered_keys": supplies["offered"],
            "unopened": link.unopened(),
            "sent_total": sent,
            "device": None
            if seen is None
            else {
                "stored_bits": seen.stored_bits,
                "bits_per_second": seen.trend.rate(),
                "trouble": seen.trouble,
            },
        }

    async def run(self) -> None:
        """Ask every device how much it holds, again and again, those of a reload as well."""
        while True:
            devices = self._now()
            self.devices = {peer: seen for peer, seen in self.devices.items() if peer in devices}
            await asyncio.gather(*(self._ask(peer, device) for peer, device in devices.items()))
            await asyncio.sleep(ASK_EVERY)

    async def _ask(self, peer: str, device: Device) -> None:
        seen = self.devices.get(peer)
        if seen is None or seen.device is not device:
            seen = DeviceSeen(device)
        try:
            status = await device.status()
        except KeyhaulError as error:
            seen.trouble = error.cause
        else:
            seen.trouble = ""
            count = status.stored_key_count
            seen.stored_bits = None if count is None else count * (status.key_size or 256)
            if seen.stored_bits is not None:
                seen.trend.note(time.monotonic(), seen.stored_bits)
        self.devices[peer] = seen
