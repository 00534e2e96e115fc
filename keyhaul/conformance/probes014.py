"""The rules of ETSI GS QKD 014 V1.1.1 that can be seen from outside, in the order of its clauses."""

from __future__ import annotations

import uuid

import aiohttp

from keyhaul.conformance.call import Answer, Caller, refused
from keyhaul.conformance.kme014 import (
    CATALOGUE,
    INTEGERS,
    NOT_FOUND,
    PREFIX,
    SIZE,
    STRINGS,
    UNHANDLED,
    UNSUPPORTED,
    Kme014,
    container,
    error_message,
    is_integer,
    refusal,
    segment,
)
from keyhaul.conformance.probe import NotApplicable, expect

PROBES = CATALOGUE.probes
probe = CATALOGUE.probe

# --- protocol


@probe("tls", "protocol", "HTTPS with TLS 1.2 or newer", "TLS 1.2 or 1.3")
async def tls_version(kme: Kme014) -> str:
    seen = [
        (await kme.get(each, f"{segment(kme.slave.name)}/status")).tls for each in (kme.master, kme.slave)
    ]
    expect(set(seen) <= {"TLSv1.2", "TLSv1.3"}, f"negotiated {', '.join(seen)}")
    return " and ".join(dict.fromkeys(seen))


@probe("no-certificate", "protocol", "a caller without a certificate is turned away", "no connection, or 401")
async def no_certificate(kme: Kme014) -> str:
    path = f"{PREFIX}{segment(kme.slave.name)}/status"
    return ", ".join(dict.fromkeys([await refused(caller, path) for caller in kme.anonymous]))


# --- 5.1 Get status, 6.1


@probe("status", "5.1, 6.1", "status has its eleven members, of their types", "200 with all of them")
async def status(kme: Kme014) -> str:
    found = await kme.limits()
    for name in STRINGS:
        expect(isinstance(found.get(name), str), f"{name} is {found.get(name)!r}")
    for name in INTEGERS:
        expect(is_integer(found.get(name)), f"{name} is {found.get(name)!r}")
    extension = found.get("status_extension", {})
    expect(isinstance(extension, dict), f"status_extension is {extension!r}")
    return "all eleven"


@probe("status-names", "5.1, 6.1", "status names the caller as master, the path as slave", "both SAE ids")
async def status_names(kme: Kme014) -> str:
    found = await kme.limits()
    expect(found.get("master_SAE_ID") == kme.master.name, f"master_SAE_ID {found.get('master_SAE_ID')!r}")
    expect(found.get("slave_SAE_ID") == kme.slave.name, f"slave_SAE_ID {found.get('slave_SAE_ID')!r}")
    return f"{kme.master.name}, {kme.slave.name}"


@probe("status-bounds", "6.1", "the bounds agree with each other", "min ≤ default ≤ max, stored ≤ max")
async def status_bounds(kme: Kme014) -> str:
    least, usual, most = [await kme.number(f"{name}key_size") for name in ("min_", "", "max_")]
    stored, count = await kme.number("stored_key_count"), await kme.number("max_key_count")
    expect(0 < least <= usual <= most, f"key sizes {least}, {usual}, {most}")
    expect(0 <= stored <= count, f"{stored} keys stored of at most {count}")
    expect(await kme.number("max_key_per_request") > 0, "max_key_per_request is 0")
    expect(await kme.number("max_SAE_ID_count") >= 0, "max_SAE_ID_count is negative")
    return f"{least} ≤ {usual} ≤ {most} bits, {stored} ≤ {count}"


@probe("escaping", "5.1", "the SAE id in the path is percent-decoded once", "the same slave_SAE_ID")
async def escaping(kme: Kme014) -> str:
    escaped = "".join(f"%{byte:02x}" for byte in kme.slave.name.encode())
    answer = await kme.get(kme.master, f"{escaped}/status")
    expect(answer.status == 200, f"{answer.brief()} for {escaped}")
    expect(answer.object().get("slave_SAE_ID") == kme.slave.name, "another slave_SAE_ID")
    twice = await kme.get(kme.master, f"{escaped.replace('%', '%25')}/status")
    expect(twice.status in (400, 401, 503), f"an id escaped twice: {twice.brief()}")
    return kme.slave.name


@probe(
    "slash", "5.1", "an escaped / in an SAE id is part of the id", "400, 401 or 503: no such SAE; never 404"
)
async def slash(kme: Kme014) -> str:
    answer = await kme.get(kme.master, f"no%2Fsuch%3Fsae%23{uuid.uuid4()}/status")
    expect(answer.status in (400, 401, 503), answer.brief())
    return str(answer.status)


