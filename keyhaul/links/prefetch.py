"""Device keys fetched ahead and held durably at both ends, so that no request waits for a device.

The sender draws keys from its device (014 enc_keys), saves them and offers their ids; the neighbour
fetches the same keys from the other end of the pair (014 dec_keys), saves them and says which it
holds. Only held keys are used. A key is erased at each end in the commit of the one message it served,
so no bit of it serves two payloads, whatever crashes in between. A key that the sender burned or forgot is
erased at the receiver when it is old; the sender offers again what it still has (`links.kept`).

With `ahead=False` every message asks the devices when it is made and when it comes in, as in paper A.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from keyhaul.errors import InsufficientKey, KeyNotFound, Malformed, PeerUnreachable, Unavailable
from keyhaul.keys import Secret
from keyhaul.links.kept import KEEP, Kept
from keyhaul.links.supply import Supply
from keyhaul.ports import Change, Clock, Ledger

OFFER_TRIES = 40  # offers of one key before it counts as lost: the far end may lag
EXPECTED_TRIES = 4  # offers after which others are drawn beside it: the far end may have lost it in a crash
MAX_OFFER = 1024
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
        self._stride = 4
        self.drawn = self.lost = 0  # keys

    async def start(self) -> None:
        """Keys of earlier runs are offered again: the neighbour says which it still holds."""
        for name, bits in (await self._ledger.items(self._out)).items():
            self._offered[name] = _Offered(Secret(bits))

    def level(self) -> int:
        """Bits ready for sending."""
        return len(self.supply) * self.key_bytes * 8

    # --- sending

    async def take(
        self, number: int, patience: float, payer: str = "", leave: int | None = None
    ) -> list[tuple[str, Secret]]:
        """`number` keys that both ends hold; waits at most `patience` seconds. Raises InsufficientKey.

        `leave`: bits that have to stay ready; then nothing is waited for.
        """
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
        """Erase what a message uses, and what earlier messages burned, in that message's commit."""
        if not self.ahead:
            return
        for name in names:
            change.spend(self._out, name)
        # Erasing twice is harmless, and this commit may fail: `draw` sees the list out.
        for name in self._burned:
            change.erase(self._out, name)

    def give_back(self, keys: list[tuple[str, Secret]], *, burned: bool) -> None:
        """Keys of a message that was never sent: usable again only if no cipher saw them."""
        if not self.ahead:
            return
        if burned:
            self._burned.extend(name for name, _ in keys)
        else:
            self.supply.add(keys)

    def doubt(self) -> None:
        """A message that used such keys could not be opened: burn what is ready and draw anew.

        Devices that disagreed for a while would else fail one message for every key they made meanwhile.
        """
        self._burned.extend(name for name, _ in self.supply.drain())

    def reoffer(self) -> None:
        """The neighbour may have lost its halves: only what it says again that it holds is ready."""
        self._offered.update({name: _Offered(bits) for name, bits in self.supply.drain()})

    async def draw(self) -> list[str]:
        """Fetch what the supply lacks from the device, save it, and name all ids to offer."""
        expected = sum(entry.tries < EXPECTED_TRIES for entry in self._offered.values())
        number = min(self.supply.shortage - expected, self._stride)
        if number > 0:
            # Devices answer slowly: the first keys must not wait for the whole supply.
            self._stride = min(self._stride * 2, MAX_OFFER)
            drawn = await self._device.enc_keys(number, self.key_bytes * 8)
            self.drawn += len(drawn)
            burned = list(self._burned)
            async with self._ledger.edit() as change:
                for name in burned:
                    change.erase(self._out, name)
                for key in drawn:
                    change.put(self._out, key.key_id, key.bits.reveal())
            del self._burned[: len(burned)]
            self._offered.update((key.key_id, _Offered(key.bits)) for key in drawn)
        return list(self._offered)[:MAX_OFFER]

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
        held = await self._kept.claimed(names)
        known = set(held)
        missing = [name for name in names if name not in known]
        fetched = await self._fetch(missing)
        if fetched:
            async with self._ledger.edit() as change:
                for key in fetched:
                    self._kept.put(change, key.key_id, key.bits.reveal())
            self._held.update((key.key_id, key.bits.reveal()) for key in fetched)
            if self._kept.crowded:
                await self.prune()
        return held + [key.key_id for key in fetched]

    async def prune(self) -> None:
        """Erase keys that no message came for; a message that still comes is refused."""
        for name in await self._kept.prune():
            self._held.pop(name, None)

    async def _fetch(self, names: list[str]) -> list[DeviceKey]:
        if not names:
            return []
        try:
            return list(await self._device.dec_keys(names))
        except PeerUnreachable:
            return []  # asking again for halves would wait for a silent device once per key
        except (KeyNotFound, Unavailable):
            if len(names) == 1:
                return []
        # All-or-nothing (014 §6.3): one unknown id hides the others, so ask for halves.
        middle = len(names) // 2
        return [*await self._fetch(names[:middle]), *await self._fetch(names[middle:])]

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
