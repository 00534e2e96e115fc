"""Private halves under a seal of their own: unreadable without it, renewed when it is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from keyhaul import destination, pairing
from keyhaul.blindkeys import SPACE as BFV
from keyhaul.blindkeys import BlindKeys
from keyhaul.destination import SEALED, AsStored, DestinationKeys, Sealer
from keyhaul.errors import Tampered
from keyhaul.keys import Secret
from keyhaul.messages.payload import Pair
from keyhaul.pairing import Pairing
from keyhaul.schemes.keyring import KeyRing
from keyhaul.stores.memory import MemoryLedger
from keyhaul.stores.sealing import ItemSeal
from tests.unit.test_keyring import Counter
from tests.unit.test_pairing import Clock, net

KEM = destination.SPACE


def seal() -> ItemSeal:
    return ItemSeal(Secret(os.urandom(32)))


# ---------------------------------------------------------------------- the seal itself


def test_what_was_sealed_comes_back_at_its_place_only() -> None:
    ours = seal()
    sealed = ours.seal("a", "b", b"value")
    assert ours.unseal("a", "b", sealed) == b"value"
    assert b"value" not in sealed
    assert sealed != ours.seal("a", "b", b"value"), "a nonce of its own each time"
    for space, name in (("a", "c"), ("c", "b"), ("a\0b", ""), ("", "a\0b")):
        assert ours.unseal(space, name, sealed) is None


def test_another_seal_changed_bytes_and_bare_values_open_nothing() -> None:
    ours = seal()
    sealed = ours.seal("a", "b", b"value")
    assert seal().unseal("a", "b", sealed) is None
    for at in range(1, len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        assert ours.unseal("a", "b", bytes(changed)) is None
    for value in (b"", b"\x93bare", SEALED, SEALED + bytes(5), sealed[:-1]):
        assert ours.unseal("a", "b", value) is None


def test_without_a_seal_values_are_as_stored_and_sealed_ones_are_lost() -> None:
    bare = AsStored()
    assert bare.seal("a", "b", b"value") == bare.unseal("a", "b", b"value") == b"value"
    assert bare.unseal("a", "b", seal().seal("a", "b", b"value")) is None


# ---------------------------------------------------------------------- keys under it


async def kem_keys(ledger: MemoryLedger, sealer: Sealer | None) -> list[bytes]:
    keys = DestinationKeys(ledger, Clock(), sealer)
    await keys.start()
    return [key.public for key in keys.announced()]


async def bfv_keys(ledger: MemoryLedger, sealer: Sealer | None) -> list[bytes]:
    counter = Counter()
    counter.made = len(await ledger.items(BFV)) and 7  # others than those of earlier runs
    keys = BlindKeys(KeyRing(counter), ledger, Clock(), sealer)
    await keys.start()
    await keys.rotate()
    return [key.public for key in keys.announced(Clock().now())]


Make = Callable[[MemoryLedger, Sealer | None], Coroutine[Any, Any, list[bytes]]]
KINDS = pytest.mark.parametrize(("make", "space"), [(kem_keys, KEM), (bfv_keys, BFV)], ids=["kem", "bfv"])


@KINDS
def test_no_private_half_is_in_the_store_without_the_seal(make: Make, space: str) -> None:
    async def story() -> None:
        plain, sealed, sealer = MemoryLedger(), MemoryLedger(), seal()
        await make(plain, None)
        first = await make(sealed, sealer)
        assert all(not value.startswith(SEALED) for value in (await plain.items(space)).values())
        assert all(value.startswith(SEALED) for value in (await sealed.items(space)).values())
        assert await make(sealed, sealer) == first, "the same keys after a restart"

    asyncio.run(story())


@KINDS
@pytest.mark.parametrize("change", ["another chip", "no chip any more", "a chip from now on"])
def test_keys_out_of_reach_are_erased_with_a_warning_and_made_anew(
    make: Make, space: str, change: str
) -> None:
    async def story() -> None:
        ledger = MemoryLedger()
        before = None if change == "a chip from now on" else seal()
        after = None if change == "no chip any more" else seal()
        first = await make(ledger, before)
        old = set(await ledger.items(space))
        with capture_logs() as logs:
            second = await make(ledger, after)
        assert not set(first) & set(second)
        assert not old & set(await ledger.items(space))
        told = [line for line in logs if line["log_level"] == "warning"]
        assert [(line["space"], line["number"]) for line in told] == [(space, len(old))]

    asyncio.run(story())


def test_pair_secrets_are_sealed_with_the_keys_they_were_made_from() -> None:
    async def story() -> None:
        sealer, made = seal(), await net()
        far = made.nodes["bilbao"]
        far._sealer = sealer
        pair = await made.out("vigo", "bilbao")
        met = await far.incoming(pair.id + pair.statement, "vigo")
        assert met.secret.same_as(pair.secret)
        (stored,) = (await far._ledger.items(pairing._IN)).values()
        assert stored.startswith(SEALED)
        assert pair.secret.reveal() not in stored
        again: Pair = await far.incoming(pair.id, "vigo")
        assert again.secret.same_as(pair.secret)
        far._sealer = seal()
        with pytest.raises(Tampered):
            await far.incoming(pair.id, "vigo")
        await far.prune()
        assert await far._ledger.items(pairing._IN) == {}, "what nothing opens is erased"

    with capture_logs():
        asyncio.run(story())


def test_a_pairing_hands_its_seal_to_its_keys() -> None:
    async def story() -> None:
        near, ledger = (await net()).nodes["vigo"], MemoryLedger()
        made = Pairing(near._signer, "lab", near._directory, ledger, Clock(), sealer=seal())
        await made.start()
        assert all(value.startswith(SEALED) for value in (await ledger.items(KEM)).values())

    asyncio.run(story())
