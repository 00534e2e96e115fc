"""Origin authentication: a secret that one origin and one destination share, renewed every hour.

The origin encapsulates to the destination's signed ML-KEM-768 key and signs the result with its node
identity. That statement rides in the head of the first payloads until one was confirmed; the tag over
each payload is made with the pair's secret. A relay can read neither and forge neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyhaul.control import CIPHERTEXT_BYTES, CLOCK_SKEW, Descriptor, Directory, Record, Signer, publish
from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.messages import labels
from keyhaul.messages.payload import Pair
from keyhaul.ports import Clock, Ledger

PAIR_LIFE = 3600.0  # seconds an origin uses one pair secret
KEM_LIFE = 86_400.0  # seconds a destination key is announced
KEM_OVERLAP = 7_200.0  # seconds it still opens statements after that
ID_BYTES = 16
_OWN, _IN = "kem/destination", "pair/in"


class _Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    origin: str
    destination: str
    kem_id: bytes
    ciphertext: bytes
    issued: float
    expires: float


class _Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes
    signature: bytes


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    origin: str
    expires: float
    secret: bytes


class _OwnKey(msgspec.Struct, frozen=True, array_like=True):
    seed: bytes
    issued: float


@dataclass(slots=True)
class _Outgoing:
    pair: Pair
    since: float
    until: float
    confirmed: bool = False


class Pairing:
    """Pair secrets of one node, as origin and as destination, and its own destination keys."""

    def __init__(
        self, signer: Signer, domain: str, directory: Directory, ledger: Ledger, clock: Clock
    ) -> None:
        self._signer = signer
        self._domain = domain
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._outgoing: dict[str, _Outgoing] = {}
        self._own: dict[bytes, tuple[mlkem.MLKEM768PrivateKey, float]] = {}
        self._current = b""
        self._expected: dict[str, asyncio.Event] = {}

    async def start(self) -> None:
        """Unseal the destination keys of earlier runs; make one where none is fresh."""
        for name, value in (await self._ledger.items(_OWN)).items():
            kept = msgspec.msgpack.decode(value, type=_OwnKey)
            key = mlkem.MLKEM768PrivateKey.from_seed_bytes(kept.seed)
            self._own[bytes.fromhex(name)] = (key, kept.issued)
        await self.rotate()

    async def rotate(self) -> None:
        """Make a new destination key when the current one is half way through its life; erase old ones."""
        now = self._clock.now()
        newest = max(self._own, key=lambda key_id: self._own[key_id][1], default=None)
        old = [k for k, (_, issued) in self._own.items() if issued + KEM_LIFE + KEM_OVERLAP < now]
        stale = newest is None or self._own[newest][1] + KEM_LIFE / 2 < now
        if not stale and not old:
            self._current = newest or b""
            return
        async with self._ledger.edit() as change:
            if stale:
                key = mlkem.MLKEM768PrivateKey.generate()
                newest = hashlib.sha256(key.public_key().public_bytes_raw()).digest()[:ID_BYTES]
                seed = key.private_bytes_raw()
                change.put(_OWN, newest.hex(), msgspec.msgpack.encode(_OwnKey(seed, now)))
            for key_id in old:
                change.erase(_OWN, key_id.hex())
        if stale and newest is not None:
            self._own[newest] = (key, now)
        for key_id in old:
            del self._own[key_id]
        self._current = newest or b""

    @property
    def name(self) -> str:
        """This node."""
        return self._signer.name

    def announce(self, after: int = 0) -> Record:
        """This node's signed descriptor, numbered above `after` and by the clock."""
        now = self._clock.now()
        key, issued = self._own[self._current]
        return publish(
            Descriptor(
                node=self._signer.name,
                domain=self._domain,
                sequence=max(int(now * 1000), after + 1),
                issued=now,
                expires=issued + KEM_LIFE,
                kem_id=self._current,
                kem_public=key.public_key().public_bytes_raw(),
            ),
            self._signer,
        )

    async def outgoing(self, destination: str, deadline: float) -> Pair:
        """The pair secret to send under; its statement is empty once the destination confirmed one.

        Waits until Unix `deadline` for the destination's descriptor; raises Unavailable without it.
        """
        now = self._clock.now()
        if destination not in self._directory and now < deadline:
            news = self._expected.setdefault(destination, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), deadline - now)
            now = self._clock.now()
        held = self._outgoing.get(destination)
        if held is None or held.until < now:
            pair = self._propose(destination, now)
            held = self._outgoing[destination] = _Outgoing(pair, now, now + PAIR_LIFE)
        if held.confirmed:
            return Pair(held.pair.id, held.pair.secret)
        return held.pair

    def heard(self, node: str) -> None:
        """A new descriptor of `node` is in the directory."""
        if news := self._expected.pop(node, None):
            news.set()

    def _propose(self, destination: str, now: float) -> Pair:
        known = self._directory.get(destination, now).descriptor
        public = mlkem.MLKEM768PublicKey.from_public_bytes(known.kem_public)
        shared, ciphertext = public.encapsulate()
        body = msgspec.msgpack.encode(
            _Statement(
                self._signer.name, destination, known.kem_id, ciphertext, now, now + PAIR_LIFE + KEM_OVERLAP
            )
        )
        signature = self._signer.sign(labels.PAIR_STATEMENT + body)
        signed = msgspec.msgpack.encode(_Signed(body, signature))
        return Pair(_pair_id(signed), _pair_secret(shared, body), signed)

    def confirmed(self, destination: str, created: float) -> None:
        """Keys made at Unix time `created` were accepted: the statement need not travel again.

        Keys made before the current pair secret may have gone under the last one and prove nothing.
        """
        held = self._outgoing.get(destination)
        if held is not None and held.since <= created:
            held.confirmed = True

    def forget(self, destination: str) -> None:
        """The destination refused: start afresh, with a new statement."""
        self._outgoing.pop(destination, None)

    async def incoming(self, head: bytes, origin: str) -> Pair:
        """The pair secret that a payload's head names. Raises Tampered if it is not that origin's."""
        pair_id, statement = head[:ID_BYTES], head[ID_BYTES:]
        stored = await self._ledger.item(_IN, pair_id.hex())
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
        own = self._own.get(said.kem_id)
        longest = now + PAIR_LIFE + KEM_OVERLAP + CLOCK_SKEW
        if said.origin != origin or said.destination != self._signer.name or not own:
            raise Tampered
        if not now <= said.expires <= longest or len(said.ciphertext) != CIPHERTEXT_BYTES:
            raise Tampered
        secret = _pair_secret(own[0].decapsulate(said.ciphertext), signed.body)
        kept = _Kept(origin, said.expires, secret.reveal())
        async with self._ledger.edit() as change:
            change.put(_IN, pair_id.hex(), msgspec.msgpack.encode(kept))
        return Pair(pair_id, secret)

    async def prune(self) -> None:
        """Erase pair secrets whose statements expired."""
        now = self._clock.now()
        items = await self._ledger.items(_IN)
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
