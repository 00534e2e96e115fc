"""A real Prometheus scrapes a real node, and evaluates every alert and every panel of the dashboard."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.ports import held

pytestmark = pytest.mark.e2e

PACKAGING = Path(__file__).parents[2] / "packaging" / "monitoring"
PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
SETTINGS = {"monitor": {"listen": "127.0.0.1:0"}, "audit": {"file": "audit.log"}}


def monitor(testbed: Testbed, node: str) -> str:
    return str(json.loads(testbed.layout.ready_file(node).read_text())["monitor_url"])


async def use(testbed: Testbed) -> None:
    """One key from end to end, and one refusal."""
    saes = {sae["id"]: sae for sae in testbed.state()["saes"]}
    clients = []
    for name in ("sae-n1", "sae-n2"):
        files = Credentials(*(Path(saes[name][part]) for part in ("cert", "key", "ca")))
        clients.append(
            SaeClient(saes[name]["sae_url"], client_context(files, Policy.COMPATIBLE), patience=60.0)
        )
    async with clients[0] as master, clients[1] as slave:
        (key,) = await master.get_key("sae-n2")
        await slave.fetch_key("sae-n1", [key.key_id])


def test_health_follows_the_life_of_a_node(tmp_path: Path) -> None:
    async def scene() -> None:
        settings = {**SETTINGS, "audit": {"file": "/dev/full", "required": True}}
        async with Testbed(named("line-2"), tmp_path / "net", settings=settings) as testbed:
            url = monitor(testbed, "n1")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{url}/live") as answer:
                    assert answer.status == 200
                async with session.get(f"{url}/ready") as answer:
                    said = await answer.json()
                    assert answer.status == 503
                assert [reason for reason in said["reasons"] if "audit log" in reason]
                async with session.get(f"{url}/metrics") as answer:
                    page = await answer.text()
            assert "keyhaul_ready 0.0" in page
            assert "keyhaul_audit_trouble 1.0" in page

    asyncio.run(scene())


# What makes each alert ring: series by the minute, in promtool's notation.
RINGS = {
    "KeyhaulDown": {'up{job="keyhaul"}': "0x20"},
    "KeyhaulNotReady": {"keyhaul_ready": "0x20"},
    "KeyhaulRequestsFail": {
        'keyhaul_requests_total{port="sae",code="503"}': "0+1x20",
        'keyhaul_requests_total{port="sae",code="200"}': "0+9x20",
    },
    "KeyhaulOverloaded": {'keyhaul_admission_refused_total{reason="queue"}': "0+1x20"},
    "KeyhaulNeighbourSilent": {'keyhaul_neighbour_silent{peer="b"}': "1x20"},
    "KeyhaulLinkNotRefilled": {'keyhaul_link_trouble{peer="b"}': "1x20"},
    "KeyhaulDeviceDown": {'keyhaul_device_up{peer="b"}': "0x20"},
    "KeyhaulDeviceEmpty": {'keyhaul_device_stored_bits{peer="b"}': "0x20"},
    "KeyhaulDevicesDisagree": {'keyhaul_link_unopened_messages{peer="b"}': "3x20"},
    "KeyhaulDeviceKeysLow": {'keyhaul_link_device_bits{peer="b"}': "256x20"},
    "KeyhaulDeviceKeysLost": {'keyhaul_device_keys_lost_total{peer="b"}': "0+1x20"},
    "KeyhaulIntegrityFailure": {'keyhaul_integrity_failures_total{where="envelope"}': "0+1x20"},
    "KeyhaulCertificateEnds": {'keyhaul_certificate_expiry_timestamp_seconds{use="sae"}': "1000000x20"},
    "KeyhaulClockSkew": {'keyhaul_clock_skew_seconds{peer="b"}': "-40x20"},
    "KeyhaulStoreFails": {"keyhaul_store_failures_total": "0+1x20"},
    "KeyhaulEntropy": {'keyhaul_entropy_state{state="closed"}': "1x20"},
    "KeyhaulAuditLog": {"keyhaul_audit_trouble": "1x20"},
    "KeyhaulSlow": {"keyhaul_event_loop_lag_seconds": "2x20"},
}


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: scripts/install-debian-packages.sh monitoring")
def test_each_alert_rings_for_what_it_is_there_for_and_no_other_does(tmp_path: Path) -> None:
    rules = PACKAGING / "alerts.yml"
    alerts = {rule["alert"] for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]}
    assert alerts == RINGS.keys()
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": firing,
                    "eval_time": "15m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                }
            ],
        }
        for alert, series in RINGS.items()
    ]
    file = tmp_path / "rings.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": tests}))
    assert PROMTOOL is not None
    checked = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(
    PROMETHEUS is None, reason="needs prometheus: scripts/install-debian-packages.sh monitoring"
)
def test_a_real_prometheus_understands_everything(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Testbed(named("line-2"), tmp_path / "net", settings=SETTINGS) as testbed:
            await use(testbed)
            targets = [monitor(testbed, node).removeprefix("http://") for node in ("n1", "n2")]
            async with prometheus(tmp_path, targets) as ask:
                await until_scraped(ask)
                delivered = await ask("query", query='keyhaul_keys_delivered_total{role="master"} == 1')
                assert len(delivered["result"]) == 1
                board = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
                for panel in board["panels"]:
                    for target in panel["targets"]:
                        await ask("query", query=target["expr"].replace("$instance", ".*"))
                rules = await ask("rules")
                found = {rule["name"]: rule for group in rules["groups"] for rule in group["rules"]}
                written = yaml.safe_load((PACKAGING / "alerts.yml").read_text())
                assert found.keys() == {rule["alert"] for rule in written["groups"][0]["rules"]}
                assert {rule["health"] for rule in found.values()} <= {"ok", "unknown"}
                for name, rule in found.items():
                    await until_silent(ask, name, rule["query"])

    asyncio.run(scene())


async def until_silent(ask: Any, alert: str, query: str) -> None:
    """All is well: what rings now, as where a scrape came too late, does not go on."""
    for _ in range(60):
        if not (await ask("query", query=query))["result"]:
            return
        await asyncio.sleep(1.0)
    raise AssertionError(f"{alert} rings although all is well")


async def until_scraped(ask: Any) -> None:
    async with asyncio.timeout(120):
        while len((await ask("query", query="keyhaul_ready == 1"))["result"]) < 2:
            await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(directory: Path, targets: list[str]) -> AsyncIterator[Any]:
    """A Prometheus with our rules; gives a function that asks its API."""
    with held() as port:
        async with _prometheus(directory, targets, port) as ask:
            yield ask


@asynccontextmanager
async def _prometheus(directory: Path, targets: list[str], port: int) -> AsyncIterator[Any]:
    config = yaml.safe_load((PACKAGING / "prometheus.yml").read_text())
    job = config["scrape_configs"][0]
    job["static_configs"], job["scrape_interval"] = [{"targets": targets}], "1s"
    config["rule_files"] = [str(PACKAGING / "alerts.yml")]
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    assert PROMETHEUS is not None
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            PROMETHEUS,
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}"
            await until_up(session, f"{url}/-/ready", process)

            async def ask(what: str, **query: str) -> Any:
                async with session.get(f"{url}/api/v1/{what}?{urllib.parse.urlencode(query)}") as answer:
                    said = await answer.json()
                    assert said["status"] == "success", (query, said)
                    return said["data"]

            yield ask
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def until_up(session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(120):
        while process.returncode is None:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)
    raise AssertionError("prometheus ended")
