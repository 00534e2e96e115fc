"""Looks at everything a node needs to work, and says of each thing whether it is well, and what mends it.

Every check goes as far as it can on its own: a name that does not resolve hides nothing about the next
neighbour. Nothing is changed; a store that a running node holds is left to it.
"""

from __future__ import annotations

import asyncio
import email.utils
import fcntl
import json
import os
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
from keyhaul.keys import Secret
from keyhaul.links.etsi014 import Device
from keyhaul.messages.etsi020 import VERSIONS_PATH
from keyhaul.stores import database, sealing

PATIENCE = 5.0  # seconds for each step on the network
SKEW = 5.0  # seconds that clocks may differ
TOO_MUCH_SKEW = 300.0  # beyond it nodes refuse each other's descriptors
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
    found += await asyncio.to_thread(lambda: list(_store(settings.store)))
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


def _store(store: config.StoreConfig) -> Iterator[Finding]:
    """Unseal the root secret and read the store's first page with it.

    A running node that has the store open proves both.
    """
    if _in_use(store.file):
        yield Finding("ok", "store", f"{store.file.name} is open in a running node")
        return
    if any(slot.kind == "passphrase" and not (slot.file or slot.env) for slot in store.slots):
        yield Finding(
            "skipped", "root secret", "a slot asks a person for its passphrase", "start the node to see"
        )
        return
    try:
        opened = sealing.open_root(store.root, vault.slots(store.slots))
    except KeyhaulError as error:
        yield Finding("failed", "root secret", error.cause, error.remedy)
        return
    page_key = sealing.derive(opened.root, "store/page", 48)
    opened.root.wipe()
    seen = f"opened by {opened.kind}, grade {opened.grade.value}"
    if opened.warnings:
        advice = "see docs/threat-model.md, Machines"
        yield Finding("warning", "root secret", f"{seen}: {opened.warnings[0]}", advice)
    else:
        yield Finding("ok", "root secret", seen)
    try:
        yield _first_page(store.file, page_key)
    finally:
        page_key.wipe()


def _first_page(file: Path, page_key: Secret) -> Finding:
    if not file.exists():
        advice = "right for a new node: its first start makes one; else restore it (`keyhaul restore`)"
        return Finding("warning", "store", f"there is no {file} yet", advice)
    try:
        database.readable(file, page_key)
    except KeyhaulError as error:
        return Finding("failed", "store", error.cause, error.remedy)
    return Finding("ok", "store", f"{file.name} opens with it")


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
            found += await _versions(settings, peer, reader, writer)
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
        advice = f"correct `url` of peer {name}, or DNS (`getent hosts {host}`)"
        seen = f"{host} does not resolve: {_system(problem)}"
        raise _Broken(Finding("failed", f"{name}: name", seen, advice)) from None
    return str(found[0][4][0])


def _system(problem: Exception) -> str:
    number = getattr(problem, "errno", None)
    if isinstance(problem, socket.gaierror) or number is None or number <= 0:
        return getattr(problem, "strerror", None) or f"no answer within {PATIENCE:.0f} s"
    return os.strerror(number)


async def _reach(name: str, host: str, port: int) -> None:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
    except (OSError, TimeoutError) as problem:
        refused = isinstance(problem, ConnectionRefusedError)
        said = "connection refused" if refused else _system(problem)
        advice = (
            f"nothing listens there: start {name} (`systemctl start keyhaul@{name}`), or correct its `url`"
            if refused
            else f"see whether {name}'s machine runs, and whether a firewall stands between"
        )
        raise _Broken(Finding("failed", f"{name}: TCP", f"{host} port {port}: {said}", advice)) from None
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
        said = _said(problem)
        raise _Broken(
            Finding("failed", f"{peer.name}: TLS", said, tls_advice(said, settings, peer))
        ) from None
    try:
        yield reader, writer
    finally:
        writer.close()


def _said(problem: Exception) -> str:
    """What went wrong with a connection, in words: the system's errors often have none."""
    if isinstance(problem, TimeoutError):
        return f"it takes the connection and says nothing for {PATIENCE:.0f} s"
    if isinstance(problem, ConnectionError | EOFError):
        return "it hung up"
    return str(problem) or type(problem).__name__


