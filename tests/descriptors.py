"""Descriptors of three nodes in two domains, good until a test changes something."""

from __future__ import annotations

from typing import Any

from keyhaul.control import (
    PUBLIC_BYTES,
    Descriptor,
    Directory,
    PublicKey,
    Record,
    decode_told,
    publish,
)
from tests.neighbours import Anchors, Identity

NOW = 1_800_000_000.0
DOMAINS = {"vigo": "lab", "bilbao": "north", "derio": "north"}
ANCHORS = Anchors(frozenset({"lab", "north", None}))


def key(profile: str = "ml-kem-768", fill: bytes = b"\0", **changes: Any) -> PublicKey:
    fields = {"public": fill * PUBLIC_BYTES.get(profile, 9), "issued": NOW, "expires": NOW + 3600}
    return PublicKey(profile, **{**fields, **changes})


def described(node: str = "vigo", domain: str = "lab", **changes: Any) -> Descriptor:
    fields: dict[str, Any] = {
        "node": node,
        "domain": domain,
        "sequence": 10,
        "issued": NOW,
        "expires": NOW + 3600,
        "keys": (key(),),
    }
    return Descriptor(**{**fields, **changes})


def record(signer: Identity | None = None, **changes: Any) -> Record:
    return publish(described(**changes), signer or Identity("vigo"))


def records_of(body: bytes) -> list[Record]:
    """The records of one message; none where it holds stamps."""
    told = decode_told(body)
    return told if isinstance(told, list) else []


def directory() -> Directory:
    return Directory(ANCHORS, DOMAINS)
