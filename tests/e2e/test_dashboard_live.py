"""What happens to a real network, as an open page tells it: devices disturbed by clicks, nodes reloaded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from keyhaul.client import AsyncClient
from keyhaul.dashboard.federated import Door, FederatedSource, of_testbed
from keyhaul.edge.tls import Credentials
from keyhaul.errors import KeyhaulError
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.browser import Page
from tests.e2e.test_dashboard import looking_at
from tests.e2e.test_operate import keyhaul
from tests.e2e.test_reload import no_peer_third, rewrite, without_third

pytestmark = pytest.mark.e2e

FEW = {"prefetch": {"low": 2, "high": 4}}  # device keys ready: a disturbed device is felt soon


@asynccontextmanager
async def asking(state: Mapping[str, Any]) -> AsyncIterator[None]:
    """Both applications ask for keys all the time, and take a 503 for an answer."""

    async def ask(here: int, there: int) -> None:
        sae = state["saes"][here]
        files = {name: sae[name] for name in ("cert", "key", "ca")}
        async with AsyncClient(sae["sae_url"], **files, patience=0.0) as one:
            while True:
                with contextlib.suppress(KeyhaulError):
                    await one.get_key(state["saes"][there]["id"], number=128)
                await asyncio.sleep(0)  # the next one at once: only the node sets the pace

    tasks = [asyncio.create_task(ask(0, 1)), asyncio.create_task(ask(1, 0))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def told(tab: Page, words: str) -> str:
    """What a fault with these words says, once there is one."""
    faults = "[...document.querySelectorAll('#faults li')].map((each) => each.textContent)"
    found = await tab.until(f"{faults}.find((each) => each.includes({json.dumps(words)}))")
    return str(found)


async def turn(tab: Page, knob: str, on: bool) -> None:
    button = f"#devices button[aria-label^={json.dumps(knob)}]"
    pressed = f"document.querySelector({json.dumps(button)})?.getAttribute('aria-pressed')"
    await tab.until(f"{pressed} === {json.dumps(str(not on).lower())}")
    await tab.click(button)
    await tab.until(f"{pressed} === {json.dumps(str(on).lower())}")


@pytest.mark.parametrize(
    ("knob", "words", "next_step"),
    [
        ("Cut", "the classical channel of the pair is down", "look at the device at n1"),
        ("Run dry", "the device at n1 stores no key", "look at the device at n1"),
        ("Lag", "the device at n1 does not have", "look at the device at n1: whether the classical channel"),
        ("Disagree", "the two devices hand out different bits", "pair them anew"),
    ],
)
def test_a_device_disturbed_by_a_click_is_told_of_with_cause_and_next_step(
    tmp_path: Path, knob: str, words: str, next_step: str
) -> None:
    async def story() -> None:
        topology = named("line-2").with_devices("instant")
        async with Testbed(topology, tmp_path / "net", settings=FEW) as testbed:
            state = testbed.state()
            async with of_testbed(state) as source, looking_at(source, tmp_path / "browser") as tab:
                await tab.until("document.querySelector('#verdict').className === 'good'")
                await turn(tab, knob, on=True)
                effect = await tab.until("document.querySelector('#devices-said').textContent")
                assert "n1 – n2" in effect
                async with asking(state):
                    said = await told(tab, words)
                assert next_step in said
                assert await tab.run("document.querySelectorAll('#map .link:is(.bad, .warn)').length") == 1
                assert await tab.run("document.querySelector('#verdict').className") in ("bad", "warn")
                await turn(tab, knob, on=False)
                if knob != "Disagree":  # that stays on the screen for two minutes
                    await tab.until("document.querySelector('#verdict').className === 'good'")

    asyncio.run(story())


def test_an_open_page_follows_a_reload(tmp_path: Path) -> None:
    """Of its one node; and where nodes are configured differently, all that any of them has is drawn."""

    async def story() -> None:
        async with Testbed(named("line-3"), tmp_path / "net") as testbed:
            state = testbed.state()
            one, admin = state["nodes"][1], state["admin"]
            files = Credentials(*(Path(admin[name]) for name in ("cert", "key", "ca")))
            alone = FederatedSource([Door("n2", one["admin_url"], files)])
            async with (
                of_testbed(state) as all_nodes,
                alone as own,
                looking_at(own, tmp_path / "one") as tab,
                looking_at(all_nodes, tmp_path / "all") as whole,
            ):
                assert await tab.run("document.querySelectorAll('#map .node').length") == 3
                file = testbed.layout.node_file("n2")
                pair = tmp_path / "net" / "pair.toml"
                pair.write_text((tmp_path / "net" / "network.toml").read_text())
                rewrite(pair, without_third)
                rewrite(file, lambda tables: tables.update(network={"file": str(pair)}))
                rewrite(file, no_peer_third)
                words = ["--url", one["admin_url"], "--cert", admin["cert"], "--key", admin["key"]]
                said = await keyhaul("reload", *words, "--cacert", admin["ca"], "--json")
                assert "peer n3 removed" in said.stdout
                await tab.until("document.querySelectorAll('#map .node').length === 2")
                assert await tab.run("document.querySelectorAll('#map .link').length") == 1
                notes = "document.querySelector('#notices').textContent"
                note = await whole.until(f"{notes}.includes('another network') && {notes}")
                assert "keyhaul reload" in note
                assert await whole.run("document.querySelectorAll('#map .node').length") == 3

    asyncio.run(story())
