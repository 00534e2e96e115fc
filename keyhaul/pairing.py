"""Origin authentication: a secret that one origin and one destination share, renewed every hour.

The origin encapsulates to the destination's signed KEM key and signs the result with its node identity.
That statement rides in the head of the first payloads until one was confirmed; the tag over each payload
is made with the pair's secret. A relay can read neither and forge neither. A payload may also have a pair
secret of its own (`once`): then its statement always travels with it, and neither end keeps the secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyhaul import kem
from keyhaul.control import (
    BASELINE,
    CLOCK_SKEW,
    Descriptor,
    Directory,
    Known,
    PublicKey,
    Record,
    Signer,
    publish,
)
from keyhaul.destination import (
    KEM_LIFE,
    KEM_OVERLAP,
    Announcer,
    AsStored,
    DestinationKeys,
    Sealer,
    unsealed,
)
from keyhaul.errors import Malformed, Tampered, Unavailable
from keyhaul.keys import Secret
from keyhaul.messages import labels
from keyhaul.messages.payload import Pair
from keyhaul.ports import Clock, Ledger

__all__ = ["ID_BYTES", "KEM_LIFE", "KEM_OVERLAP", "PAIR_LIFE", "Pairing"]

PAIR_LIFE = 3600.0  # seconds an origin uses one pair secret
ID_BYTES = 16
MOST_CARRIERS = 64
"""Payloads with a statement whose confirmation is looked for: the last ones that left."""
_IN = "pair/in"
ANEW = "anew"
"""Item space: names of nodes that lost what was sent there before, and of which this is not voided yet."""


class _Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    origin: str
    destination: str
    kem: str
    kem_id: bytes
    ciphertext: bytes
    issued: float
    expires: float
    once: bool


class _Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes
    signature: bytes


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    origin: str
    expires: float
    secret: bytes


@dataclass(slots=True)
class _Outgoing:
    pair: Pair
    key_id: bytes  # the destination's KEM key that it was made with
    until: float
    confirmed: bool = False
    carriers: deque[UUID] = field(default_factory=lambda: deque(maxlen=MOST_CARRIERS))


class Pairing:
    """Pair secrets of one node, as origin and as destination, and what it announces of itself.

    `kem` is the kind of key it encapsulates to; `schemes` and `labels` stand in its descriptor, and so do
    the keys of `others`.
    """

    def __init__(
        self,
        signer: Signer,
        domain: str,
        directory: Directory,
        ledger: Ledger,
        clock: Clock,
        *,
        kem: str = kem.DEFAULT,
        schemes: Sequence[str] = BASELINE,
        labels: Sequence[str] = ("pq",),
        others: Sequence[Announcer] = (),
        sealer: Sealer | None = None,
    ) -> None:
        self._signer = signer
        self._domain = domain
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._kem = kem
        self._schemes, self._labels = tuple(schemes), tuple(labels)
        self._others = tuple(others)
        self._sealer = sealer or AsStored()
        self._keys = DestinationKeys(ledger, clock, self._sealer)
        self._outgoing: dict[str, _Outgoing] = {}
        self._expected: dict[str, asyncio.Event] = {}
        self.restored: Callable[[str], None] = lambda node: None
        """Told of nodes that do not hold any more what was sent there before; set by the origin.

        It erases the item `ANEW` of such a node when all that was meant for it is void.
        """

    async def start(self) -> None:
        """Unseal the destination keys of earlier runs; make one where none is fresh."""
        await self._keys.start()
        for other in self._others:
            await other.start()
            await other.rotate()

    async def rotate(self) -> None:
        """Make new destination keys where they are due; erase old ones."""
        await self._keys.rotate()
        for other in self._others:
            await other.rotate()

    @property
    def name(self) -> str:
        """This node."""
        return self._signer.name

    def announce(self, after: int = 0) -> Record:
        """This node's signed descriptor, numbered above `after` and by the clock."""
        now = self._clock.now()
        own = self._keys.announced()
        more = [key for other in self._others for key in other.announced(now)]
        return publish(
            Descriptor(
                node=self._signer.name,
                domain=self._domain,
                sequence=max(int(now * 1000), after + 1),
                issued=now,
                expires=own[0].expires,
                keys=(*own, *more),
                schemes=self._schemes,
                labels=self._labels,
            ),
            self._signer,
        )

    def takes_part(self, node: str, scheme: str) -> bool:
        """Whether a node says that it takes part in a scheme; False while nothing is known of it."""
        return scheme in (self._schemes if node == self._signer.name else self._said(node).schemes)

    def vouches(self, node: str, label: str) -> bool:
        """Whether a node vouches for a label; False while nothing is known of it."""
        return label in (self._labels if node == self._signer.name else self._said(node).labels)

    def has_key(self, node: str, prefix: str) -> bool:
        """Whether a node has a current key of a profile that starts with `prefix`."""
        now = self._clock.now()
        keys: Iterable[PublicKey] = self._said(node).keys
        if node == self._signer.name:
            keys = itertools.chain.from_iterable(other.announced(now) for other in self._others)
        return any(key.profile.startswith(prefix) and now < key.expires for key in keys)

    def _said(self, node: str) -> Descriptor:
        try:
            return self._directory.get(node, self._clock.now()).descriptor
        except Unavailable:
            return Descriptor(node, "", 0, 0.0, 0.0, (), ())

    async def acquainted(self, nodes: Iterable[str], deadline: float) -> None:
        """Wait until Unix `deadline` for the descriptors of nodes. Raises Unavailable without them."""
        for node in nodes:
            if node == self._signer.name:
                continue
            now = self._clock.now()
            if node not in self._directory and now < deadline:
                news = self._expected.setdefault(node, asyncio.Event())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), deadline - now)
            self._directory.get(node, self._clock.now())

    def own_key(self, kind: str, wanted: bytes) -> kem.PrivateKey | None:
        """This node's KEM key of an id, None when it has none (any more)."""
        return self._keys.get(kind, wanted)

    def refused(self, scheme: str) -> None:
        """Keys that came under `scheme` were not what their origin sent."""
        for other in self._others:
            other.refused(scheme)

    async def outgoing(self, destination: str, deadline: float, *, once: bool = False) -> Pair:
        """The pair secret to send under; its statement is empty once the destination confirmed one.

        `once`: a secret for one payload only. Waits until Unix `deadline` for the destination's
        descriptor; raises Unavailable without it, or where it has no key of our kind.
        """
        held = self._outgoing.get(destination)
        if once or held is None or held.until < self._clock.now():
            await self.acquainted((destination,), deadline)
            now = self._clock.now()
            # Somebody else may have waited for the same descriptor.
            held = None if once else self._outgoing.get(destination)
            if held is None or held.until < now:
                key = self._directory.get(destination, now).key(self._kem, now)
                pair = self._propose(destination, key, now, once)
                if once:
                    return pair
                held = _Outgoing(pair, key.id, now + PAIR_LIFE)
                self._outgoing[destination] = held
        if held.confirmed:
            return Pair(held.pair.id, held.pair.secret)
        return held.pair

    def heard(self, node: str) -> None:
        """A new descriptor of `node` is in the directory.

        One that announces another KEM key may have been restored, and then has no secret of a pair any more.
        """
        held = self._outgoing.get(node)
        if held is not None and held.key_id not in [key.id for key in self._said(node).keys]:
            self.forget(node)
        if node in self._directory and self.anew(self._directory.get(node, self._clock.now())):
            self.restored(node)
        if news := self._expected.pop(node, None):
            news.set()

    def anew(self, known: Known) -> bool:
        """Whether a node's KEM keys changed long before they are due to: they were erased by a restore."""
        if known.descriptor.node == self._signer.name:
            return False
        ids = [key.id for key in known.descriptor.keys]
        early = known.descriptor.issued + CLOCK_SKEW - KEM_LIFE / 2
        gone = [key for key in known.before if key.profile in kem.KEMS and key.id not in ids]
        return any(key.issued > early for key in gone)

    def _propose(self, destination: str, key: PublicKey, now: float, once: bool) -> Pair:
        shared, ciphertext = kem.encapsulate(self._kem, key.public)
        until = now + PAIR_LIFE + KEM_OVERLAP
        said = _Statement(self._signer.name, destination, self._kem, key.id, ciphertext, now, until, once)
        body = msgspec.msgpack.encode(said)
        signature = self._signer.sign(labels.PAIR_STATEMENT + body)
        signed = msgspec.msgpack.encode(_Signed(body, signature))
        return Pair(_pair_id(signed), _pair_secret(shared, body), signed)

    def sent(self, destination: str, pair: Pair, key_id: UUID) -> None:
        """A payload with this key leaves under `pair` and carries its statement."""
        held = self._outgoing.get(destination)
        if held is not None and held.pair.id == pair.id:
            held.carriers.append(key_id)

    def confirmed(self, destination: str, key_id: UUID) -> None:
        """A key was accepted: if its payload carried the statement, that need not travel again.

        Other keys prove nothing: they may have gone under a secret of before, even of another run.
        """
        held = self._outgoing.get(destination)
        if held is not None and key_id in held.carriers:
            held.confirmed = True
            held.carriers.clear()

    def forget(self, destination: str) -> None:
        """The destination refused: start afresh, with a new statement."""
        self._outgoing.pop(destination, None)

    async def incoming(self, head: bytes, origin: str) -> Pair:
        """The pair secret that a payload's head names. Raises Tampered if it is not that origin's."""
        pair_id, statement = head[:ID_BYTES], head[ID_BYTES:]
        stored = await self._ledger.item(_IN, pair_id.hex())
        if stored is not None:
            stored = self._sealer.unseal(_IN, pair_id.hex(), stored)
        if stored is not None:
            kept = msgspec.msgpack.decode(stored, type=_Kept)
            if kept.origin != origin or kept.expires < self._clock.now():
                raise Tampered
            return Pair(pair_id, Secret(kept.secret))
        if not statement or _pair_id(statement) != pair_id:
            raise Tampered
        return await self._admit(pair_id, statement, origin)

    async def _admit(self, pair_id: bytes, statement: bytes, origin: str) -> Pair:
        now = self._clock.now()
        try:
            signed = msgspec.msgpack.decode(statement, type=_Signed)
            said = msgspec.msgpack.decode(signed.body, type=_Statement)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Malformed("the origin's statement cannot be read") from None
        known = self._directory.get(origin, now)
        known.signer.check(signed.signature, labels.PAIR_STATEMENT + signed.body)
        own = self._keys.get(said.kem, said.kem_id)
        longest = now + PAIR_LIFE + KEM_OVERLAP + CLOCK_SKEW
        if said.origin != origin or said.destination != self._signer.name or not own:
            raise Tampered
        if not now <= said.expires <= longest:
            raise Tampered
        secret = _pair_secret(own.decapsulate(said.ciphertext), signed.body)
        if not said.once:
            kept = _Kept(origin, said.expires, secret.reveal())
            async with self._ledger.edit() as change:
                sealed = self._sealer.seal(_IN, pair_id.hex(), msgspec.msgpack.encode(kept))
                change.put(_IN, pair_id.hex(), sealed)
        return Pair(pair_id, secret)

    async def prune(self) -> None:
        """Erase pair secrets whose statements expired."""
        now = self._clock.now()
        items = await unsealed(self._ledger, _IN, self._sealer)
        old = [n for n, v in items.items() if msgspec.msgpack.decode(v, type=_Kept).expires < now]
        if old:
            async with self._ledger.edit() as change:
                for name in old:
                    change.erase(_IN, name)


def _pair_id(signed: bytes) -> bytes:
    return hashlib.sha256(signed).digest()[:ID_BYTES]


def _pair_secret(shared: bytes, body: bytes) -> Secret:
    salt = hashlib.sha384(body).digest()
    return Secret(HKDF(hashes.SHA384(), 32, salt, labels.PAIR_SECRET).derive(shared))
