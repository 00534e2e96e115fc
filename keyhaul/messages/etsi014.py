"""ETSI GS QKD 014 V1.1.1 bodies as values: what an SAE asks, what a node answers, and both codecs.

Decoding refuses what the standard's tables (clause 6) do not allow and ignores members it does not know.
Sizes are in bits here as on the wire; key bytes appear only inside `Secret` and in encoded answers.
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from keyhaul.errors import Malformed
from keyhaul.keys import Secret

PREFIX = "/api/v1/keys"

# The wordings that clause 5 fixes. The standard allows a fifth one for ignored optional extensions; we
# answer 200 instead, as it also allows, and only need to understand it from others.
SIZE_NOT_OCTETS = "size shall be a multiple of 8"
MANDATORY_UNSUPPORTED = "not all extension_mandatory parameters are supported"
MANDATORY_UNMET = "not all extension_mandatory request options could be met"
OPTIONAL_UNHANDLED = "not all extension_optional request options handled"
KEYS_NOT_FOUND = "one or more keys specified are not found on KME"

TRUST = "keyhaul_trust"
SCHEME = "keyhaul_scheme"
LABELS = "keyhaul_labels"

T = TypeVar("T")
Extensions = tuple[dict[str, Any], ...]


class KeyRequest(msgspec.Struct, frozen=True):
    """Body of enc_keys as it came (clause 6.2); `size` in bits. `policy.Limits.check` makes it an Order."""

    number: int = 1
    size: int | UnsetType = UNSET
    additional: tuple[str, ...] = msgspec.field(default=(), name="additional_slave_SAE_IDs")
    mandatory: Extensions = msgspec.field(default=(), name="extension_mandatory")
    optional: Extensions = msgspec.field(default=(), name="extension_optional")


@dataclass(frozen=True, slots=True)
class Order:
    """One enc_keys call, checked.

    `targets` has the slave of the path first, then the additional ones, nobody twice. `options` are the
    extensions we understand; those in `mandatory` must be met, the others may be dropped.
    """

    master: str
    targets: tuple[str, ...]
    number: int
    size: int  # bits
    options: Mapping[str, Any] = field(default_factory=dict)
    mandatory: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyIds:
    """Body of dec_keys (clause 6.4): at least one id, none twice; `trust` asks for the trust statements."""

    ids: tuple[UUID, ...]
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Delivered:
    """One key handed to an SAE. Whoever gets it owns `bits` and wipes them after use."""

    key_id: UUID
    bits: Secret
    trust: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the node can say about one pair of SAEs; counts are in keys of the default size."""

    source_kme: str
    target_kme: str
    stored_key_count: int
    max_key_count: int


