"""Problem details of 020: every error of ours has its type there, and answers of others become one line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.errors import (
    Conflict,
    IllegalStep,
    InsufficientKey,
    KeyhaulError,
    KeyNotFound,
    NoRoute,
    NoSuchTarget,
    Refused,
    StoreUnavailable,
    Tampered,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unsupported,
)
from keyhaul.messages.problems import PREFIX, parse_problem, plain_problem, problem, problem_slug
from tests.interop.schema020 import check, document

ONE = "3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a01"
MISSING = "missing-parameters"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def dump(body: Any) -> bytes:
    return json.dumps(body).encode()


ANSWERS: list[tuple[KeyhaulError, str, int, str, str]] = [
    (NoSuchTarget("no KME for SAE_Z"), "ext_keys", 400, "key-routing-error", "target_sae_id_not_recognized"),
    (Refused("back to you", invalid_routing="x"), "ext_keys", 400, "key-routing-error", "invalid_routing"),
    (TooLarge("too much"), "ext_keys", 400, "invalid-parameter", "invalid_parameter"),
    (Refused("no"), "ext_keys", 400, "invalid-parameter", "invalid_parameter"),
    (Refused("no"), "ack", 400, "ack-not-understood", "ack_not_understood"),
    (Refused("no"), "void", 400, "void-request-not-understood", "key_voiding_error"),
    (KeyNotFound("no such key"), "ack", 400, "key-not-present", "key_not_present"),
    (Unauthorized("not you"), "void", 401, "unauthorized", "unauthorized"),
    (Tampered(), "ext_keys", 401, "unauthorized", "unauthorized"),
    (TimedOut("too slow"), "ext_keys", 408, "timeout", "timeout"),
    (NoRoute("no path"), "ext_keys", 503, "key-routing-error", "no_known_route"),
    (
        NoRoute("one only", no_route_multiple_targets="x"),
        "ext_keys",
        503,
        "key-routing-error",
        "no_route_multiple_targets",
    ),
    (InsufficientKey("dry"), "ext_keys", 503, "insufficient-key-material", "insufficient_key_material"),
    (
        Unsupported("E1_x"),
        "ext_keys",
        503,
        "unsupported-mandatory-extension",
        "unsupported_mandatory_extension",
    ),
    (StoreUnavailable("disk"), "void", 503, "server-side-general-error", "server_side_general_error"),
    (Conflict("differs"), "ext_keys", 503, "server-side-general-error", "server_side_general_error"),
    (IllegalStep("inside"), "ack", 503, "server-side-general-error", "server_side_general_error"),
    (KeyhaulError("inside"), "versions", 503, "server-side-general-error", "server_side_general_error"),
]


@pytest.mark.parametrize(("error", "operation", "status", "kind", "detail"), ANSWERS)
def test_every_error_becomes_a_problem_of_the_catalogue(
    error: KeyhaulError, operation: Any, status: int, kind: str, detail: str
) -> None:
    got, body = problem(error, operation)
    said = check("problem_details", body)
    assert (got, said["status"], said["type"], set(said["details"])) == (
        status,
        status,
        PREFIX + kind,
        {detail},
    )
    assert ("inside" in body.decode()) is False
    assert error.cause in body.decode() or error.cause == "inside"
    assert problem_slug(body) == kind
    assert error.cause in parse_problem(body) or error.cause == "inside"


def test_every_type_of_the_document_can_be_sent() -> None:
    listed = set(
        re.findall(re.escape(PREFIX) + r"([a-z-]+)", json.dumps(document()["components"]["responses"]))
    )
    sent = {kind for _, _, _, kind, _ in ANSWERS} | {MISSING, "no-key-ids-or-confirmation"}
    assert listed <= sent


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ""),
        (b"{}", ""),
        (b"[]", ""),
        (b"null", ""),
        (b"7", ""),
        (b"Bad\r\n\x1b[31m  Gateway", "Bad [31m Gateway"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"type": "about:blank", "title": "Not Found", "detail": "gone"}', "Not Found: gone"),
        (b'{"message": "not found", "details": [{"key": "none"}, 7]}', "not found: none"),
        (b'{"type": "https://qkd.etsi.org/gs020-interop-kms/timeout"}', "timeout"),
        (b'{"title": 7, "details": {"a": 1, "b": "two"}}', "two"),
        (b'{"message": "bad value AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}', "bad value …"),
        (b'{"message": "no key 3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a01"}', f"no key {ONE}"),
    ],
)
def test_answers_of_others_become_one_line_without_key_material(body: bytes, expected: str) -> None:
    assert parse_problem(body) == expected


def test_long_answers_are_cut() -> None:
    assert len(parse_problem(dump({"message": "word " * 10_000}))) <= 512
    _, body = problem(Refused("word " * 10_000), "ext_keys")
    assert len(body) < 1024
    check("problem_details", plain_problem(404, "no such path"))


@settings(deadline=None)
@given(st.binary(max_size=64) | values.map(dump))
def test_reading_answers_never_fails(body: bytes) -> None:
    assert parse_problem(body).isprintable()
    assert isinstance(problem_slug(body), str)
