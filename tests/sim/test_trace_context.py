"""What a neighbour writes as its trace decides nothing: keys cross whatever it says, or says nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keyhaul import story
from keyhaul.messages import tracecontext
from keyhaul.messages.etsi020 import decode_acks, decode_ext_keys
from keyhaul.messages.tracecontext import TraceContext
from keyhaul.testbed.clock import run
from tests.sim.world import World

LINE = [("a", "b", "qkd"), ("b", "c", "pqc"), ("c", "d", "qkd")]
NAME = tracecontext.extension_name(32473)
GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def crossed() -> None:
    world = World(1, LINE)
    await world.start()
    (key,) = await world.ask("a", "d", optional={"keyhaul_labels": ()})
    (same,) = await world.fetch("a", "d", [key.key_id])
    assert same.bits.same_as(key.bits)


@pytest.mark.parametrize(
    "said",
    [
        {},  # a node that knows nothing of traces
        {NAME: "00-" + "0" * 32 + "-b7ad6b7169203331-01"},
        {NAME: GOOD[:-1]},
        {NAME: GOOD + "-more"},
        {NAME: "x" * 10_000},
        {NAME: ""},
        {NAME: None},
        {NAME: 7},
        {NAME: [[[GOOD]]]},
        {NAME: {"traceparent": GOOD}},
    ],
    ids=lambda said: str(said)[:40],
)
def test_keys_cross_whatever_stands_where_a_trace_should(
    said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracecontext, "written", lambda context, pen: dict(said))
    heard: list[TraceContext | None] = []
    go_on = story.go_on
    monkeypatch.setattr(story, "go_on", lambda context: (heard.append(context), go_on(context))[1])
    run(crossed())
    assert len(heard) >= 6  # three hops there and three back
    assert set(heard) == {None}


def test_a_trace_is_handed_on_and_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[TraceContext | None] = []
    go_on = story.go_on
    monkeypatch.setattr(story, "go_on", lambda context: (heard.append(context), go_on(context))[1])
    run(crossed())
    assert len(heard) >= 6
    assert None not in heard
    assert len({context.trace for context in heard if context is not None}) == 1


def test_whoever_does_not_know_the_extension_reads_the_message_all_the_same() -> None:
    """As a node of an earlier release does: optional extensions may be passed over (020 V1.1.1)."""
    saes = {"initiator_sae_id": "A", "target_sae_ids": ["B"]}
    key = {"key_id": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "value": "AAAA"}
    body = {
        "keys": [key],
        **saes,
        "ack_callback_url": "https://a.example/ack",
        "extension_optional": {NAME: GOOD},
    }
    transfer = decode_ext_keys(msgspec.json.encode(body), sealed=True)
    assert transfer.extension_mandatory == {}
    assert tracecontext.read(transfer.extension_optional, 32473) == tracecontext.parse(GOOD)
    assert tracecontext.read(transfer.extension_optional, 4711) is None
    ack = {
        "key_id_container": [{"key_id": key["key_id"]}],
        "ack_status": "relayed",
        **saes,
        "extension": {NAME: GOOD},
    }
    (read,) = decode_acks(msgspec.json.encode([ack]), sealed=True)
    assert tracecontext.read(read.extension, 32473) == tracecontext.parse(GOOD)
