"""Device keys fetched ahead and held durably at both ends, so that no request waits for a device.

The sender draws keys from its device (014 enc_keys), saves them and offers their ids; the neighbour
fetches the same keys from the other end of the pair (014 dec_keys), saves them and says which it
holds. Only held keys are used. A key is erased at each end in the commit of the one message it served,
so no bit of it serves two payloads, whatever crashes in between. A key that the sender burned or forgot is
erased at the receiver when it is old; the sender offers again what it still has (`links.kept`).

A device hands a key out once, so a crash loses what was on its way from device to disk. Both ends therefore
move few keys at a time where that takes long, and save them before they ask for more.

With `ahead=False` every message asks the devices when it is made and when it comes in, as in paper A.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from keyhaul.errors import InsufficientKey, KeyNotFound, Malformed, PeerUnreachable, Unavailable
from keyhaul.keys import Secret
from keyhaul.links.kept import KEEP, Kept
from keyhaul.links.supply import Supply
from keyhaul.ports import Change, Clock, Ledger
from keyhaul.rounds import NOBODY, Payer

OFFER_TRIES = 40  # offers of one key before it counts as lost: the far end may lag
EXPECTED_TRIES = 4  # offers after which others are drawn beside it: the far end may have lost it in a crash
ASKED_BEFORE = EXPECTED_TRIES - 1  # for keys of another life: one more offer tells whether they are left
MAX_OFFER = 1024
SLOW = 1.0  # seconds that fetching from a device should not take in one go
ANSWER_WITHIN = 2.0  # seconds after which an offer is answered with the keys that are held by then
MOST = 16 * MAX_OFFER
"""Device keys held for one neighbour to send with, or four times the high mark if that is more."""


class DeviceKey(Protocol):
    """One key of a device, as `links.etsi014` returns it."""

    @property
    def key_id(self) -> str: ...
    @property
    def bits(self) -> Secret: ...


class Device(Protocol):
    """One end of a QKD link behind its vendor's 014 interface. `size` is in bits."""

    async def enc_keys(self, number: int, size: int) -> Sequence[DeviceKey]: ...
    async def dec_keys(self, key_ids: Sequence[str]) -> Sequence[DeviceKey]: ...


@dataclass(slots=True)
class _Offered:
    bits: Secret
    tries: int = 0