@probe("unknown-slave", "5.2", "no keys for a slave that nobody knows", "400, 401 or 503")
async def unknown_slave(kme: Kme014) -> str:
    answer = await kme.post(kme.master, f"no-such-sae-{uuid.uuid4()}/enc_keys", {})
    expect(answer.status in (400, 401, 503), answer.brief())
    return str(answer.status)


# --- 5.2 Get key, 6.2, 6.3


@probe("default", "5.2, 6.2", "an empty request gives one key of the default size", "1 key of key_size bits")
async def default(kme: Kme014) -> str:
    return await _sizes(kme, await kme.order(), 1, await kme.number("key_size"))


@probe("number-size", "5.2, 6.2", "number and size are met exactly", "as many keys, as long, all different")
async def number_size(kme: Kme014) -> str:
    number, size = min(3, await kme.number("max_key_per_request")), await _another_size(kme)
    return await _sizes(kme, await kme.order(number=number, size=size), number, size)


@probe("get", "5.2", "GET without parameters", "1 key of key_size bits")
async def get(kme: Kme014) -> str:
    answer = await kme.get(kme.master, f"{segment(kme.slave.name)}/enc_keys")
    expect(answer.status == 200, answer.brief())
    return await _sizes(kme, container(answer), 1, await kme.number("key_size"))


@probe("get-number-size", "5.2", "GET with number and size", "as many keys, as long, all different")
async def get_number_size(kme: Kme014) -> str:
    number, size = min(2, await kme.number("max_key_per_request")), await _another_size(kme)
    answer = await kme.get(kme.master, f"{segment(kme.slave.name)}/enc_keys?number={number}&size={size}")
    expect(answer.status == 200, answer.brief())
    return await _sizes(kme, container(answer), number, size)


