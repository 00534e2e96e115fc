"""Many nodes on one page: asks the admin ports of all of them, and of a testbed's devices their knobs."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from uuid import UUID

import aiohttp

from keyhaul.dashboard.source import Json, summed_up, united
from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyhaulError, NoRoute, PeerUnreachable, Refused
from keyhaul.explaining import Avoid

PATIENCE = 5.0  # seconds
FRESH = 0.5  # seconds that one round of questions serves all pages


@dataclass(frozen=True, slots=True)
class Door:
    """An address and the PEM files to go there with."""

    name: str
    url: str
    files: Credentials


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A device of a testbed, with the operator's files for its knobs."""

    door: Door
    node: str
    link: str


@dataclass(frozen=True, slots=True)
class Application:
    """An SAE of a testbed, with its files; `door` is the SAE port of its node."""

    door: Door
    node: str


@dataclass(slots=True)
class _Round:
    """What the last round of questions brought, and when."""

    at: float = float("-inf")
    snapshot: Json = field(default_factory=dict)
    network: Json | None = None


class FederatedSource:
    """See `dashboard.source.Source`. Use it in one event loop, and `async with`."""

    def __init__(
        self,
        nodes: Sequence[Door],
        devices: Sequence[SimulatedDevice] = (),
        applications: Sequence[Application] = (),
    ) -> None:
        self._nodes = nodes
        self._applications = applications
        self._devices = {device.door.name: device for device in devices}
        self._contexts: dict[Credentials, ssl.SSLContext] = {}
        self._last = _Round()
        self._networks: dict[str, Json] = {}
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def network(self) -> Json:
        """As all nodes that answer have it configured. Raises PeerUnreachable if none ever did."""
        await self.snapshot()
        if self._last.network is None:
            return await self._first("dashboard/api/network")
        return self._last.network

    async def snapshot(self) -> Json:
        async with self._asking:
            if time.monotonic() - self._last.at > FRESH:
                statuses = await asyncio.gather(*(self._status(node) for node in self._nodes))
                await self._look_at_networks(statuses)
                self._last = _Round(time.monotonic(), summed_up(statuses, time.time()), self._last.network)
        return self._last.snapshot

    async def _look_at_networks(self, statuses: Sequence[Json]) -> None:
        """Ask one node of each configuration that is new for its network."""
        doors = {node.name: node for node in self._nodes}
        knowing = {status["network"]: status["name"] for status in statuses if "network" in status}
        if not knowing or knowing.keys() == self._networks.keys():
            return
        networks = {}
        for mark, name in knowing.items():
            try:
                networks[mark] = self._networks.get(mark) or await self._ask(
                    doors.get(name, self._nodes[0]), "dashboard/api/network"
                )
            except KeyhaulError:
                return  # it went down this very moment; the next round tells
        self._networks = networks
        self._last.network = united(list(networks.values()))

    async def trace(self, key_id: UUID) -> Sequence[Json]:
        """Rows of all nodes that answer, in the order in which they first had the key."""
        asked = (self._ask(node, f"admin/v1/keys/{key_id}") for node in self._nodes)
        found = await asyncio.gather(*asked, return_exceptions=True)
        rows = [row for answer in found if not isinstance(answer, BaseException) for row in answer["rows"]]
        return sorted(rows, key=lambda row: row["history"][0]["at"] if row["history"] else row["created"])

    async def send(self, source: str, destination: str) -> Json:
        """As a person would who sits at both ends; the bits are compared and forgotten."""
        master, slave = self._application(source), self._application(destination)
        started = time.monotonic()
        async with self._client(master) as one, self._client(slave) as other:
            (key,) = await one.get_key(slave.door.name)
            took = time.monotonic() - started
            (same,) = await other.fetch_key(master.door.name, [key.key_id])
        equal = key.bits.same_as(same.bits)
        return {
            "key_ID": str(key.key_id),
            "master": master.door.name,
            "slave": slave.door.name,
            "bits": 8 * len(key.bits),
            "milliseconds": round(took * 1000, 1),
            "same_bits": equal,
        }

    def _application(self, node: str) -> Application:
        for each in self._applications:
            if each.node == node:
                return each
        raise Refused(f"there is no application at {node} whose key could be used", "choose another node")

    def _client(self, application: Application) -> SaeClient:
        return SaeClient(application.door.url, self._context(application.door.files))

    async def route(self, source: str, destination: str, avoid: Avoid) -> Json:
        named = [item if isinstance(item, str) else "|".join(item) for item in avoid]
        pairs = [("from", source), ("to", destination), *(("avoid", each) for each in named)]
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
        # A node knows best about ways that begin at itself.
        return await self._first(f"dashboard/api/route?{query}", source)

    async def audit(self, most: int) -> Sequence[Json]:
        """Of all nodes that answer, by time."""
        asked = (self._ask(node, f"dashboard/api/audit?most={most}") for node in self._nodes)
        found = await asyncio.gather(*asked, return_exceptions=True)
        lines = [line for each in found if not isinstance(each, BaseException) for line in each["lines"]]
        return sorted(lines, key=lambda line: str(line["at"]))[-most:]

    async def devices(self) -> Sequence[Json]:
        return await asyncio.gather(*(self._device(device) for device in self._devices.values()))

    async def turn(self, device: str, knobs: Json) -> Json:
        found = self._devices.get(device)
        if found is None:
            raise Refused(f"there is no device {device!r}", f"use one of {', '.join(self._devices)}")
        return await self._ask(found.door, "testbed/knobs", knobs)

    async def _status(self, node: Door) -> Json:
        try:
            return await self._ask(node, "admin/v1/status")
        except KeyhaulError as error:
            return {"name": node.name, "unreachable": error.cause}

    async def _device(self, device: SimulatedDevice) -> Json:
        plain = {"name": device.door.name, "node": device.node, "link": device.link}
        try:
            return {**plain, **await self._ask(device.door, "testbed/knobs")}
        except KeyhaulError as error:
            return {**plain, "unreachable": error.cause}

    async def _first(self, path: str, rather: str = "") -> Json:
        last: KeyhaulError = NoRoute("there are no nodes to ask", "name one")
        for node in sorted(self._nodes, key=lambda node: node.name != rather):
            try:
                return await self._ask(node, path)
            except PeerUnreachable as error:
                last = error
        raise last

    async def _ask(self, door: Door, path: str, change: Mapping[str, Any] | None = None) -> Json:
        """One call. Raises PeerUnreachable without an answer, Refused for any answer but 200."""
        url = f"{door.url.rstrip('/')}/{path}"
        try:
            context = self._context(door.files)
            async with self._session.request(
                "GET" if change is None else "PUT", url, ssl=context, json=change, allow_redirects=False
            ) as answer:
                body: dict[str, Any] = await answer.json(content_type=None)
                status = answer.status
        except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError, ValueError) as problem:
            slow = isinstance(problem, TimeoutError)
            said = f"no answer within {PATIENCE:.0f} s" if slow else str(problem) or type(problem).__name__
            raise PeerUnreachable(f"{door.name}: {said}", "see whether it runs") from None
        if status != 200:
            raise Refused(f"{door.name} answered {status}: {body.get('message', 'no reason given')}")
        return body

    def _context(self, files: Credentials) -> ssl.SSLContext:
        if files not in self._contexts:
            self._contexts[files] = client_context(files, Policy.COMPATIBLE)
        return self._contexts[files]


def of_testbed(state: Mapping[str, Any]) -> FederatedSource:
    """The source for a running testbed, from its testbed.json."""

    def files(entry: Mapping[str, str]) -> Credentials:
        return Credentials(Path(entry["cert"]), Path(entry["key"]), Path(entry["ca"]))

    nodes = [Door(node["name"], node["admin_url"], files(state["admin"])) for node in state["nodes"]]
    devices = [
        SimulatedDevice(
            Door(device["name"], device["url"], files(device["operator"])), device["node"], device["link"]
        )
        for device in state["devices"]
    ]
    applications = [
        Application(Door(sae["id"], sae["sae_url"], files(sae)), sae["node"]) for sae in state["saes"]
    ]
    return FederatedSource(nodes, devices, applications)