class _Stride:
    """How many keys are moved from a device to the disk in one go: what a crash may lose."""

    def __init__(self) -> None:
        self.number = 4
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = asyncio.get_running_loop().time()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        slow = asyncio.get_running_loop().time() - self._begun > SLOW
        if slow or kind is InsufficientKey:  # a device that has not so many may have fewer
            self.number = max(self.number // 2, 1)
        elif kind is None:
            self.number = min(self.number * 2, MAX_OFFER)


class DeviceKeys:
    """The device keys of one link at one node, for sending and for receiving."""

    def __init__(
        self,
        *,
        peer: str,
        owner: str,
        device: Device,
        ledger: Ledger,
        clock: Clock,
        key_size: int = 256,
        low: int = 8,
        high: int = 32,
        ahead: bool = True,
        most: int = MOST,
        keep: float = KEEP,
    ) -> None:
        """`key_size` in bits. At most about `most` keys are held for receiving, for `keep` seconds."""
        self.owner = owner
        self.key_bytes = key_size // 8
        self.ahead = ahead
        self.supply: Supply[tuple[str, Secret]] = Supply(f"device keys for {peer}", low, high)
        self._device = device
        self._ledger = ledger
        self._out, self._in = f"pad/{peer}/out", f"pad/{peer}/in"
        self._kept = Kept(self._in, ledger, clock, max(most, 4 * high), keep)
        self._offered: dict[str, _Offered] = {}
        self._held: dict[str, bytes] = {}  # of this run; the ledger has them all
        self._burned: list[str] = []
        self._drawing, self._fetching = _Stride(), _Stride()
        self._drawn: Sequence[DeviceKey] = ()  # taken from the device and not saved yet, for the disk failed
        self._fetched: Sequence[DeviceKey] = ()
        self._missed: dict[str, int] = {}  # offered keys that the device did not have, and how often
        self._holding = asyncio.Lock()
        self.drawn = self.lost = 0  # keys

    async def start(self) -> None:
        """Keys of earlier runs are offered again: the neighbour says which it still holds."""
        for name, bits in (await self._ledger.items(self._out)).items():
            self._offered[name] = _Offered(Secret(bits), ASKED_BEFORE)

    def level(self) -> int:
        """Bits ready for sending."""
        return len(self.supply) * self.key_bytes * 8

    @property
    def offered(self) -> int:
        """Keys drawn here that the neighbour does not hold yet."""
        return len(self._offered)

    # --- sending

    async def take(
        self, number: int, patience: float, payer: Payer = NOBODY, leave: int | None = None
    ) -> list[tuple[str, Secret]]:
        """`number` keys that both ends hold; waits at most `patience` seconds. Raises InsufficientKey.

        `leave`: bits that have to stay ready; then nothing is waited for. Raises StoreUnavailable while
        keys of a message that could not be stored cannot be erased: others would burn as well.
        """
        await self._erase_burned()
        if self.ahead and leave is not None:
            return self.supply.spare(number, -(-leave // (self.key_bytes * 8)))
        if self.ahead:
            return await self.supply.take(number, patience, payer)
        drawn = await self._device.enc_keys(number, self.key_bytes * 8)
        self.drawn += len(drawn)
        if len(drawn) < number:
            raise InsufficientKey(f"the device gave {len(drawn)} of {number} keys", "ask again for fewer")
        return [(key.key_id, key.bits) for key in drawn]

    def spend(self, change: Change, names: Iterable[str]) -> None:
        """Erase what a message uses, in that message's commit."""
        if not self.ahead:
            return
        for name in names:
            change.spend(self._out, name)

    async def _erase_burned(self) -> None:
        if not self._burned:
            return
        burned = list(self._burned)
        async with self._ledger.edit() as change:
            for name in burned:
                change.erase(self._out, name)  # twice is harmless
        gone = set(burned)
        self._burned = [name for name in self._burned if name not in gone]

    def give_back(self, keys: list[tuple[str, Secret]], *, burned: bool) -> None:
        """Keys of a message that was never sent: usable again only if no cipher saw them."""
        if not self.ahead:
            return
        if burned:
            self._burned.extend(name for name, _ in keys)
        else:
            self.supply.add(keys)

    def doubt(self) -> None:
        """A message that used such keys could not be opened: burn what is there and draw anew.

        Devices that disagreed for a while would else fail one message for every key they made meanwhile.
        """
        self._burned.extend(name for name, _ in self.supply.drain())
        self._burned.extend(self._offered)
        self._offered.clear()

    def reoffer(self) -> None:
        """The neighbour may have lost its halves: only what it says again that it holds is ready."""
        self._offered.update({name: _Offered(bits, ASKED_BEFORE) for name, bits in self.supply.drain()})

    async def draw(self) -> list[str]:
        """Fetch what the supply lacks from the device, save it, and name all ids to offer."""
        expected = sum(entry.tries < EXPECTED_TRIES for entry in self._offered.values())
        await self._erase_burned()
        number = min(self.supply.shortage - expected, self._drawing.number)
        if number > 0 and not self._drawn:
            with self._drawing:
                self._drawn = await self._device.enc_keys(number, self.key_bytes * 8)
            self.drawn += len(self._drawn)
        if self._drawn:
            async with self._ledger.edit() as change:
                for key in self._drawn:
                    change.put(self._out, key.key_id, key.bits.reveal())
            self._offered.update((key.key_id, _Offered(key.bits)) for key in self._drawn)
            self._drawn = ()
        # What the far end may have lost comes last: it would look for that first, each time anew.
        return sorted(self._offered, key=lambda name: self._offered[name].tries)[:MAX_OFFER]

    async def confirm(self, offered: Iterable[str], held: Iterable[str]) -> None:
        """The neighbour's answer to an offer: held keys are ready, hopeless ones are burned."""
        ready = set(held)
        lost = []
        for name in offered:
            entry = self._offered.get(name)
            if entry is None:
                continue
            entry.tries += 1
            if name in ready:
                self.supply.add([(name, self._offered.pop(name).bits)])
            elif entry.tries >= OFFER_TRIES:
                lost.append(name)
        if lost:
            async with self._ledger.edit() as change:
                for name in lost:
                    change.erase(self._out, name)
                    del self._offered[name]
            self.lost += len(lost)

    # --- receiving

    async def hold(self, names: Sequence[str]) -> list[str]:
        """Fetch offered keys from this end of the pair and save them; returns the ids held now."""
        if len(names) > MAX_OFFER:
            raise Malformed(f"more than {MAX_OFFER} device keys in one offer")
        async with self._holding:  # who asks again must not have the device asked twice
            await self._save()
            held = await self._kept.claimed(names)
            known = set(held)
            missing = [name for name in names if name not in known]
            return held + await self._fetch(missing)

    async def prune(self) -> None:
        """Erase keys that no message came for; a message that still comes is refused."""
        for name in await self._kept.prune():
            self._held.pop(name, None)

    async def _fetch(self, names: list[str]) -> list[str]:
        """Fetch and save keys as far as they can be had soon; those that were missed before come last."""
        self._missed = {name: self._missed[name] for name in names if name in self._missed}
        left = deque(sorted(names, key=lambda name: self._missed.get(name, 0)))
        loop, saved = asyncio.get_running_loop(), list[str]()
        give_up = loop.time() + ANSWER_WITHIN
        while left and loop.time() < give_up:
            # All-or-nothing (014 §6.3): one unknown id hides the others, so fewer are asked for each time.
            misses, piece = self._missed.get(left[0], 0), [left.popleft()]
            most = self._fetching.number >> misses
            while left and len(piece) < most and self._missed.get(left[0], 0) == misses:
                piece.append(left.popleft())
            try:
                with self._fetching:
                    self._fetched = await self._device.dec_keys(piece)
            except PeerUnreachable:
                break  # asking again for fewer would wait for a silent device once per key
            except (KeyNotFound, Unavailable):
                pass
            saved += (got := await self._save())
            for name in [name for name in piece if name not in got]:
                self._missed[name] = misses + 1
                if len(piece) > 1:
                    left.append(name)
        return saved

    async def _save(self) -> list[str]:
        """Save what was fetched; what a disk does not take now waits for the next offer."""
        if not self._fetched:
            return []
        async with self._ledger.edit() as change:
            for key in self._fetched:
                self._kept.put(change, key.key_id, key.bits.reveal())
        saved, self._fetched = self._fetched, ()
        self._held.update((key.key_id, key.bits.reveal()) for key in saved)
        if self._kept.crowded:
            await self.prune()
        return [key.key_id for key in saved]

    async def match(self, names: Sequence[str]) -> bytes:
        """The bits of the named keys in order. Raises Malformed if one is not held here."""
        if not self.ahead:
            found = {key.key_id: key.bits for key in await self._device.dec_keys(list(names))}
            if not found.keys() >= set(names):
                raise Malformed("the message names a device key that the device does not hold")
            return b"".join(found[name].reveal() for name in names)
        parts = []
        for name in names:
            bits = self._held.get(name) or await self._kept.get(name)
            if bits is None:
                raise Malformed("the message names a device key that this node does not hold")
            parts.append(bits)
        return b"".join(parts)

    def spend_matched(self, change: Change, names: Iterable[str]) -> None:
        """Erase the keys of an accepted message, in the commit that accepts it."""
        if self.ahead:
            for name in names:
                self._held.pop(name, None)
                change.spend(self._in, name)
