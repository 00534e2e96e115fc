"""Stand-ins for what a simulation cannot afford or cannot repeat: signatures, devices, clocks."""

from __future__ import annotations

import asyncio
import hmac
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from keyhaul.errors import InsufficientKey, KeyNotFound, Tampered
from keyhaul.keys import Secret
from keyhaul.testbed.clock import LoopClock

world_clock = LoopClock()


class SimSigner:
    """An identity whose signatures only this process can make."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.der = name.encode()

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(b"simulated identity " + self.der, message, "sha256")


@dataclass(frozen=True)
class SimVerified:
    name: str
    domain: str = "sim"

    def check(self, signature: bytes, message: bytes) -> None:
        if not hmac.compare_digest(SimSigner(self.name).sign(message), signature):
            raise Tampered


class SimAnchors:
    def verify(self, der: bytes, now: float) -> SimVerified:
        return SimVerified(der.decode())


@dataclass(frozen=True)
class SimClock:
    """One node's idea of the time: `wrong` says by how many seconds each clock is off right now."""

    name: str
    wrong: Mapping[str, float]

    def now(self) -> float:
        return world_clock.now() + self.wrong.get(self.name, 0.0)


@dataclass
class SimKey:
    key_id: str
    bits: Secret


@dataclass
class DevicePair:
    """Two linked devices: what one end hands out, the other end has, unless they disagree."""

    rng: random.Random
    dry: bool = False
    disagree: float = 0.0  # share of keys of which the other end has other bits
    waiting: dict[str, bytes] = field(default_factory=dict)
    handed: int = 0  # keys that left at the end that drew them
    names: set[str] = field(default_factory=set)  # of all that were handed out
    drawn: dict[str, set[str]] = field(default_factory=dict)  # the same, by the node that drew them
    fetched: int = 0  # keys that left at the other end
    wrong: set[str] = field(default_factory=set)  # keys of which the two ends have different bits

    async def enc_keys(self, number: int, size: int) -> Sequence[SimKey]:
        await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        if self.dry:
            raise InsufficientKey("the device is dry")
        keys = [SimKey(str(uuid4()), Secret(self.rng.randbytes(size // 8))) for _ in range(number)]
        for key in keys:
            wrong = self.rng.random() < self.disagree
            self.waiting[key.key_id] = self.rng.randbytes(size // 8) if wrong else key.bits.reveal()
            if wrong:
                self.wrong.add(key.key_id)
        self.handed += number
        self.names.update(key.key_id for key in keys)
        return keys

    async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[SimKey]:
        await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        if any(key_id not in self.waiting for key_id in key_ids):
            raise KeyNotFound("one or more keys specified are not found on KME")
        self.fetched += len(key_ids)
        return [SimKey(key_id, Secret(self.waiting.pop(key_id))) for key_id in key_ids]


@dataclass(frozen=True)
class DeviceEnd:
    """What one node sees of a pair; whom a key was handed to is noted here, by nobody's bookkeeping."""

    pair: DevicePair
    node: str

    async def enc_keys(self, number: int, size: int) -> Sequence[SimKey]:
        keys = await self.pair.enc_keys(number, size)
        self.pair.drawn.setdefault(self.node, set()).update(key.key_id for key in keys)
        return keys

    async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[SimKey]:
        return await self.pair.dec_keys(key_ids)
