"""The dashboard in a real browser, at a real door, over a real network."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from keyhaul.client import AsyncClient
from keyhaul.dashboard.door import LocalDoor
from keyhaul.dashboard.federated import of_testbed
from keyhaul.dashboard.source import explained, picture, summed_up
from keyhaul.errors import Refused, Unavailable
from keyhaul.routing import Edge, Network
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.browser import Page, page

pytestmark = pytest.mark.e2e

ODD = "<img src=x onerror=alert(1)>"


class Made:
    """A source of any size, with a fault when it is told so; names may be as odd as they like."""

    def __init__(self, count: int = 3, odd: bool = False) -> None:
        names = [f"n{at:03}" for at in range(count - odd)] + [ODD] * odd
        edges = [
            Edge(a, b, "qkd" if at % 2 else "pqc") for at, (a, b) in enumerate(itertools.pairwise(names))
        ]
        edges += [Edge(names[at], names[at + 7], "pqc") for at in range(0, count - 7, 3)]
        self.net = Network({name: "sim" for name in names}, edges, {f"sae-{name}": name for name in names})
        self.silent: list[str] = []
        self.asked = 0
        self.busy = True

    async def network(self) -> Mapping[str, Any]:
        return picture(self.net)

    async def snapshot(self) -> Mapping[str, Any]:
        self.asked += 1
        return summed_up([self._status(name) for name in self.net.domains], float(self.asked))

    def _status(self, name: str) -> dict[str, Any]:
        if name in self.silent:
            return {"name": name, "unreachable": "connection refused"}
        links = [
            {
                "peer": peer,
                "level_bits": 4096 + self.asked,
                "hours_left": None,
                "trouble": "",
                "unopened": 0,
                "offered_keys": 0,
                "sent_total": self.asked * (name < peer) * self.busy,
                "device": None,
            }
            for peer in self.net.neighbours(name)
        ]
        return {
            "name": name,
            "domain": "sim",
            "version": "1",
            "uptime_seconds": 60,
            "store": {"kind": "tpm", "grade": "hardware", "warnings": []},
            "entropy": {"state": "good", "sources": []},
            "links": links,
            "pools": [],
            "outbox": {},
            "unfinished": 0,
            "certificates": [{"port": "sae", "file": "f", "days_left": 90.0}],
            "activity": {
                "given_total": self.asked,
                "fetched_total": 0,
                "refused_total": 0,
                "given_per_second": [0] * 118 + [self.asked, 1],
                "wait_ms": {"samples": 0},
            },
        }

    async def send(self, source: str, destination: str) -> Mapping[str, Any]:
        raise Refused("there are no applications")

    async def trace(self, key_id: UUID) -> Sequence[Mapping[str, Any]]:
        return []

    async def route(
        self, source: str, destination: str, avoid: frozenset[str | tuple[str, str]]
    ) -> Mapping[str, Any]:
        return explained(self.net, source, destination, avoid)

    async def audit(self, most: int) -> Sequence[Mapping[str, Any]]:
        return []

    async def devices(self) -> Sequence[Mapping[str, Any]]:
        return []

    async def turn(self, device: str, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("there are no devices")


# ---------------------------------------------------------------- the door


@asynccontextmanager
async def visitor() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


def test_the_token_lets_in_one_visitor_once() -> None:
    async def story() -> None:
        async with LocalDoor(Made()) as door, visitor() as first, visitor() as second:
            for path in ("/dashboard/", "/dashboard/api/network", "/?token=guess", "/?token="):
                async with first.get(door.origin + path) as answer:
                    assert answer.status == 401
                    assert "keyhaul dashboard" in (await answer.json())["next"]
            async with first.get(door.invitation) as answer:
                assert answer.status == 200
                assert "token" not in str(answer.url)
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
            async with first.get(f"{door.origin}/dashboard/api/network") as answer:
                assert len((await answer.json())["nodes"]) == 3
            async with second.get(door.invitation) as answer:
                assert answer.status == 401

    asyncio.run(story())


def test_other_names_and_other_pages_get_nothing() -> None:
    async def story() -> None:
        async with LocalDoor(Made()) as door, visitor() as session:
            await session.get(door.invitation)
            async with session.get(door.origin + "/dashboard/", headers={"Host": "evil.example"}) as answer:
                assert answer.status == 401
            knobs = f"{door.origin}/dashboard/api/devices/d"
            async with session.put(knobs, json={}, headers={"Origin": "https://evil.example"}) as answer:
                assert answer.status == 401
            async with session.put(knobs, json={"cut": True}) as answer:
                assert (answer.status, (await answer.json())["message"]) == (400, "there are no devices")
            for body in (b"[1]", b"{", b'{"cut": "x"}', b"x" * 5000):
                async with session.put(knobs, data=body) as answer:
                    assert answer.status == 400

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dashboard/none.js", 404),
        ("/dashboard/api/keys/zz", 400),
        ("/dashboard/api/route?from=n000", 400),
        ("/dashboard/api/route?from=n000&to=nowhere", 200),
        ("/dashboard/api/audit", 200),
        ("/dashboard/api/audit?most=0", 400),
        ("/dashboard/api/audit?most=-1", 400),
        ("/dashboard/api/audit?most=5001", 400),
        ("/dashboard/api/audit?most=many", 400),
        (f"/dashboard/api/keys/{UUID(int=7)}", 200),
    ],
)
def test_wrong_questions_get_clear_answers(path: str, status: int) -> None:
    async def story() -> None:
        async with LocalDoor(Made()) as door, visitor() as session:
            await session.get(door.invitation)
            async with session.get(door.origin + path) as answer:
                assert answer.status == status
                body = await answer.json()
                assert body.get("next") or status == 200

    asyncio.run(story())


def test_a_door_that_closes_ends_its_event_streams() -> None:
    async def story() -> None:
        async with visitor() as session:
            async with LocalDoor(Made()) as door:
                await session.get(door.invitation)
                events = await session.get(f"{door.origin}/dashboard/api/events")
                told = [await events.content.readline() for _ in range(4)]
                assert told[0] == b"event: network\n"
                assert all(told[at].startswith(b"data: {") for at in (1, 3))
            assert b"" in [await events.content.readline() for _ in range(3)]

    asyncio.run(story())


# ---------------------------------------------------------------- in the browser


@asynccontextmanager
async def looking_at(source: Any, folder: Path) -> AsyncIterator[Page]:
    async with LocalDoor(source) as door, page(folder, door.invitation) as tab:
        await tab.until("document.querySelectorAll('#nodes tr').length > 0")
        yield tab
        assert tab.complaints == [], "the browser's console has errors"


def test_names_from_configurations_are_text_and_never_markup(tmp_path: Path) -> None:
    async def story() -> None:
        async with looking_at(Made(odd=True), tmp_path) as tab:
            assert await tab.run("document.querySelectorAll('img').length") == 0
            assert ODD in await tab.run("document.querySelector('#nodes').textContent")

    asyncio.run(story())


def test_a_hundred_nodes_are_drawn_and_kept_fresh(tmp_path: Path) -> None:
    async def story() -> None:
        source = Made(100)
        async with looking_at(source, tmp_path) as tab:
            assert await tab.run("document.querySelectorAll('#map .node').length") == 100
            links = source.net.links()
            await tab.run("for (const one of document.querySelectorAll('#map g')) one.dataset.old = 'yes'")
            before = source.asked
            told = f"Number(document.querySelector('#nodes tr td:nth-child(6)').textContent) > {before + 2}"
            assert await tab.until(told)
            # Drawn once: snapshots change classes and words, and leave every element where it is.
            kept = "document.querySelectorAll('#map g[data-old][data-name]').length"
            assert await tab.run(kept) == 100 + len(links)
            assert (
                await tab.run("getComputedStyle(document.querySelector('#map .flow')).animationName")
                == "none"
            )
            # What says the same as before is not touched: all that changes here is a number per node.
            watch = "new MutationObserver((list) => { window.touched += list.length; })"
            options = "{subtree: true, childList: true, attributes: true, characterData: true}"
            await tab.run(f"window.touched = 0; {watch}.observe(document.body, {options})")
            before = source.asked
            given = "Number(document.querySelector('#nodes td:nth-child(6)').textContent)"
            await tab.until(f"{given} > {before + 3}")
            assert await tab.run("window.touched") < 150 * (source.asked - before + 1)

    asyncio.run(story())


def test_everything_has_a_name_and_the_keyboard_reaches_it(tmp_path: Path) -> None:
    async def story() -> None:
        source = Made()
        async with looking_at(source, tmp_path) as tab:
            told = await tab.accessible()
            unnamed = [
                each
                for each in told
                if each["role"] in ("button", "combobox", "textbox", "table", "image") and not each["name"]
            ]
            assert unnamed == []
            names = {each["name"] for each in told if each["role"] == "button"}
            assert any(name.startswith("node n000, domain sim, serving") for name in names)
            await tab.run("document.querySelector('[aria-label^=\"node n000\"]').focus()")
            await tab.press("Enter")
            await tab.run("document.querySelector('[aria-label^=\"node n002\"]').focus()")
            await tab.press("Enter")
            assert "n000-n001=n002" in await tab.until("document.querySelector('#route-text').textContent")
            source.silent = ["n001"]
            fault = await tab.until("document.querySelector('#faults li.error')?.textContent")
            assert "n001" in fault
            assert "Next:" in fault
            words = (
                "document.querySelector('[aria-label*=\"n001, domain sim, needs you: no answer\"]') !== null"
            )
            assert await tab.until(words)

    asyncio.run(story())


def test_a_network_that_has_become_another_is_drawn_anew(tmp_path: Path) -> None:
    """What was chosen, thought away and selected stays so as far as it is still there."""

    async def story() -> None:
        source = Made(3)
        async with looking_at(source, tmp_path) as tab:
            await tab.click("#map [data-name='n001|n002'] text")
            await tab.click("#detail button")
            await tab.until("document.querySelector('#map .link.away')")
            await tab.run("document.querySelector('[data-name=n000]').focus()")
            await tab.run("document.querySelector('#route-to').value = 'n001'")
            source.net = Made(5).net
            await tab.until("document.querySelectorAll('#map .node').length === 5")
            assert await tab.run("document.querySelectorAll('#route-from option').length") == 5
            assert await tab.run("document.querySelector('#route-to').value") == "n001"
            assert await tab.run("document.activeElement.dataset.name") == "n000"
            assert await tab.run("document.querySelector('#map .link.away').dataset.name") == "n001|n002"
            source.net = Made(2).net
            await tab.until("document.querySelectorAll('#map .node').length === 2")
            assert await tab.run("document.querySelector('#map .link.away')") is None
            assert "no longer" in await tab.run("document.querySelector('#detail').textContent")

    asyncio.run(story())


@pytest.mark.parametrize("width", [380, 900, 1400])
def test_every_width_shows_all_of_it_and_a_line_stands_upright_on_a_narrow_page(
    tmp_path: Path, width: int
) -> None:
    async def story() -> None:
        async with looking_at(Made(6), tmp_path) as tab:
            await tab.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            await tab.until(f"window.innerWidth === {width}")
            upright = "document.querySelector('#map').classList.contains('beside')"
            await tab.until(f"{upright} === {str(width < 640).lower()}")
            assert await tab.run("document.documentElement.scrollWidth <= window.innerWidth")
            outside = (
                "[...document.querySelectorAll('#map .name')].filter((name) => { "
                "const [box, all] = [name, name.ownerSVGElement].map((e) => e.getBoundingClientRect()); "
                "return box.left < all.left || box.right > all.right || box.bottom > all.bottom; }).length"
            )
            assert await tab.run(outside) == 0
            assert await tab.run("getComputedStyle(document.querySelector('#map .name')).fontSize") == "15px"

    asyncio.run(story())


_CONTRAST = """(() => {
  const root = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = root.getPropertyValue(name).trim().slice(1);
    const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const found = {};
  for (const text of ["--ink", "--soft", "--good", "--bad", "--warn", "--chosen"])
    for (const ground of ["--panel", "--ground"]) found[`${text} on ${ground}`] = ratio(text, ground) / 4.5;
  for (const mark of ["--qkd", "--pqc", "--quiet"]) found[`${mark} on --panel`] = ratio(mark, "--panel") / 3;
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_and_marks_stand_out_in_both_themes_and_the_button_changes_them(
    tmp_path: Path, dark: bool
) -> None:
    """Contrast as WCAG 2.2 AA has it: 4.5 for words, 3 for what is drawn."""

    async def story() -> None:
        async with LocalDoor(Made()) as door, page(tmp_path, door.invitation, dark=dark) as tab:
            await tab.until("document.querySelectorAll('#nodes tr').length > 0")
            pressed = "document.querySelector('#theme').getAttribute('aria-pressed')"
            ground = "getComputedStyle(document.body).backgroundColor"
            for turned in (dark, not dark, dark):
                assert await tab.run(pressed) == str(turned).lower()
                short = {name: ratio for name, ratio in (await tab.run(_CONTRAST)).items() if ratio < 1}
                assert short == {}
                before = await tab.run(ground)
                await tab.click("#theme")
                assert await tab.run(ground) != before

    asyncio.run(story())


def test_nothing_moves_for_whoever_wants_it_so_and_the_first_tab_leads_to_the_faults(tmp_path: Path) -> None:
    async def story() -> None:
        source = Made()
        async with looking_at(source, tmp_path) as tab:
            moving = "document.getAnimations().length"
            await tab.until(f"document.querySelector('#map .link.busy') && {moving} > 0")
            calm = [{"name": "prefers-reduced-motion", "value": "reduce"}]
            await tab.call("Emulation.setEmulatedMedia", features=calm)
            await tab.until(f"document.querySelector('#map .link.busy') && {moving} === 0")
            await tab.press("Tab")
            assert await tab.run("document.activeElement.className") == "skip"
            assert await tab.run("document.activeElement.getBoundingClientRect().left >= 0")
            await tab.press("Enter")
            assert await tab.until("location.hash") == "#faults"
            await tab.run("document.activeElement.blur(); document.querySelector('#theme').focus()")
            order = []
            for _ in range(5):
                await tab.press("Tab")
                order.append(await tab.run("document.activeElement.dataset.name"))
            assert order == ["n000|n001", "n001|n002", "n000", "n001", "n002"]

    asyncio.run(story())


def test_a_page_that_lost_its_node_says_so_and_does_not_pass_old_for_new(tmp_path: Path) -> None:
    async def story() -> None:
        async with LocalDoor(Made()) as door, page(tmp_path, door.invitation) as tab:
            await tab.until("document.querySelectorAll('#nodes tr').length > 0")
            await tab.until("document.querySelector('#verdict').textContent === 'All is well'")
            await door.__aexit__()
            assert "cut off" in await tab.until(
                "document.body.classList.contains('stale') && document.querySelector('#verdict').textContent"
            )

    asyncio.run(story())


def test_the_whole_story_on_a_real_network(tmp_path: Path) -> None:
    """A key crosses, is traced; a link is thought away; a device runs dry, is seen, and comes back."""

    async def story() -> None:
        settings = {"audit": {"file": "audit.log"}}
        async with Testbed(named("line-3"), tmp_path / "testbed", settings=settings) as testbed:
            state = json.loads((tmp_path / "testbed" / "testbed.json").read_text())
            async with of_testbed(state) as source, looking_at(source, tmp_path / "browser") as tab:
                await tab.until("!document.querySelector('#send-form').hidden")
                await tab.click("#send-form button")
                assert "deliverable" in await tab.until(
                    "document.querySelector('#trace .timeline')?.textContent"
                )
                assert "the same 256 bits" in await tab.run(
                    "document.querySelector('#send-said').textContent"
                )
                key_id = await tab.run("document.querySelector('#trace-id').value")
                assert await tab.run("document.querySelectorAll('#map .node.route').length") == 3
                assert await tab.until("document.querySelector('#map .link.busy')?.dataset.name") in (
                    "n1|n2",
                    "n2|n3",
                )
                assert await tab.until(
                    "document.querySelector('#summary').textContent.includes('3 of 3 nodes')"
                )

                words = "document.querySelector('#audit').textContent"
                told = await tab.until(f"{words}.includes('n1: delivery') && {words}")
                assert key_id in told
                assert "n3: unsealed" in told

                await tab.click("#map .link text")
                await tab.click("#detail button")
                assert "no route" in await tab.until("document.querySelector('#route-text').textContent")
                assert "taken away" in await tab.until(
                    "document.querySelector('#map .link.away')?.textContent"
                )

                await tab.click("#devices button[aria-label^='Run dry']")
                assert (
                    await tab.until(
                        "document.querySelector('#devices button[aria-pressed=true]')?.textContent"
                    )
                    == "Run dry"
                )
                await drain(state)
                fault = await tab.until("document.querySelector('#faults li.error')?.textContent")
                assert "no key bits ready" in fault
                assert "stores no key" in await tab.until(
                    "((words) => words?.includes('stores no key') && words)"
                    "(document.querySelector('#faults li.error')?.textContent)"
                )

                picture = await tab.picture()
                assert picture.startswith(b"\x89PNG")
            await nobody_without_a_certificate(testbed)

    asyncio.run(story())


def client(state: Mapping[str, Any], at: int, patience: float = 60.0) -> AsyncClient:
    sae = state["saes"][at]
    return AsyncClient(sae["sae_url"], cert=sae["cert"], key=sae["key"], ca=sae["ca"], patience=patience)


async def drain(state: Mapping[str, Any]) -> None:
    """Ask until the link's last prefetched bits are gone: then, and only then, the node says 503."""
    async with client(state, 0, patience=0.0) as master:
        for _ in range(2000):
            try:
                await master.get_key(state["saes"][1]["id"], number=128)
            except Unavailable:
                return
    raise AssertionError("a dry device never ran out")


async def nobody_without_a_certificate(testbed: Testbed) -> None:
    async with aiohttp.ClientSession() as session:
        for node in testbed.state()["nodes"]:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"{node['admin_url']}/dashboard/")
