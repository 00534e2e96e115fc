"""Where end keys and their ids come from: the node's own entropy, or, in profile `paper-a`, a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from keyhaul.errors import InsufficientKey, Malformed
from keyhaul.keys import Secret
from keyhaul.ports import Clock, Entropy

MATES = 256  # ids that share all but their last byte


class DeviceKey(Protocol):
    @property
    def key_id(self) -> str: ...
    @property
    def bits(self) -> Secret: ...


class Device(Protocol):
    """The 014 interface of a QKD device, as far as this needs it."""

    async def enc_keys(self, number: int, size: int) -> Sequence[DeviceKey]: ...


Minted = list[tuple[UUID, Secret]]


class Mint(Protocol):
    """Makes the keys of one request; `size` in bits."""

    async def keys(self, number: int, size: int, herd: int = MATES) -> Minted:
        """`herd`: how many of them share what fate may come, where ids can say so (see ports.Herd)."""


class OwnMint:
    """Keys from the node's generator (paper B §4.1), under ids that start with the time (UUID version 7).

    Keys that go together are numbered in the last byte of one id, so that the store keeps them as one
    record. Who knows one of these ids can guess the others; that is worth nothing, because keys are given
    to those that were named for them, whatever id they ask for.
    """

    def __init__(self, entropy: Entropy, clock: Clock) -> None:
        self._entropy = entropy
        self._clock = clock

    async def keys(self, number: int, size: int, herd: int = MATES) -> Minted:
        width = size // 8
        bits = self._entropy.read(width * number).reveal()
        now = int(self._clock.now() * 1000)
        herd = max(1, min(herd, MATES))
        ids = [
            key_id for start in range(0, number, herd) for key_id in _key_ids(now, min(herd, number - start))
        ]
        return [(key_id, Secret(bits[at * width : (at + 1) * width])) for at, key_id in enumerate(ids)]


def _key_ids(milliseconds: int, number: int) -> list[UUID]:
    """RFC 9562 §5.7: 48 bits of Unix time, then 74 random bits; of several the last 8 count."""
    rest = int.from_bytes(os.urandom(10), "big")
    high = rest >> 64 & 0x0FFF
    low = rest & (1 << 62) - 1
    first = milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low
    return [UUID(int=first)] if number == 1 else [UUID(int=first & ~0xFF | at) for at in range(number)]


class DeviceMint:
    """Paper A §IV-A1: the local device's key is the end key, under the id the device gave it.

    Raises InsufficientKey, PeerUnreachable, or Malformed for ids that are not UUIDs.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    async def keys(self, number: int, size: int, herd: int = MATES) -> Minted:
        drawn = await self._device.enc_keys(number, size)
        if len(drawn) < number:
            raise InsufficientKey(f"the device gave {len(drawn)} of {number} keys", "ask again for fewer")
        try:
            return [(UUID(key.key_id), key.bits) for key in drawn]
        except ValueError:
            raise Malformed("the device names its keys with something else than UUIDs") from None
