"""Looks at everything a node needs to work, and says of each thing whether it is well, and what mends it.

Every check goes as far as it can on its own: a name that does not resolve hides nothing about the next
neighbour. Nothing is changed; a store that a running node holds is left to it.
"""

from __future__ import annotations

import asyncio
import email.utils
import fcntl
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography import x509

from keyhaul import config, vault
from keyhaul.edge import tls
from keyhaul.edge.neighbours import neighbour_of
from keyhaul.edge.peer import ENVELOPE_PATH
from keyhaul.errors import KeyhaulError
from keyhaul.identity import Anchors, Federation
from keyhaul.links.etsi014 import Device
from keyhaul.messages.etsi020 import VERSIONS_PATH
from keyhaul.stores import sealing

PATIENCE = 5.0  # seconds for each step on the network
SKEW = 5.0  # seconds that clocks may differ; descriptors tolerate 300
DAYS = 30
ANSWER = 64 * 1024  # bytes

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `next_step` is empty where nothing is to be done."""

    state: State
    what: str
    seen: str
    next_step: str = ""


async def examine(file: Path) -> list[Finding]:
    """All checks of one node's configuration file, those of neighbours and devices side by side."""
    found = list(_configuration(file))
    if any(finding.state == "failed" for finding in found):
        return [
            *found,
            Finding("skipped", "everything else", "the configuration does not load", "mend it first"),
        ]
    settings = await asyncio.to_thread(config.load, file)
    found += _certificates(settings)
    found.append(await asyncio.to_thread(_root, settings.store))
    groups = [neighbour(settings, peer) for peer in settings.peers]
    groups += [_device(peer.device) for peer in settings.peers if peer.device is not None]
    for group in await asyncio.gather(*groups):
        found += group
    return found


def _configuration(file: Path) -> Iterator[Finding]:
    mistakes = config.check(file)
    for mistake in mistakes:
        state: State = "warning" if mistake.warning else "failed"
        where = f"configuration, {mistake.file.name} line {mistake.line}"
        yield Finding(state, where, mistake.cause, mistake.remedy)
    if not any(not mistake.warning for mistake in mistakes):
        yield Finding("ok", "configuration", f"{file} loads")


def _certificates(settings: config.NodeConfig) -> Iterator[Finding]:
    now = datetime.now(UTC)
    for name, listener in settings.listeners:
        certificate = x509.load_pem_x509_certificate(listener.cert.read_bytes())
        days = (certificate.not_valid_after_utc - now).total_seconds() / 86_400
        seen = f"{certificate.subject.rfc4514_string()}, {days:.0f} days left"
        if days < DAYS:
            yield Finding(
                "warning", f"certificate of the {name} port", seen, f"issue a new {listener.cert} soon"
            )
        else:
            yield Finding("ok", f"certificate of the {name} port", seen)


def _root(store: config.StoreConfig) -> Finding:
    """Unseal the root secret, unless a node has the store open, which proves that it can be unsealed."""
    if _in_use(store.file):
        return Finding("ok", "store", f"{store.file.name} is open in a running node")
    if any(slot.kind == "passphrase" and not (slot.file or slot.env) for slot in store.slots):
        return Finding(
            "skipped", "root secret", "a slot asks a person for its passphrase", "start the node to see"
        )
    try:
        opened = sealing.open_root(store.root, vault.slots(store.slots))
    except KeyhaulError as error:
        return Finding("failed", "root secret", error.cause, error.remedy)
    opened.root.wipe()
    seen = f"opened by {opened.kind}, grade {opened.grade.value}"
    if opened.warnings:
        return Finding(
            "warning", "root secret", f"{seen}: {opened.warnings[0]}", "see docs/threat-model.md, Machines"
        )
    return Finding("ok", "root secret", seen)


