"""What tests of the node port share: a cast with certificates, a kernel in memory, and the port itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
from cryptography.hazmat.primitives import serialization

from keyhaul import certificates
from keyhaul.certificates import CLIENT, SERVER, Leaf
from keyhaul.edge.accepting import Bounds
from keyhaul.edge.peer import BOUNDS, NodePort, PeerKind, render
from keyhaul.edge.posting import HttpPeers
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Credentials, Policy, client_context, server_context
from keyhaul.errors import (
    Conflict,
    NoSuchTarget,
    Unsupported,
)
from keyhaul.identity import Anchors, Federation, node_name
from keyhaul.keys import Message
from keyhaul.messages.etsi020 import (
    Ack,
    AckStatus,
    ExtKeys,
    Void,
    encode_acks,
)
from keyhaul.pki import Files, Lifetimes, Pki

HOST = "127.0.0.1"
SETTLE = 0.02  # seconds for TLS to say goodbye, so that no socket outlives its loop
PREFIX = "https://qkd.etsi.org/gs020-interop-kms/"
EXT_KEYS, ACK, VOID = "/kmapi/v1/ext_keys", "/kmapi/v1/ext_keys/ack", "/kmapi/v1/ext_keys/void"
CALLBACK = "https://kme-b.example/kmapi/v1/ext_keys/ack"
SECRET = b"bits that must not be seen anywhere"


# --- who takes part


@dataclass(frozen=True)
class Cast:
    """`vigo` is the node under test; its plain neighbours are ECDSA like other makers' KMEs."""

    vigo: Credentials
    vigo_ecdsa: Credentials
    derio: Credentials
    stranger: Credentials
    kme: Credentials
    draft: Credentials
    sae: Credentials
    foreign: Credentials


def _credentials(files: Files) -> Credentials:
    return Credentials(files.cert, files.key, files.ca)


class Ecdsa:
    """A CA of another maker, in whose PKI nodes have ECDSA certificates."""

    def __init__(self, directory: Path, domain: str) -> None:
        self._directory, self._domain = directory, domain
        self._window = Lifetimes(start=datetime.now(UTC)).window(2)
        self._ca, self._key = certificates.authority(domain, "sae", self._window)
        directory.mkdir()
        self.anchor = directory / "ca.pem"
        self.anchor.write_bytes(self._ca.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, role: str = "node") -> Credentials:
        leaf = Leaf(name, role, (HOST, "localhost"), (*SERVER, *CLIENT))
        certificate, key = certificates.issue(leaf, self._domain, self._ca, self._key, self._window)
        pem = serialization.Encoding.PEM
        form = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        stem = self._directory / f"{role}-{name}"
        stem.with_suffix(".pem").write_bytes(certificate.public_bytes(pem))
        stem.with_suffix(".key").write_bytes(key.private_bytes(*form))
        return Credentials(stem.with_suffix(".pem"), stem.with_suffix(".key"), self.anchor)


def make_cast(directory: Path) -> Cast:
    """Everybody's certificates."""
    pki = Pki.create(directory / "pki", ["galicia", "euskadi"])
    other = Ecdsa(directory / "other", "others")
    foreign = Ecdsa(directory / "foreign", "foreign")
    stranger_to_us = foreign.issue("kme-b")
    return Cast(
        vigo=_credentials(pki.node("galicia", "vigo", (HOST, "localhost"))),
        vigo_ecdsa=other.issue("vigo"),
        derio=_credentials(pki.node("euskadi", "derio", (HOST, "localhost"))),
        stranger=_credentials(pki.node("euskadi", "stranger", (HOST,))),
        kme=other.issue("kme-b"),
        draft=other.issue("kme-draft"),
        sae=other.issue("kme-b", "sae"),
        foreign=Credentials(stranger_to_us.cert, stranger_to_us.key, other.anchor),
    )


# --- the kernel of these tests