class Status(msgspec.Struct, frozen=True):
    """The eleven mandatory members of clause 6.1; sizes in bits."""

    source_kme: str = msgspec.field(name="source_KME_ID")
    target_kme: str = msgspec.field(name="target_KME_ID")
    master_sae: str = msgspec.field(name="master_SAE_ID")
    slave_sae: str = msgspec.field(name="slave_SAE_ID")
    key_size: int
    stored_key_count: int
    max_key_count: int
    max_key_per_request: int
    max_key_size: int
    min_key_size: int
    max_sae_id_count: int = msgspec.field(name="max_SAE_ID_count")


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The Error body of clause 6.5."""

    message: str
    details: tuple[dict[str, Any], ...] = ()


class _Key(msgspec.Struct, frozen=True):
    key_id: UUID = msgspec.field(name="key_ID")
    key: bytes  # msgspec writes and reads standard padded base64, RFC 4648 table 1
    extension: dict[str, Any] | UnsetType = msgspec.field(default=UNSET, name="key_extension")


class _Container(msgspec.Struct, frozen=True):
    keys: tuple[_Key, ...]


class _Named(msgspec.Struct, frozen=True):
    key_id: UUID = msgspec.field(name="key_ID")
    extension: dict[str, Any] = msgspec.field(default_factory=dict, name="key_ID_extension")


class _KeyIds(msgspec.Struct, frozen=True):
    keys: tuple[_Named, ...] = msgspec.field(name="key_IDs")
    extension: dict[str, Any] = msgspec.field(default_factory=dict, name="key_IDs_extension")


def decode_request(body: bytes) -> KeyRequest:
    """An enc_keys body; an empty one is the same as `{}`. Raises Malformed."""
    if len(body) > _REPEATED:
        return _decode(body, _REQUEST, "key request") if body.strip() else KeyRequest()
    return _decode_again(body)


@functools.lru_cache(256)
def _decode_again(body: bytes) -> KeyRequest:
    """Short requests: applications send the same one again and again, and nothing in it is secret."""
    return _decode(body, _REQUEST, "key request") if body.strip() else KeyRequest()


def request_from_query(query: Mapping[str, Sequence[str]]) -> KeyRequest:
    """The short form: `number` and `size` as decimal text (clause 5.2). Raises Malformed.

    Other parameters are ignored, except the members of the long form: dropping a mandatory extension or
    a slave in silence would deliver something else than was asked for.
    """
    for name in ("additional_slave_SAE_IDs", "extension_mandatory", "extension_optional"):
        if name in query:
            raise Malformed(f"{name} is not allowed with GET", "send the request with POST")
    given = {name: _decimal(name, query[name]) for name in ("number", "size") if name in query}
    return KeyRequest(number=given.get("number", 1), size=given.get("size", UNSET))


def decode_key_ids(body: bytes) -> KeyIds:
    """A dec_keys body. Raises Malformed, also if an id is listed twice."""
    if (one := _ONE_ID.fullmatch(body)) is not None:
        return KeyIds((UUID(one[1].decode()),))
    parsed = _decode(body, _KEY_IDS, "list of key IDs")
    if not parsed.keys:
        raise Malformed("key_IDs is empty", "name at least one key_ID")
    ids = tuple(named.key_id for named in parsed.keys)
    if len(set(ids)) != len(ids):
        raise Malformed("key_IDs names a key_ID more than once", "name every key_ID once")
    asked = [parsed.extension, *(named.extension for named in parsed.keys)]
    return KeyIds(ids, any(extension.get(TRUST) is True for extension in asked))


def key_ids_from_query(query: Mapping[str, Sequence[str]]) -> KeyIds:
    """The short form of dec_keys: exactly one `key_ID` (clause 5.3). Raises Malformed."""
    if "key_ID" not in query:
        raise Malformed("the query parameter key_ID is missing", "add ?key_ID=<UUID>, or use POST")
    text = _once("key_ID", query["key_ID"])
    try:
        return KeyIds((msgspec.convert(text, UUID),))
    except ValueError:  # msgspec.ValidationError, or a byte of the query that was not UTF-8
        raise Malformed("key_ID is not a UUID", "send the key_ID as the master got it") from None


def encode_container(keys: Sequence[Delivered], *, trust: bool = False) -> bytes:
    """A key container (clause 6.3), with the trust statements as `key_extension` if asked for."""
    return _ENCODER.encode(_Container(tuple(_key(key, trust) for key in keys)))


def encode_status(status: Status) -> bytes:
    """The Status body."""
    return _ENCODER.encode(status)


def encode_refusal(refusal: Refusal) -> bytes:
    """The Error body."""
    return _ENCODER.encode(refusal)


def encode_request(request: KeyRequest) -> bytes:
    """The enc_keys body a client sends; members at their default are left out."""
    members = {
        "number": request.number,
        "size": request.size,
        "additional_slave_SAE_IDs": request.additional or UNSET,
        "extension_mandatory": request.mandatory or UNSET,
        "extension_optional": request.optional or UNSET,
    }
    return _ENCODER.encode({name: value for name, value in members.items() if value is not UNSET})


def encode_key_ids(key_ids: Sequence[UUID], *, trust: bool = False) -> bytes:
    """The dec_keys body a client sends."""
    body: dict[str, Any] = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
    if trust:
        body["key_IDs_extension"] = {TRUST: True}
    return _ENCODER.encode(body)


def decode_container(body: bytes) -> list[Delivered]:
    """The keys of an answer. Raises Malformed."""
    return [
        Delivered(key.key_id, Secret(key.key), _statement(key))
        for key in _decode(body, _CONTAINER, "key container").keys
    ]


def decode_status(body: bytes) -> Status:
    """The Status of an answer. Raises Malformed."""
    return _decode(body, _STATUS, "status")


def decode_refusal(body: bytes) -> Refusal:
    """The Error body of an answer; the standard gives 401 none, so anything unreadable is an empty one."""
    try:
        return _REFUSAL.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal("")


def quote_sae(sae: str) -> str:
    """An SAE id as one path segment. Dots are escaped too: URL libraries fold `.` and `..` away."""
    return quote(sae, safe="").replace(".", "%2E")


def unquote_sae(segment: str) -> str:
    """The SAE id in a path segment, percent-decoded exactly once. Raises Malformed."""
    if "%" not in segment and segment.isascii():
        return segment
    pieces = segment.split("%")
    if not all(len(piece) >= 2 and _HEX.issuperset(piece[:2]) for piece in pieces[1:]):
        raise Malformed("the path has a % that starts no escape", "write a literal % as %25")
    try:
        return unquote_to_bytes(segment.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the SAE ID in the path is not UTF-8", "percent-encode its UTF-8 form") from None


_ONE_ID = re.compile(
    rb' *\{ *"key_IDs" *: *\[ *\{ *"key_ID" *: *'
    rb'"([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})" *\} *\] *\} *'
)
"""The body of nearly every dec_keys call, which needs no two JSON parsers."""

_REPEATED = 256  # bytes of a request that is worth remembering
_HEX = frozenset(string.hexdigits)
_ENCODER = msgspec.json.Encoder()
_REQUEST = msgspec.json.Decoder(KeyRequest)
_KEY_IDS = msgspec.json.Decoder(_KeyIds)
_CONTAINER = msgspec.json.Decoder(_Container)
_STATUS = msgspec.json.Decoder(Status)
_REFUSAL = msgspec.json.Decoder(Refusal)


def _key(delivered: Delivered, trust: bool) -> _Key:
    extension = {TRUST: dict(delivered.trust)} if trust and delivered.trust is not None else UNSET
    return _Key(delivered.key_id, delivered.bits.reveal(), extension)


def _statement(key: _Key) -> dict[str, str] | None:
    """The trust statement of a key, where the other side is a node of ours and was asked for it."""
    if key.extension is UNSET or not isinstance(said := key.extension.get(TRUST), dict):
        return None
    return {str(name): str(value) for name, value in said.items()}


def _decode(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    try:
        value = decoder.decode(body)
        _MEMBERS_ONCE.decode(body.decode())
    except UnicodeDecodeError:
        raise Malformed(f"the body is not a {what}: not UTF-8", "send JSON in UTF-8") from None
    except RecursionError:
        raise Malformed(f"the body is not a {what}: nested too deeply", "send a flat object") from None
    except ValueError as problem:  # msgspec.DecodeError, and what the second reading may find
        raise Malformed(
            f"the body is not a {what}: {problem}", "correct the member; leave out those you do not need"
        ) from None
    return value


def _refuse_repeated(pairs: list[tuple[str, object]]) -> None:
    """Two members of one name read differently in different parsers, so neither value is taken."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("an object has a member twice")


_MEMBERS_ONCE = json.JSONDecoder(object_pairs_hook=_refuse_repeated)


def _once(name: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise Malformed(f"the query parameter {name} is given more than once", "give it once, or use POST")
    return values[0]


def _decimal(name: str, values: Sequence[str]) -> int:
    """Plain digits only: int() would also take signs, spaces, underscores and digits of other scripts."""
    text = _once(name, values)
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise Malformed(f"the query parameter {name} is not a whole number", "write it as decimal digits")
    return int(text)
