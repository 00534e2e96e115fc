"""From a reading of the node to Prometheus metrics; every name, unit and label stands here and nowhere else.

Labels are bounded: ports, neighbours, sources and certificates come from the configuration, all others from
the code. An SAE or a key id is never one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

Reading = Mapping[str, Any]
ENTROPY_STATES = ("good", "reduced", "degraded", "closed")
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


class Metrics(Collector):
    """The registry of one node. `seconds` is observed as requests end, all else read at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "keyhaul_request_seconds",
            "Time from an application's request to its answer.",
            ["operation"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self._reading: Reading | None = None
        self.registry.register(self)

    def page(self, reading: Reading) -> bytes:
        """The text that Prometheus scrapes."""
        self._reading = reading
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry, which also asks once while there is no reading yet."""
        return [] if self._reading is None else list(families(self._reading))


def families(reading: Reading) -> Iterator[Metric]:
    """All metrics of one reading (`instruments.Instruments.reading`)."""
    info = {name: str(reading[name]) for name in ("name", "domain", "version")}
    yield InfoMetricFamily("keyhaul_node", "Who this is.", info)
    yield _gauge("ready", "1 if the node is ready to serve applications.", float(reading["ready"]))
    yield _gauge("event_loop_lag_seconds", "How late the node's tasks run.", reading["lag"])
    yield from _traffic(reading)
    yield from _keys(reading)
    yield from _hops(reading)
    yield from _links(reading)
    yield from _admission(reading["admission"])
    yield from _store(reading)
    yield from _entropy(reading["entropy"])
    yield from _audit(reading["audit"] or {})
    expiry = _labelled(
        GaugeMetricFamily, "certificate_expiry_timestamp_seconds", "End of a certificate.", "use"
    )
    for use, moment in reading["expiry"].items():
        expiry.add_metric([use], moment)
    yield expiry


def _traffic(reading: Reading) -> Iterator[Metric]:
    answers = _labelled(CounterMetricFamily, "requests", "Requests answered.", "port", "code")
    refused = _labelled(CounterMetricFamily, "refusals", "Requests refused.", "port", "reason")
    open_now = _labelled(GaugeMetricFamily, "connections", "Connections open.", "port")
    pending = _labelled(GaugeMetricFamily, "handshakes", "TLS handshakes not finished.", "port")
    failed = _labelled(CounterMetricFamily, "handshakes_failed", "TLS handshakes failed.", "port")
    away = _labelled(CounterMetricFamily, "connections_turned_away", "Closed unseen, over a limit.", "port")
    for port, traffic in reading["traffic"].items():
        for code, number in traffic.answers.items():
            answers.add_metric([port, str(code)], number)
        for reason, number in traffic.refusals.items():
            refused.add_metric([port, reason], number)
        open_now.add_metric([port], traffic.connections)
        pending.add_metric([port], traffic.handshakes)
        failed.add_metric([port], traffic.handshakes_failed)
        away.add_metric([port], traffic.turned_away)
    yield from (answers, refused, open_now, pending, failed, away)


def _keys(reading: Reading) -> Iterator[Metric]:
    delivered = _labelled(CounterMetricFamily, "keys_delivered", "Keys handed to applications.", "role")
    delivered.add_metric(["master"], reading["given"])
    delivered.add_metric(["slave"], reading["fetched"])
    yield delivered
    yield _gauge("keys_unfinished", "Keys sent on their way and not confirmed.", reading["unfinished"])
    yield _gauge("pools", "Pairs of applications with keys ready.", len(reading["pools"]))
    ready = sum(pool["ready"] for pool in reading["pools"])
    yield _gauge("pool_keys", "Keys relayed ahead and ready, all pairs together.", ready)
    events = _labelled(CounterMetricFamily, "events", "What happened to keys, and to workers.", "event")
    for event in ("voided", "lapsed", "worker_ended"):
        events.add_metric([event], reading["events"].get(event, 0))
    yield events
    broken = _labelled(
        CounterMetricFamily, "integrity_failures", "Things that were not what was made.", "where"
    )
    broken.add_metric(["envelope"], reading["traffic"]["node"].refusals.get("Tampered", 0))
    broken.add_metric(["origin"], reading["events"].get("origin_check_failed", 0))
    broken.add_metric(["store"], reading["altered"])
    yield broken


def _hops(reading: Reading) -> Iterator[Metric]:
    sent = _labelled(
        CounterMetricFamily, "hop_messages", "Messages to neighbours.", "peer", "operation", "outcome"
    )
    for (peer, operation, outcome), number in reading["hops"].items():
        sent.add_metric([peer, operation, outcome], number)
    yield sent
    took = SummaryMetricFamily(
        "keyhaul_hop_seconds", "Time until a neighbour answered a message.", labels=["peer"]
    )
    for peer, (count, seconds) in reading["hop_seconds"].items():
        took.add_metric([peer], count, seconds)
    yield took
    waiting = _labelled(GaugeMetricFamily, "outbox_messages", "Messages not answered yet.", "peer")
    silent = _labelled(GaugeMetricFamily, "neighbour_silent", "1 while a neighbour does not answer.", "peer")
    for peer in reading["peers"]:
        waiting.add_metric([peer], reading["outbox"].get(peer, 0))
        silent.add_metric([peer], float(peer in reading["silent"]))
    yield from (waiting, silent)
    skew = _labelled(
        GaugeMetricFamily, "clock_skew_seconds", "A neighbour's clock less ours, to a second.", "peer"
    )
    for peer, seconds in reading["skew"].items():
        skew.add_metric([peer], seconds)
    yield skew


def _links(reading: Reading) -> Iterator[Metric]:
    bits = _labelled(GaugeMetricFamily, "link_device_bits", "Device bits ready for sending.", "peer")
    one_time = _labelled(GaugeMetricFamily, "link_one_time_keys", "ML-KEM keys of the neighbour.", "peer")
    drawn = _labelled(CounterMetricFamily, "device_keys_drawn", "Keys taken from a device.", "peer")
    lost = _labelled(CounterMetricFamily, "device_keys_lost", "Keys the far device never had.", "peer")
    trouble = _labelled(GaugeMetricFamily, "link_trouble", "1 while a link is not refilled.", "peer")
    unopened = _labelled(
        GaugeMetricFamily,
        "link_unopened_messages",
        "Not opened by the neighbour in the last two minutes.",
        "peer",
    )
    up = _labelled(GaugeMetricFamily, "device_up", "1 while the device answers.", "peer")
    stored = _labelled(GaugeMetricFamily, "device_stored_bits", "What the device says it has.", "peer")
    for link in reading["links"]:
        unopened.add_metric([link["peer"]], link["unopened"])
        if (device := link["device"]) is not None:
            up.add_metric([link["peer"]], float(not device["trouble"]))
            if device["stored_bits"] is not None:
                stored.add_metric([link["peer"]], device["stored_bits"])
    for peer, supplies in reading["supplies"].items():
        one_time.add_metric([peer], supplies["one_time_keys"])
        trouble.add_metric([peer], float(bool(supplies["trouble"])))
        if supplies["device_bits"] is not None:
            bits.add_metric([peer], supplies["device_bits"])
            drawn.add_metric([peer], supplies["drawn"])
            lost.add_metric([peer], supplies["lost"])
    yield from (bits, one_time, drawn, lost, trouble, unopened, up, stored)


def _admission(admission: Reading) -> Iterator[Metric]:
    yield _gauge("admission_working", "Requests for keys being worked on.", admission["working"])
    yield _gauge("admission_waiting", "Requests for keys that wait for their turn.", admission["waiting"])
    refused = _labelled(CounterMetricFamily, "admission_refused", "Told to come back later.", "reason")
    for reason, number in admission["refused"].items():
        refused.add_metric([reason], number)
    yield refused


def _store(reading: Reading) -> Iterator[Metric]:
    store = reading["engine"]
    yield _counter("store_commits", "Commits, one fsync each.", store["batches"])
    yield _counter("store_changes", "Changes in those commits.", store["changes"])
    yield _counter("store_failures", "Commits that the disk refused.", store["failures"])
    sizes = _labelled(GaugeMetricFamily, "store_bytes", "Size of the store's files.", "file")
    for file, size in reading["sizes"].items():
        sizes.add_metric([file], size)
    yield sizes


def _entropy(entropy: Reading) -> Iterator[Metric]:
    state = _labelled(GaugeMetricFamily, "entropy_state", "1 for the state the generator is in.", "state")
    for name in ENTROPY_STATES:
        state.add_metric([name], float(entropy["state"] == name))
    yield state
    yield _counter("entropy_bytes", "Bytes served.", entropy["bytes_served"])
    text = "Bytes served by the operating system alone, against the configuration."
    yield _counter("entropy_system_alone_bytes", text, entropy["bytes_from_system_alone"])
    failures = _labelled(
        CounterMetricFamily, "entropy_source_failures", "Failures of an entropy source.", "source"
    )
    for source in entropy["sources"]:
        failures.add_metric([source["name"]], source["failures"])
    yield failures


def _audit(audit: Reading) -> Iterator[Metric]:
    yield _counter("audit_lines", "Lines written to the audit log.", audit.get("lines", 0))
    yield _counter("audit_lines_dropped", "Lines that were lost.", audit.get("dropped", 0))
    yield _counter("audit_failures", "Writes that the disk refused.", audit.get("failures", 0))
    yield _gauge("audit_lines_waiting", "Lines not on disk yet.", audit.get("waiting", 0))
    yield _gauge("audit_trouble", "1 while the log cannot be written.", float(bool(audit.get("trouble"))))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"keyhaul_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"keyhaul_{name}", text, value=value)


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, *labels: str
) -> Any:
    return kind(f"keyhaul_{name}", text, labels=labels)