@dataclass
class Memory:
    """What a node keeps, as a dictionary: idempotent, with tombstones, acknowledging after it answered."""

    saes: frozenset[str] = frozenset({"SAE_A", "a b", "ñ"})
    held: dict[UUID, ExtKeys] = field(default_factory=dict)
    values: dict[UUID, bytes] = field(default_factory=dict)
    ended: set[UUID] = field(default_factory=set)
    acks: list[tuple[str, Ack]] = field(default_factory=list)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    owed: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    raises: Exception | None = None

    def _begin(self, operation: str, peer: str, content: Any) -> None:
        self.calls.append((operation, peer, content))
        if self.raises is not None:
            raise self.raises

    async def accept(self, peer: str, transfer: ExtKeys) -> None:
        self._begin("accept", peer, transfer)
        if transfer.extension_mandatory:
            raise Unsupported(", ".join(transfer.extension_mandatory))
        for target in transfer.target_sae_ids:
            if target not in self.saes:
                raise NoSuchTarget(f"no node serves {target}")
        for key in transfer.keys:
            if self.values.get(key.key_id, key.value) != key.value:
                raise Conflict("the key differs from the one accepted before")
        alive = [key.key_id for key in transfer.keys if key.key_id not in self.ended]
        dead = [key.key_id for key in transfer.keys if key.key_id in self.ended]
        self.values |= {key.key_id: key.value for key in transfer.keys if key.key_id in alive}
        self.held |= dict.fromkeys(alive, transfer)
        for ids, status in ((alive, AckStatus.RELAYED), (dead, AckStatus.FAILED)):
            self._owe(peer, ids, status, transfer)

    async def void(self, peer: str, request: Void) -> None:
        self._begin("void", peer, request)
        for key_id in request.key_ids or [
            key_id
            for key_id, held in self.held.items()
            if (held.initiator_sae_id, held.target_sae_ids)
            == (request.initiator_sae_id, request.target_sae_ids)
        ]:
            known = self.values.pop(key_id, None) is not None
            self.ended.add(key_id)
            self._owe(peer, [key_id], AckStatus.VOIDED if known else AckStatus.NOT_PRESENT, request)

    async def acknowledge(self, peer: str, acks: Sequence[Ack]) -> None:
        self._begin("acknowledge", peer, acks)
        self.acks += [(peer, ack) for ack in acks]

    async def envelope(self, peer: str, body: bytes) -> None:
        self._begin("envelope", peer, body)

    async def refill(self, peer: str, body: bytes) -> bytes:
        self._begin("refill", peer, body)
        return body[::-1]

    async def records(self, peer: str, body: bytes) -> bytes:
        self._begin("records", peer, body)
        return b""

    def _owe(self, peer: str, ids: list[UUID], status: AckStatus, about: ExtKeys | Void) -> None:
        if ids:
            ack = Ack(tuple(ids), status, about.initiator_sae_id, about.target_sae_ids)
            self.owed.put_nowait(message(peer, "ack", encode_acks([ack]), url=about.ack_callback_url))


def message(peer: str, path: str, body: bytes, *, url: str | None = None, sealed: bool = False) -> Message:
    return Message(uuid4(), peer, path, body, sealed, (), 0.0, 0.0, url)


@dataclass
class Node:
    url: str
    kernel: Memory
    callbacks: dict[str, str]


@contextlib.asynccontextmanager
async def node(
    credentials: Credentials,
    *,
    bounds: Bounds = BOUNDS,
    policy: Policy = Policy.COMPATIBLE,
    domains: Mapping[str, str] | None = None,
) -> AsyncIterator[Node]:
    """The node port of vigo."""
    kernel = Memory()
    callbacks = {"kme-b": CALLBACK, "kme-draft": CALLBACK}
    peers = {"kme-b": PeerKind.PLAIN, "kme-draft": PeerKind.PLAIN, "derio": PeerKind.SEALED}
    handlers = NodePort(
        kernel,
        peers,
        callbacks,
        drafts=frozenset({"kme-draft"}),
        federation=federation_of(credentials, domains),
    )
    port = Port(
        "node", handlers.application(), render, node_name, server_context(credentials, policy), bounds
    )
    await port.open([bind(HOST, 0)])
    try:
        yield Node(f"https://{HOST}:{port.addresses[0][1]}", kernel, callbacks)
    finally:
        await port.close()


def federation_of(credentials: Credentials, domains: Mapping[str, str] | None) -> Federation | None:
    return Federation(Anchors.load(credentials.ca.read_bytes()), domains) if domains else None


@contextlib.asynccontextmanager
async def session(
    credentials: Credentials, policy: Policy = Policy.COMPATIBLE
) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=client_context(credentials, policy))
    async with aiohttp.ClientSession(connector=connector) as opened:
        yield opened
    await asyncio.sleep(SETTLE)


@contextlib.asynccontextmanager
async def peers(*args: Any, **options: Any) -> AsyncIterator[HttpPeers]:
    posting = HttpPeers(*args, **options)
    try:
        yield posting
    finally:
        await posting.close()
        await asyncio.sleep(SETTLE)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def transfer(**changes: Any) -> dict[str, Any]:
    body = {
        "keys": [{"key_id": str(uuid4()), "value": "AAECAwQFBgcICQoLDA0ODw=="}],
        "initiator_sae_id": "SAE_B",
        "target_sae_ids": ["SAE_A"],
        "ack_callback_url": CALLBACK,
    } | changes
    return {name: value for name, value in body.items() if value is not ...}


def void(**changes: Any) -> dict[str, Any]:
    body = {
        "key_ids": [str(uuid4())],
        "initiator_sae_id": "SAE_B",
        "target_sae_ids": ["SAE_A"],
        "ack_callback_url": CALLBACK,
    } | changes
    return {name: value for name, value in body.items() if value is not ...}


def ack(**changes: Any) -> dict[str, Any]:
    return {
        "key_id_container": [{"key_id": str(uuid4())}],
        "ack_status": "relayed",
        "initiator_sae_id": "SAE_A",
        "target_sae_ids": ["SAE_B"],
    } | changes
