"""A payload inside a 020 message: what goes in comes out, and contradictions are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.errors import Malformed
from keyhaul.messages.etsi020 import ExtKey, ExtKeys, decode_ext_keys, encode_ext_keys
from keyhaul.messages.payload import Context, Payload
from keyhaul.messages.wrapping import MAX_CARRIED, Wrapping, name, unwrap, wrap
from tests.neighbours import context

PEN = 32473
names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=12,
)


@st.composite
def wrappings(draw: st.DrawFn) -> Wrapping:
    route = tuple(draw(st.lists(names, min_size=2, max_size=8, unique=True)))
    count, width = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    vouched = Context(
        scheme=draw(names),
        origin=route[0],
        destination=route[-1],
        initiator=draw(names),
        targets=tuple(draw(st.lists(names, min_size=1, max_size=3, unique=True))),
        key_ids=tuple(UUID(int=number) for number in range(count)),
        size=width * 8,
        expires=draw(st.integers(0, (1 << 40) - 1)),
        route=route,
        trust=tuple(draw(st.lists(st.tuples(names, names), max_size=3))),
        carried=draw(st.binary(max_size=40)),
    )
    body = draw(st.binary(min_size=count * width, max_size=count * width + 40))
    payload = Payload(vouched.scheme, draw(st.binary(max_size=60)), body)
    return Wrapping(vouched, payload, draw(st.floats(0, 2.0**39)))


@settings(max_examples=100, deadline=None)
@given(wrappings())
def test_round_trip_through_json(wrapping: Wrapping) -> None:
    body = encode_ext_keys(wrap(wrapping, "https://a.example/ack", PEN), sealed=True)
    assert unwrap(decode_ext_keys(body, sealed=True), PEN) == wrapping


def sample() -> ExtKeys:
    payload = Payload("trusted", b"head", bytes(range(80)))
    return wrap(Wrapping(context(), payload, 1_800_000_015.0), "https://a.example/ack", PEN)


def extension(transfer: ExtKeys) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(transfer.extension_mandatory[name(PEN)])
    return decoded


def altered(**changes: Any) -> ExtKeys:
    transfer = sample()
    raw = msgspec.Raw(msgspec.json.encode({**extension(transfer), **changes}))
    return replace(transfer, extension_mandatory={name(PEN): raw})


def test_the_sample_is_good_before_it_is_altered() -> None:
    assert unwrap(altered(), PEN) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 0},
        {"v": True},
        {"size": -256},
        {"size": 0},
        {"size": 255},
        {"size": 264},
        {"origin": "santiago"},
        {"destination": "santiago"},
        {"route": []},
        {"route": ["vigo"]},
        {"route": ["vigo", "vigo", "bilbao"]},
        {"route": ["vigo", *map(str, range(255)), "bilbao"]},
        {"route": "vigo"},
        {"head": "not base64!"},
        {"head": "é"},
        {"head": "QQ"},
        {"tail": "\ud7ff"},
        {"tail": None},
        {"expires": -1},
        {"expires": 1 << 40},
        {"expires": 10**400},
        {"expires": 1.5},
        {"deadline": 1e300},
        {"deadline": "now"},
        {"trust": [["wire"]]},
        {"trust": [["wire", "its", "more"]]},
        {"carried": "QQ"},
        {"carried": None},
        {"carried": "A" * (4 * MAX_CARRIED // 3 + 4)},
        {"surprise": 1},
    ],
    ids=lambda changes: repr(changes)[:60],
)
def test_an_extension_that_contradicts_itself_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        unwrap(altered(**changes), PEN)


def test_a_payload_that_carries_nothing_does_not_say_so() -> None:
    assert "carried" not in extension(sample())


@pytest.mark.parametrize("missing", sorted(extension(sample())))
def test_every_member_is_needed(missing: str) -> None:
    transfer = sample()
    members = extension(transfer)
    del members[missing]
    raw = msgspec.Raw(msgspec.json.encode(members))
    with pytest.raises(Malformed):
        unwrap(replace(transfer, extension_mandatory={name(PEN): raw}), PEN)


def test_keys_of_another_length_or_twice_are_malformed() -> None:
    transfer = sample()
    first, second = transfer.keys
    for keys in (
        (first, ExtKey(second.key_id, second.value[:-1])),
        (first, ExtKey(first.key_id, second.value)),
    ):
        with pytest.raises(Malformed):
            unwrap(replace(transfer, keys=keys), PEN)


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b'"', b'"\xff"', b'{"v":1,"v":1}', b"[" * 100_000])
def test_an_extension_that_is_no_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        unwrap(replace(sample(), extension_mandatory={name(PEN): msgspec.Raw(raw)}), PEN)


def test_another_enterprise_number_is_another_extension() -> None:
    assert unwrap(sample(), PEN + 1) is None


def test_errors_do_not_show_the_keys() -> None:
    transfer = altered(size=8)
    with pytest.raises(Malformed) as refused:
        unwrap(transfer, PEN)
    assert transfer.keys[0].value.hex() not in str(refused.value)
    assert "AAEC" not in str(refused.value)
