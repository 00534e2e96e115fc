"""ETSI GS QKD 020 problem details: an error of ours becomes one of the standard's, theirs a line to log.

The standard keeps RFC 9457's members but `detail`, for which it has an object of strings, `details`. Status
500 does not occur in it: whatever is our own fault becomes 503 `server-side-general-error`, without a word
about its inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from keyhaul.errors import (
    InsufficientKey,
    KeyhaulError,
    KeyNotFound,
    NoRoute,
    NoSuchTarget,
    Refused,
    Tampered,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unsupported,
)

PREFIX = "https://qkd.etsi.org/gs020-interop-kms/"

Operation = Literal["ext_keys", "ack", "void", "versions"]

_MAX_TEXT = 512  # characters of one text, sent or logged


@dataclass(frozen=True, slots=True)
class _Type:
    slug: str
    status: int
    detail: str  # the name under `details` that says it


_MISSING = _Type("missing-parameters", 400, "missing_parameters")
_INVALID = _Type("invalid-parameter", 400, "invalid_parameter")
_UNKNOWN_TARGET = _Type("key-routing-error", 400, "target_sae_id_not_recognized")
_PASS_BACK = _Type("key-routing-error", 400, "invalid_routing")
_BAD_VOID = _Type("void-request-not-understood", 400, "key_voiding_error")
_UNCONFIRMED = _Type("no-key-ids-or-confirmation", 400, "no_all_confirmation")
_BAD_ACK = _Type("ack-not-understood", 400, "ack_not_understood")
_NOT_PRESENT = _Type("key-not-present", 400, "key_not_present")
_UNAUTHORIZED = _Type("unauthorized", 401, "unauthorized")
_TIMEOUT = _Type("timeout", 408, "timeout")
_GENERAL = _Type("server-side-general-error", 503, "server_side_general_error")
_ONE_TARGET = _Type("key-routing-error", 503, "no_route_multiple_targets")
_NO_ROUTE = _Type("key-routing-error", 503, "no_known_route")
_NO_MATERIAL = _Type("insufficient-key-material", 503, "insufficient_key_material")
_EXTENSION = _Type("unsupported-mandatory-extension", 503, "unsupported_mandatory_extension")

# First match wins: an error's class says more than its details, except in the classes not listed.
_BY_CLASS: tuple[tuple[type[KeyhaulError], _Type], ...] = (
    (Tampered, _UNAUTHORIZED),
    (Unauthorized, _UNAUTHORIZED),
    (TimedOut, _TIMEOUT),
    (NoSuchTarget, _UNKNOWN_TARGET),
    (TooLarge, _INVALID),
    (KeyNotFound, _NOT_PRESENT),
    (InsufficientKey, _NO_MATERIAL),
    (Unsupported, _EXTENSION),
)
_BY_DETAIL = {
    kind.detail: kind
    for kind in (
        _MISSING,
        _INVALID,
        _UNKNOWN_TARGET,
        _PASS_BACK,
        _BAD_VOID,
        _UNCONFIRMED,
        _BAD_ACK,
        _NOT_PRESENT,
    )
}
_BY_OPERATION = {"ack": _BAD_ACK, "void": _BAD_VOID}


def problem(error: KeyhaulError, operation: Operation) -> tuple[int, bytes]:
    """HTTP status and JSON body that tell a caller of `operation` about `error`.

    A Refused whose details have a name of the standard (`invalid_routing`, ...) gets that problem type.
    """
    kind = _type(error, operation)
    text = str(error) if isinstance(error, _SAYABLE) else "the request cannot be served now"
    details = {kind.detail: _short(text)}
    if kind is _UNCONFIRMED:  # the standard's prose and its example disagree about the name
        details["no_key_ids_or_confirmation"] = _short(text)
    return kind.status, _encode(PREFIX + kind.slug, kind.status, kind.slug.replace("-", " "), details)


def plain_problem(status: int, title: str) -> bytes:
    """Problem details for what the standard leaves to HTTP: a path or method that does not exist."""
    return _encode("about:blank", status, title, {"http": title})


_SAYABLE = (Refused, Unauthorized, Tampered, TimedOut, Unavailable)


def _type(error: KeyhaulError, operation: Operation) -> _Type:
    for cls, kind in _BY_CLASS:
        if isinstance(error, cls):
            return kind
    if isinstance(error, NoRoute):
        return _ONE_TARGET if _ONE_TARGET.detail in error.details else _NO_ROUTE
    if not isinstance(error, Refused):
        return _GENERAL
    named = (_BY_DETAIL[name] for name in error.details if name in _BY_DETAIL)
    return next(named, _BY_OPERATION.get(operation, _INVALID))


def _encode(kind: str, status: int, title: str, details: Mapping[str, str]) -> bytes:
    return msgspec.json.encode({"type": kind, "status": status, "title": title, "details": details})


# --- reading what others answer

# A peer may quote the body it refused; runs this long are base64 of a key rather than words.
_MAYBE_KEY = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def problem_slug(body: bytes) -> str:
    """The standard's problem type without its prefix, or an empty text if there is none."""
    members = _members(body)
    kind = members.get("type") if isinstance(members, dict) else None
    return kind[len(PREFIX) :] if isinstance(kind, str) and kind.startswith(PREFIX) else ""


def parse_problem(body: bytes) -> str:
    """A short text for logs from an error answer; empty if it says nothing.

    Takes V1.1.1 and RFC 9457 problems, the `{message, details}` of the drafts, and plain text; drops what is
    not printable and what might be key material.
    """
    said = _members(body)
    texts = [said] if isinstance(said, str) else list(dict.fromkeys(_texts(said)))
    return _short(_MAYBE_KEY.sub(_redact, ": ".join(text for text in texts if text)))


def _members(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[: 4 * _MAX_TEXT].decode(errors="replace")


def _texts(members: Any) -> Iterator[str]:
    if not isinstance(members, dict):
        return
    kind, title = members.get("type"), members.get("title")
    if isinstance(title, str):
        yield title
    elif isinstance(kind, str) and kind != "about:blank":
        yield kind.removeprefix(PREFIX)
    yield from (text for name in ("message", "detail") if isinstance(text := members.get(name), str))
    details = members.get("details")
    for item in details if isinstance(details, list) else [details]:
        if isinstance(item, dict):
            yield from (value for value in item.values() if isinstance(value, str))


def _redact(found: re.Match[str]) -> str:
    return found[0] if _UUID.fullmatch(found[0]) else "…"


def _short(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text[: 4 * _MAX_TEXT])
    words = " ".join(printable.split())
    return words if len(words) <= _MAX_TEXT else words[: _MAX_TEXT - 1] + "…"
