"""WireGuard: the delivered key is the preshared key of one peer, given to `wg` on its standard input.

WireGuard holds one preshared key per peer and uses it in handshakes alone. So a new one disturbs no traffic:
sessions go on under what they were made with, and the next handshake, at most two minutes later
(REKEY_AFTER_TIME), takes the new key. While the ends differ, handshakes fail and are repeated; the session
lasts a minute longer than it takes until then (REJECT_AFTER_TIME is three minutes).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from uuid import UUID

from keyhaul.consumers.port import AgreedKey, unusable
from keyhaul.consumers.programs import run

KEY_BYTES = 32


class WireGuard:
    """One peer of one interface. `wg` is the command, with words in front where it must run elsewhere,
    such as `ip netns exec NAME wg`; `public_key` in base64, as `wg show` has it."""

    key_bits = KEY_BYTES * 8

    def __init__(self, interface: str, public_key: str, wg: Sequence[str] = ("wg",)) -> None:
        self._interface, self._public_key, self._wg = interface, public_key, tuple(wg)

    async def install(self, key: AgreedKey) -> None:
        """See `port.Consumer.install`; the peer's next handshake takes this key and no other."""
        await self._set(key.bits.reveal())

    async def held(self) -> list[UUID]:
        """WireGuard knows no ids."""
        return []

    async def drop(self, key_id: UUID) -> None:
        """There is only one key, the newest."""

    async def lock(self) -> None:
        """A key that nobody else has: no handshake succeeds, and the session ends within three minutes.
        Without any preshared key WireGuard would go on, protected by its own key exchange alone."""
        await self._set(secrets.token_bytes(KEY_BYTES))

    async def close(self) -> None:
        """Nothing is open."""

    async def _set(self, bits: bytes) -> None:
        # `wg set` would make a peer that is not there.
        peers = await run([*self._wg, "show", self._interface, "peers"])
        if self._public_key not in peers.split():
            raise unusable("wg", f"interface {self._interface} has no peer {self._public_key}")
        words = ["set", self._interface, "peer", self._public_key, "preshared-key", "/dev/stdin"]
        await run([*self._wg, *words], base64.b64encode(bits) + b"\n")