def _in_use(database: Path) -> bool:
    """Whether a process holds the lock that `stores.database.owned` takes."""
    try:
        with database.with_name(database.name + "-lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# ---------------------------------------------------------------------- neighbours


class _Broken(Exception):
    """A step failed; those after it make no sense."""

    def __init__(self, finding: Finding) -> None:
        super().__init__()
        self.finding = finding


async def neighbour(settings: config.NodeConfig, peer: config.Peer) -> list[Finding]:
    """DNS, TCP, TLS, identity, clock and versions of one neighbour, in this order, up to a failure."""
    found: list[Finding] = []
    host, port = _place(peer.url)
    try:
        address = await _resolve(peer.name, host, port)
        found.append(Finding("ok", f"{peer.name}: name", f"{host} is {address}"))
        await _reach(peer.name, host, port)
        found.append(Finding("ok", f"{peer.name}: TCP", f"port {port} answers"))
        async with _handshake(settings, peer, host, port) as (reader, writer):
            agreed = tls.negotiated(writer.transport)
            found.append(Finding("ok", f"{peer.name}: TLS", f"{agreed['version']}, {agreed['group']}"))
            found.append(_peer_certificate(peer, writer.transport))
            found.append(_identity(settings, peer, writer.transport))
            found += await _versions(peer, host, reader, writer)
    except _Broken as broken:
        found.append(broken.finding)
    return found


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("https://").rstrip("/").rpartition(":")
    return host.strip("[]"), int(port)


async def _resolve(name: str, host: str, port: int) -> str:
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), PATIENCE)
    except (OSError, TimeoutError) as problem:
        said = getattr(problem, "strerror", None) or "no answer in time"
        raise _Broken(
            Finding(
                "failed",
                f"{name}: name",
                f"{host} does not resolve: {said}",
                f"correct the url of {name}, or DNS",
            )
        ) from None
    return str(found[0][4][0])


async def _reach(name: str, host: str, port: int) -> None:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
    except (OSError, TimeoutError) as problem:
        said = getattr(problem, "strerror", None) or "no answer in time"
        raise _Broken(
            Finding(
                "failed",
                f"{name}: TCP",
                f"{host} port {port}: {said}",
                f"see whether {name} runs, and whether a firewall stands between",
            )
        ) from None
    writer.close()


