"""A real Chromium without a window, told what to do over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PATIENCE = 180.0  # seconds until a page that never gets there fails a test
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--window-size=1400,1700",
)


def chromium() -> str:
    """The program; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: run scripts/install-debian-packages.sh browser")
    return found


class Page:
    """One tab. `do` waits for what a person would wait for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result; events on the way are looked at for complaints."""
        number = next(self._numbers)
        await self._socket.send_json(
            {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        )
        async with asyncio.timeout(PATIENCE):
            while True:
                message = json.loads(await self._socket.receive_str())
                if message.get("id") == number:
                    assert "error" not in message, message["error"]
                    result: dict[str, Any] = message["result"]
                    return result
                self._listen(message)

    def _listen(self, message: Mapping[str, Any]) -> None:
        details = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(details["exceptionDetails"].get("exception", details)))
        elif message.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.complaints.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> Any:
        """The first true value of an expression, asked again whenever the page has drawn something."""
        waiting = (
            f"new Promise((done) => {{ const look = () => {{ const value = ({script}); "
            "if (value) done(value); else setTimeout(look, 50); }; look(); })"
        )
        return await self.run(waiting)

    async def press(self, key: str) -> None:
        """A key, as from the keyboard."""
        codes = {"Enter": 13, "Tab": 9, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], text=text
            )

    async def click(self, selector: str) -> None:
        """A mouse click in the middle of an element."""
        spot = await self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView("
            "{block: 'center'}); const box = found.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1
            )

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def accessible(self) -> list[dict[str, str]]:
        """What a screen reader is told: role and name of every element it meets."""
        tree = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in tree
            if not node.get("ignored") and "role" in node
        ]


@contextlib.asynccontextmanager
async def page(folder: Path, url: str, dark: bool = False) -> AsyncIterator[Page]:
    """A fresh browser with one page open; `folder` is its profile."""
    process = await asyncio.create_subprocess_exec(
        chromium(),
        *_SWITCHES,
        f"--user-data-dir={folder}",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        address = await asyncio.wait_for(_address(process), PATIENCE)
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(address, max_msg_size=0) as socket,
        ):
            tab = await _open(socket)
            for area in ("Page", "Runtime", "Log", "Accessibility"):
                await tab.call(f"{area}.enable")
            scheme = "dark" if dark else "light"
            await tab.call(
                "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
            )
            await tab.call("Page.navigate", url=url)
            yield tab
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if line.startswith("DevTools listening on "):
            return line.split()[-1]
    raise AssertionError("Chromium ended before it listened")


async def _open(socket: aiohttp.ClientWebSocketResponse) -> Page:
    browser = Page(socket, "")
    browser.call = _plain(browser)  # type: ignore[method-assign]
    target = (await browser.call("Target.createTarget", url="about:blank"))["targetId"]
    session = (await browser.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    return Page(socket, session)


def _plain(browser: Page) -> Any:
    """Commands to the browser itself have no session."""

    async def call(method: str, **parameters: Any) -> dict[str, Any]:
        number = 1_000_000 + next(browser._numbers)
        await browser._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads(await browser._socket.receive_str())
            if message.get("id") == number:
                result: dict[str, Any] = message["result"]
                return result

    return call
