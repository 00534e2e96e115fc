"""What bodies of ETSI GS QKD 020 V1.1.1 must look like, said without the node's codecs."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from typing import Any

from keyhaul.conformance.call import Answer
from keyhaul.conformance.probe import expect

VERSIONS = "/kmapi/versions"
EXT_KEYS = "/kmapi/v1/ext_keys"
ACK = "/kmapi/v1/ext_keys/ack"
VOID = "/kmapi/v1/ext_keys/void"
PROBLEMS = "https://qkd.etsi.org/gs020-interop-kms/"
STATUSES = frozenset({"relayed", "failed", "voided", "failed to void", "key not present"})

_SAE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,64}")
_EXTENSION = re.compile(r"E[0-9]+_.*", re.DOTALL)


def problem(answer: Answer, status: int, *slugs: str) -> str:
    """What was seen, if it is a problem document of this status and one of these types. Raises Deviation."""
    expect(answer.status == status, f"{answer.brief()}, not {status}")
    kind = answer.content_type.partition(";")[0].strip().lower()
    expect(kind in ("application/json", "application/problem+json"), f"{status} with content type {kind}")
    value = answer.json()
    expect(isinstance(value, dict), f"{status} without a problem document: {answer.brief()}")
    said = value.get("type")
    named = isinstance(said, str) and said.startswith(PROBLEMS)
    expect(named, f"{status} of type {said!r}: {answer.brief()}")
    slug = str(said)[len(PROBLEMS) :]
    expect(not slugs or slug in slugs, f"{status} {slug}")
    expect(value.get("status", status) == status, f"status {value.get('status')!r} in a {status}")
    details = value.get("details", {"-": "-"})
    texts = isinstance(details, dict) and all(isinstance(each, str) for each in details.values())
    expect(texts and details, f"details is no object of strings: {answer.brief()}")
    return f"{status} {slug}"


def ack_fault(value: Any) -> str:
    """What is wrong with the body of an acknowledgement call; empty if nothing is."""
    if not isinstance(value, list):
        return "an acknowledgement that is no array"
    if not 1 <= len(value) <= 1024:
        return f"an array of {len(value)} acknowledgements"
    return next((fault for item in value if (fault := _container_fault(item))), "")


def _container_fault(item: Any) -> str:
    if not isinstance(item, dict):
        return "an acknowledgement container that is no object"
    ids = item.get("key_id_container")
    if not isinstance(ids, list) or len(ids) > 1024:
        return "no array key_id_container of at most 1024"
    if not all(isinstance(each, dict) and is_uuid(each.get("key_id")) for each in ids):
        return "a key_id_container with something else than key_ids"
    if item.get("ack_status") not in STATUSES:
        return f"ack_status {item.get('ack_status')!r}"
    message = item.get("message", "")
    if not isinstance(message, str) or len(message) > 4096:
        return "a message that is no text of at most 4096 characters"
    return saes_fault(item) or extension_fault(item, "extension")


def transfer_fault(value: Any) -> str:
    """What is wrong with an ext_key_container that the KME under test sent; empty if nothing is."""
    if not isinstance(value, dict):
        return "a transfer that is no object"
    keys = value.get("keys")
    if not isinstance(keys, list) or not keys:
        return "no array `keys`"
    for key in keys:
        if not isinstance(key, dict) or not is_uuid(key.get("key_id")) or not bits_of(key):
            return "a key without a UUID key_id and a base64 value"
    url = value.get("ack_callback_url")
    if not isinstance(url, str) or not url.startswith("https://") or len(url) > 1024:
        return f"ack_callback_url {url!r}"
    faults = (extension_fault(value, name) for name in ("extension_mandatory", "extension_optional"))
    return saes_fault(value) or next((fault for fault in faults if fault), "")


def saes_fault(value: dict[str, Any]) -> str:
    """What is wrong with initiator and targets."""
    targets = value.get("target_sae_ids")
    if not isinstance(targets, list) or not targets:
        return "no array target_sae_ids"
    for sae in (value.get("initiator_sae_id"), *targets):
        if not isinstance(sae, str) or not _SAE.fullmatch(sae):
            return f"SAE id {sae!r}"
    return ""


def extension_fault(value: dict[str, Any], name: str) -> str:
    """What is wrong with an extension, which may be absent but not empty."""
    if name not in value:
        return ""
    members = value[name]
    if not isinstance(members, dict) or not members:
        return f"{name} is {members!r}"
    return next((f"extension name {each!r}" for each in members if not _EXTENSION.fullmatch(each)), "")


def is_uuid(value: object) -> bool:
    """UUID in its text form."""
    try:
        return isinstance(value, str) and len(value) == 36 and bool(uuid.UUID(value))
    except ValueError:
        return False


def bits_of(key: dict[str, Any]) -> bytes:
    """The value of a key; empty if it is no base64."""
    try:
        return base64.b64decode(key.get("value", ""), validate=True)
    except (binascii.Error, TypeError, ValueError):
        return b""
