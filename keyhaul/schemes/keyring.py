"""BFV keys of one destination: made ahead, announced for an epoch, erased when nothing needs them.

Pure: time comes in as Unix seconds, what must be durable goes out as bytes. A key pair is stored before it
is announced, and is erased from the store before this ring forgets it, in this order:

    pair = ring.prepare(now)          if ring.due(now)
    store pair.encoded() under pair.name; erase what ring.expired(now) names
    ring.activate(pair); ring.erase(...)
    announce ring.announced(now)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from keyhaul.control import PublicKey, key_id
from keyhaul.errors import Malformed, Unavailable
from keyhaul.keys import Secret
from keyhaul.schemes.bfv import Bfv

EPOCH = 3600.0  # seconds a key is announced
OVERLAP = 3600.0  # seconds it still opens what was sent under it

__all__ = ["EPOCH", "OVERLAP", "KeyPair", "KeyRing", "key_id"]


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    public: bytes
    secret: bytes
    issued: float


@dataclass(frozen=True, slots=True)
class KeyPair:
    """`public` as announced; `issued` in Unix seconds."""

    public: bytes
    secret: Secret
    issued: float

    @property
    def id(self) -> bytes:
        return key_id(self.public)

    @property
    def name(self) -> str:
        """The item's name in the ledger."""
        return self.id.hex()

    def encoded(self) -> bytes:
        """For the sealed store only: the secret half is in it."""
        return msgspec.msgpack.encode(_Stored(self.public, self.secret.reveal(), self.issued))


class KeyRing:
    """What this node announces and can still open. `epoch`, `overlap` in seconds."""

    def __init__(self, bfv: Bfv, epoch: float = EPOCH, overlap: float = OVERLAP) -> None:
        self._bfv = bfv
        self._epoch = epoch
        self._overlap = overlap
        self._pairs: dict[bytes, KeyPair] = {}
        self._hastened = False

    def restore(self, stored: Iterable[bytes]) -> None:
        """Take back what `KeyPair.encoded` made in earlier runs.

        Keys of another profile wait for their erasure and are not announced. Raises Malformed.
        """
        for value in stored:
            try:
                kept = msgspec.msgpack.decode(value, type=_Stored)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise Malformed("a stored BFV key cannot be read") from None
            self.activate(KeyPair(kept.public, Secret(kept.secret), kept.issued))

    def due(self, now: float) -> bool:
        """Whether a new key is wanted: none is held, or the newest is half way through its epoch."""
        newest = self._newest()
        return newest is None or self._hastened or newest.issued + self._epoch / 2 <= now

    def hasten(self) -> None:
        """A new key is due now, however young the newest is."""
        self._hastened = True

    def prepare(self, now: float) -> KeyPair:
        """A new pair that is not in use yet."""
        public, secret = self._bfv.generate()
        return KeyPair(public, Secret(secret), now)

    def activate(self, pair: KeyPair) -> None:
        """From now on it opens payloads and, if it is the newest, is announced."""
        self._pairs[pair.id] = pair
        self._hastened = False

    def announced(self, now: float) -> bytes:
        """The newest public key. Raises Unavailable when its epoch is over: rotation has stopped."""
        return self.current(now).public

    def current(self, now: float) -> PublicKey:
        """The same with its profile's name and its epoch, as a descriptor holds it."""
        newest = self._newest()
        if newest is None or newest.issued + self._epoch <= now:
            raise Unavailable("this node has no fresh BFV key", "its store may be failing; see its log")
        name = self._bfv.profile.name
        return PublicKey(name, newest.public, newest.issued, newest.issued + self._epoch)

    def own(self, wanted: bytes) -> Secret | None:
        """The secret key of an id, None when it was never ours or is erased."""
        pair = self._pairs.get(wanted)
        return pair.secret if pair is not None else None

    def expired(self, now: float) -> list[KeyPair]:
        """Pairs past epoch and overlap, to be erased."""
        return [pair for pair in self._pairs.values() if pair.issued + self._epoch + self._overlap <= now]

    def erase(self, pairs: Iterable[KeyPair]) -> None:
        """Forget pairs and overwrite their secrets."""
        for pair in pairs:
            if (held := self._pairs.pop(pair.id, None)) is not None:
                held.secret.wipe()

    def _newest(self) -> KeyPair | None:
        profile = bytes([self._bfv.profile.id])
        pairs = [pair for pair in self._pairs.values() if pair.public.startswith(profile)]
        return max(pairs, key=lambda pair: pair.issued, default=None)
