"""Two nodes with a sealed link between them, no wire: what one seals, a test hands to the other."""

from __future__ import annotations

import hmac
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from keyhaul.errors import InsufficientKey, KeyNotFound, PeerUnreachable, Tampered, Unauthorized
from keyhaul.keys import Secret
from keyhaul.links.onetime import OneTimeKey, OneTimeKeys
from keyhaul.links.prefetch import DeviceKeys
from keyhaul.links.refill import Refill
from keyhaul.links.sealed import SealedLink
from keyhaul.links.supply import Supply
from keyhaul.messages.envelope import Mode, Suite
from keyhaul.messages.payload import Context
from keyhaul.ports import Clock
from keyhaul.stores.memory import MemoryLedger
from keyhaul.testbed.clock import LoopClock


@dataclass
class Identity:
    """A node identity whose certificate is its text and whose signatures are HMACs."""

    name: str
    domain: str | None = "lab"

    @property
    def der(self) -> bytes:
        return f"{self.name}@{self.domain or ''}".encode()

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(b"identity " + self.der, message, "sha256")

    def check(self, signature: bytes, message: bytes) -> None:
        if not hmac.compare_digest(self.sign(message), signature):
            raise Tampered


@dataclass
class Anchors:
    """Vouches for the identities of these domains; None is a CA that names no organisation."""

    domains: frozenset[str | None] = frozenset({"lab"})

    def verify(self, der: bytes, now: float) -> Identity:
        name, _, domain = der.decode().partition("@")
        if (domain or None) not in self.domains:
            raise Unauthorized("the certificate is of a foreign CA")
        return Identity(name, domain or None)


@dataclass
class Key:
    key_id: str
    bits: Secret


@dataclass
class Devices:
    """A device pair in memory. `lag` ids are not there yet at the far end; `most` limits one answer."""

    seed: int = 0
    most: int = 1024
    dry: bool = False
    silent: bool = False
    lag: set[str] = field(default_factory=set)
    waiting: dict[str, bytes] = field(default_factory=dict)
    given: list[bytes] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    async def enc_keys(self, number: int, size: int) -> Sequence[Key]:
        self.asked += 1
        if self.dry:
            raise InsufficientKey("the device is dry")
        keys = []
        for _ in range(min(number, self.most)):
            bits = self.random.randbytes(size // 8)
            keys.append(Key(str(UUID(int=self.random.getrandbits(128))), Secret(bits)))
            self.waiting[keys[-1].key_id] = bits
            self.given.append(bits)
        return keys

    async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[Key]:
        self.asked += 1
        if self.silent:
            raise PeerUnreachable("no answer from the device")
        if len(set(key_ids)) < len(key_ids) or any(k in self.lag or k not in self.waiting for k in key_ids):
            raise KeyNotFound("one or more keys specified are not found on KME")
        return [Key(key_id, Secret(self.waiting.pop(key_id))) for key_id in key_ids]


@dataclass
class Watch:
    """A clock that stands until it is set."""

    time: float = 1_800_000_000.0

    def now(self) -> float:
        return self.time


class End:
    """One end of the link on a ledger that outlives it; `End` again on the same ledger is a restart."""

    def __init__(
        self,
        me: str,
        peer: str,
        ledger: MemoryLedger,
        devices: Devices | None = None,
        *,
        mode: Mode = Mode.EXPANDED,
        suite: Suite = Suite.HKDF_SHA384,
        clock: Clock | None = None,
        epoch: bytes = b"",
        **device_options: Any,
    ) -> None:
        clock = clock or LoopClock()
        self.ledger = ledger
        self.device = None
        if devices is not None:
            options = {"clock": clock, **device_options}
            self.device = DeviceKeys(peer=peer, owner=me, device=devices, ledger=ledger, **options)
        self.own_keys = OneTimeKeys(peer, ledger, clock)
        self.peer_keys: Supply[OneTimeKey] = Supply(f"one-time keys of {peer}", 2, 4)
        self.link = SealedLink(
            me=me,
            peer=peer,
            mode=mode,
            epoch=epoch or b"epoch" + me.encode(),
            ledger=ledger,
            clock=clock,
            peer_keys=self.peer_keys,
            own_keys=self.own_keys,
            device=self.device,
            suite=suite,
        )
        self.other: End | None = None
        self.refill = Refill(
            peer=peer,
            call=self._call,
            signer=Identity(me),
            anchors=Anchors(),
            clock=clock,
            peer_keys=self.peer_keys,
            own_keys=self.own_keys,
            device=self.device,
            epoch=epoch or b"epoch" + me.encode(),
            heard=self.link.heard,
        )

    async def _call(self, peer: str, body: bytes) -> bytes:
        if self.other is None:
            raise PeerUnreachable(f"{peer} does not answer")
        return await self.other.refill.answer(body)

    async def start(self) -> None:
        await self.link.start()

    async def stock(self) -> None:
        """Fill the supplies once, as the refill loops would."""
        if self.peer_keys.shortage:
            await self.refill.fetch_keys()
        if self.device is not None and self.device.ahead:
            while self.device.supply.shortage and await self.refill.offer_keys():
                pass


async def neighbours(devices: Devices | None = None, **options: Any) -> tuple[End, End]:
    """Nodes `a` and `b`, started, stocked with keys for each other."""
    ends = (
        End("a", "b", MemoryLedger(), devices, **options),
        End("b", "a", MemoryLedger(), devices, **options),
    )
    await introduce(*ends)
    return ends


async def introduce(a: End, b: End) -> None:
    """Start both and let them fill their supplies from each other."""
    a.other, b.other = b, a
    for end in (a, b):
        await end.start()
    for end in (a, b):
        await end.stock()


def context(**changes: Any) -> Context:
    """What an origin vouches for, with every field filled."""
    fields: dict[str, Any] = {
        "scheme": "trusted",
        "origin": "vigo",
        "destination": "bilbao",
        "initiator": "sae-vigo",
        "targets": ("sae-bilbao",),
        "key_ids": (UUID(int=1), UUID(int=2)),
        "size": 256,
        "expires": 1_800_086_400,
        "route": ("vigo", "santiago", "bilbao"),
        "trust": (("relays", "none"), ("wire", "computational")),
    }
    return Context(**{**fields, **changes})
