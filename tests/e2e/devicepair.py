"""A pair of simulated devices in two processes, with everybody's certificates, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.links.etsi014 import Device
from keyhaul.pki import Files, Pki

HERE, THERE, THIRD = "node/1 #?%", "node 2", "node-3"


def trusting(files: Files, ca: Path | None = None) -> ssl.SSLContext:
    return client_context(Credentials(files.cert, files.key, ca or files.ca), Policy.CLASSIC)


@dataclass
class Cast:
    """Certificates of everybody, and where files go."""

    folder: Path
    pki: Pki
    foreign: Pki
    clients: dict[str, Files] = field(default_factory=dict)

    def client(self, name: str) -> Files:
        if name not in self.clients:
            self.clients[name] = self.pki.device_client("island", name)
        return self.clients[name]

    def tls(self, name: str) -> ssl.SSLContext:
        return trusting(self.client(name))


@dataclass
class End:
    """One running device."""

    cast: Cast
    config: dict[str, Any]
    process: subprocess.Popen[bytes]
    url: str = ""

    @property
    def ready(self) -> Path:
        return Path(self.config["ready"])

    def client(self, sae: str, peer: str, **options: Any) -> Device:
        return Device(self.url, self.cast.tls(sae), peer_sae=peer, **options)

    async def call(
        self, sae: str, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, dict[str, Any], aiohttp.typedefs.LooseHeaders]:
        """A plain request, as any client would make it; asserts what every answer must have."""
        async with aiohttp.ClientSession() as session:
            url = URL(self.url + path, encoded=True)
            data = None if body is None else io.BytesIO(body)
            async with session.request(method, url, data=data, ssl=self.cast.tls(sae)) as response:
                assert response.content_type == "application/json"
                assert response.headers["Cache-Control"] == "no-store"
                return response.status, await response.json(), response.headers

    async def knobs(self, **change: Any) -> dict[str, Any]:
        status, body, _ = await self.call("op", "PUT", "/testbed/knobs", json.dumps(change).encode())
        assert status == 200
        return body

    async def account(self) -> dict[str, Any]:
        status, body, _ = await self.call("op", "GET", "/testbed/knobs")
        assert status == 200
        return body


def configure(
    cast: Cast, pair: str, presets: tuple[str, str], overrides: dict[str, Any]
) -> list[dict[str, Any]]:
    folder = cast.folder / pair
    folder.mkdir()
    seed = folder / "seed"
    seed.write_bytes(os.urandom(32))
    seed.chmod(0o600)
    names = (f"{pair}-a", f"{pair}-b")
    configs = []
    for index, name in enumerate(names):
        files = cast.pki.device("island", name, ["127.0.0.1"])
        channel = cast.client(name)
        other = names[1 - index]
        configs.append(
            {
                "name": name,
                "preset": presets[index],
                "role": ("keeper", "mirror")[index],
                "seed": str(seed),
                "cert": str(files.cert),
                "key": str(files.key),
                "ca": str(files.ca),
                "channel_cert": str(channel.cert),
                "channel_key": str(channel.key),
                "ready": str(folder / f"{name}.ready"),
                "peer": {"name": other, "ready": str(folder / f"{other}.ready")},
                "saes": [HERE] if index == 0 else [THERE, THIRD],
                "remote_saes": [THERE, THIRD] if index == 0 else [HERE],
                "operator": "op",
                "overrides": overrides,
                "entropy": 1,
            }
        )
    return configs


def write(config: dict[str, Any], mode: int = 0o600) -> Path:
    path = Path(config["ready"]).with_suffix(".json")
    path.write_text(json.dumps(config))
    path.chmod(mode)
    return path


def start(cast: Cast, config: dict[str, Any]) -> End:
    command = [sys.executable, "-m", "keyhaul.testbed.devices", "--config", str(write(config))]
    return End(cast, config, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


async def serving(end: End) -> None:
    async with asyncio.timeout(60):
        while not end.ready.exists():
            assert end.process.poll() is None, end.process.communicate()[1].decode()
            await asyncio.sleep(0.02)
    announced = json.loads(end.ready.read_bytes())
    assert announced["name"] == end.config["name"]
    assert announced["pid"] == end.process.pid
    end.url = announced["url"]


def stop(end: End) -> None:
    if end.process.poll() is None:
        end.process.send_signal(signal.SIGTERM)
    out, err = end.process.communicate(timeout=60)
    assert (end.process.returncode, out) == (0, b"")
    for line in err.decode().splitlines():
        assert line.startswith("TLS handshake refused"), line


@contextlib.contextmanager
def running(
    cast: Cast, pair: str, presets: tuple[str, str], overrides: dict[str, Any]
) -> Iterator[tuple[End, End]]:
    ends = [start(cast, config) for config in configure(cast, pair, presets, overrides)]

    async def both() -> None:
        await asyncio.gather(*(serving(end) for end in ends))

    try:
        asyncio.run(both())
        yield ends[0], ends[1]
    finally:
        with contextlib.ExitStack() as stack:
            for end in ends:
                stack.callback(stop, end)


def bits(keys: list[Any]) -> list[tuple[str, bytes]]:
    return [(key.key_id, key.bits.reveal()) for key in keys]