@asynccontextmanager
async def _handshake(
    settings: config.NodeConfig, peer: config.Peer, host: str, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    node = settings.listeners.node
    policy = tls.Policy.COMPATIBLE if peer.kind == "plain" else tls.Policy(node.tls)
    try:
        context = tls.client_context(tls.Credentials(node.cert, node.key, node.ca), policy)
        opening = asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        reader, writer = await asyncio.wait_for(opening, PATIENCE)
    except (OSError, ssl.SSLError, TimeoutError, KeyhaulError) as problem:
        said = str(problem) or "no answer in time"
        raise _Broken(Finding("failed", f"{peer.name}: TLS", said, _tls_advice(said))) from None
    try:
        yield reader, writer
    finally:
        writer.close()


def _tls_advice(said: str) -> str:
    """What usually is behind a handshake that fails."""
    text = said.lower()
    if "expired" in text or "not yet valid" in text:
        return "renew the certificate that is out of date, and check both clocks"
    if "host" in text or "ip address" in text:
        return "the certificate there is for another host: correct the url, or issue it for this host"
    if "verify" in text or "unknown ca" in text or "self" in text:
        return "exchange CA certificates: each side's anchors must hold the node CA of the other's domain"
    if "group" in text or "handshake failure" in text:
        return "both sides must allow one key exchange group: look at `tls` of both node ports"
    return "look at the neighbour's log at this minute; both sides must trust each other's node CA"


def _peer_certificate(peer: config.Peer, transport: asyncio.BaseTransport) -> Finding:
    certificate = tls.peer_certificate(transport)
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86_400
    seen = f"issued by {certificate.issuer.rfc4514_string()}, {days:.0f} days left"
    if days < DAYS:
        return Finding("warning", f"{peer.name}: certificate", seen, f"tell the operators of {peer.name}")
    return Finding("ok", f"{peer.name}: certificate", seen)


def _identity(settings: config.NodeConfig, peer: config.Peer, transport: asyncio.BaseTransport) -> Finding:
    anchors = Anchors.of_domains(settings.listeners.node.ca.read_bytes())
    federation = Federation(anchors, settings.network.nodes) if peer.kind != "plain" else None
    try:
        found = neighbour_of(transport, federation)
    except KeyhaulError as error:
        raise _Broken(
            Finding(
                "failed",
                f"{peer.name}: identity",
                str(error),
                "its own domain's CA must issue its certificate",
            )
        ) from None
    if found != peer.name:
        advice = f"correct name or url of {peer.name} in the configuration"
        raise _Broken(Finding("failed", f"{peer.name}: identity", f"the node there is {found}", advice))
    return Finding("ok", f"{peer.name}: identity", f"it is {found}")


async def _versions(
    peer: config.Peer, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> list[Finding]:
    """Which 020 versions it speaks, and how far its clock is from ours."""
    # A sealed neighbour serves no plain 020 path; that it knows the path and not the verb is answer enough.
    path = VERSIONS_PATH if peer.kind == "plain" else ENVELOPE_PATH
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(PATIENCE):
            start, body = await _answer(reader)
    except (OSError, TimeoutError, EOFError, ValueError):
        advice = (
            "see the neighbour's log: it hung up after the handshake, which it does to names it does not know"
        )
        return [Finding("failed", f"{peer.name}: answer", "no complete answer over HTTP", advice)]
    found = []
    if "date" in start:
        skew = email.utils.parsedate_to_datetime(start["date"]).timestamp() - time.time()
        state: State = "ok" if abs(skew) <= SKEW else "warning"
        advice = "" if state == "ok" else "run NTP or chrony on both sides"
        found.append(Finding(state, f"{peer.name}: clock", f"{skew:+.0f} s from ours", advice))
    if start["status"] == "401":
        advice = f"{peer.name} must have this node among its peers under the name of our certificate"
        return [*found, Finding("failed", f"{peer.name}: admission", "it does not know us (401)", advice)]
    if peer.kind != "plain":
        return [*found, Finding("ok", f"{peer.name}: versions", "sealed envelopes")]
    try:
        versions = ", ".join(json.loads(body)["versions"])
    except (ValueError, KeyError, TypeError):
        advice = "check that the url is that of a 020 V1.1.1 key manager"
        return [*found, Finding("warning", f"{peer.name}: versions", f"answer {start['status']}", advice)]
    return [*found, Finding("ok", f"{peer.name}: versions", f"020 {versions}")]


async def _answer(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    length = min(int(fields.get("content-length", "0")), ANSWER)
    return {**fields, "status": head[0].split()[1]}, await reader.readexactly(length)


# ---------------------------------------------------------------------- devices


async def _device(end: config.DeviceEnd) -> list[Finding]:
    """Whether a device answers as 014 says, and how much key it has."""
    name = f"device at {end.url}"
    try:
        context = tls.client_context(tls.Credentials(end.cert, end.key, end.ca), tls.Policy(end.tls))
        device = Device(end.url, context, peer_sae=end.peer_sae, timeout=PATIENCE)
    except KeyhaulError as error:
        return [Finding("failed", name, error.cause, error.remedy)]
    try:
        first = await device.status()
        started = time.monotonic()
        await asyncio.sleep(1.0)
        second, seconds = await device.status(), time.monotonic() - started
    except KeyhaulError as error:
        advice = error.remedy or "check the device's address, its CA, and that it knows this node as an SAE"
        return [Finding("failed", name, error.cause, advice)]
    finally:
        await device.close()
    return [_stock(name, first.stored_key_count, second.stored_key_count, second.key_size, seconds)]


def _stock(name: str, before: int | None, after: int | None, size: int | None, seconds: float) -> Finding:
    if after is None:
        return Finding("ok", name, "answers; it does not say how many keys it holds")
    rate = (after - (before or 0)) * (size or 256) / seconds
    seen = f"{after} keys of {size or '?'} bits stored, {rate:+,.0f} bit/s just now"
    if after == 0:
        return Finding("failed", name, seen, "see whether the quantum link is up and whether others empty it")
    return Finding("ok", name, seen)


def worst(findings: list[Finding]) -> State:
    """The state of the whole."""
    states = {finding.state for finding in findings}
    return "failed" if "failed" in states else "warning" if "warning" in states else "ok"


def plain(findings: list[Finding]) -> dict[str, Any]:
    """For `--json`."""
    rows = [
        {"state": each.state, "what": each.what, "seen": each.seen, "next_step": each.next_step}
        for each in findings
    ]
    return {"state": worst(findings), "findings": rows}
