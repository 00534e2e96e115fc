"""What tests of the SAE port share: a kernel in memory, a cast with certificates, raw HTTP, the schema."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import jsonschema
import yaml

from keyhaul.admission import Admission, Rules
from keyhaul.edge.accepting import Bounds
from keyhaul.edge.refusing import Note
from keyhaul.edge.sae import SaeApplication, render
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Credentials, Policy, client_context, server_context
from keyhaul.edge.turns import Turns
from keyhaul.edge.worker import settings
from keyhaul.edge.workers import Workers
from keyhaul.errors import ExtensionRefused, InsufficientKey, KeyNotFound, NoRoute, NoSuchTarget, Unauthorized
from keyhaul.identity import sae_id
from keyhaul.keys import Secret
from keyhaul.messages.etsi014 import SCHEME, Delivered, Order, Standing
from keyhaul.pki import Files, Pki
from keyhaul.policy import Limits

HOSTS = ("localhost", "127.0.0.1")
MASTER, SLAVE, OTHER, STRANGER = "sae-vigo", "sae-derio", "sae-santiago", "sae-curious"
ODD = "app/1 #?%ñ%2F"  # everything that a path can get wrong
FAR = "sae-island"  # known, but no path leads there
TRUST = {"wiretappers": "computational", "relays": "none"}
SPECIFICATION = yaml.safe_load(
    (Path(__file__).parents[1] / "docs" / "openapi" / "etsi014.yaml").read_text(encoding="utf-8")
)


WORKERS: ContextVar[int] = ContextVar("WORKERS", default=0)
"""How many workers a stage has."""

EVERYBODY = frozenset({MASTER, SLAVE, OTHER, STRANGER, ODD, FAR, *(f"sae-{n}" for n in range(9))})


@dataclass
class Held:
    """A key that waits for its slaves."""

    master: str
    named: frozenset[str]
    waiting: set[str]
    bits: bytes


@dataclass
class Kernel:
    """Two ends of a network in one dictionary: the rules of 014 clause 5 and a finite amount of key."""

    left: int = 100_000_000  # bits
    known: frozenset[str] = frozenset(
        {MASTER, SLAVE, OTHER, STRANGER, ODD, FAR, *(f"sae-{n}" for n in range(9))}
    )
    held: dict[UUID, Held] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)

    async def request(self, order: Order) -> list[Delivered]:
        if missing := [target for target in order.targets if target not in self.known]:
            raise NoSuchTarget(f"no node serves {missing[0]}", "ask the operator which SAE IDs exist")
        if FAR in order.targets:
            raise NoRoute("no path of links leads to the node of sae-island", "wait until a link is back")
        if SCHEME in order.mandatory and order.options[SCHEME] != "trusted":
            raise ExtensionRefused("no path offers that scheme", "leave the scheme out")
        if (wanted := order.number * order.size) > self.left:
            raise InsufficientKey(
                "not enough key material available",
                "try again later",
                key_bits_requested=wanted,
                key_bits_available=self.left,
            )
        self.left -= wanted
        self.orders.append(order)
        return [self._mint(order) for _ in range(order.number)]

    def _mint(self, order: Order) -> Delivered:
        key_id, bits = uuid4(), os.urandom(order.size // 8)
        self.held[key_id] = Held(order.master, frozenset(order.targets), set(order.targets), bits)
        return Delivered(key_id, Secret(bits), TRUST)

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        found = [held for key_id in key_ids if (held := self.held.get(key_id)) and held.master == master]
        if any(caller not in held.named for held in found):
            raise Unauthorized("the caller was not named for one of the keys", "use the right certificate")
        if len(found) < len(key_ids) or any(caller not in held.waiting for held in found):
            raise KeyNotFound("unknown, delivered before, voided or expired", "ask the master for fresh keys")
        for held in found:
            held.waiting.remove(caller)
        return [
            Delivered(key_id, Secret(held.bits), TRUST) for key_id, held in zip(key_ids, found, strict=True)
        ]

    async def status(self, master: str, slave: str) -> Standing:
        if slave not in self.known:
            raise NoSuchTarget(f"no node serves {slave}", "ask the operator which SAE IDs exist")
        return Standing("node-vigo", "node-derio", self.left // 256, 390_625)


class Slow(Kernel):
    """A kernel that waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = asyncio.Event(), asyncio.Event()

    async def request(self, order: Order) -> list[Delivered]:
        self.entered.set()
        await self.go.wait()
        return await super().request(order)


