"""Submissions that open a static BFV key (tests/unit/test_blind.py) tell nothing about keys of `masked`.

The strongest submitter is an origin of its own right that signs what it likes: a mere relay cannot even get a
ciphertext of its own as far as the destination's ML-KEM key.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem

from keyhaul.errors import KeyhaulError, Tampered
from keyhaul.keys import Secret
from keyhaul.messages import labels
from keyhaul.messages.payload import Context, Pair, Payload
from keyhaul.pairing import Pairing, _pair_id, _pair_secret
from keyhaul.schemes.masked import Masked
from tests.neighbours import Identity, context
from tests.vectors.make import NOW, destination, fixed

SUBMISSIONS = 1_706  # what 1,024 ternary coefficients take: 1 + 2/3 each
SEED, KEM_ID = fixed("reaction seed", 64), fixed("kem id", 16)
CIPHERTEXT = 1088


class Submitter:
    """Node `vigo`, whose statements `bilbao` accepts, made as it likes."""

    def __init__(self, pairing: Pairing) -> None:
        self.pairing = pairing
        self.public = mlkem.MLKEM768PrivateKey.from_seed_bytes(SEED).public_key()
        self.context: Context = context(scheme="masked")
        self.verdicts: set[str] = set()

    def payload(self, change: bytes = b"", signer: str = "vigo") -> Payload:
        """A payload all right in itself, under a statement whose KEM ciphertext is XORed with `change`."""
        shared, ciphertext = self.public.encapsulate()
        mask = change or bytes(CIPHERTEXT)
        altered = bytes(a ^ b for a, b in zip(ciphertext, mask, strict=True))
        said = ["vigo", "bilbao", "ml-kem-768", KEM_ID, altered, NOW, NOW + 3600, False]
        body = msgspec.msgpack.encode(said)
        signed = msgspec.msgpack.encode([body, Identity(signer).sign(labels.PAIR_STATEMENT + body)])
        pair = Pair(_pair_id(signed), _pair_secret(shared, body), signed)
        return Masked().originate([Secret(bytes(32)), Secret(bytes(32))], self.context, pair)

    async def submit(self, payload: Payload) -> bool:
        """Accepted or not: all that anybody outside the destination sees."""
        try:
            pair = await self.pairing.incoming(payload.head, "vigo")
            keys = Masked().deliver(payload, self.context, pair)
        except KeyhaulError as error:
            self.verdicts.add(str(error))
            return False
        return [key.reveal() for key in keys] == [bytes(32), bytes(32)]


async def submitter() -> Submitter:
    return Submitter(await destination(KEM_ID, SEED))


def test_altered_encapsulations_are_all_refused_alike_even_from_an_origin() -> None:
    async def attack() -> None:
        it, rng = await submitter(), random.Random(5)
        assert await it.submit(it.payload()), "an honest one is accepted"
        for _ in range(SUBMISSIONS):
            place = rng.randrange(8 * CIPHERTEXT)
            mask = (1 << place).to_bytes(CIPHERTEXT, "little")
            assert not await it.submit(it.payload(mask))
        assert it.verdicts == {"authentication failed"}
        assert await it.submit(it.payload())

    asyncio.run(attack())


def test_altered_masked_keys_are_all_refused_alike() -> None:
    async def attack() -> None:
        it = await submitter()
        honest = it.payload()
        for place in range(8 * len(honest.body)):
            mask = 1 << place
            body = (int.from_bytes(honest.body, "little") ^ mask).to_bytes(len(honest.body), "little")
            assert not await it.submit(replace(honest, body=body))
        assert it.verdicts == {"authentication failed"}
        assert await it.submit(honest)

    asyncio.run(attack())


def test_a_relay_gets_no_ciphertext_of_its_own_to_the_destinations_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def attack() -> None:
        it = await submitter()

        class Untouched:
            kem = "ml-kem-768"

            def decapsulate(self, ciphertext: bytes) -> bytes:
                raise AssertionError("decapsulated what no origin signed")

        held = it.pairing._keys._own
        own = held[KEM_ID]
        monkeypatch.setitem(held, KEM_ID, replace(own, key=Untouched()))
        for _ in range(64):
            with pytest.raises(Tampered):
                await it.pairing.incoming(it.payload(signer="relay").head, "vigo")
        monkeypatch.setitem(held, KEM_ID, own)
        assert await it.submit(it.payload())

    asyncio.run(attack())
