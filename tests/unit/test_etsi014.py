"""014 bodies as values: round trips, the query form, paths, and that no input does more than be refused."""

from __future__ import annotations

import base64
import contextlib
import json
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from keyhaul.errors import Malformed
from keyhaul.keys import Secret
from keyhaul.messages import etsi014
from keyhaul.messages.etsi014 import Delivered, KeyRequest, Refusal, Standing
from keyhaul.policy import Limits
from tests.northbound import SPECIFICATION, validate

ID = UUID("3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a01")
OTHER = UUID("3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a02")


@pytest.mark.parametrize("body", [b"", b" \r\n", b"{}"])
def test_no_body_is_an_empty_request(body: bytes) -> None:
    assert etsi014.decode_request(body) == KeyRequest() == KeyRequest(number=1, size=UNSET)


def test_the_examples_of_the_interface_description_are_understood() -> None:
    keys = SPECIFICATION["paths"]["/api/v1/keys/{slave_SAE_ID}/enc_keys"]["post"]["requestBody"]
    examples = keys["content"]["application/json"]["examples"]
    read = {name: etsi014.decode_request(json.dumps(e["value"]).encode()) for name, e in examples.items()}
    assert read["three"] == KeyRequest(number=3, size=1024)
    assert read["multicast"].additional == ("SAE_C", "SAE_D")
    assert read["extensions"].mandatory == ({"acme_route_type": "direct"},)


@given(
    st.integers(1, 200),
    st.one_of(st.just(UNSET), st.integers(1, 100_000)),
    st.lists(st.text(min_size=1), max_size=3),
    st.lists(
        st.dictionaries(st.text(), st.one_of(st.integers(-(2**53), 2**53), st.text(), st.none())), max_size=2
    ),
)
def test_requests_survive_the_wire(
    number: int, size: int, additional: list[str], extensions: list[dict]
) -> None:  # type: ignore[type-arg]
    request = KeyRequest(number, size, tuple(additional), tuple(extensions), ())
    body = etsi014.encode_request(request)
    assert etsi014.decode_request(body) == request
    validate(json.loads(body), "KeyRequest")


@given(st.one_of(st.binary(), st.text().map(str.encode)))
@example(b'{"number":1,"number":1}')
@example(b"[" * 100_000)
@example(b'{"x":' + b"9" * 10_000 + b"}")
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_are_read_or_malformed(body: bytes) -> None:
    for decode in (etsi014.decode_request, etsi014.decode_key_ids, etsi014.decode_container):
        with contextlib.suppress(Malformed):
            decode(body)
    etsi014.decode_refusal(body)


def test_a_repeated_member_is_refused_at_any_depth() -> None:
    with pytest.raises(Malformed, match="twice"):
        etsi014.decode_request(b'{"extension_optional":[{"a_b":{"c":1,"c":2}}]}')


def test_the_query_form_takes_decimal_digits_once() -> None:
    assert etsi014.request_from_query({"number": ["3"], "size": ["64"], "x": ["1", "2"]}) == KeyRequest(3, 64)
    for query in (
        {"size": [""]},
        {"size": ["1_0"]},
        {"size": [" 8"]},
        {"size": ["8", "8"]},
        {"number": ["9" * 11]},
    ):
        with pytest.raises(Malformed):
            etsi014.request_from_query(query)


def test_the_query_form_does_not_drop_what_only_the_body_can_say() -> None:
    for member in ("additional_slave_SAE_IDs", "extension_mandatory", "extension_optional"):
        with pytest.raises(Malformed, match="POST"):
            etsi014.request_from_query({member: ["x"]})


def test_key_ids_in_both_forms() -> None:
    assert etsi014.key_ids_from_query({"key_ID": [str(ID).upper()]}).ids == (ID,)
    body = etsi014.encode_key_ids([OTHER, ID], trust=True)
    validate(json.loads(body), "KeyIDs")
    read = etsi014.decode_key_ids(body)
    assert (read.ids, read.trust) == ((OTHER, ID), True)
    one = b'{"key_IDs":[{"key_ID":"%s","key_ID_extension":{"keyhaul_trust":true}}]}' % str(ID).encode()
    assert etsi014.decode_key_ids(one).trust
    assert not etsi014.decode_key_ids(etsi014.encode_key_ids([ID])).trust


