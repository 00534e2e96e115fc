"""The rules of ETSI GS QKD 020 V1.1.1 that can be seen from outside, in the order of a key's life.

The clause column names the operation or the part of the standard that has the rule.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import uuid
from decimal import Decimal
from typing import Any

from keyhaul.conformance import acks020, voids020
from keyhaul.conformance.call import Answer, refused
from keyhaul.conformance.judge020 import EXT_KEYS, VERSIONS, VOID, problem
from keyhaul.conformance.kme020 import CATALOGUE, KEY_BYTES, Keys, Kme020, fresh
from keyhaul.conformance.probe import Deviation, NotApplicable, expect

PROBES = CATALOGUE.probes
probe = CATALOGUE.probe

# --- connection


@probe("versions", "versions", "GET /kmapi/versions lists v1", "200 with versions and known types")
async def versions(kme: Kme020) -> str:
    answer = await kme.first.caller.get(VERSIONS)
    expect(answer.status == 200, answer.brief())
    value = answer.object()
    for name in ("versions", "capabilities"):
        listed = value.get(name, [])
        texts = isinstance(listed, list) and all(isinstance(each, str) for each in listed)
        expect(texts, f"{name} is {listed!r}")
    expect("v1" in value.get("versions", []), f"versions {value.get('versions')!r}")
    return ", ".join([*value["versions"], *value.get("capabilities", [])])


@probe("tls", "connection", "TLS 1.3 or newer", "TLS 1.3; a caller with TLS 1.2 is turned away")
async def tls(kme: Kme020) -> str:
    version = (await kme.first.caller.get(VERSIONS)).tls
    expect(version == "TLSv1.3", f"negotiated {version}")
    if kme.old_tls is None:
        return f"{version}; TLS 1.2 not tried, the certificate does not suit it"
    return f"{version}; TLS 1.2: {await refused(kme.old_tls, VERSIONS)}"


@probe(
    "no-certificate", "connection", "a caller without a certificate is turned away", "no connection, or 401"
)
async def no_certificate(kme: Kme020) -> str:
    return await refused(kme.anonymous, VERSIONS)


@probe("stranger", "connection", "a KME that is no neighbour is turned away", "no connection, or 401")
async def stranger(kme: Kme020) -> str:
    if kme.stranger is None:
        raise NotApplicable("needs --stranger")
    return await refused(kme.stranger, VERSIONS)


# --- ext_keys


@probe("accepted", "ext_keys", "a transfer is answered 202 without a body", "202, then `relayed`")
async def accepted(kme: Kme020) -> str:
    keys = fresh(2)
    answer = await kme.send(keys)
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    expect(not answer.body, f"202 with a body of {len(answer.body)} bytes")
    for key_id in keys:
        await kme.outcome(key_id, "relayed")
    return "202, relayed"


@probe("before-work", "ext_keys", "202 does not wait for the work", "202 while the acknowledgement waits")
async def before_work(kme: Kme020) -> str:
    keys, desk = fresh(), kme.first.desk
    desk.hold.clear()
    try:
        async with asyncio.timeout(kme.wait):
            answer = await kme.send(keys)
    except TimeoutError:
        raise Deviation("no answer while our answer to its acknowledgement was waiting") from None
    finally:
        desk.hold.set()
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    await kme.outcome(next(iter(keys)), "relayed")
    return "202 first"


@probe("same-bits", "ext_keys", "the SAE gets the bits that were sent", "the same bits over 014")
async def same_bits(kme: Kme020) -> str:
    kme.application()
    keys = fresh(2)
    await kme.relay(keys)
    await kme.delivered(keys)
    return "the same bits"


@probe("retry", "state rules", "the same transfer again changes nothing", "202 and `relayed` again")
async def retry(kme: Kme020) -> str:
    keys = fresh()
    await kme.relay(keys)
    (key_id,) = keys
    seen = len(kme.first.desk.statuses[key_id])
    answer = await kme.send(keys)
    expect(answer.status == 202, f"the second time {answer.brief()}, not 202")
    await kme.outcome(key_id, "relayed", when="the second time ", after=seen)
    if kme.sae is not None:
        await kme.delivered(keys, "afterwards, ")
    return "202 and relayed, both times"


@probe(
    "conflict", "state rules", "a known id with another value never gets 400 or 401", "503, or 202 and failed"
)
async def conflict(kme: Kme020) -> str:
    keys = fresh()
    await kme.relay(keys)
    (key_id,) = keys
    seen = len(kme.first.desk.statuses[key_id])
    answer = await kme.send({key_id: os.urandom(KEY_BYTES)})
    if answer.status == 202:
        await kme.outcome(key_id, "failed", after=seen)
        said = "202, then failed"
    else:
        said = problem(answer, 503)
    if kme.sae is not None:
        await kme.delivered(keys, "afterwards, ")
    return said


# --- ext_keys: what is refused, and that nothing is kept of it


async def _kept_nothing(kme: Kme020, keys: Keys, answer: Answer, *slugs: str) -> str:
    """A 400 promises that no association exists: the same id with other bits must be welcome."""
    said = problem(answer, 400, *slugs)
    other = {key_id: os.urandom(KEY_BYTES) for key_id in keys}
    await kme.relay(other, "the id was kept: with other bits, ")
    if kme.sae is not None:
        await kme.delivered(other, "afterwards, ")
    return said


@probe("missing", "ext_keys", "a missing member; nothing is kept", "400 missing-parameters")
async def missing(kme: Kme020) -> str:
    said = []
    for name in ("keys", "initiator_sae_id", "target_sae_ids"):
        keys = fresh()
        answer = await kme.send(keys, **{name: None})
        expect(answer.status == 400, f"without {name}: {answer.brief()}")
        said.append(await _kept_nothing(kme, keys, answer, "missing-parameters", "invalid-parameter"))
    return ", ".join(dict.fromkeys(said))


@probe("invalid", "ext_keys", "an invalid member; nothing is kept", "400 invalid-parameter")
async def invalid(kme: Kme020) -> str:
    said = []
    for name, changes in _invalid().items():
        keys = fresh()
        (key_id,) = keys
        value = base64.b64encode(keys[key_id]).decode()
        if "keys" in changes:
            changes["keys"] = json.loads(
                json.dumps(changes["keys"]).replace("ID", key_id).replace("OK", value)
            )
        answer = await kme.send(keys, **changes)
        expect(answer.status == 400, f"{name}: {answer.brief()}, not 400")
        said.append(await _kept_nothing(kme, keys, answer, "invalid-parameter", "missing-parameters"))
    return ", ".join(dict.fromkeys(said))


def _invalid() -> dict[str, dict[str, Any]]:
    good = {"key_id": "ID", "value": "OK"}
    return {
        "a value that is no base64": {"keys": [{"key_id": "ID", "value": "*" * 44}]},
        "a second key without UUID": {"keys": [good, {"key_id": "no-uuid", "value": "OK"}]},
        "a second key without value": {"keys": [good, {"key_id": str(uuid.uuid4())}]},
        "no key at all": {"keys": []},
        "an SAE id with a blank": {"target_sae_ids": ["no such"]},
        "an SAE id of 65 characters": {"target_sae_ids": ["a" * 65]},
        "no target": {"target_sae_ids": []},
        "a callback over http": {"ack_callback_url": "http://127.0.0.1/kmapi/v1/ext_keys/ack"},
        "an extension that is an array": {"extension_optional": [{"E32473_probe": 1}]},
        "an extension without E and number": {"extension_optional": {"probe": 1}},
    }


@probe("not-json", "ext_keys", "a body that is not JSON, or no object", "400")
async def not_json(kme: Kme020) -> str:
    for body in (b"{", b"[]", b"\xff", b"7"):
        answer = await kme.first.caller.ask("POST", EXT_KEYS, body)
        expect(answer.status == 400, f"{body!r}: {answer.brief()}")
        problem(answer, 400)
    return "400"


@probe(
    "unknown-target",
    "ext_keys",
    "a target nobody knows; nothing is kept on 400",
    "400 or 503 key-routing-error",
)
async def unknown_target(kme: Kme020) -> str:
    keys = fresh()
    answer = await kme.send(keys, target_sae_ids=[f"nobody-{uuid.uuid4()}"])
    if answer.status == 503:
        return problem(answer, 503, "key-routing-error")
    return await _kept_nothing(kme, keys, answer, "key-routing-error")


@probe("pass-back", "ext_keys", "a target that only the caller can reach", "400 or 503 key-routing-error")
async def pass_back(kme: Kme020) -> str:
    keys = fresh()
    answer = await kme.send(keys, target_sae_ids=[kme.first.sae])
    if answer.status == 503:
        return problem(answer, 503, "key-routing-error")
    return await _kept_nothing(kme, keys, answer, "key-routing-error", "invalid-parameter")


@probe("callback-host", "ext_keys", "a callback at a foreign host is not called", "400, 401 or 503")
async def callback_host(kme: Kme020) -> str:
    keys = fresh()
    answer = await kme.send(keys, ack_callback_url="https://callback.invalid/kmapi/v1/ext_keys/ack")
    expect(answer.status in (400, 401, 503), f"{answer.brief()} for a callback at another host")
    if answer.status != 400:
        return problem(answer, answer.status)
    return await _kept_nothing(kme, keys, answer)


@probe(
    "synchronous",
    "ext_keys",
    "without a callback: synchronous mode, or refused",
    "400 or 503; 200 if announced",
)
async def synchronous(kme: Kme020) -> str:
    keys = fresh()
    announced = "synchronous_mode" in await kme.capabilities()
    answer = await kme.send(keys, ack_callback_url=None)
    if not announced and answer.status == 503:
        return problem(answer, 503)
    if not announced:
        return await _kept_nothing(kme, keys, answer, "missing-parameters")
    expect(answer.status == 200, f"{answer.brief()} though synchronous_mode is announced")
    value = answer.json()
    fault = acks020.ack_fault(value)
    expect(not fault, fault)
    return f"200, {value[0]['ack_status']}"


# --- extensions


@probe("mandatory", "extensions", "an unknown mandatory extension", "503 unsupported-mandatory-extension")
async def mandatory(kme: Kme020) -> str:
    answer = await kme.send(fresh(), extension_mandatory={"E32473_probe_unheard_of": True})
    return problem(answer, 503, "unsupported-mandatory-extension")


@probe("optional", "extensions", "an unknown optional extension does no harm", "202, then `relayed`")
async def optional(kme: Kme020) -> str:
    await kme.relay(fresh(), extension_optional={"E32473_probe": {"a": [1, "ñ", None]}})
    return "202, relayed"


_EXTENSION = '{"b": 1.50, "a":[1,2e3,"\\u00f1 ñ", true,null,{}] }'


@probe("optional-passed", "extensions", "an optional extension goes on unchanged", "the same at the next KME")
async def optional_passed(kme: Kme020) -> str:
    onward, keys = kme.second_neighbour(), fresh()
    (key_id,) = keys
    container = kme.body(keys, target_sae_ids=[onward.sae], extension_optional={"E32473_probe": "HERE"})
    body = json.dumps(container, ensure_ascii=False).replace('"HERE"', _EXTENSION)
    answer = await kme.first.caller.ask("POST", EXT_KEYS, body.encode())
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    await kme.outcome(key_id, "relayed")
    calls = onward.desk.calls(EXT_KEYS, key_id)
    expect(calls, "relayed, but the next KME got no transfer")
    if f'"E32473_probe":{_EXTENSION}'.encode() in calls[0].body.replace(
        b'"E32473_probe": ', b'"E32473_probe":'
    ):
        return "byte for byte"
    value = json.loads(calls[0].body, parse_float=Decimal, parse_int=Decimal)
    found = (value.get("extension_optional") or {}).get("E32473_probe", "nothing")
    expect(found == json.loads(_EXTENSION, parse_float=Decimal, parse_int=Decimal), f"{found!r}")
    return "the same value, written differently"


# --- a second KME further on


@probe("onward", "ack", "`relayed` comes only when the next KME has the key", "nothing before its ack")
async def onward_relayed(kme: Kme020) -> str:
    onward, keys = kme.second_neighbour(), fresh()
    (key_id,) = keys
    onward.desk.silent = True
    answer = await kme.send(keys, target_sae_ids=[onward.sae])
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    await kme.until(onward.desk, lambda: onward.desk.calls(EXT_KEYS, key_id))
    call = onward.desk.calls(EXT_KEYS, key_id)[0]
    early = list(kme.first.desk.statuses[key_id])
    expect(not early, f"acknowledged as {early} before the next KME had acknowledged")
    await acks020.acknowledge(onward.caller, [onward.ack([key_id], "relayed", call.value())])
    await kme.outcome(key_id, "relayed")
    return "relayed, after the next KME's"


@probe("onward-202", "ext_keys", "202 does not wait for the next KME", "202 while the next KME is slow")
async def onward_202(kme: Kme020) -> str:
    onward, keys = kme.second_neighbour(), fresh()
    onward.desk.hold.clear()
    try:
        async with asyncio.timeout(kme.wait):
            answer = await kme.send(keys, target_sae_ids=[onward.sae])
    except TimeoutError:
        raise Deviation("no answer while the next KME was slow") from None
    finally:
        onward.desk.hold.set()
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    await kme.outcome(next(iter(keys)), "relayed")
    return "202 first"


@probe("onward-failed", "ack", "what fails further on fails here", "`failed`")
async def onward_failed(kme: Kme020) -> str:
    onward, keys = kme.second_neighbour(), fresh()
    onward.desk.plan[EXT_KEYS].append(400)
    answer = await kme.send(keys, target_sae_ids=[onward.sae])
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    return await kme.outcome(next(iter(keys)), "failed")


@probe("onward-void", "void", "a void goes on to the next KME", "the next KME gets it; `voided`")
async def onward_void(kme: Kme020) -> str:
    onward, keys = kme.second_neighbour(), fresh()
    (key_id,) = keys
    await kme.relay(keys, target_sae_ids=[onward.sae])
    seen = len(kme.first.desk.statuses[key_id])
    answer = await kme.void(keys, target_sae_ids=[onward.sae])
    expect(answer.status == 202, f"{answer.brief()}, not 202")
    await kme.outcome(key_id, "voided", after=seen)
    expect(onward.desk.calls(VOID, key_id), "voided, but the next KME got no void")
    return "voided there and here"


voids020.register()
acks020.register()
