"""What tests of TLS share: certificates good and bad, a listening server, handshakes in memory."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from cryptography import x509

from keyhaul.edge.pqssl import TlsObject
from keyhaul.edge.tls import Credentials, negotiated, peer_certificate
from keyhaul.pki import Files, Lifetimes, Pki

HOSTS = ("localhost", "127.0.0.1")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
BOTH_VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)
SAE = "app/1 #?%ñ"


def credentials(files: Files, ca: Path | None = None) -> Credentials:
    return Credentials(files.cert, files.key, ca or files.ca)


@dataclasses.dataclass(frozen=True)
class Cast:
    """Everybody who connects to somebody in these tests."""

    vigo: Credentials
    derio: Credentials
    port: Credentials
    sae: Credentials
    pq_sae: Credentials
    foreign_sae: Credentials
    expired_sae: Credentials
    expired_port: Credentials
    elsewhere: Credentials
    directory: Path


def make_cast(directory: Path) -> Cast:
    pki = Pki.create(directory, ["galicia", "euskadi"])
    past = Pki.open(directory, lifetimes=Lifetimes(leaf=2, start=datetime.now(UTC) - timedelta(days=3)))
    sae = credentials(pki.sae("galicia", SAE))
    return Cast(
        vigo=credentials(pki.node("galicia", "vigo", HOSTS)),
        derio=credentials(pki.node("euskadi", "derio", HOSTS)),
        port=credentials(pki.sae_port("galicia", "vigo", HOSTS)),
        sae=sae,
        pq_sae=credentials(pki.sae("galicia", "modern", "ml-dsa-65")),
        # Trusts the port it calls, so that the refusal can only come from the server.
        foreign_sae=credentials(pki.sae("euskadi", SAE), sae.ca),
        expired_sae=credentials(past.sae("galicia", "late")),
        expired_port=credentials(past.sae_port("galicia", "late", HOSTS)),
        elsewhere=credentials(pki.sae_port("galicia", "elsewhere", ("elsewhere.example", "192.0.2.1"))),
        directory=directory,
    )


@dataclasses.dataclass
class Door:
    """A listening aiohttp server; `visits` counts the requests that reached a handler."""

    port: int = 0
    visits: int = 0
    seen: list[x509.Certificate] = dataclasses.field(default_factory=list)
    nodelay: int = 0

    def url(self, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}/"

    async def answer(self, request: web.Request) -> web.Response:
        self.visits += 1
        certificate = peer_certificate(request.transport)
        self.seen.append(certificate)
        assert request.transport is not None
        wire = request.transport.get_extra_info("socket")
        self.nodelay = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if request.method == "POST":
            return web.Response(body=await request.read())
        name = certificate.subject.rfc4514_string()
        return web.json_response({"subject": name, **negotiated(request.transport)})


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext) -> AsyncIterator[Door]:
    door = Door()
    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/", door.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        door.port = runner.addresses[0][1]
        yield door
    finally:
        await runner.cleanup()


async def ask(door: Door, context: ssl.SSLContext, host: str = "localhost") -> dict[str, str]:
    connector = aiohttp.TCPConnector(ssl=context, family=socket.AF_INET)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(door.url(host)) as response,
    ):
        assert response.status == 200
        answer: dict[str, str] = await response.json()
        return answer


def plain_client(ca: Path, own: Credentials | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """The interpreter's own TLS, as most of today's SAEs have it."""
    context = ssl.create_default_context(cafile=ca)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost"
) -> tuple[TlsObject, TlsObject]:
    """A handshake in memory, without sockets; raises what either side raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: list[Any] = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done: set[int] = set()
    for turn in range(20):
        with contextlib.suppress(ssl.SSLWantReadError):
            ends[turn % 2].do_handshake()
            done.add(turn % 2)
        if len(done) == 2:
            return ends[0], ends[1]
    raise AssertionError("the handshake does not end")
