"""Receipts name the hop where a payload changed, and nobody can unsay them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from keyhaul.errors import Malformed, Tampered, Unauthorized
from keyhaul.keys import Ref, Row, State
from keyhaul.messages.payload import Payload
from keyhaul.messages.receipts import Finding, digest, judge, statement
from keyhaul.receipts import EVERY, Receipts, check
from keyhaul.stores.memory import MemoryLedger
from tests.neighbours import Anchors, Identity, context

PAYLOAD = Payload("masked", b"head", b"body under the pads")


# ---------------------------------------------------------------------- digests


def test_a_digest_covers_payload_head_and_all_the_origin_vouches_for() -> None:
    vouched = context(scheme="masked")
    seen = {
        digest(vouched, PAYLOAD),
        digest(vouched, replace(PAYLOAD, body=b"body under the padz")),
        digest(vouched, replace(PAYLOAD, head=b"heaD")),
        digest(vouched, Payload("masked", b"headb", b"ody under the pads")),
        digest(context(scheme="masked", expires=1_800_086_401), PAYLOAD),
        digest(context(scheme="masked", key_ids=(UUID(int=2), UUID(int=1))), PAYLOAD),
    }
    assert len(seen) == 6
    assert {len(each) for each in seen} == {16}
    assert digest(vouched, PAYLOAD) in seen


# ---------------------------------------------------------------------- judging


def story(path: str = "abcd") -> list[dict[str, Any]]:
    """Rows of one key that went all the way, one character a node."""
    rows = []
    for at, node in enumerate(path):
        last = at == len(path) - 1
        rows.append(
            {
                "node": node,
                "leg": node if at == 0 else path[-1],
                "upstream": path[at - 1] if at else None,
                "peers": {} if last else {path[-1]: path[at + 1]},
                "legs": {} if last else {path[-1]: "relayed"},
                "took": "11" if at else "",
                "passed": {} if last else {path[-1]: "11"},
                "created": 100.0 + at,
                "scheme": "masked",
                "history": [{"state": "deliverable", "at": 105.0}],
            }
        )
    return rows


def suspects(rows: list[dict[str, Any]], asked: str = "abcd") -> tuple[str, ...]:
    (finding,) = judge(rows, list(asked))
    return finding.suspects


def test_receipts_that_fit_name_nobody() -> None:
    (finding,) = judge(story(), list("abcd"))
    assert finding == Finding((), "all receipts from a to d fit")


@pytest.mark.parametrize(
    ("took", "passed", "named"),
    [
        ("11", "22", ("b",)),  # it says what it did
        ("22", "22", ("a", "b")),  # it says that it came so
        ("11", "11", ("b", "c")),  # it says that it left as it came
    ],
)
def test_a_relay_that_alters_is_named_whatever_it_says(
    took: str, passed: str, named: tuple[str, ...]
) -> None:
    rows = story()
    rows[1].update(took=took, passed={"d": passed})
    for row in rows[2:]:
        row["took"] = "22"
    rows[2]["passed"] = {"d": "22"}
    assert suspects(rows) == named


@pytest.mark.parametrize("pretends", [False, True])
def test_a_relay_that_drops_is_named_with_a_neighbour(pretends: bool) -> None:
    rows = story()[:2] if pretends else story()[:1]
    assert suspects(rows) == (("b", "c") if pretends else ("a", "b"))


def test_a_tombstone_of_a_void_is_no_receipt_and_a_receipt_needs_a_next_node() -> None:
    rows = story()
    rows[1].update(took="", passed={}, peers={})
    assert suspects(rows) == ("a", "b")
    rows[1].update(took="11", passed={"d": "11"})
    assert suspects(rows) == ("b",)


def test_what_was_not_asked_is_not_judged() -> None:
    (finding,) = judge([row for row in story() if row["node"] != "c"], list("abd"))
    assert finding.suspects == ()
    assert "c was not asked" in finding.reason


def test_a_destination_that_refuses_what_fits_is_named_with_the_origin() -> None:
    rows = story()
    rows[3]["history"] = [{"state": "failed", "at": 105.0}]
    assert suspects(rows) == ("a", "d")


def test_where_relays_change_ciphertexts_nobody_is_blamed_for_what_receipts_cannot_see() -> None:
    rows = [{**row, "scheme": "blind-fresh"} for row in story()]
    assert "all receipts" in judge(rows, list("abcd"))[0].reason
    rows[3]["history"] = [{"state": "failed", "at": 105.0}]
    (finding,) = judge(rows, list("abcd"))
    assert finding.suspects == ()
    assert "relays of blind-fresh change ciphertexts" in finding.reason
    rows[2]["took"] = "22"
    assert suspects(rows) == ("b", "c"), "tag, name and context are followed all the same"


def test_a_lost_acknowledgement_and_a_circle_are_told_as_such() -> None:
    rows = story()
    rows[0]["legs"] = {"d": "failed"}
    assert "did not come back" in judge(rows, list("abcd"))[0].reason
    rows[2]["peers"] = {"d": "b"}
    assert "circle" in judge(rows, list("abcd"))[0].reason


def test_each_destination_is_judged_for_itself_and_local_keys_not_at_all() -> None:
    near, far = story("ab"), story("acd")
    origin = {**near[0], "peers": {"b": "b", "d": "c"}, "passed": {"b": "11", "d": "11"}}
    origin["legs"] = {"b": "relayed", "d": "relayed"}
    far[1]["took"] = "22"
    findings = judge([origin, near[1], *far[1:]], list("abcd"))
    assert [each.suspects for each in findings] == [(), ("a", "c")]
    assert judge([{**origin, "passed": {}}], ["a"]) == []


# ---------------------------------------------------------------------- the chain


class Clock:
    def __init__(self) -> None:
        self.at = 1_000.0

    def now(self) -> float:
        return self.at


def row(number: int, created: float, took: bytes = b"t" * 16) -> Row:
    return Row(
        ref=Ref(UUID(int=number), "far"),
        state=State.SENDING,
        initiator="sae",
        targets=("sae-b",),
        size=256,
        created=created,
        deadline=created + 15,
        expires=created + 3600,
        upstream="vigo",
        peers={"far": "derio"},
        took=took,
        passed={"far": took},
    )


def summary(noted: Row) -> dict[str, Any]:
    return {"node": "bilbao", **noted.summary()}


class Node:
    def __init__(self, keep: float = 1e9) -> None:
        self.clock, self.ledger = Clock(), MemoryLedger()
        self.receipts = Receipts(Identity("bilbao"), self.ledger, self.clock, keep)

    async def sealed(self, *rows: Row) -> None:
        for each in rows:
            self.receipts.note(each)
        self.clock.at += EVERY
        await self.receipts.seal_if_due()

    async def evidence(self, noted: Row) -> bytes | None:
        return await self.receipts.evidence(summary(noted))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_every_receipt_is_found_in_its_seal_and_seals_are_chained() -> None:
    async def scene() -> None:
        node, rows = Node(), []
        for at in range(40):
            rows.append(row(at, node.clock.at, took=bytes([at]) * 16))
            await node.sealed(rows[-1])
        previous: list[tuple[int, bytes]] = []
        for at, each in enumerate(rows):
            found = await node.evidence(each)
            assert found is not None
            previous.append(check(summary(each), found, Anchors(), 1_000.0))
            assert previous[-1][0] == at + 1
        assert len({before for _, before in previous}) == 40

    run(scene())


def test_one_signature_serves_all_receipts_of_an_interval() -> None:
    async def scene() -> None:
        node = Node()
        rows = [row(at, node.clock.at + at / 100, took=bytes([at]) * 16) for at in range(50)]
        await node.sealed(*rows)
        assert len({await node.evidence(each) for each in rows}) == 1
        await node.receipts.seal_if_due()
        assert set(await node.ledger.items("receipts")) == {"1", "head"}, "nothing pending, nothing sealed"

    run(scene())


def test_a_receipt_cannot_be_unsaid() -> None:
    async def scene() -> None:
        node = Node()
        said = row(1, node.clock.at)
        await node.sealed(said)
        found = await node.evidence(said)
        assert found is not None
        for change in (
            {"took": "22" * 16},
            {"passed": {"far": "22" * 16}},
            {"upstream": "other"},
            {"peers": {"far": "other"}},
            {"created": 1.0},
            {"node": "derio"},
        ):
            with pytest.raises(Tampered):
                check({**summary(said), **change}, found, Anchors(), 1_000.0)
        with pytest.raises(Malformed):
            check(summary(said), b"no seal", Anchors(), 1_000.0)
        with pytest.raises(Unauthorized):
            check(summary(said), found, Anchors(frozenset({"elsewhere"})), 1_000.0)
        body, certificate, signature = msgspec.msgpack.decode(found)
        for forged in (
            [body, Identity("vigo").der, signature],
            [body + b"", certificate, bytes(32)],
            [body.replace(b"bilbao", b"bilbaO"), certificate, signature],
        ):
            with pytest.raises((Tampered, Malformed)):
                check(summary(said), msgspec.msgpack.encode(forged), Anchors(), 1_000.0)

    run(scene())


def test_what_a_crash_cut_off_is_shown_as_unsealed() -> None:
    async def scene() -> None:
        node = Node()
        kept, lost = row(1, node.clock.at), row(2, node.clock.at, took=b"u" * 16)
        await node.sealed(kept)
        node.receipts.note(lost)
        again = Receipts(Identity("bilbao"), node.ledger, node.clock, 1e9)
        later = row(3, node.clock.at, took=b"v" * 16)
        again.note(later)
        await again.seal()
        assert await again.evidence(summary(kept)) is not None
        assert await again.evidence(summary(lost)) is None
        shown = await again.shown(summary(later))
        assert shown["seal"]
        assert (await again.shown(summary(lost)))["seal"] is None

    run(scene())


def test_old_seals_are_erased() -> None:
    async def scene() -> None:
        node = Node(keep=10 * EVERY)
        old = row(0, node.clock.at)
        await node.sealed(old)
        for at in range(1, 30):
            await node.sealed(row(at, node.clock.at, took=bytes([at]) * 16))
        assert await node.evidence(old) is None
        assert len(await node.ledger.items("receipts")) <= 13
        newest = row(99, node.clock.at, took=b"n" * 16)
        await node.sealed(newest)
        assert await node.evidence(newest) is not None

    run(scene())


def test_a_statement_is_the_same_for_every_key_of_a_message_and_no_other() -> None:
    one = summary(row(1, 5.0))
    assert statement(one) == statement(summary(row(2, 5.0)))
    assert statement(one) != statement(summary(row(1, 6.0)))