async def _sizes(kme: Kme014, keys: dict[str, bytes], number: int, size: int) -> str:
    expect(len(keys) == number, f"{len(keys)} keys")
    wrong = [len(bits) * 8 for bits in keys.values() if len(bits) != (size + 7) // 8]
    expect(not wrong, f"a key of {wrong[:1]} bits where {size} were to come")
    expect(len(set(keys.values())) == number or size < 64, "two keys have the same bits")
    return f"{number} of {size} bits"


async def _another_size(kme: Kme014) -> int:
    """A size that is allowed and not the default, where there is one; a multiple of 8."""
    least, usual, most = [await kme.number(f"{name}key_size") for name in ("min_", "", "max_")]
    sizes = [size for size in (usual * 2, usual // 2, usual + 64, usual - 64) if least <= size <= most]
    return next((size for size in sizes if size % 8 == 0), usual)


@probe("size-octets", "5.2", "a size that is no multiple of 8", f"400 {SIZE}, or a key of that size")
async def size_octets(kme: Kme014) -> str:
    size = await kme.number("key_size") + 1
    if size > await kme.number("max_key_size"):
        size -= 2
    answer = await kme.enc({"size": size})
    if answer.status == 200:
        return await _sizes(kme, container(answer), 1, size)
    return refusal(answer, SIZE)


@probe("size-over", "6.1, 6.2", "a size over max_key_size is refused", "400 with an Error body")
async def size_over(kme: Kme014) -> str:
    return refusal(await kme.enc({"size": (await kme.number("max_key_size") // 8 + 1) * 8}))


@probe("size-under", "6.1, 6.2", "a size under min_key_size is refused", "400 with an Error body")
async def size_under(kme: Kme014) -> str:
    return refusal(await kme.enc({"size": max((await kme.number("min_key_size") - 1) // 8 * 8, 0)}))


@probe("number-over", "6.1, 6.2", "more keys than max_key_per_request are refused", "400 with an Error body")
async def number_over(kme: Kme014) -> str:
    return refusal(await kme.enc({"number": await kme.number("max_key_per_request") + 1}))


@probe("number-under", "6.2", "no keys, or fewer, are refused", "400 with an Error body")
async def number_under(kme: Kme014) -> str:
    return "; ".join([refusal(await kme.enc({"number": number})) for number in (0, -1)])


@probe("bad-types", "6.2", "members of a wrong type are refused", "400 with an Error body")
async def bad_types(kme: Kme014) -> str:
    values: list[object] = [{"number": "two"}, {"size": [256]}, {"additional_slave_SAE_IDs": "x"}, [], 7]
    for value in values:
        answer = await kme.enc(value)
        expect(answer.status == 400, f"{value!r}: {answer.brief()}")
        error_message(answer)
    return "400"


@probe("not-json", "6.2", "a body that is not JSON is refused", "400 with an Error body")
async def not_json(kme: Kme014) -> str:
    for body in (b"{", b'{"number": 1,}', b"\xff\xfe"):
        answer = await kme.enc(body)
        expect(answer.status == 400, f"{body!r}: {answer.brief()}")
        error_message(answer)
    return "400"


@probe("get-not-a-number", "5.2", "GET with a number that is none is refused", "400 with an Error body")
async def get_not_a_number(kme: Kme014) -> str:
    return refusal(await kme.get(kme.master, f"{segment(kme.slave.name)}/enc_keys?number=two"))


@probe("mandatory-unknown", "5.2", "an unknown mandatory extension is refused", f"400 {UNSUPPORTED}")
async def mandatory_unknown(kme: Kme014) -> str:
    return refusal(await kme.enc({"extension_mandatory": [{"probe_unheard_of": True}]}), UNSUPPORTED)


@probe("optional-unknown", "5.2", "an unknown optional extension is ignored", f"200, or 400 {UNHANDLED}")
async def optional_unknown(kme: Kme014) -> str:
    answer = await kme.enc({"extension_optional": [{"probe_unheard_of": {"a": [1, "ñ"]}}, {"probe_b": None}]})
    if answer.status != 200:
        return refusal(answer, UNHANDLED)
    return await _sizes(kme, container(answer), 1, await kme.number("key_size"))


@probe("extension-types", "6.2", "extensions are arrays of objects", "400 with an Error body for others")
async def extension_types(kme: Kme014) -> str:
    for name in ("extension_mandatory", "extension_optional"):
        answer = await kme.enc({name: "probe"})
        expect(answer.status == 400, f"{name} as a text: {answer.brief()}")
    return "400"


# --- 5.3 Get key with key IDs, 6.4


@probe("same-bits", "5.3", "the slave, with its own certificate, gets the same bits", "same ids and bits")
async def same_bits(kme: Kme014) -> str:
    expect(kme.master.name != kme.slave.name, "master and slave are the same SAE: nothing is shown")
    keys = await kme.order(number=min(2, await kme.number("max_key_per_request")))
    await kme.deliver(kme.slave, keys)
    return f"{len(keys)} keys alike at {kme.master.name} and {kme.slave.name}"


@probe("get-key-id", "5.3", "dec_keys with GET and one key_ID", "the same bits")
async def get_key_id(kme: Kme014) -> str:
    keys = await kme.order()
    answer = await kme.get(kme.slave, f"{segment(kme.master.name)}/dec_keys?key_ID={next(iter(keys))}")
    expect(answer.status == 200, answer.brief())
    expect(container(answer) == keys, "other ids or bits")
    return "the same bits"


@probe("once", "5.3", "a key is delivered once", f"400 {NOT_FOUND} the second time")
async def once(kme: Kme014) -> str:
    keys = await kme.order()
    await kme.deliver(kme.slave, keys)
    return refusal(await kme.dec(kme.slave, keys), NOT_FOUND)


@probe("unknown-id", "5.3", "an id that was never issued", f"400, not 404: {NOT_FOUND}")
async def unknown_id(kme: Kme014) -> str:
    return refusal(await kme.dec(kme.slave, [str(uuid.uuid4())]), NOT_FOUND)


@probe("unknown-id-get", "5.3", "an id that was never issued, with GET", f"400, not 404: {NOT_FOUND}")
async def unknown_id_get(kme: Kme014) -> str:
    path = f"{segment(kme.master.name)}/dec_keys?key_ID={uuid.uuid4()}"
    return refusal(await kme.get(kme.slave, path), NOT_FOUND)


@probe("all-or-nothing", "5.3", "one unknown id fails the whole request", f"400 {NOT_FOUND}; the rest stays")
async def all_or_nothing(kme: Kme014) -> str:
    keys = await kme.order(number=min(2, await kme.number("max_key_per_request")))
    said = refusal(await kme.dec(kme.slave, [*keys, str(uuid.uuid4())]), NOT_FOUND)
    await kme.deliver(kme.slave, keys, "afterwards, ")
    return f"{said}; then all delivered"


@probe(
    "bad-ids", "6.4", "a body without key ids, or with ids of no form, is refused", "400 with an Error body"
)
async def bad_ids(kme: Kme014) -> str:
    path = f"{segment(kme.master.name)}/dec_keys"
    values: list[object] = [{}, {"key_IDs": "x"}, {"key_IDs": [{}]}, {"key_IDs": [{"key_ID": 7}]}, b"{"]
    for value in values:
        answer = await kme.post(kme.slave, path, value)
        expect(answer.status == 400, f"{value!r}: {answer.brief()}")
        error_message(answer)
    return "400"


@probe("get-two-ids", "5.3", "GET takes exactly one key_ID", "400 for two and for none; both keys stay")
async def get_two_ids(kme: Kme014) -> str:
    keys = {**await kme.order(), **await kme.order()}
    path = f"{segment(kme.master.name)}/dec_keys"
    for query in ("?" + "&".join(f"key_ID={key_id}" for key_id in keys), ""):
        answer = await kme.get(kme.slave, path + query)
        expect(answer.status == 400, f"{query.count('key_ID')} ids: {answer.brief()}")
    await kme.deliver(kme.slave, keys, "afterwards, ")
    return "400"


# --- who may have a key


@probe(
    "master-dec", "5.3", "the master was not named as slave of its own key", "401; the slave still gets it"
)
async def master_dec(kme: Kme014) -> str:
    return await _turned_away(kme, kme.master, await kme.order())


@probe("stranger", "5.3", "an SAE that was not named gets nothing", "401; the slave still gets the key")
async def stranger(kme: Kme014) -> str:
    return await _turned_away(kme, kme.foreign(), await kme.order())


async def _turned_away(kme: Kme014, caller: Caller, keys: dict[str, bytes]) -> str:
    seen = await _asked_where_the_key_waits(kme, caller, keys)
    await kme.deliver(kme.slave, keys, "afterwards, ")
    return f"{seen}; then delivered to the slave"


async def _asked_where_the_key_waits(kme: Kme014, caller: Caller, keys: dict[str, bytes]) -> str:
    """At the slave's KME, if that lets the caller in at all; its own KME may know nothing of the key."""
    there = Caller(caller.name, kme.slave.url, caller.tls)
    try:
        answer = await kme.dec(there, keys)
    except aiohttp.ClientError:
        expect(caller.url != kme.slave.url, "no answer from its own KME")
        answer = await kme.dec(caller, keys)
        expect(answer.status in (400, 401), f"{caller.name} at its own KME: {answer.brief()}")
        return f"no connection to the slave's KME, {answer.status} from its own"
    expect(answer.status == 401, f"{caller.name}: {answer.brief()}")
    return "401"


@probe("each-id", "5.3", "the caller must be named for each id", "401 if not for one; the other key stays")
async def each_id(kme: Kme014) -> str:
    mine, theirs = await kme.order(), await kme.order(to=kme.other())
    if kme.other().url != kme.slave.url:
        raise NotApplicable("slave and additional SAE are served by different KMEs")
    answer = await kme.dec(kme.slave, [*mine, *theirs])
    expect(answer.status == 401, answer.brief())
    await kme.deliver(kme.slave, mine, "afterwards, ")
    await kme.deliver(kme.other(), theirs, "afterwards, ")
    return "401; then each got its own"


@probe("other-master", "5.3", "the path must name the master of the key", "400 or 401; the key stays")
async def other_master(kme: Kme014) -> str:
    keys = await kme.order()
    answer = await kme.dec(kme.slave, keys, master=kme.slave.name)
    expect(answer.status in (400, 401), answer.brief())
    await kme.deliver(kme.slave, keys, "afterwards, ")
    return f"{answer.status}; then delivered"


# --- several slaves


@probe("multicast", "5.2, 6.2", "additional slaves get the same bits", "same bits, once for each")
async def multicast(kme: Kme014) -> str:
    other = kme.other()
    if await kme.number("max_SAE_ID_count") < 1:
        raise NotApplicable("max_SAE_ID_count is 0: no multicast")
    keys = await kme.order(additional_slave_SAE_IDs=[other.name])
    await kme.deliver(kme.slave, keys)
    await kme.deliver(other, keys, "after the slave, ")
    for caller in (kme.slave, other):
        refusal(await kme.dec(caller, keys), NOT_FOUND)
    return f"{kme.slave.name} and {other.name}, once each"


@probe("too-many-slaves", "6.1, 6.2", "more than max_SAE_ID_count additional slaves are refused", "400")
async def too_many_slaves(kme: Kme014) -> str:
    most = await kme.number("max_SAE_ID_count")
    names = [f"probe-{number}" for number in range(most + 1)]
    return refusal(await kme.enc({"additional_slave_SAE_IDs": names}))


# --- HTTP


@probe("methods", "5", "other methods give and take no keys", "no 2xx for PUT, DELETE, PATCH")
async def methods(kme: Kme014) -> str:
    seen: list[Answer] = []
    for operation in ("status", "enc_keys", "dec_keys"):
        for method in ("PUT", "DELETE", "PATCH"):
            answer = await kme.master.ask(method, f"{PREFIX}{segment(kme.slave.name)}/{operation}", b"{}")
            expect(not 200 <= answer.status < 300, f"{method} {operation}: {answer.status}")
            seen.append(answer)
    return ", ".join(dict.fromkeys(str(answer.status) for answer in seen))


@probe("error-bodies", "6.5", "every 400 and 503 so far has an Error body", "JSON with message, details[]")
async def error_bodies(kme: Kme014) -> str:
    for answer in kme.errors:
        error_message(answer)
    return f"{len(kme.errors)} of {len(kme.errors)}"