@dataclass(frozen=True)
class Cast:
    """Certificates of one domain's SAE port and SAEs, and of an SAE of another domain."""

    port: Credentials
    saes: dict[str, Credentials]
    foreigner: Credentials

    def tls(self, sae: str, policy: Policy = Policy.COMPATIBLE) -> ssl.SSLContext:
        return client_context(self.saes[sae], policy)


def make_cast(directory: Path) -> Cast:
    pki = Pki.create(directory, ["galicia", "euskadi"])
    saes = {name: _credentials(pki.sae("galicia", name)) for name in (MASTER, SLAVE, OTHER, STRANGER, ODD)}
    foreign = pki.sae("euskadi", MASTER)
    # It trusts the port, so a refusal can only be the port's.
    foreigner = Credentials(foreign.cert, foreign.key, saes[MASTER].ca)
    return Cast(_credentials(pki.sae_port("galicia", "vigo", HOSTS)), saes, foreigner)


def _credentials(files: Files) -> Credentials:
    return Credentials(files.cert, files.key, files.ca)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Stage:
    """A running SAE port."""

    port: Any  # a Port, or Workers
    kernel: Any
    cast: Cast

    @property
    def address(self) -> tuple[str, int]:
        return self.port.addresses[0]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.address[1]}"

    async def get(self, sae: str, path: str, **headers: str) -> Answer:
        return await self.call(sae, "GET", path, **headers)

    async def post(self, sae: str, path: str, body: object = None, **headers: str) -> Answer:
        return await self.call(sae, "POST", path, body, **headers)

    async def call(self, sae: str, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request on a connection of its own; every answer is held against the interface description."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Host": "localhost", "Connection": "close", **headers}
        if body is not None and "Transfer_Encoding" not in fields:
            fields.setdefault("Content-Length", str(len(content)))
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        request = f"{method} /api/v1/keys/{path} HTTP/1.1\r\n{head}\r\n".encode() + content
        answer = await self.raw(sae, request)
        operation = path.partition("?")[0].rpartition("/")[2]
        check_answer(answer, operation if answer.status == 200 else None)
        return answer

    async def raw(self, sae: str, request: bytes) -> Answer:
        """Send these bytes, read until the port hangs up or the answer is complete."""
        async with self.connection(sae) as (reader, writer):
            writer.write(request)
            return await read_answer(reader)

    @contextlib.asynccontextmanager
    async def connection(self, sae: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("localhost", self.address[1], ssl=self.cast.tls(sae))
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def stage(
    cast: Cast,
    limits: Limits | None = None,
    bounds: Bounds | None = None,
    kernel: Any = None,
    workers: int | None = None,
    admission: Admission | None = None,
    note: Note = lambda event, **fields: None,
) -> AsyncIterator[Stage]:
    """An SAE port; `workers` as in a node's configuration, from WORKERS where a test does not say."""
    kernel, bounds = kernel or Kernel(), bounds or Bounds()
    turns = Turns(admission or Admission(Rules()), time.monotonic)
    application = SaeApplication(kernel, limits, turns)
    port: Port | Workers
    if number := WORKERS.get() if workers is None else workers:
        told = settings(cast.port, Policy.COMPATIBLE, bounds)
        port = Workers(number, application, render, told, bounds, note=note)
    else:
        tls = server_context(cast.port, Policy.COMPATIBLE)
        port = Port("sae", application.reply, render, sae_id, tls, bounds, note=note)
    await port.open([bind("127.0.0.1", 0)])
    try:
        yield Stage(port, kernel, cast)
    finally:
        await port.close()


def bits(answer: Answer) -> list[tuple[str, bytes]]:
    """Ids and bits of the keys in an answer."""
    return [(key["key_ID"], base64.b64decode(key["key"], validate=True)) for key in answer.json["keys"]]


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(head[0].split()[1]), headers, body)


_SCHEMAS = {"status": "Status", "enc_keys": "KeyContainer", "dec_keys": "KeyContainer", None: "Error"}


def check_answer(answer: Answer, operation: str | None) -> None:
    """Every answer, good or bad, has these properties."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    validate(answer.json, _SCHEMAS[operation])


def validate(value: object, schema: str) -> None:
    jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": SPECIFICATION["components"]},
        format_checker=jsonschema.FormatChecker(),
    ).validate(value)


def segment(sae: str) -> str:
    return quote(sae, safe="")
