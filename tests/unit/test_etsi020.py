"""020 bodies: what goes through unchanged, what is refused with which problem, and what is never shown."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.errors import (
    Malformed,
    TooLarge,
)
from keyhaul.messages.etsi020 import (
    Ack,
    AckStatus,
    Dialect,
    ExtKey,
    ExtKeys,
    Void,
    decode_acks,
    decode_ext_keys,
    decode_void,
    encode_acks,
    encode_ext_keys,
    encode_versions,
    encode_void,
    plain,
)
from keyhaul.messages.problems import PREFIX, problem
from keyhaul.messages.saeids import conforms as wire_conforms
from keyhaul.messages.saeids import local_sae_id, wire_sae_id
from tests.interop.schema020 import check, conforms, document

ONE = UUID("3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a01")
TWO = UUID("3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a02")
URL = "https://kme-x2.example/kmapi/v1/ext_keys/ack"

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)
wires = st.from_regex(r"\A(?:[A-Za-z0-9/?#@!:.-]|%(?:20|25|2F|2f|41|C3|A9|c3|a9|FF))+\Z")
uuids = st.uuids()
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
extensions = st.dictionaries(st.from_regex(r"\AE[0-9]{1,5}_[a-z]*\Z"), values, max_size=3)
targets = st.lists(names, min_size=1, max_size=3).map(tuple)


def transfer(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "keys": [{"key_id": str(ONE), "value": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}],
        "initiator_sae_id": "SAE_A",
        "target_sae_ids": ["SAE_B"],
        "ack_callback_url": URL,
    }
    body |= changes
    return {name: value for name, value in body.items() if value is not ...}


def ack(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "key_id_container": [{"key_id": str(ONE)}],
        "ack_status": "relayed",
        "initiator_sae_id": "SAE_A",
        "target_sae_ids": ["SAE_B"],
    }
    body |= changes
    return {name: value for name, value in body.items() if value is not ...}


def void(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "key_ids": [str(ONE)],
        "initiator_sae_id": "SAE_A",
        "target_sae_ids": ["SAE_B"],
        "ack_callback_url": URL,
    }
    body |= changes
    return {name: value for name, value in body.items() if value is not ...}


def dump(body: Any) -> bytes:
    return json.dumps(body).encode()


# --- there and back


@settings(deadline=None)
@given(
    st.dictionaries(uuids, st.binary(min_size=1, max_size=80), min_size=1, max_size=3),
    names,
    targets,
    extensions,
)
def test_transfers_survive_and_conform_to_the_schema(
    keys: dict[UUID, bytes], initiator: str, to: tuple[str, ...], extension: dict[str, Any]
) -> None:
    sent = ExtKeys(
        tuple(ExtKey(key_id, value, extension) for key_id, value in keys.items()),
        initiator,
        to,
        URL,
        extension_mandatory=extension,
        extension_optional=extension,
    )
    body = encode_ext_keys(sent, sealed=True)
    got = decode_ext_keys(body, sealed=True)
    assert [(key.key_id, key.value) for key in got.keys] == list(keys.items())
    assert (got.initiator_sae_id, got.target_sae_ids, got.ack_callback_url) == (initiator, to, URL)
    for members in (got.keys[0].extension, got.extension_mandatory, got.extension_optional):
        assert {name: plain(value) for name, value in members.items()} == extension
    if all(len(wire_sae_id(name)) <= 64 for name in (initiator, *to)):
        check("ext_key_container", body)


@settings(deadline=None)
@given(
    st.lists(uuids, max_size=4).map(tuple), st.sampled_from(AckStatus), names, targets, st.text(max_size=20)
)
def test_acks_survive(
    ids: tuple[UUID, ...], status: AckStatus, initiator: str, to: tuple[str, ...], message: str
) -> None:
    sent = Ack(ids, status, initiator, to, message)
    assert decode_acks(encode_acks([sent], sealed=True), sealed=True) == (sent,)


@settings(deadline=None)
@given(st.lists(uuids, min_size=1, max_size=4).map(tuple), names, targets, st.booleans())
def test_voids_survive(ids: tuple[UUID, ...], initiator: str, to: tuple[str, ...], confirm: bool) -> None:
    sent = Void(ids, initiator, to, URL, confirm)
    assert decode_void(encode_void(sent, sealed=True), sealed=True) == sent


def test_what_we_send_conforms_to_the_schemas() -> None:
    extension = {"E32473_hops": 2}
    key = ExtKey(ONE, b"k" * 32, extension)
    check(
        "ext_key_container", encode_ext_keys(ExtKeys((key,), "a b", ("a%b", "ñ"), URL, extension, extension))
    )
    check(
        "ack_containers",
        encode_acks([Ack((ONE, TWO), s, "A", ("B", "C"), "m", extension) for s in AckStatus]),
    )
    check("ack_containers", encode_acks([]))
    check("void_container", encode_void(Void((), "A", ("B",), URL, True, extension)))
    check("version_container", encode_versions())


def test_empty_members_are_omitted() -> None:
    sent = json.loads(encode_ext_keys(ExtKeys((ExtKey(ONE, b"k"),), "A", ("B",), None)))
    assert set(sent) == {"keys", "initiator_sae_id", "target_sae_ids"}
    assert set(sent["keys"][0]) == {"key_id", "value"}
    assert set(json.loads(encode_acks([Ack((ONE,), AckStatus.RELAYED, "A", ("B",))]))[0]) == set(ack())


@pytest.mark.parametrize("name", ["ext_keys", "acks", "void"])
def test_the_examples_of_the_document_decode(name: str) -> None:
    body = dump(document()["components"]["examples"][name]["value"])
    read: dict[str, Callable[[bytes], object]] = {
        "ext_keys": decode_ext_keys,
        "acks": decode_acks,
        "void": decode_void,
    }
    assert read[name](body)


@pytest.mark.parametrize(
    "written",
    [
        "1.0",
        "1e3",
        "-0",
        "1.50",
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        '"\\u00e9\u00e9 \\ud83d\\ude00 \\/"',
        '{"b": [1.0, {"a": 1E+2}], "a": null}',
        "[[[[]]]]",
        "true",
    ],
)
def test_optional_extensions_are_passed_on_as_they_were_written(written: str) -> None:
    member = '{"E32473_x": ' + written + "}"
    body = dump(transfer(extension_optional="HERE")).replace(b'"HERE"', member.encode())
    body = body.replace(b'"value"', b'"extension": ' + member.encode() + b', "value"')
    passed = encode_ext_keys(decode_ext_keys(body))
    assert passed.count(('{"E32473_x":' + written + "}").encode()) == 2
    assert encode_ext_keys(decode_ext_keys(passed)) == passed


def test_extensions_do_not_keep_the_body_in_memory() -> None:
    body = dump(transfer(extension_optional={"E32473_x": [1, 2]}))
    member = decode_ext_keys(body).extension_optional["E32473_x"]
    assert isinstance(member, msgspec.Raw)
    assert len(memoryview(member).obj) < len(body)  # type: ignore[arg-type]


def test_key_bits_do_not_print() -> None:
    decoded = decode_ext_keys(dump(transfer(keys=[{"key_id": str(ONE), "value": "c2VjcmV0LXNlY3JldA=="}])))
    assert decoded.keys[0].value == b"secret-secret"
    assert "secret" not in repr(decoded)


# --- SAE ids


@settings(deadline=None)
@given(names)
def test_every_local_id_goes_over_the_wire_and_back(name: str) -> None:
    wire = wire_sae_id(name)
    assert wire_conforms(wire)
    assert local_sae_id(wire) == name


@settings(deadline=None)
@given(wires)
def test_every_conformant_foreign_id_comes_back_as_it_came(wire: str) -> None:
    assert wire_sae_id(local_sae_id(wire)) == wire


@pytest.mark.parametrize(
    ("local", "wire"),
    [
        ("SAE/1#?", "SAE/1#?"),
        ("a b", "a%20b"),
        ("a%b", "a%25b"),
        ("ñ", "%C3%B1"),
        ("a%20b", "a%2520b"),
        ("a%2fb", "a%2fb"),
        ("a%2Fb", "a%2Fb"),
        ("%FF", "%FF"),
    ],
)
def test_ids_are_escaped_only_where_they_must(local: str, wire: str) -> None:
    assert wire_sae_id(local) == wire
    assert local_sae_id(wire) == local


def test_ids_that_have_no_form_on_the_wire_are_refused() -> None:
    for name in ("ñ" * 32, "", "x" * 65):
        with pytest.raises(Malformed):
            encode_ext_keys(ExtKeys((ExtKey(ONE, b"k"),), name, ("B",), None))
    with pytest.raises(Malformed):
        wire_sae_id("\ud800")
    between_ours = encode_ext_keys(ExtKeys((ExtKey(ONE, b"k"),), "ñ" * 32, ("B",), None), sealed=True)
    assert decode_ext_keys(between_ours, sealed=True).initiator_sae_id == "ñ" * 32
    with pytest.raises(Malformed):
        decode_ext_keys(between_ours)


# --- refusals

MISSING, INVALID = "missing-parameters", "invalid-parameter"

BAD_TRANSFERS: list[tuple[str, Any, str, str]] = [
    ("no JSON", b"{", INVALID, "not JSON"),
    ("empty", b"", INVALID, "not JSON"),
    ("not UTF-8", b'{"initiator_sae_id": "\xff"}', INVALID, "not JSON"),
    ("array", [], INVALID, "object"),
    ("no keys", transfer(keys=...), MISSING, "keys is required"),
    ("no initiator", transfer(initiator_sae_id=...), MISSING, "initiator_sae_id is required"),
    ("no targets", transfer(target_sae_ids=...), MISSING, "target_sae_ids is required"),
    ("no value", transfer(keys=[{"key_id": str(ONE)}]), MISSING, "value is required in keys[0]"),
    ("no key id", transfer(keys=[{"value": "AAAA"}]), MISSING, "key_id is required in keys[0]"),
    ("empty keys", transfer(keys=[]), INVALID, "keys is empty"),
    ("keys of another type", transfer(keys={}), INVALID, "array"),
    ("empty targets", transfer(target_sae_ids=[]), INVALID, "target_sae_ids is empty"),
    ("target of another type", transfer(target_sae_ids=[7]), INVALID, "target_sae_ids"),
    ("targets a text", transfer(target_sae_ids="SAE_B"), INVALID, "target_sae_ids"),
    ("null", transfer(ack_callback_url=None), INVALID, "ack_callback_url"),
    ("http callback", transfer(ack_callback_url="http://x/kmapi"), INVALID, "https"),
    ("long callback", transfer(ack_callback_url="https://x/" + "y" * 1024), INVALID, "1024"),
    ("bad UUID", transfer(keys=[{"key_id": "7", "value": "AAAA"}]), INVALID, "keys[0].key_id is not a UUID"),
    ("bare UUID", transfer(keys=[{"key_id": ONE.hex, "value": "AAAA"}]), INVALID, "UUID"),
    ("no base64", transfer(keys=[{"key_id": str(ONE), "value": "A-_="}]), INVALID, "base64"),
    ("no padding", transfer(keys=[{"key_id": str(ONE), "value": "AAA"}]), INVALID, "base64"),
    ("trailing", transfer(keys=[{"key_id": str(ONE), "value": "AA==AAAA"}]), INVALID, "base64"),
    ("line break", transfer(keys=[{"key_id": str(ONE), "value": "AAAA\n"}]), INVALID, "base64"),
    ("value not ASCII", transfer(keys=[{"key_id": str(ONE), "value": "ñññ="}]), INVALID, "base64"),
    ("empty value", transfer(keys=[{"key_id": str(ONE), "value": ""}]), INVALID, "empty"),
    (
        "key twice",
        transfer(keys=[{"key_id": str(ONE), "value": v} for v in ("AAAA", "BBBB")]),
        INVALID,
        "twice",
    ),
    ("id too long", transfer(initiator_sae_id="x" * 65), INVALID, "64"),
    ("id empty", transfer(initiator_sae_id=""), INVALID, "initiator_sae_id"),
    ("id with a blank", transfer(initiator_sae_id="a b"), INVALID, "RFC 3986"),
    ("id with a bare %", transfer(target_sae_ids=["a%b"]), INVALID, "RFC 3986"),
    ("id with a line break", transfer(target_sae_ids=["a\n"]), INVALID, "RFC 3986"),
    ("extension array", transfer(extension_optional=[{"E1_x": 1}]), INVALID, "extension_optional"),
    ("extension empty", transfer(extension_mandatory={}), INVALID, "extension_mandatory"),
    ("extension name", transfer(extension_mandatory={"abc_x": 1}), INVALID, "extension_mandatory"),
    (
        "extension of a key",
        transfer(keys=[{"key_id": str(ONE), "value": "AAAA", "extension": {"x": 1}}]),
        INVALID,
        "keys[0]",
    ),
    ("too many members", transfer(extension_optional={f"E1_{n}": n for n in range(1025)}), INVALID, "1024"),
]


@pytest.mark.parametrize(
    ("body", "kind", "says"), [row[1:] for row in BAD_TRANSFERS], ids=[r[0] for r in BAD_TRANSFERS]
)
def test_bad_transfers_get_the_problem_that_names_the_fault(body: Any, kind: str, says: str) -> None:
    raw = body if isinstance(body, bytes) else dump(body)
    with pytest.raises(Malformed) as refused:
        decode_ext_keys(raw)
    status, answer = problem(refused.value, "ext_keys")
    said = check("problem_details", answer)
    assert (status, said["status"], said["type"]) == (400, 400, PREFIX + kind)
    assert says in said["details"][kind.replace("-", "_")]


def test_the_schema_and_the_decoder_refuse_the_same_transfers() -> None:
    ours_alone = {"key twice", "not UTF-8", "empty", "no JSON", "no padding", "trailing", "line break"}
    ours_alone |= {"no base64", "value not ASCII"}  # contentEncoding is an annotation
    ours_alone.add("id with a line break")  # Python's $ matches before one
    for name, body, _, _ in BAD_TRANSFERS:
        if name not in ours_alone and not isinstance(body, bytes):
            assert not conforms("ext_key_container", dump(body)), name


def test_deep_nesting_is_passed_on_while_it_is_sane_and_refused_beyond() -> None:
    def nested(depth: int) -> bytes:
        return dump(transfer(extension_optional={"E1_x": 0})).replace(
            b"0}", b"[" * depth + b"]" * depth + b"}"
        )

    assert b"[" * 100 + b"]" * 100 in encode_ext_keys(decode_ext_keys(nested(100)))
    with pytest.raises(Malformed, match="not JSON"):
        decode_ext_keys(nested(200_000))


def test_an_extension_that_is_not_utf8_is_refused() -> None:
    body = dump(transfer(extension_optional={"E1_x": "HERE"})).replace(b"HERE", b"\xff")
    with pytest.raises(Malformed, match="not JSON"):
        decode_ext_keys(body)


BAD_ACKS: list[tuple[str, Any]] = [
    ("no JSON", b"["),
    ("not an array", ack()),
    ("wrapped", {"ack_containers": [ack()]}),
    ("no ids", [ack(key_id_container=...)]),
    ("no targets", [ack(target_sae_ids=...)]),
    ("no status", [ack(ack_status=...)]),
    ("no initiator", [ack(initiator_sae_id=...)]),
    ("invented status", [ack(ack_status="done")]),
    ("too many ids", [ack(key_id_container=[{"key_id": str(ONE)}] * 1025)]),
    ("too many containers", [ack()] * 1025),
    ("long message", [ack(message="x" * 4097)]),
    ("bad id", [ack(key_id_container=[{"key_id": "x"}])]),
    ("ids as texts", [ack(key_id_container=[str(ONE)])]),
    ("SAE id", [ack(initiator_sae_id="a b")]),
    ("extension", [ack(extension={"x": 1})]),
    ("extension of an id", [ack(key_id_container=[{"key_id": str(ONE), "extension": {"x": 1}}])]),
]


@pytest.mark.parametrize("body", [row[1] for row in BAD_ACKS], ids=[row[0] for row in BAD_ACKS])
def test_bad_acks_are_not_understood(body: Any) -> None:
    with pytest.raises(Malformed) as refused:
        decode_acks(body if isinstance(body, bytes) else dump(body))
    status, answer = problem(refused.value, "ack")
    said = check("problem_details", answer)
    assert (status, said["type"]) == (400, PREFIX + "ack-not-understood")
    assert said["details"]["ack_not_understood"]


BAD_VOIDS: list[tuple[str, Any]] = [
    ("no JSON", b"nope"),
    ("array", []),
    ("no ids", void(key_ids=...)),
    ("no targets", void(target_sae_ids=...)),
    ("bad id", void(key_ids=["x"])),
    ("ids as objects", void(key_ids=[{"key_id": str(ONE)}])),
    ("confirmation a text", void(all_confirmation="true")),
    ("http callback", void(ack_callback_url="http://x")),
]


@pytest.mark.parametrize("body", [row[1] for row in BAD_VOIDS], ids=[row[0] for row in BAD_VOIDS])
def test_bad_voids_are_not_understood(body: Any) -> None:
    with pytest.raises(Malformed) as refused:
        decode_void(body if isinstance(body, bytes) else dump(body))
    status, answer = problem(refused.value, "void")
    said = check("problem_details", answer)
    assert (status, said["type"]) == (400, PREFIX + "void-request-not-understood")
    assert said["details"]["key_voiding_error"]


@pytest.mark.parametrize("confirmation", [..., False])
def test_voiding_everything_needs_confirmation(confirmation: Any) -> None:
    body = dump(void(key_ids=[], all_confirmation=confirmation))
    with pytest.raises(Malformed) as refused:
        decode_void(body)
    status, answer = problem(refused.value, "void")
    said = check("problem_details", answer)
    assert (status, said["type"]) == (400, PREFIX + "no-key-ids-or-confirmation")
    assert set(said["details"]) == {"no_all_confirmation", "no_key_ids_or_confirmation"}
    assert decode_void(dump(void(key_ids=[], all_confirmation=True))).all_confirmation
    assert decode_void(body, confirmed=True).key_ids == ()


def test_no_refusal_quotes_the_body() -> None:
    secret = base64.b64encode(b"not for the log").decode()
    keys = {"key_id": str(ONE), "value": secret}
    for body in (
        transfer(keys=secret),
        transfer(keys=[keys | {"key_id": secret}]),
        transfer(keys=[keys | {"value": secret + "!"}]),
        transfer(initiator_sae_id=f"{secret} {secret}"),
        transfer(extension_mandatory={secret: 1}),
        transfer(ack_callback_url=secret),
    ):
        with pytest.raises(Malformed) as refused:
            decode_ext_keys(dump(body))
        assert secret not in str(refused.value) + repr(refused.value.details)
    with pytest.raises(Malformed) as refused:
        decode_acks(dump([ack(ack_status=secret)]))
    assert secret not in str(refused.value)


# --- drafts


def test_acks_in_the_shape_of_the_drafts_are_understood() -> None:
    draft = {
        "key_ids": [{"key_id": str(ONE)}],
        "ack_status": "voided",
        "initiator_sae_id": "SAE_A",
        "target_sae_id": "SAE_B",
    }
    expected = (Ack((ONE,), AckStatus.VOIDED, "SAE_A", ("SAE_B",)),)
    assert decode_acks(dump([draft])) == expected
    assert decode_acks(dump([draft]), liberal=True) == expected
    with pytest.raises(Malformed):
        decode_acks(dump(draft))
    for body in (draft, {"ack_container": draft}, {"ack_containers": [draft]}):
        assert decode_acks(dump(body), liberal=True) == expected


def test_acks_for_draft_peers_have_one_container_a_target_and_no_new_status() -> None:
    sent = Ack((ONE, TWO), AckStatus.FAILED_TO_VOID, "SAE_A", ("SAE_B", "SAE_C"), "gone")
    containers = json.loads(encode_acks([sent], Dialect.DRAFT_0_4))
    assert [(c["target_sae_id"], c["ack_status"]) for c in containers] == [
        ("SAE_B", "failed"),
        ("SAE_C", "failed"),
    ]
    assert all([item["key_id"] for item in c["key_ids"]] == [str(ONE), str(TWO)] for c in containers)
    assert "target_sae_ids" not in containers[0]


def test_liberal_readers_take_wrappers_and_extension_arrays() -> None:
    body = transfer(extension_optional=[{"E1_x": 1.5}, {"abc_y": 2}])
    read = decode_ext_keys(dump({"ext_key_container": body}), liberal=True)
    assert {name: plain(value) for name, value in read.extension_optional.items()} == {"E1_x": 1.5}
    with pytest.raises(Malformed):
        decode_ext_keys(dump({"ext_key_container": transfer()}))
    with pytest.raises(Malformed):  # what must be implemented cannot be dropped
        decode_ext_keys(dump(transfer(extension_mandatory={"abc_y": 1})), liberal=True)


def test_many_acks_are_split_over_containers_until_a_call_is_full() -> None:
    sent = Ack((ONE,) * 2500, AckStatus.RELAYED, "A", ("B",))
    body = encode_acks([sent])
    check("ack_containers", body)
    assert [len(item.key_ids) for item in decode_acks(body)] == [1024, 1024, 452]
    with pytest.raises(TooLarge):
        encode_acks([Ack((ONE,), AckStatus.RELAYED, "A", ("B",))] * 1025)
    long = encode_acks([Ack((ONE,), AckStatus.FAILED, "A", ("B",), "x" * 5000)])
    check("ack_containers", long)


@settings(deadline=None)
@given(st.binary(max_size=64) | values.map(dump) | st.builds(lambda v: dump(transfer(keys=v)), values))
def test_decoders_refuse_garbage_and_nothing_else(body: bytes) -> None:
    for decode in (decode_ext_keys, decode_acks, decode_void):
        for liberal in (False, True):
            try:
                decode(body, liberal=liberal)
            except Malformed:
                continue
