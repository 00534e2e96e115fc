"""Where end keys and their ids come from: the node's own entropy, or, in profile `paper-a`, a device."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from keyhaul.errors import InsufficientKey, Malformed
from keyhaul.keys import Secret
from keyhaul.ports import Entropy


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

    async def keys(self, number: int, size: int) -> Minted: ...


class OwnMint:
    """Keys from the node's generator, under random ids (paper B §4.1)."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    async def keys(self, number: int, size: int) -> Minted:
        width = size // 8
        bits = self._entropy.read(width * number).reveal()
        return [(uuid.uuid4(), Secret(bits[at * width : (at + 1) * width])) for at in range(number)]


class DeviceMint:
    """Paper A §IV-A1: the local device's key is the end key, under the id the device gave it.

    Raises InsufficientKey, PeerUnreachable, or Malformed for ids that are not UUIDs.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    async def keys(self, number: int, size: int) -> Minted:
        drawn = await self._device.enc_keys(number, size)
        if len(drawn) < number:
            raise InsufficientKey(f"the device gave {len(drawn)} of {number} keys", "ask again for fewer")
        try:
            return [(UUID(key.key_id), key.bits) for key in drawn]
        except ValueError:
            raise Malformed("the device names its keys with something else than UUIDs") from None
