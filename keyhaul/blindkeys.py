"""A node's BFV keys while it runs: on disk before they are announced, erased after their life.

`schemes.keyring` has the rules; this module gives it a ledger and a clock. Refusals of `blind` payloads are
counted for each key: after a few of them the next key is made at once, and an alarm is logged. The tag keeps
what is refused away from the BFV key, so this is a second wall, not the first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import structlog

from keyhaul.config import BlindConfig
from keyhaul.control import Directory, PublicKey
from keyhaul.destination import AsStored, Sealer, unsealed
from keyhaul.errors import Unavailable, Unsupported
from keyhaul.keys import Secret
from keyhaul.messages.payload import Scheme
from keyhaul.notice import NOTICE
from keyhaul.ports import Clock, Ledger
from keyhaul.schemes.bfv import DENSE, DENSE_25, PROFILES, Bfv, EveryProfile
from keyhaul.schemes.blind import Blind
from keyhaul.schemes.keyring import KeyRing
from keyhaul.schemes.sealkeys import SealKeys
from keyhaul.whispers import OVERHEAD, Whispers

NAMES = ("blind", "blind-fresh")
SPACE = "bfv/destination"
STREAK = 8  # refusals under one key until the next is made
LEAST_LIFE = 60.0  # seconds between two keys, however many refusals there are

Aside = Callable[[Callable[[], None]], None]

_BY_SETTING = {"dense": DENSE, "dense-25": DENSE_25}

if TYPE_CHECKING:
    from keyhaul.schemes.dense import Polynomial
    from keyhaul.schemes.seal import Seal

log = structlog.get_logger("keyhaul.blind")


class BlindKeys:
    """An `Announcer` of BFV keys. `hurry` is called when what is announced should change at once."""

    def __init__(self, ring: KeyRing, ledger: Ledger, clock: Clock, sealer: Sealer | None = None) -> None:
        self.hurry: Callable[[], None] = lambda: None
        self._ring = ring
        self._ledger = ledger
        self._clock = clock
        self._sealer = sealer or AsStored()
        self._refusals = 0
        self._since = 0.0

    async def start(self) -> None:
        """Unseal the keys of earlier runs. Raises Malformed."""
        self._ring.restore((await unsealed(self._ledger, SPACE, self._sealer)).values())

    async def rotate(self) -> None:
        """Make a key where one is due, erase those that nothing can need."""
        now = self._clock.now()
        over = self._ring.expired(now)
        # About 0.2 ms: not worth a thread.
        fresh = self._ring.prepare(now) if self._ring.due(now) else None
        if fresh is None and not over:
            return
        async with self._ledger.edit() as change:
            if fresh is not None:
                change.put(SPACE, fresh.name, self._sealer.seal(SPACE, fresh.name, fresh.encoded()))
            for pair in over:
                change.erase(SPACE, pair.name)
        if fresh is not None:
            self._ring.activate(fresh)
            self._refusals, self._since = 0, now
        self._ring.erase(over)

    def announced(self, now: float) -> list[PublicKey]:
        """The newest key while its epoch lasts."""
        try:
            return [self._ring.current(now)]
        except Unavailable as error:
            log.error("no BFV key to announce", cause=error.cause)
            return []

    def refused(self, scheme: str) -> None:
        """Count a refusal; from the eighth under one key on, have the next made."""
        if scheme not in NAMES:
            return
        self._refusals += 1
        if self._refusals < STREAK or self._clock.now() < self._since + LEAST_LIFE:
            return
        log.error(
            "ALARM: payloads of scheme blind are refused again and again; the BFV key is replaced",
            refused=self._refusals,
            remedy="somebody on the paths to this node alters what passes; see `keyhaul key trace`",
        )
        self._refusals = 0
        self._ring.hasten()
        self.hurry()


class SealWhenNeeded(SealKeys):
    """A `Bfv` that loads the rest of itself (numpy, 0.1 s once) for the first payload."""

    @cached_property
    def _whole(self) -> Seal:
        from keyhaul.schemes.seal import Seal

        return Seal(self.profile)

    def check_public(self, public: bytes) -> None:
        self._whole.check_public(public)

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        return self._whole.encrypt(public, plain)

    def zero(self, public: bytes) -> tuple[Polynomial, Polynomial]:
        return self._whole.zero(public)

    def decrypt(self, secret: bytes, upper: bytes, rest: bytes) -> bytes:
        return self._whole.decrypt(secret, upper, rest)


def build(
    settings: BlindConfig,
    ledger: Ledger,
    clock: Clock,
    directory: Directory,
    whispers: Whispers,
    aside: Aside | None = None,
    sealer: Sealer | None = None,
) -> tuple[list[Scheme], BlindKeys | None]:
    """The schemes as configured, and this node's keys for them; no keys where the library is missing.

    `aside` does what may be done later, `sealer` keeps private halves in the store. Says in the log what the
    authors of the method state about a patent, and what is missing.
    """
    if not settings.enabled:
        return [], None
    log.warning("scheme blind is enabled", patent_notice=NOTICE)
    try:
        bfv = _library(settings)
    except Unsupported as error:
        log.error("scheme blind: this node only relays it", cause=error.cause, remedy=error.remedy)
        return [Blind()], None
    ring = KeyRing(bfv)

    def announced(destination: str) -> bytes:
        now = clock.now()
        known = directory.get(destination, now)
        names = [key.profile for key in known.descriptor.keys if key.profile in _NAMES]
        return known.key(names[0] if names else bfv.profile.name, now).public

    schemes: list[Scheme] = [Blind(bfv, announced, ring.own)]
    if settings.rerandomise:
        schemes.append(_fresh(bfv, announced, ring.own, whispers, aside))
    return schemes, BlindKeys(ring, ledger, clock, sealer)


def _fresh(
    bfv: EveryProfile,
    public: Callable[[str], bytes],
    own: Callable[[bytes], Secret | None],
    whispers: Whispers,
    aside: Aside | None,
) -> Scheme:
    from keyhaul.schemes.fresh import Fresh, Notes

    fresh = Fresh(bfv, public, own, Notes(whispers.seal, whispers.unseal, OVERHEAD))
    if aside is not None:
        fresh.zeros.aside = aside
    return fresh


_NAMES = {profile.name for profile in PROFILES.values()}


def _library(settings: BlindConfig) -> EveryProfile:
    """SEAL for keys of the configured profile here and of any profile elsewhere. Raises Unsupported."""
    own = _BY_SETTING[settings.profile]
    every: dict[int, Bfv] = {profile.id: SealWhenNeeded(profile) for profile in PROFILES.values()}
    return EveryProfile(every[own.id], every)
