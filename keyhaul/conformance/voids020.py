"""ETSI GS QKD 020 V1.1.1, void: what is taken back stays away, whenever the void comes."""

from __future__ import annotations

import uuid
from typing import Any

from keyhaul.conformance.judge020 import VOID, problem
from keyhaul.conformance.kme020 import CATALOGUE, Kme020, fresh
from keyhaul.conformance.probe import expect


async def void_known(kme: Kme020) -> str:
    keys = fresh(2)
    await kme.relay(keys)
    said = await kme.voided(keys, "voided")
    if kme.sae is not None:
        await kme.withheld(keys)
        said += "; the SAE gets nothing"
    return said


async def void_delivered(kme: Kme020) -> str:
    kme.application()
    keys = fresh()
    await kme.relay(keys)
    await kme.delivered(keys)
    return await kme.voided(keys, "failed to void")


async def void_unknown(kme: Kme020) -> str:
    return await kme.voided([str(uuid.uuid4())], "key not present")


async def void_first(kme: Kme020) -> str:
    keys = fresh()
    (key_id,) = keys
    await kme.voided(keys, "key not present")
    seen = len(kme.first.desk.statuses[key_id])
    answer = await kme.send(keys)
    if answer.status == 202:
        said = f"202, then {await kme.outcome(key_id, 'voided', 'failed', 'key not present', after=seen)}"
    else:
        expect(answer.status in (400, 503), answer.brief())
        said = problem(answer, answer.status)
    if kme.sae is not None:
        await kme.withheld(keys)
    return said


async def void_empty(kme: Kme020) -> str:
    keys = fresh()
    await kme.relay(keys)
    said = ""
    for changes in ({}, {"all_confirmation": False}):
        answer = await kme.void([], **changes)
        said = problem(answer, 400, "no-key-ids-or-confirmation")
    if kme.sae is not None:
        await kme.delivered(keys, "afterwards, ")
    else:
        await kme.voided(keys, "voided")
    return f"{said}; the key stays"


async def void_all(kme: Kme020) -> str:
    keys = fresh(2)
    await kme.relay(keys)
    seen = {key_id: len(kme.first.desk.statuses[key_id]) for key_id in keys}
    answer = await kme.void([], all_confirmation=True)
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    for key_id in keys:
        await kme.outcome(key_id, "voided", after=seen[key_id])
    if kme.sae is not None:
        await kme.withheld(keys)
    return "all voided"


async def void_onward_all(kme: Kme020) -> str:
    onward, keys = kme.second_neighbour(), fresh()
    (key_id,) = keys
    await kme.relay(keys, target_sae_ids=[onward.sae])
    seen = len(kme.first.desk.statuses[key_id])
    answer = await kme.void([], target_sae_ids=[onward.sae], all_confirmation=True)
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    await kme.outcome(key_id, "voided", after=seen)
    calls = [call.value() for call in onward.desk.received if call.path == VOID]
    reached = any(_covers(value, key_id, onward.sae) for value in calls)
    expect(reached, "voided, but the next KME was not told")
    return "voided there and here"


def _covers(value: Any, key_id: str, target: str) -> bool:
    if not isinstance(value, dict) or value.get("target_sae_ids") != [target]:
        return False
    ids = [str(each).lower() for each in value.get("key_ids", [])]
    return key_id in ids or (not ids and value.get("all_confirmation") is True)


async def void_malformed(kme: Kme020) -> str:
    bodies: tuple[bytes, ...] = (b"{", b"[]", b'{"key_ids": 7}')
    for body in bodies:
        answer = await kme.first.caller.ask("POST", VOID, body)
        expect(answer.status == 400, f"{body!r}: {answer.brief()}")
        problem(answer, 400)
    for changes in ({"key_ids": ["no-uuid"]}, {"target_sae_ids": None}, {"initiator_sae_id": 7}):
        answer = await kme.void([str(uuid.uuid4())], **changes)
        expect(answer.status == 400, f"{changes}: {answer.brief()}")
        problem(answer, 400)
    return "400"


def register() -> None:
    """Put these into the catalogue after the transfers."""
    add = CATALOGUE.probe
    add("void", "void", "a relayed key is voided", "202, then `voided`")(void_known)
    add("void-delivered", "void", "a delivered key cannot be voided", "`failed to void`")(void_delivered)
    add("void-unknown", "void", "a key that was never here", "202, then `key not present`")(void_unknown)
    add("void-first", "void", "a transfer after its void is not delivered", "anything but `relayed`")(
        void_first
    )
    add("void-empty", "void", "no ids and no confirmation", "400 no-key-ids-or-confirmation")(void_empty)
    add("void-all", "void", "no ids, confirmed: all keys of these SAEs", "202, then `voided` for each")(
        void_all
    )
    add("void-all-onward", "void", "the same for keys at the next KME", "`voided`, there too")(
        void_onward_all
    )
    add("void-malformed", "void", "a body that is no void", "400 with a problem document")(void_malformed)
