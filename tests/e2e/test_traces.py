"""Spans of three real nodes at a real collector: one trace a request, the right parents, nothing secret."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import client, eventually, lines

pytestmark = pytest.mark.e2e

NODES = ("n1", "n2", "n3")


@dataclass(frozen=True)
class Span:
    """One span as the collector got it."""

    node: str
    name: str
    trace: str
    id: str
    parent: str
    status: int
    told: dict[str, Any]


@dataclass
class Collector:
    """An OTLP/HTTP receiver that decodes what it gets with the protocol's own definitions."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)

    async def receive(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            who = {each.key: each.value.string_value for each in resource.resource.attributes}
            assert who["service.name"] == "keyhaul"
            for scope in resource.scope_spans:
                self.spans += [_span(who["service.instance.id"], each) for each in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    def named(self, name: str, node: str = "") -> list[Span]:
        return [span for span in self.spans if span.name == name and node in ("", span.node)]

    async def whole(self, fits: Callable[[], Any]) -> Any:
        """Wait until the spans that should come have come; nodes send them once a second."""
        return await eventually(fits)


def _span(node: str, each: Any) -> Span:
    told = {pair.key: _value(pair.value) for pair in each.attributes}
    ids = each.trace_id.hex(), each.span_id.hex(), each.parent_span_id.hex()
    return Span(node, each.name, *ids, each.status.code, told)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return (
        [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
    )


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    application = web.Application(client_max_size=2**24)
    application.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    try:
        yield collector
    finally:
        await runner.cleanup()


def test_one_trace_leads_through_all_nodes_with_the_right_parents(tmp_path: Path) -> None:
    asyncio.run(one_trace(tmp_path / "net"))


async def one_trace(directory: Path) -> None:
    async with collecting() as collector:
        settings = {"traces": {"endpoint": collector.url}, "delivery": {"pool": 0}}
        async with Testbed(named("line-3"), directory, settings=settings) as testbed:
            async with client(testbed, "sae-n1") as master, client(testbed, "sae-n3") as slave:
                (key,) = await master.get_key("sae-n3")
                await slave.fetch_key("sae-n1", [key.key_id])
            await collector.whole(
                lambda: collector.named("enc_keys", "n1") and collector.named("dec_keys", "n3")
            )
            request = collector.named("enc_keys", "n1")[-1]
            await collector.whole(lambda: in_order(collector, request.trace))
            expected = {(("n1", "dispatch"), "n2"), (("n2", "relay"), "n3"), (("n3", "hold"), "n2")}
            await collector.whole(lambda: expected <= hops(collector, request.trace))
            mine = {(span.node, span.name): span for span in collector.spans if span.trace == request.trace}

            assert request.parent == ""
            assert request.told["keyhaul.master"] == "sae-n1"
            assert request.told["keyhaul.slaves"] == ["sae-n3"]
            parents = {
                ("n1", "dispatch"): ("n1", "enc_keys"),
                ("n2", "relay"): ("n1", "dispatch"),
                ("n3", "hold"): ("n2", "relay"),
                ("n2", "settle"): ("n3", "hold"),
                ("n1", "settle"): ("n2", "settle"),
            }
            for child, parent in parents.items():
                assert mine[child].parent == mine[parent].id, f"{child} does not hang on {parent}"
            assert all(span.status != 2 for span in mine.values())

            fetched = collector.named("dec_keys", "n3")[-1]
            assert (fetched.trace != request.trace, fetched.parent) == (True, "")
            nothing_secret(collector, key.bits.reveal(), str(key.key_id))
            await a_refusal_is_an_error(testbed, collector)


def in_order(collector: Collector, trace: str) -> bool:
    found = {(span.node, span.name) for span in collector.spans if span.trace == trace}
    return {("n1", "settle"), ("n2", "settle"), ("n2", "relay"), ("n3", "hold"), ("n1", "enc_keys")} <= found


def hops(collector: Collector, trace: str) -> set[tuple[tuple[str, str] | None, str]]:
    """Who sent to whom, and as a part of what."""
    ids = {span.id: (span.node, span.name) for span in collector.spans if span.trace == trace}
    sends = [span for span in collector.named("send") if span.trace == trace]
    return {(ids.get(span.parent), span.told["keyhaul.to"]) for span in sends}


def nothing_secret(collector: Collector, bits: bytes, key_id: str) -> None:
    """No form of the bits, and no id of a key, left any node."""
    raw = bytes(collector.raw)
    assert b"sae-n1" in raw  # what may be told is there, so it is the right thing that was searched
    for form in (bits, bits.hex().encode(), base64.b64encode(bits)):
        assert form not in raw
    assert key_id.encode() not in raw


async def a_refusal_is_an_error(testbed: Testbed, collector: Collector) -> None:
    """A request that fails has a span of status ERROR, and the log names the same trace."""
    async with client(testbed, "sae-n1") as master:
        with pytest.raises(Exception, match="nobody"):
            await master.get_key("nobody")
    failed = await collector.whole(lambda: [span for span in collector.named("enc_keys") if span.status == 2])
    told = [line for line in lines(testbed, "n1") if line.get("trace") == failed[0].trace]
    assert "request refused" in {line["event"] for line in told}


def test_key_ids_are_told_where_that_is_wanted_and_a_part_of_the_traces_is_recorded(tmp_path: Path) -> None:
    asyncio.run(bounded(tmp_path / "net"))


async def bounded(directory: Path) -> None:
    async with collecting() as collector:
        settings = {"traces": {"endpoint": collector.url, "key_ids": True}, "delivery": {"pool": 0}}
        async with Testbed(named("line-2"), directory, settings=settings) as testbed:
            async with client(testbed, "sae-n1") as master:
                keys = await master.get_key("sae-n2", number=20)
            (held,) = await collector.whole(lambda: collector.named("hold", "n2"))
            assert held.told["keyhaul.key_ids"] == [str(key.key_id) for key in keys[:8]]
            assert held.told["keyhaul.keys"] == 20
            # A node that records none of its own traces: its neighbour follows it and records none of them.
            file = testbed.layout.node_file("n1")
            file.write_text(file.read_text().replace("[traces]", "[traces]\nratio = 0.0"))
            await testbed.restart("n1")
            before = len(collector.named("hold", "n2"))
            async with client(testbed, "sae-n1") as master:
                await master.get_key("sae-n2")
            async with client(testbed, "sae-n2") as master:
                await master.get_key("sae-n1")
            await collector.whole(lambda: collector.named("enc_keys", "n2") and collector.named("hold", "n1"))
            assert len(collector.named("hold", "n2")) == before


def test_a_collector_that_is_not_there_costs_no_key_and_no_patience(tmp_path: Path) -> None:
    asyncio.run(nobody_collects(tmp_path / "net"))


async def nobody_collects(directory: Path) -> None:
    settings = {"traces": {"endpoint": "http://127.0.0.1:9/v1/traces"}}
    async with Testbed(named("line-2"), directory, settings=settings) as testbed:
        async with client(testbed, "sae-n1") as master, client(testbed, "sae-n2") as slave:
            (key,) = await master.get_key("sae-n2")
            (copy,) = await slave.fetch_key("sae-n1", [key.key_id])
            assert key.bits.same_as(copy.bits)
        await eventually(
            lambda: [line for line in lines(testbed, "n1") if "traces are not delivered" in line["event"]]
        )
        await testbed.restart("n1")  # SIGTERM: it ends in order, whatever it could not tell
        async with client(testbed, "sae-n1") as master:
            await master.get_key("sae-n2")
