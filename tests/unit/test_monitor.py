"""Health in words, metrics with the names and labels they promise, and pictures that name existing ones."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from keyhaul.config import MonitorConfig
from keyhaul.config.operations import read_monitor
from keyhaul.config.reader import Mistake, Source
from keyhaul.edge.accepting import Traffic
from keyhaul.errors import StoreUnavailable
from keyhaul.monitor import health
from keyhaul.monitor.metrics import ENTROPY_STATES, Metrics
from keyhaul.monitor.start import open_monitor

PACKAGING = Path(__file__).parents[2] / "packaging" / "monitoring"
NOW = 1_800_000_000.0


def reading(**changes: Any) -> dict[str, Any]:
    """What a node in good order gives."""
    port = Traffic(connections=3, opened=5)
    port.answers.update({200: 7, 503: 2})
    port.refusals.update({"Busy": 2, "Tampered": 1})
    good: dict[str, Any] = {
        "name": "vigo",
        "domain": "galicia",
        "version": "1.0",
        "ready": True,
        "lag": 0.01,
        "traffic": {"sae": port, "node": port, "admin": Traffic()},
        "given": 5,
        "fetched": 4,
        "unfinished": 1,
        "pools": [{"master": "sae-a", "targets": ["sae-b"], "size": 256, "ready": 8}],
        "events": {"voided": 2, "worker_ended": 1, "origin_check_failed": 3, "refused": 9},
        "altered": 0,
        "hops": {("derio", "ext_keys", "accepted"): 6, ("derio", "ack", "lapsed"): 1},
        "hop_seconds": {"derio": (7, 0.7)},
        "peers": ["derio"],
        "outbox": {"derio": 2},
        "silent": {},
        "links": [
            {"peer": "derio", "unopened": 0, "device": {"stored_bits": 4096, "trouble": ""}},
            {"peer": "pqc", "unopened": 0, "device": None},
        ],
        "skew": {"derio": -2.5},
        "supplies": {
            "derio": {"one_time_keys": 96, "device_bits": 512, "drawn": 9, "lost": 1, "trouble": ""},
            "pqc": {"one_time_keys": 96, "device_bits": None, "drawn": 0, "lost": 0, "trouble": ""},
        },
        "admission": {"working": 1, "waiting": 0, "refused": {"queue": 2}},
        "engine": {"batches": 5, "changes": 9, "failures": 0, "broken": False},
        "sizes": {"database": 4096, "log": 0},
        "entropy": {
            "state": "good",
            "bytes_served": 64,
            "bytes_from_system_alone": 0,
            "sources": [{"name": "os", "failures": 0}],
        },
        "audit": None,
        "expiry": {"sae": NOW + 90 * 86_400, "node": NOW + 90 * 86_400},
        "draining": False,
        "workers": None,
    }
    return {**good, **changes}


def samples(page: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_a_reading_becomes_metrics_with_their_values() -> None:
    found = samples(Metrics().page(reading()))
    assert found["keyhaul_ready"] == [({}, 1.0)]
    assert ({"port": "sae", "code": "503"}, 2.0) in found["keyhaul_requests_total"]
    assert ({"port": "sae", "reason": "Busy"}, 2.0) in found["keyhaul_refusals_total"]
    assert found["keyhaul_pool_keys"] == [({}, 8.0)]
    assert found["keyhaul_integrity_failures_total"] == [
        ({"where": "envelope"}, 1.0),
        ({"where": "origin"}, 3.0),
        ({"where": "store"}, 0.0),
    ]
    assert ({"event": "worker_ended"}, 1.0) in found["keyhaul_events_total"]
    assert found["keyhaul_hop_seconds_sum"] == [({"peer": "derio"}, 0.7)]
    assert found["keyhaul_clock_skew_seconds"] == [({"peer": "derio"}, -2.5)]
    assert [labels["peer"] for labels, _ in found["keyhaul_link_device_bits"]] == ["derio"]
    assert {labels["state"] for labels, value in found["keyhaul_entropy_state"] if value} == {"good"}
    assert len(found["keyhaul_entropy_state"]) == len(ENTROPY_STATES)


def test_metrics_show_no_application_and_counters_end_in_total() -> None:
    page = Metrics().page(reading()).decode()
    assert "sae-a" not in page
    assert "sae-b" not in page
    for family in text_string_to_metric_families(page):
        assert family.name.startswith(("keyhaul_", "process_"))
        labels = {name for sample in family.samples for name in sample.labels}
        bounded = {
            "port", "code", "reason", "role", "event", "where", "peer", "operation", "outcome", "file",
            "state", "source", "use", "le", "name", "domain", "version",
        }  # fmt: skip
        assert labels <= bounded, family.name
        if family.type == "counter":
            assert all(each.name.endswith(("_total", "_created")) for each in family.samples)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bkeyhaul_[a-z_]+", text))


def test_every_metric_that_dashboard_and_alerts_name_exists() -> None:
    metrics = Metrics()
    metrics.seconds.labels("enc_keys").observe(0.1)
    existing = set(samples(metrics.page(reading(audit={"lines": 1}))))
    rules = yaml.safe_load((PACKAGING / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 10
    assert all(rule["annotations"]["next"] for rule in alerts)
    board = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 20
    for text in [*(rule["expr"] for rule in alerts), *queries]:
        named = names_in(text)
        assert named <= existing, text
    shown = names_in(" ".join(queries))
    counters = {name for name in existing if name.startswith("keyhaul_") and not name.endswith("_created")}
    unseen = counters - shown - {"keyhaul_node_info", "keyhaul_pools", "keyhaul_refusals_total"}
    extra = {"keyhaul_store_changes_total", "keyhaul_entropy_source_failures_total"}
    assert unseen <= extra | {name for name in unseen if re.search(r"system_alone|audit_|seconds_", name)}


PROBLEMS = {
    "the node is stopping": {"draining": True},
    "the store cannot save": {"engine": {"broken": True}},
    "no entropy source": {"entropy": {"state": "closed", "sources": []}},
    "audit log cannot be written": {"audit": {"required": True, "trouble": "full"}},
    "certificate of the sae port has expired": {"expiry": {"sae": NOW - 1, "admin": NOW - 1}},
    "behind": {"lag": 9.0},
    "no worker": {"workers": {"restarts": 3, "running": []}},
}


@pytest.mark.parametrize("words", PROBLEMS)
def test_each_reason_not_to_be_ready_is_said_alone(words: str) -> None:
    assert health.reasons(reading(), NOW) == []
    (reason,) = health.reasons(reading(**PROBLEMS[words]), NOW)
    assert words in reason


WARNINGS = {
    "neighbour derio does not answer: connection refused": {"silent": {"derio": "connection refused"}},
    "not refilled: dry": {"supplies": {"derio": {"trouble": "dry"}}},
    "device towards derio cannot be used: off": {
        "links": [{"peer": "derio", "unopened": 0, "device": {"stored_bits": None, "trouble": "off"}}]
    },
    "the devices may disagree": {"links": [{"peer": "derio", "unopened": 3, "device": None}]},
    "entropy is degraded": {"entropy": {"state": "degraded"}},
    "ends in 5 days": {"expiry": {"sae": NOW + 5 * 86_400 + 60}},
    "audit log": {"audit": {"required": False, "trouble": "full"}},
}


@pytest.mark.parametrize("words", WARNINGS)
def test_each_warning_is_said_and_leaves_the_node_ready(words: str) -> None:
    assert health.warnings(reading(), NOW) == []
    changed = reading(**WARNINGS[words])
    (warning,) = health.warnings(changed, NOW)
    assert words in warning
    assert health.reasons(changed, NOW) == []


def test_the_port_is_alive_before_the_node_is_ready_and_says_what_fails() -> None:
    async def story() -> None:
        opened = await open_monitor(MonitorConfig(port=0))
        assert opened is not None
        monitor, url = opened
        async with aiohttp.ClientSession() as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(url + path) as answer:
                    return answer.status, await answer.text()

            assert (await get("/live"))[0] == 200
            for path in ("/ready", "/metrics"):
                status, text = await get(path)
                assert status == 503
                assert "the node starts" in text

            async def broken() -> dict[str, Any]:
                raise StoreUnavailable("the store could not be read")

            monitor.instruments = SimpleNamespace(reading=broken)  # type: ignore[assignment]
            assert (await get("/ready")) == (
                503,
                '{"ready":false,"reasons":["the store could not be read"],"warnings":[]}\n',
            )
            async with session.post(url + "/metrics") as answer:
                assert answer.status == 405
        await monitor.close()

    asyncio.run(story())
    assert asyncio.run(open_monitor(MonitorConfig())) is None


@pytest.mark.parametrize(
    ("text", "expected", "mistakes"),
    [
        ("", MonitorConfig(), 0),
        ('listen = "127.0.0.1:9464"', MonitorConfig("127.0.0.1", 9464), 0),
        ('listen = "[::1]:0"', MonitorConfig("::1", 0), 0),
        ('listen = "10.0.0.1:9464"', MonitorConfig("10.0.0.1", 9464), 1),
        ('listen = "localhost:1"', MonitorConfig(), 1),
        ('listen = "127.0.0.1"', MonitorConfig(), 1),
        ('listen = "127.0.0.1:99999"', MonitorConfig(), 1),
        ('listen = "127.0.0.1:1/x"', MonitorConfig(), 1),
    ],
)
def test_the_address_is_checked(tmp_path: Path, text: str, expected: MonitorConfig, mistakes: int) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    found: list[Mistake] = []
    section = Source(file, found).read()
    assert section is not None
    assert read_monitor(section) == expected
    assert len(found) == mistakes
    assert all(mistake.warning == ("10.0.0.1" in text) for mistake in found)