def tls_advice(said: str, settings: config.NodeConfig, peer: config.Peer) -> str:
    """What usually is behind a handshake that fails, and the line or command that mends it."""
    text, name, node = said.lower(), peer.name, settings.listeners.node
    if "alert" in text:
        return _alert_advice(text, settings, peer)
    if "expired" in text:
        return (
            f"{name} shows a certificate that has ended: issue it anew there, then `keyhaul reload` on {name}"
        )
    if "not yet valid" in text:
        return f"a clock is wrong (`chronyc tracking` on both), or {name}'s certificate begins later"
    if "host" in text or "ip address" in text:
        host = _place(peer.url)[0]
        return f"{name}'s certificate is not for {host}: correct `url` of peer {name}, or issue it for {host}"
    if "verify" in text:
        return (
            f"add the node CA of {name}'s domain to {node.ca} (`ca` under [listeners.node]), `keyhaul reload`"
        )
    if "wrong version number" in text or "packet length" in text or "http request" in text:
        return f"what listens there speaks no TLS: correct the port in `url` of peer {name}"
    if "nothing for" in text:
        return f"it is no node, or it hangs: correct the port in `url` of peer {name}, or see {name}'s log"
    return (
        f"{name}'s log says why at this minute; mostly it allows no key exchange group of ours "
        f"(`tls` under [listeners.node] on both sides) or no TLS 1.3"
    )


def _alert_advice(alert: str, settings: config.NodeConfig, peer: config.Peer) -> str:
    """What the other side said when it refused us."""
    name, node = peer.name, settings.listeners.node
    if "protocol version" in alert:
        return (
            "it speaks no TLS 1.3, which nodes need; for a key manager of another maker "
            f'write `kind = "plain"` under peer {name}, else have it brought up to date'
        )
    if "handshake failure" in alert or "insufficient security" in alert:
        return (
            f"it allows no key exchange group of ours: same `tls` under [listeners.node] here and on {name}"
        )
    if "unknown ca" in alert:
        return (
            f"{name} does not trust the CA of {node.cert}: add that CA to `ca` under [listeners.node] there"
        )
    if "expired" in alert:
        return f"{name} finds our certificate {node.cert} out of date: issue it anew, or compare both clocks"
    return f"{name} refuses our certificate {node.cert}: {name}'s log says why at this minute"


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
    settings: config.NodeConfig,
    peer: config.Peer,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> list[Finding]:
    """Which 020 versions it speaks, and how far its clock is from ours."""
    # A sealed neighbour serves no plain 020 path; that it knows the path and not the verb is answer enough.
    path = VERSIONS_PATH if peer.kind == "plain" else ENVELOPE_PATH
    host = _place(peer.url)[0]
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(PATIENCE):
            start, body = await _answer(reader)
    except ssl.SSLError as problem:
        # In TLS 1.3 a client hears only after its handshake that its certificate is refused.
        said = _said(problem)
        return [Finding("failed", f"{peer.name}: TLS", said, tls_advice(said, settings, peer))]
    except (OSError, TimeoutError, EOFError, ValueError) as problem:
        said = "no answer over HTTP" if isinstance(problem, ValueError) else _said(problem)
        ours = settings.listeners.node.cert
        advice = (
            f"mostly it refuses our certificate {ours}, after the handshake: its `ca` under [listeners.node] "
            f"must hold our node CA, and [nodes] our name; {peer.name}'s log says why at this minute"
        )
        return [Finding("failed", f"{peer.name}: answer", said, advice)]
    found = []
    if "date" in start:
        found.append(_clock(peer.name, start["date"]))
    if start["status"] == "401":
        advice = f"{peer.name} must have this node among its peers under the name of our certificate"
        return [*found, Finding("failed", f"{peer.name}: admission", "it does not know us (401)", advice)]
    if peer.kind != "plain":
        return [*found, Finding("ok", f"{peer.name}: versions", "sealed envelopes")]
    if (versions := _spoken(body)) is None:
        advice = "check that the url is that of a 020 V1.1.1 key manager"
        return [*found, Finding("warning", f"{peer.name}: versions", f"answer {start['status']}", advice)]
    return [*found, Finding("ok", f"{peer.name}: versions", f"020 {versions}")]


def _spoken(body: bytes) -> str | None:
    """The 020 versions in an answer, or None."""
    try:
        return ", ".join(json.loads(body)["versions"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _clock(name: str, date: str) -> Finding:
    try:
        skew = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return Finding(
            "warning", f"{name}: clock", "its Date is no date", f"see what answers at {name}'s port"
        )
    if abs(skew) <= SKEW:
        return Finding("ok", f"{name}: clock", f"{skew:+.0f} s from ours")
    state: State = "failed" if abs(skew) > TOO_MUCH_SKEW else "warning"
    beyond = "; beyond 300 s nodes do not believe each other" if state == "failed" else ""
    advice = "see which is wrong (`chronyc tracking` on both) and start NTP or chrony there"
    return Finding(state, f"{name}: clock", f"{skew:+.0f} s from ours{beyond}", advice)


async def _answer(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    """Raises ValueError for what is not HTTP, and EOFError for what ends early."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError:
        raise ValueError("a head without end") from None
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    length = min(int(fields.get("content-length", "0")), ANSWER)
    _, status, *_ = [*head[0].split(), ""]
    return {**fields, "status": status}, await reader.readexactly(length)


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