@pytest.mark.parametrize(
    "body",
    [
        '{"key_IDs":[{"key_ID":"%s"}]}',
        ' { "key_IDs" : [ { "key_ID" : "%s" } ] } ',
        '\n{"key_IDs":\t[{"key_ID":"%s"}]}\r\n',
        '\f{"key_IDs":[{"key_ID":"%s"}]}',
        '{"key_IDs":[{"key_ID":"%s"}]} {}',
        '{"key_IDs":[{"key_ID":"%s","key_ID":"3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a02"}]}',
        '{"key_IDs":[{"key_ID":"%s","key_ID_extension":{"keyhaul_trust":true}}]}',
        '{"key_IDs":[{"key_ID":"%s "}]}',
        '{"key_IDs":[{"key_ID":"%s"},]}',
        '{"key_IDs":{"key_ID":"%s"}}',
    ],
)
@pytest.mark.parametrize(
    "text", [str(ID), str(ID).upper(), ID.hex, f"{{{ID}}}", str(ID)[:-1], str(ID)[:-1] + "g", "0" * 36]
)
def test_one_key_id_is_read_alike_on_the_short_way_and_on_the_long(body: str, text: str) -> None:
    """An escape in a member's name means the same, and the short way does not take it."""

    def read(content: str) -> tuple[UUID, ...] | str:
        try:
            return etsi014.decode_key_ids(content.encode()).ids
        except Malformed as refused:
            return type(refused).__name__

    content = body % text
    assert read(content) == read(content.replace('"key_IDs"', '"key_ID\\u0073"'))


@given(st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=4), st.booleans())
def test_containers_survive_the_wire(values: list[bytes], trust: bool) -> None:
    keys = [Delivered(UUID(int=n), Secret(value), {"relays": "none"}) for n, value in enumerate(values)]
    body = etsi014.encode_container(keys, trust=trust)
    validate(json.loads(body), "KeyContainer")
    assert [base64.b64decode(key["key"], validate=True) for key in json.loads(body)["keys"]] == values
    read = etsi014.decode_container(body)
    assert all(a.key_id == b.key_id and a.bits.same_as(b.bits) for a, b in zip(keys, read, strict=True))
    assert {str(key.trust) for key in read} == {str({"relays": "none"} if trust else None)}


def test_values_do_not_show_bits() -> None:
    assert "AAAA" not in repr(Delivered(ID, Secret(b"AAAA")))


def test_status_survives_the_wire_with_eleven_members() -> None:
    status = Limits().status("a", "b", Standing("here", "there", 7, 9))
    body = etsi014.encode_status(status)
    validate(json.loads(body), "Status")
    assert len(json.loads(body)) == 11
    assert etsi014.decode_status(body) == status


def test_refusals_of_others_are_read_as_far_as_possible() -> None:
    assert etsi014.decode_refusal(b'{"message":"no","details":[{"a":1}]}') == Refusal("no", ({"a": 1},))
    for body in (b"", b"no", b'{"message":1}', b"[" * 100_000):
        assert etsi014.decode_refusal(body) == Refusal("")


@given(st.text(min_size=1))
@example("%2F")
@example("..")
def test_sae_ids_survive_the_path(sae: str) -> None:
    segment = etsi014.quote_sae(sae)
    assert not set(segment) & set("/?#. ")
    assert etsi014.unquote_sae(segment) == sae


@pytest.mark.parametrize("segment", ["%", "a%4", "%zz", "%+1", "%FF", "%ED%A0%80"])
def test_escapes_that_mean_nothing_are_malformed(segment: str) -> None:
    with pytest.raises(Malformed):
        etsi014.unquote_sae(segment)


def test_a_key_id_in_the_query_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Malformed, match="not a UUID"):
        etsi014.key_ids_from_query({"key_ID": ["00\udcb000000-0000-0000-0000-000000000001"]})
