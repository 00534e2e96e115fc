"""ETSI GS QKD 020 V1.1.1, acknowledgements: the KME's own, ours to it, and those that get lost."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from keyhaul.conformance import kme014
from keyhaul.conformance.call import Answer, Caller
from keyhaul.conformance.desk import DROP
from keyhaul.conformance.judge020 import ACK, EXT_KEYS, ack_fault, problem
from keyhaul.conformance.kme020 import CATALOGUE, Kme020, fresh, sent_keys
from keyhaul.conformance.probe import Deviation, expect

__all__ = ["ack_fault", "acknowledge", "register"]


async def acknowledge(caller: Caller, containers: Sequence[dict[str, Any]]) -> None:
    """Acknowledge to the KME. Raises Deviation unless it takes it."""
    answer = await caller.post(ACK, list(containers))
    expect(answer.status == 200, f"our acknowledgement: {answer.brief()}")


# --- those it sends


async def ack_lost(kme: Kme020) -> str:
    said = []
    for status in (503, DROP):
        keys, desk = fresh(), kme.first.desk
        (key_id,) = keys
        desk.plan[ACK].append(status)
        answer = await kme.send(keys)
        expect(answer.status == 202, f"{answer.brief()}, not 202")
        how = "answered 503" if status else "cut off"
        try:
            said.append(f"{how}: {await kme.again_or_void(ACK, key_id)}")
        except TimeoutError:
            raise Deviation(f"an acknowledgement that was {how} is not sent again") from None
    return ", ".join(said)


async def ack_form(kme: Kme020) -> str:
    desks = [each.desk for each in (kme.first, kme.second) if each is not None]
    faults = [fault for desk in desks for fault in desk.faults]
    expect(not faults, "; ".join(dict.fromkeys(faults)))
    number = sum(call.path == ACK for desk in desks for call in desk.received)
    expect(number, "no acknowledgement came at all")
    return f"{number} arrays"


# --- those it gets


async def sends_transfer(kme: Kme020) -> str:
    asking, call = await kme.asked()
    keys = sent_keys(call)
    value = call.value()
    expect(value["initiator_sae_id"] == kme.target, f"initiator {value['initiator_sae_id']!r}")
    expect(value["target_sae_ids"] == [kme.first.sae], f"targets {value['target_sae_ids']!r}")
    answer = await asking
    expect(answer.status == 200, f"the SAE got {answer.brief()}")
    expect(kme014.container(answer) == keys, "the SAE got other bits than the KME sent on")
    return "202 and `relayed` taken, the same bits"


async def ack_array(kme: Kme020) -> str:
    kme.first.desk.silent = True
    asking, call = await kme.asked()
    container = kme.first.ack(sent_keys(call), "relayed", call.value())
    said = problem(
        await kme.first.caller.post(ACK, container), 400, "ack-not-understood", "invalid-parameter"
    )
    expect(not asking.done(), "an acknowledgement outside an array was taken")
    await acknowledge(kme.first.caller, [container])
    answer = await asking
    expect(answer.status == 200, f"the SAE got {answer.brief()}")
    return f"{said}; 200 for an array"


async def ack_bad_status(kme: Kme020) -> str:
    kme.first.desk.silent = True
    _, call = await kme.asked()
    container = kme.first.ack(sent_keys(call), "delivered", call.value())
    said = problem(
        await kme.first.caller.post(ACK, [container]), 400, "ack-not-understood", "invalid-parameter"
    )
    await acknowledge(kme.first.caller, [{**container, "ack_status": "failed"}])
    return said


async def ack_unknown(kme: Kme020) -> str:
    body = {"initiator_sae_id": kme.target, "target_sae_ids": [kme.first.sae]}
    container = kme.first.ack([str(uuid.uuid4())], "relayed", body)
    return problem(await kme.first.caller.post(ACK, [container]), 400, "key-not-present")


async def ack_failed(kme: Kme020) -> str:
    kme.first.desk.silent = True
    asking, call = await kme.asked()
    await acknowledge(kme.first.caller, [kme.first.ack(sent_keys(call), "failed", call.value())])
    return _without(await asking)


def _without(answer: Answer) -> str:
    expect(answer.status in (400, 503), f"the SAE got {answer.brief()}")
    return f"the SAE got {answer.status}"


async def transfer_refused(kme: Kme020) -> str:
    kme.first.desk.plan[EXT_KEYS].append(400)
    asking, _ = await kme.asked()
    return _without(await asking)


async def transfer_unanswered(kme: Kme020) -> str:
    """503 and a cut connection leave open whether we have the key."""
    said = []
    for status in (503, DROP):
        kme.first.desk.plan[EXT_KEYS].append(status)
        asking, call = await kme.asked()
        keys, desk = sent_keys(call), kme.first.desk
        (key_id,) = keys
        how = "answered 503" if status else "cut off"
        try:
            said.append(f"{how}: {await kme.again_or_void(EXT_KEYS, key_id)}")
        except TimeoutError:
            raise Deviation(f"a transfer that was {how} is neither repeated nor voided") from None
        repeated = {bits for each in desk.calls(EXT_KEYS, key_id) for bits in [sent_keys(each)[key_id]]}
        expect(repeated == {keys[key_id]}, "repeated with other bits")
        await asking
    return ", ".join(said)


async def ack_missing(kme: Kme020) -> str:
    kme.first.desk.silent = True
    asking, call = await kme.asked()
    (key_id,) = sent_keys(call)
    try:
        said = await kme.again_or_void(EXT_KEYS, key_id)
    except TimeoutError:
        raise Deviation("neither repeated nor voided") from None
    expect(not asking.done() or asking.result().status != 200, "the SAE got the key all the same")
    return said


def register() -> None:
    """Put these into the catalogue, those that take long last."""
    add = CATALOGUE.probe
    add("sends", "ext_keys", "its own transfers have the form of the standard", "valid, released on our ack")(
        sends_transfer
    )
    add("ack-array", "ack", "acknowledgements are arrays", "400 for an object, 200 for an array of it")(
        ack_array
    )
    add("ack-status", "ack", "an ack_status that is none of the five", "400 ack-not-understood")(
        ack_bad_status
    )
    add("ack-unknown", "ack", "an acknowledgement for a key that was never sent", "400 key-not-present")(
        ack_unknown
    )
    add("ack-failed", "ack", "`failed` keeps the key from its master", "no 200 for the SAE")(ack_failed)
    add("refused", "state rules", "a transfer we refuse with 400 has failed", "no 200 for the SAE")(
        transfer_refused
    )
    add("unanswered", "state rules", "503 or silence for its transfer", "the same again, or a void")(
        transfer_unanswered
    )
    add("ack-lost", "state rules", "its acknowledgement gets 503, or is cut off", "sent again, or a void")(
        ack_lost
    )
    add("ack-missing", "state rules", "no acknowledgement for its transfer", "the same again, or a void")(
        ack_missing
    )
    add("ack-form", "ack", "every acknowledgement so far has the form of the standard", "arrays, all valid")(
        ack_form
    )
