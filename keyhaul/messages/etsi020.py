"""ETSI GS QKD 020 V1.1.1 bodies as values: decoders refuse what the standard forbids, encoders invert them.

Values carry SAE ids as the rest of the node knows them (any text of 1 to 64 bytes); the JSON carries
them in the characters of RFC 3986, see `messages.saeids`. Extensions come out of a decoder as
`msgspec.Raw`, so that an optional one is passed on exactly as it was written; plain Python values may
be put in, and `plain` turns either form into Python.

Decoders raise Malformed. Its details name the problem of the standard's catalogue that applies
(`missing_parameters`, `invalid_parameter`, `key_voiding_error`, `no_all_confirmation`,
`ack_not_understood`); `messages.problems` turns them into an answer. No error quotes the body, which
holds keys. With `liberal`, decoders also take what peers of drafts 0.4 and 0.5 are known to send.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from keyhaul.errors import Malformed, TooLarge
from keyhaul.messages.saeids import (
    MAX_SAE_ID,
    MAX_SEALED_SAE_ID,
    conforms,
    local_sae_id,
    wire_sae_id,
)

EXT_KEYS = "ext_keys"
ACK = "ack"
VOID = "void"
PATHS = {EXT_KEYS: "/kmapi/v1/ext_keys", ACK: "/kmapi/v1/ext_keys/ack", VOID: "/kmapi/v1/ext_keys/void"}
VERSIONS_PATH = "/kmapi/versions"

MAX_CONTAINERS = 1024  # of one acknowledgement call
MAX_IDS = 1024  # key ids of one acknowledgement container
MAX_MESSAGE = 4096  # characters
MAX_EXTENSION = 1024  # members
MAX_URL = 1024  # characters


class AckStatus(StrEnum):
    """What became of keys; the drafts lack `failed to void`."""

    RELAYED = "relayed"
    FAILED = "failed"
    VOIDED = "voided"
    FAILED_TO_VOID = "failed to void"
    NOT_PRESENT = "key not present"


class Dialect(StrEnum):
    """The form of acknowledgements a peer understands."""

    V1_1_1 = "v1.1.1"
    DRAFT_0_4 = "draft-0.4"


@dataclass(frozen=True, slots=True)
class ExtKey:
    """One key of a transfer; `value` is the key itself, not its base64."""

    key_id: UUID
    value: bytes = field(repr=False)
    extension: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExtKeys:
    """A request to deliver keys to target SAEs (`ext_key_container`)."""

    keys: tuple[ExtKey, ...]
    initiator_sae_id: str
    target_sae_ids: tuple[str, ...]
    ack_callback_url: str | None
    extension_mandatory: Mapping[str, Any] = field(default_factory=dict)
    extension_optional: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ack:
    """The outcome of keys that share status, initiator and targets (`ack_container`)."""

    key_ids: tuple[UUID, ...]
    status: AckStatus
    initiator_sae_id: str
    target_sae_ids: tuple[str, ...]
    message: str = ""
    extension: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Void:
    """A request to discard keys; no key ids mean all of the named SAEs (`void_container`)."""

    key_ids: tuple[UUID, ...]
    initiator_sae_id: str
    target_sae_ids: tuple[str, ...]
    ack_callback_url: str | None
    all_confirmation: bool = False
    extension: Mapping[str, Any] = field(default_factory=dict)


# --- decoding

_Extension = dict[str, Raw] | list[dict[str, Raw]] | UnsetType
_EXTENSION_NAME = re.compile(r"E[0-9]+_.*", re.DOTALL)
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_MISSING = "Object missing required field "  # how msgspec says it
_WRAPPERS = ("ext_key_container", "ack_containers", "ack_container", "void_container")


class _KeyBody(Struct):
    key_id: str
    value: str
    extension: _Extension = UNSET


class _ExtKeysBody(Struct):
    keys: list[_KeyBody]
    initiator_sae_id: str
    target_sae_ids: list[str]
    ack_callback_url: str | UnsetType = UNSET
    extension_mandatory: _Extension = UNSET
    extension_optional: _Extension = UNSET


class _IdBody(Struct):
    key_id: str
    extension: _Extension = UNSET


class _AckBody(Struct):
    ack_status: str
    initiator_sae_id: str
    key_id_container: list[_IdBody] | UnsetType = UNSET
    target_sae_ids: list[str] | UnsetType = UNSET
    key_ids: list[_IdBody] | UnsetType = UNSET  # drafts
    target_sae_id: str | UnsetType = UNSET  # drafts
    message: str | UnsetType = UNSET
    extension: _Extension = UNSET


class _VoidBody(Struct):
    key_ids: list[str]
    initiator_sae_id: str
    target_sae_ids: list[str]
    ack_callback_url: str | UnsetType = UNSET
    all_confirmation: bool | UnsetType = UNSET
    extension: _Extension = UNSET


_Body = TypeVar("_Body")


class _Fault(Exception):
    """What is wrong with a body, before it is known which problem type says so."""

    def __init__(self, text: str, name: str = "invalid_parameter") -> None:
        super().__init__(text)
        self.name = name


@contextmanager
def _blaming(name: str | None = None) -> Iterator[None]:
    """Turn every kind of decoding error into Malformed with the details `name`, or the closer one."""
    try:
        yield
    except _Fault as fault:
        text, kind = str(fault), fault.name
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace("`", "").partition(" - at $")
        place = path.removeprefix(".")
        text, kind = f"{place or 'the body'}: {what.lower()}", "invalid_parameter"
        if what.startswith(_MISSING):
            where = f" in {place}" if place else ""
            text, kind = f"{what.removeprefix(_MISSING)} is required{where}", "missing_parameters"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text, kind = "the body is not JSON", "invalid_parameter"
    else:
        return
    raise Malformed(text, **{name or kind: text}) from None


def _unwrapped(body: bytes) -> bytes | Raw:
    """A body that some drafts wrap in an object named after its type."""
    outer = msgspec.json.decode(body, type=dict[str, Raw] | list[Raw])
    if isinstance(outer, dict) and len(outer) == 1:
        return next((outer[name] for name in _WRAPPERS if name in outer), body)
    return body


def _read(body: bytes, shape: type[_Body], liberal: bool) -> _Body:
    return msgspec.json.decode(_unwrapped(body) if liberal else body, type=shape)


def _id(text: str, where: str) -> UUID:
    if not _UUID.fullmatch(text):
        raise _Fault(f"{where} is not a UUID")
    return UUID(text)


def _sae(wire: str, where: str, sealed: bool) -> str:
    if not 1 <= len(wire) <= (MAX_SEALED_SAE_ID if sealed else MAX_SAE_ID):
        raise _Fault(f"{where} has no or more than {MAX_SAE_ID} characters")
    if not conforms(wire):
        raise _Fault(f"{where} holds characters that RFC 3986 does not allow in a URI")
    name = local_sae_id(wire)
    if len(name.encode()) > MAX_SAE_ID:
        raise _Fault(f"{where} is longer than {MAX_SAE_ID} bytes")
    return name


def _targets(wire: list[str], sealed: bool) -> tuple[str, ...]:
    if not wire:
        raise _Fault("target_sae_ids is empty")
    return tuple(_sae(name, f"target_sae_ids[{index}]", sealed) for index, name in enumerate(wire))


def _extension(value: _Extension, where: str, liberal: bool = False) -> dict[str, Raw]:
    """Members as they were written. The copies keep the body, which holds keys, from staying in memory.

    A liberal reader merges the arrays of objects of the drafts and drops names no V1.1.1 peer may get.
    """
    if isinstance(value, UnsetType):
        return {}
    if isinstance(value, list):
        if not liberal:
            raise _Fault(f"{where} is not an object")
        value = {name: member for item in value for name, member in item.items()}
    if not liberal and not 1 <= len(value) <= MAX_EXTENSION:
        raise _Fault(f"{where} has no or more than {MAX_EXTENSION} members")
    taken = {}
    for name, member in value.items():
        if _EXTENSION_NAME.fullmatch(name):
            bytes(member).decode()  # Raw is checked for grammar only, not for UTF-8
            taken[name] = member.copy()
        elif not liberal:
            raise _Fault(f"{where} has a name that is not E, an enterprise number, _ and a name")
    return taken


def _callback(value: str | UnsetType) -> str | None:
    if isinstance(value, UnsetType):
        return None
    if len(value) > MAX_URL or not value.startswith("https://"):
        raise _Fault(f"ack_callback_url is not an absolute https URL of at most {MAX_URL} characters")
    return value


def _key(body: _KeyBody, where: str, liberal: bool) -> ExtKey:
    try:
        value = binascii.a2b_base64(body.value, strict_mode=True)
    except ValueError:  # binascii.Error, or a character outside ASCII
        raise _Fault(f"{where}.value is not base64 with padding (RFC 4648 table 1)") from None
    if not value:
        raise _Fault(f"{where}.value is empty")
    key_id = _id(body.key_id, f"{where}.key_id")
    return ExtKey(key_id, value, _extension(body.extension, f"{where}.extension", liberal))


def decode_ext_keys(body: bytes, *, liberal: bool = False, sealed: bool = False) -> ExtKeys:
    """Decode an `ext_key_container`. `sealed`: it travelled between two of our nodes, see MAX_SEALED_SAE_ID.

    A key id that occurs twice is refused: nothing could be acknowledged about it.
    """
    with _blaming():
        read = _read(body, _ExtKeysBody, liberal)
        if not read.keys:
            raise _Fault("keys is empty")
        keys = tuple(_key(key, f"keys[{index}]", liberal) for index, key in enumerate(read.keys))
        if len({key.key_id for key in keys}) != len(keys):
            raise _Fault("keys names a key_id twice")
        return ExtKeys(
            keys,
            _sae(read.initiator_sae_id, "initiator_sae_id", sealed),
            _targets(read.target_sae_ids, sealed),
            _callback(read.ack_callback_url),
            _extension(read.extension_mandatory, "extension_mandatory"),
            _extension(read.extension_optional, "extension_optional", liberal),
        )


def _ack(body: _AckBody, where: str, liberal: bool, sealed: bool) -> Ack:
    ids = body.key_ids if isinstance(body.key_id_container, UnsetType) else body.key_id_container
    targets = body.target_sae_ids
    if isinstance(targets, UnsetType) and not isinstance(body.target_sae_id, UnsetType):
        targets = [body.target_sae_id]
    if isinstance(ids, UnsetType) or isinstance(targets, UnsetType):
        absent = "key_id_container" if isinstance(ids, UnsetType) else "target_sae_ids"
        raise _Fault(f"{absent} is required in {where}", "missing_parameters")
    message = "" if isinstance(body.message, UnsetType) else body.message
    if len(ids) > MAX_IDS or len(message) > MAX_MESSAGE:
        raise _Fault(f"{where} has more than {MAX_IDS} key ids or {MAX_MESSAGE} characters of message")
    if body.ack_status not in list(AckStatus):
        raise _Fault(f"{where}.ack_status is not one of {', '.join(AckStatus)}")
    for item in ids:
        _extension(item.extension, f"{where}.key_id_container.extension", liberal)
    return Ack(
        tuple(_id(item.key_id, f"{where} key_id") for item in ids),
        AckStatus(body.ack_status),
        _sae(body.initiator_sae_id, f"{where}.initiator_sae_id", sealed),
        _targets(targets, sealed),
        message,
        _extension(body.extension, f"{where}.extension", liberal),
    )


def decode_acks(body: bytes, *, liberal: bool = False, sealed: bool = False) -> tuple[Ack, ...]:
    """Decode `ack_containers`: an array, whose items have the members of V1.1.1 or of the drafts.

    Only a liberal reader takes one container outside an array.
    """
    with _blaming("ack_not_understood"):
        containers: list[_AckBody] | _AckBody
        if liberal:
            containers = _read(body, list[_AckBody] | _AckBody, True)  # type: ignore[arg-type]
        else:
            containers = _read(body, list[_AckBody], False)
        if isinstance(containers, _AckBody):
            containers = [containers]
        if len(containers) > MAX_CONTAINERS:
            raise _Fault(f"more than {MAX_CONTAINERS} containers")
        return tuple(_ack(item, f"[{index}]", liberal, sealed) for index, item in enumerate(containers))


def decode_void(body: bytes, *, confirmed: bool = False, liberal: bool = False, sealed: bool = False) -> Void:
    """Decode a `void_container`; `confirmed` is the query parameter by which the drafts confirm.

    An empty `key_ids` means all keys of the named SAEs and is refused unless it is confirmed.
    """
    with _blaming("key_voiding_error"):
        read = _read(body, _VoidBody, liberal)
        void = Void(
            tuple(_id(item, f"key_ids[{index}]") for index, item in enumerate(read.key_ids)),
            _sae(read.initiator_sae_id, "initiator_sae_id", sealed),
            _targets(read.target_sae_ids, sealed),
            _callback(read.ack_callback_url),
            confirmed or read.all_confirmation is True,
            _extension(read.extension, "extension", liberal),
        )
    if not void.key_ids and not void.all_confirmation:
        text = "key_ids is empty and all_confirmation is not true"
        raise Malformed(text, no_all_confirmation=text)
    return void


def decode_extension(text: bytes) -> dict[str, Raw]:
    """The members of an extension object as they were written. Raises Malformed, also if there are none."""
    with _blaming():
        return _extension(msgspec.json.decode(text, type=dict[str, Raw]), "the extension")


def plain(value: Any) -> Any:
    """The Python value of an extension member, decoded or not."""
    return msgspec.json.decode(value) if isinstance(value, Raw) else value


# --- encoding


def _wire(name: str, sealed: bool) -> str:
    wire = wire_sae_id(name)
    if not 1 <= len(wire) <= (MAX_SEALED_SAE_ID if sealed else MAX_SAE_ID):
        text = f"an SAE id has no or more than {MAX_SAE_ID} characters in its 020 form"
        raise Malformed(text, invalid_parameter=text)
    return wire


def _saes(initiator: str, targets: Sequence[str], sealed: bool) -> dict[str, Any]:
    wires = [_wire(name, sealed) for name in targets]
    return {"initiator_sae_id": _wire(initiator, sealed), "target_sae_ids": wires}


def _filled(**members: Any) -> dict[str, Any]:
    """The optional members that are there; empty ones are omitted, as the standard asks."""
    return {name: value for name, value in members.items() if value}


def encode_ext_keys(value: ExtKeys, *, sealed: bool = False) -> bytes:
    """Encode an `ext_key_container`. Raises Malformed if an SAE id has no conformant form."""
    keys = [
        {"key_id": key.key_id, "value": key.value} | _filled(extension=key.extension) for key in value.keys
    ]
    return msgspec.json.encode(
        {"keys": keys}
        | _saes(value.initiator_sae_id, value.target_sae_ids, sealed)
        | _filled(
            ack_callback_url=value.ack_callback_url,
            extension_mandatory=value.extension_mandatory,
            extension_optional=value.extension_optional,
        )
    )


def _ack_bodies(ack: Ack, dialect: Dialect, sealed: bool) -> Iterator[dict[str, Any]]:
    """The containers of one outcome: as many as its ids, or in the drafts its targets, need."""
    saes = _saes(ack.initiator_sae_id, ack.target_sae_ids, sealed)
    more = _filled(message=ack.message[:MAX_MESSAGE], extension=ack.extension)
    for start in range(0, max(len(ack.key_ids), 1), MAX_IDS):
        ids = [{"key_id": key_id} for key_id in ack.key_ids[start : start + MAX_IDS]]
        if dialect is Dialect.V1_1_1:
            yield {"key_id_container": ids, "ack_status": ack.status, **saes, **more}
            continue
        status = AckStatus.FAILED if ack.status is AckStatus.FAILED_TO_VOID else ack.status
        for target in saes["target_sae_ids"]:
            initiator = saes["initiator_sae_id"]
            names = {"initiator_sae_id": initiator, "target_sae_id": target}
            yield {"key_ids": ids, "ack_status": status, **names, **more}


def encode_acks(value: Sequence[Ack], dialect: Dialect = Dialect.V1_1_1, *, sealed: bool = False) -> bytes:
    """Encode `ack_containers`; an outcome of more than 1024 ids takes several containers.

    Raises TooLarge if one call cannot hold them, Malformed if an SAE id has no conformant form.
    """
    containers = [body for ack in value for body in _ack_bodies(ack, dialect, sealed)]
    if len(containers) > MAX_CONTAINERS:
        raise TooLarge(f"more than {MAX_CONTAINERS} containers", "send them in several calls")
    return msgspec.json.encode(containers)


def encode_void(value: Void, *, sealed: bool = False) -> bytes:
    """Encode a `void_container`. Raises Malformed if an SAE id has no conformant form."""
    return msgspec.json.encode(
        {"key_ids": value.key_ids}
        | _saes(value.initiator_sae_id, value.target_sae_ids, sealed)
        | _filled(
            ack_callback_url=value.ack_callback_url,
            all_confirmation=value.all_confirmation,
            extension=value.extension,
        )
    )


def encode_versions() -> bytes:
    """What `/kmapi/versions` says: version 1, and no `synchronous_mode`."""
    return msgspec.json.encode({"versions": ["v1"]})
