"""What a node says of a payload it took in and passed on: digests that are the same at every honest node.

A payload without its pads is the same to the bit from origin to destination, so a digest over it and over
all that the origin vouches for follows it along the path. Where two neighbours disagree, one of them altered
it or lies; `judge` names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keyhaul.messages import labels
from keyhaul.messages.envelope import tag
from keyhaul.messages.payload import Context, Payload

RENEWED = frozenset({"blind-fresh"})
"""Schemes whose relays change what they pass on, so that a receipt covers only what stays."""


def digest(context: Context, payload: Payload) -> bytes:
    """16 bytes that stand for a payload without pads and for its context.

    It is no secret, but it is made from the keys in scheme `trusted`: receipts stay in the sealed store and
    go to operators, never over a link.
    """
    transcript = hashlib.sha256(context.transcript()).digest()
    return tag(labels.RECEIPT, b"", transcript, payload.head, payload.body)


def statement(row: Mapping[str, Any]) -> bytes:
    """What a node signs of one message, from any row of it: as `Row.summary` shows it, and the node's name.

    The digests cover the key ids, so one statement serves all keys of the message.
    """
    said = [row["node"], row["leg"], row["upstream"], row["peers"], row["took"], row["passed"]]
    return msgspec.msgpack.encode([labels.RECEIPT, *said, row["created"]], order="deterministic")


@dataclass(frozen=True, slots=True)
class Finding:
    """Who may be to blame, one node or two, and why. `suspects` is empty where all receipts fit."""

    suspects: tuple[str, ...]
    reason: str


def judge(rows: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> list[Finding]:
    """For each destination of one key: the first hop whose receipts do not fit.

    `rows` are summaries from the nodes named in `asked`, each with its `node`.
    """
    origins = [row for row in rows if row["leg"] == row["node"] and row["passed"]]
    return [
        _follow(origin, destination, rows, frozenset(asked))
        for origin in origins
        for destination in origin["passed"]
    ]


def _follow(
    origin: Mapping[str, Any],
    destination: str,
    rows: Sequence[Mapping[str, Any]],
    asked: frozenset[str],
) -> Finding:
    by_node = {row["node"]: row for row in rows if row["leg"] == destination and row["took"]}
    here, passed, at = origin["node"], origin["passed"][destination], origin["peers"][destination]
    for _ in range(len(asked) + 1):
        row = by_node.get(at)
        if row is None and at not in asked:
            return Finding((), f"{at} was not asked, so nothing is known from {here} on")
        if row is None:
            return Finding((here, at), f"{here} says it passed the key on, {at} knows nothing of it")
        if row["took"] != passed:
            return Finding((here, at), f"{at} took in something else than {here} says it passed on")
        if at == destination:
            return _arrived(origin, by_node, destination)
        if row["passed"].get(destination) != row["took"]:
            return Finding((at,), f"{at} says itself that it passed on something else than it took in")
        if destination not in row["peers"]:
            return Finding((at,), f"{at} says it passed the key on, but not to whom")
        here, passed, at = at, row["passed"][destination], row["peers"][destination]
    return Finding((), "the rows lead in a circle")


def _arrived(origin: Mapping[str, Any], by_node: Mapping[str, Any], destination: str) -> Finding:
    row = by_node[destination]
    refused = "deliverable" not in [step["state"] for step in row["history"]]
    if refused and row["scheme"] in RENEWED:
        return Finding(
            (),
            f"{destination} refused what arrived; relays of {row['scheme']} change ciphertexts, "
            "and receipts do not follow those",
        )
    if refused:
        return Finding((origin["node"], destination), f"{destination} refused what arrived as it was sent")
    if origin["legs"][destination] == "failed":
        return Finding(
            (), f"the key arrived at {destination}; its acknowledgement did not come back as it was"
        )
    return Finding((), f"all receipts from {origin['node']} to {destination} fit")
