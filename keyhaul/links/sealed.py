"""The sealed link between two neighbours: grants material for one message, opens what comes in.

Kinds: `pqc` (ML-KEM only) and `qkd` (a device pair stands behind it as well, so a message holds if
either half holds). What a message used up is erased in the commit that queues or accepts it.

Replays: a message is named by (epoch, sequence) and its claim is durable, so the very same message gets
the very same answer and changes nothing; another message under that number is a conflict. Even without
that record a replay could not be opened: its one-time key is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from keyhaul.errors import Conflict, Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.links.onetime import OneTimeKey, OneTimeKeys
from keyhaul.links.prefetch import DeviceKeys
from keyhaul.links.supply import Supply
from keyhaul.messages import envelope
from keyhaul.messages.envelope import Header, Material, Mode, Suite
from keyhaul.ports import Change, Clock, Ledger
from keyhaul.rounds import NOBODY, Payer

REPLAY_WINDOW = 8192  # messages a neighbour may have in flight before the oldest claims are pruned
SEQUENCE_BLOCK = 1024
DOUBTS = 120.0  # seconds for which a message that could not be opened is told of
MOST_DOUBTS = 100  # of which that many are counted
_SEQUENCE = "sequence"


@dataclass(slots=True, repr=False)
class SealedGrant:
    """Material for one outgoing message. `pad_bytes` is what was asked for."""

    link: SealedLink
    header: Header
    head: bytes
    material: Material
    pad_bytes: int
    device_keys: list[tuple[str, Secret]] = field(default_factory=list)
    _shown: bool = False

    def pad(self) -> bytes:
        self._shown = True
        return envelope.pad(self.header, self.head, self.material, self.pad_bytes)

    def seal(self, path: str, content: bytes) -> bytes:
        self._shown = True
        return envelope.seal(self.header, self.material, os.urandom(envelope.NONCE_BYTES), path, content)

    def spend(self, change: Change) -> None:
        self.link.spend_device_keys(change, [name for name, _ in self.device_keys])

    def cancel(self) -> None:
        """Unseen device keys go back; seen ones are burned with the next commit."""
        self.link.give_back(self.device_keys, burned=self._shown)
        self.device_keys = []


@dataclass(slots=True, repr=False)
class SealedOpened:
    """An authentic incoming message and what has to be erased when it is stored."""

    link: SealedLink
    sender: str
    path: str
    content: bytes
    header: Header
    head: bytes
    material: Material

    def pad(self, length: int) -> bytes:
        return envelope.pad(self.header, self.head, self.material, length)

    def spend(self, change: Change) -> None:
        self.link.accept(change, self.header)


class SealedLink:
    """See the module docstring. `mode` is how pads are made; `suite` how keys are derived."""

    def __init__(
        self,
        *,
        me: str,
        peer: str,
        mode: Mode,
        epoch: bytes,
        ledger: Ledger,
        clock: Clock,
        peer_keys: Supply[OneTimeKey],
        own_keys: OneTimeKeys,
        device: DeviceKeys | None = None,
        suite: Suite = Suite.HKDF_SHA384,
    ) -> None:
        self.peer = peer
        self.kind = "pqc" if device is None else "qkd"
        self.symbol = "-" if device is None else "="
        self.mode = Mode.KEM if device is None else mode
        self.labels = frozenset({"pq", "its-wire"} if self.mode is Mode.OTP else {"pq"})
        self._me = me
        self._epoch = epoch
        self._ledger = ledger
        self._clock = clock
        self._peer_keys = peer_keys
        self._own_keys = own_keys
        self._device = device
        self._suite = suite
        self._doubts: deque[float] = deque(maxlen=MOST_DOUBTS)  # when messages could not be opened
        self._next = self._limit = 0
        self._peer_epoch = b""  # what it said last in this run
        self._numbering = asyncio.Lock()
        self._claims: deque[str] = deque()
        self._claimed: set[str] = set()  # numbers that may be claimed; the ledger decides

    async def start(self) -> None:
        """Read the numbers of earlier runs, and the device keys that are still to be used."""
        stored = await self._ledger.item(_SEQUENCE, self.peer)
        self._next = self._limit = int(stored or b"0")
        self._claims.extend(sorted(await self._ledger.items(f"seen/{self.peer}")))
        self._claimed.update(self._claims)
        if self._device is not None:
            await self._device.start()

    def succeed(self, old: SealedLink) -> None:
        """Take the place of a link with the same neighbour: what it accepted is a repetition here, too."""
        self._claims, self._claimed, self._peer_epoch = old._claims, old._claimed, old._peer_epoch

    def level(self) -> int | None:
        """Bits of device key ready for sending; None on a `pqc` link."""
        return None if self._device is None else self._device.level()

    def unopened(self) -> int:
        """Messages of the last minutes (`DOUBTS`) that the neighbour could not open."""
        since = self._clock.now() - DOUBTS
        return sum(moment >= since for moment in self._doubts)

    def trouble(self) -> str:
        """Why the last refill of one-time or device keys failed; empty when it worked."""
        return self._peer_keys.trouble or ("" if self._device is None else self._device.supply.trouble)

    def supplies(self) -> dict[str, Any]:
        """What is ready here and what became of device keys, for monitoring; bits and numbers of keys."""
        device = self._device
        return {
            "one_time_keys": len(self._peer_keys),
            "device_bits": None if device is None else device.level(),
            "drawn": 0 if device is None else device.drawn,
            "lost": 0 if device is None else device.lost,
            "offered": 0 if device is None else device.offered,
            "trouble": self.trouble(),
        }

    # --- sending

    async def grant(
        self, pad_bytes: int, *, deadline: float, payer: Payer = NOBODY, leave: int | None = None
    ) -> SealedGrant:
        """See ports.Link. Acknowledgements ask for no pad and cost no device key."""
        sequence = await self._number()
        # Device keys first: a hundred requests that wait for them must not hold a one-time key each.
        patience = deadline - self._clock.now()
        device_keys = await self._device_keys(pad_bytes, patience, payer, leave)
        try:
            (public,) = await self._peer_keys.take(1, deadline - self._clock.now(), payer)
        except BaseException:
            self.give_back(device_keys, burned=False)
            raise
        secret, ciphertext = public.encapsulate()
        names = tuple(name for name, _ in device_keys)
        bits = [secret_bits.reveal() for _, secret_bits in device_keys]
        header = Header(
            version=envelope.WITH_PAD_KEYS if names[1:] else envelope.VERSION,
            suite=self._suite,
            mode=self.mode if device_keys else Mode.KEM,
            sender=self._me,
            receiver=self.peer,
            epoch=self._epoch,
            sequence=sequence,
            message_id=os.urandom(16),
            kem_id=public.id,
            kem_ciphertext=ciphertext,
            owner=self._device.owner if self._device and device_keys else "",
            message_keys=names[:1],
            pad_keys=names[1:],
        )
        material = Material(b"".join(bits[:1]), b"".join(bits[1:]), secret)
        head = envelope.header_bytes(header)
        return SealedGrant(self, header, head, material, pad_bytes, device_keys)

    async def _device_keys(
        self, pad_bytes: int, patience: float, payer: Payer, leave: int | None
    ) -> list[tuple[str, Secret]]:
        if self._device is None or not pad_bytes:
            return []
        number = 1
        if self.mode is Mode.OTP:
            number += -(-(pad_bytes + envelope.CHECK_BYTES) // self._device.key_bytes)
        return await self._device.take(number, patience, payer, leave)

    async def _number(self) -> int:
        # A number is used once, also across crashes: blocks are reserved on disk before use.
        async with self._numbering:
            if self._next == self._limit:
                limit = self._limit + SEQUENCE_BLOCK
                async with self._ledger.edit() as change:
                    change.put(_SEQUENCE, self.peer, str(limit).encode())
                self._limit = limit
            self._next += 1
            return self._next - 1

    def spend_device_keys(self, change: Change, names: list[str]) -> None:
        if self._device is not None:
            self._device.spend(change, names)

    def doubt(self) -> None:
        """See ports.Link."""
        self._doubts.append(self._clock.now())
        if self._device is not None and self._device.ahead:
            self._device.doubt()

    def recheck(self) -> None:
        """See ports.Link."""
        self._peer_keys.drain()
        if self._device is not None and self._device.ahead:
            self._device.reoffer()

    def heard(self, epoch: bytes) -> None:
        """The neighbour says which store it runs on; another than before was restored, or made anew."""
        if not epoch:
            return
        if self._peer_epoch not in (b"", epoch):
            self.recheck()
        self._peer_epoch = epoch

    def give_back(self, keys: list[tuple[str, Secret]], *, burned: bool) -> None:
        if self._device is not None and keys:
            self._device.give_back(keys, burned=burned)

    # --- receiving

    async def open(self, body: bytes) -> SealedOpened | None:
        """See ports.Link."""
        sealed = envelope.parse(body)
        header = sealed.header
        if header.sender != self.peer or header.receiver != self._me or header.suite != self._suite:
            raise Tampered
        if (name := _claim_name(header)) in self._claimed:
            claim = await self._ledger.item(f"seen/{self.peer}", name)
            if claim is not None and claim != header.message_id:
                raise Conflict("another message was accepted under this sequence number")
            if claim is not None:
                return None
        names = (*header.message_keys, *header.pad_keys)
        if len(set(names)) < len(names):
            raise Malformed("the message uses one device key twice")
        kem_secret = await self._own_keys.decapsulate(header.kem_id, header.kem_ciphertext)
        message_bits = await self._bits(header.message_keys)
        pad_bits = await self._bits(header.pad_keys)
        material = Material(message_bits, pad_bits, kem_secret)
        if (header.mode is Mode.KEM) != (not header.message_keys):
            raise Malformed("the envelope's mode and its device keys do not fit")
        path, content = envelope.open_sealed(sealed, material)
        if path == "ext_keys" and self._device is not None and header.mode is not self.mode:
            # A neighbour must not talk this link down to fewer device bits than both configured.
            raise Malformed(f"the link is configured for {self.mode}, the message uses {header.mode}")
        return SealedOpened(self, self.peer, path, content, header, sealed.header_bytes, material)

    async def _bits(self, names: tuple[str, ...]) -> bytes:
        if not names:
            return b""
        if self._device is None:
            raise Malformed("the message names device keys, but this link has no device")
        return await self._device.match(names)

    def accept(self, change: Change, header: Header) -> None:
        """Claim the message's number and erase its keys, all in one commit."""
        self.heard(header.epoch)
        space = f"seen/{self.peer}"
        name = _claim_name(header)
        change.claim(space, name, header.message_id)
        self._own_keys.spend(change, header.kem_id)
        if self._device is not None:
            self._device.spend_matched(change, (*header.message_keys, *header.pad_keys))
        if name not in self._claimed:
            self._claims.append(name)
            self._claimed.add(name)
        while len(self._claims) > REPLAY_WINDOW:
            oldest = self._claims.popleft()
            self._claimed.discard(oldest)
            change.erase(space, oldest)
        self._own_keys.cool(header.kem_id)


def _claim_name(header: Header) -> str:
    return f"{header.epoch.hex()}/{header.sequence:016x}"
