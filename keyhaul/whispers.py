"""What a relay tells a destination so that nobody between reads it: sealed to the announced ML-KEM-768 key.

The first 16 bytes name the key. Who said it is not told: whoever relies on a whisper has to check what came
of it, as scheme `blind-fresh` does with the origin's tag.
"""

from __future__ import annotations

from collections.abc import Callable

from keyhaul import kem
from keyhaul.control import ID_BYTES, Directory
from keyhaul.errors import Tampered
from keyhaul.ports import Clock

OVERHEAD = ID_BYTES + kem.SEAL_OVERHEAD  # bytes a whisper is longer than what it says


class Whispers:
    """`own` gives this node's private key of a kind and an id, or None."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self.own: Callable[[str, bytes], kem.PrivateKey | None] = lambda kind, wanted: None
        self._directory = directory
        self._clock = clock

    def seal(self, destination: str, said: bytes) -> bytes:
        """Raises Unavailable while no current key of the destination is known."""
        now = self._clock.now()
        key = self._directory.get(destination, now).key(kem.DEFAULT, now)
        return key.id + kem.seal(key.public, said)

    def unseal(self, sealed: bytes) -> bytes:
        """Raises Tampered."""
        own = self.own(kem.DEFAULT, sealed[:ID_BYTES])
        if own is None:
            raise Tampered
        return own.unseal(sealed[ID_BYTES:])
