"""A node's own KEM keys: what others encapsulate to; made ahead, kept sealed, erased after their life.

One key of each kind of `keyhaul.kem`. A new one is on disk before it is announced; half way through its
life the next takes its place, and the old one opens what is on its way for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from keyhaul import kem
from keyhaul.control import PublicKey, key_id
from keyhaul.ports import Clock, Ledger

KEM_LIFE = 86_400.0  # seconds a key is announced
KEM_OVERLAP = 7_200.0  # seconds it still opens statements after that
SPACE = "kem/destination"

log = structlog.get_logger("keyhaul.destination")


SEALED = b"\xc1"
"""How a value begins that is sealed beyond the store; no msgpack value begins so."""


class Sealer(Protocol):
    """What keeps private halves inside the store: nothing more than the store does, or a chip."""

    def seal(self, space: str, name: str, value: bytes) -> bytes: ...
    def unseal(self, space: str, name: str, value: bytes) -> bytes | None:
        """None for what this sealer did not seal; then the value is lost."""


class AsStored:
    """The store's own encryption is enough."""

    def seal(self, space: str, name: str, value: bytes) -> bytes:
        return value

    def unseal(self, space: str, name: str, value: bytes) -> bytes | None:
        return None if value.startswith(SEALED) else value


class Announcer(Protocol):
    """Keys of a scheme's own that stand in the descriptor beside the KEM keys."""

    async def start(self) -> None:
        """Unseal the keys of earlier runs."""

    async def rotate(self) -> None:
        """Make the next key where one is due, erase those whose life is over."""

    def announced(self, now: float) -> list[PublicKey]:
        """What the descriptor should hold at Unix time `now`."""

    def refused(self, scheme: str) -> None:
        """Keys that came under `scheme` were not what their origin sent."""


async def unsealed(ledger: Ledger, space: str, sealer: Sealer) -> dict[str, bytes]:
    """The values of a space that can be opened; the others are erased: nothing will ever open them here."""
    found, lost = {}, []
    for name, value in (await ledger.items(space)).items():
        opened = sealer.unseal(space, name, value)
        if opened is None:
            lost.append(name)
        else:
            found[name] = opened
    if lost:
        log.warning("private keys that cannot be opened any more are erased", space=space, number=len(lost))
        async with ledger.edit() as change:
            for name in lost:
                change.erase(space, name)
    return found


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    seed: bytes
    issued: float
    kem: str = kem.DEFAULT


@dataclass(frozen=True, slots=True)
class _Own:
    key: kem.PrivateKey
    issued: float


class DestinationKeys:
    """The KEM keys of one node."""

    def __init__(self, ledger: Ledger, clock: Clock, sealer: Sealer | None = None) -> None:
        self._ledger = ledger
        self._clock = clock
        self._sealer = sealer or AsStored()
        self._own: dict[bytes, _Own] = {}

    async def start(self) -> None:
        """Unseal the keys of earlier runs; make those that are missing, old or out of reach."""
        opened = await unsealed(self._ledger, SPACE, self._sealer)
        for name, value in opened.items():
            kept = msgspec.msgpack.decode(value, type=_Stored)
            self._own[bytes.fromhex(name)] = _Own(kem.PrivateKey(kept.kem, kept.seed), kept.issued)
        await self.rotate()

    async def rotate(self) -> None:
        """New keys where the current ones are half way through their life; erase what is past it."""
        now = self._clock.now()
        over = [name for name, own in self._own.items() if own.issued + KEM_LIFE + KEM_OVERLAP < now]
        due = [name for name in kem.KEMS if not (at := self._newest(name)) or at.issued + KEM_LIFE / 2 < now]
        if not over and not due:
            return
        fresh: dict[bytes, _Own] = {}
        async with self._ledger.edit() as change:
            for name in due:
                seed = kem.generate(name)
                own = _Own(kem.PrivateKey(name, seed), now)
                fresh[key_id(own.key.public)] = own
                item = key_id(own.key.public).hex()
                kept = msgspec.msgpack.encode(_Stored(seed, now, name))
                change.put(SPACE, item, self._sealer.seal(SPACE, item, kept))
            for each in over:
                change.erase(SPACE, each.hex())
        self._own.update(fresh)
        for each in over:
            del self._own[each]

    def announced(self) -> list[PublicKey]:
        """The newest key of each kind, the default kind first."""
        newest = [own for name in kem.KEMS if (own := self._newest(name)) is not None]
        return [PublicKey(own.key.kem, own.key.public, own.issued, own.issued + KEM_LIFE) for own in newest]

    def get(self, kind: str, wanted: bytes) -> kem.PrivateKey | None:
        """The key of an id, None when it was never ours, is erased, or is of another kind."""
        own = self._own.get(wanted)
        return own.key if own is not None and own.key.kem == kind else None

    def _newest(self, name: str) -> _Own | None:
        same = [own for own in self._own.values() if own.key.kem == name]
        return max(same, key=lambda own: own.issued, default=None)
