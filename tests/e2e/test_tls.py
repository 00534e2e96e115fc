"""Real handshakes: who gets in under which policy, who does not, and that the server survives all of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import mldsa
from OpenSSL import SSL

from keyhaul.edge import openssl, tls
from keyhaul.edge.peercert import as_dict
from keyhaul.edge.pqssl import TlsContext, TlsObject
from keyhaul.edge.tls import Credentials, Policy, client_context, negotiated, peer_certificate, server_context
from keyhaul.errors import ConfigError, Unauthorized
from keyhaul.identity import node_name, sae_id
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


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    directory = tmp_path_factory.mktemp("pki") / "pki"
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


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner.run


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


def test_nodes_meet_over_post_quantum_tls_with_ml_dsa_certificates(cast: Cast, run: Any) -> None:
    async def scene() -> None:
        async with listening(server_context(cast.vigo, Policy.PQ)) as door:
            answer = await ask(door, client_context(cast.derio, Policy.PQ))
            assert answer == {
                "subject": "CN=derio,O=euskadi",
                "version": "TLSv1.3",
                "group": "X25519MLKEM768",
                "cipher": "TLS_AES_256_GCM_SHA384",
            }
            assert node_name(door.seen[0]) == "derio"
            assert isinstance(door.seen[0].public_key(), mldsa.MLDSA65PublicKey)
            assert door.nodelay

    run(scene())


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO >= (3, 5), reason="this interpreter's ssl knows ML-DSA itself")
def test_the_interpreters_openssl_does_not_matter(cast: Cast) -> None:
    with pytest.raises(ssl.SSLError):
        plain_client(cast.vigo.ca, cast.vigo)  # it cannot even load the certificate
    client, server = shake(server_context(cast.vigo, Policy.PQ), client_context(cast.derio, Policy.PQ))
    assert client.group() == server.group() == "X25519MLKEM768"


@BOTH_VERSIONS
def test_clients_of_today_reach_the_compatible_port(cast: Cast, run: Any, version: ssl.TLSVersion) -> None:
    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:
            answer = await ask(door, plain_client(cast.sae.ca, cast.sae, version))
            assert answer["version"] == version.name.replace("_", ".")
            assert sae_id(door.seen[0]) == SAE

    run(scene())


def test_our_client_reaches_a_device_that_has_only_the_standard_library(cast: Cast, run: Any) -> None:
    async def scene() -> None:
        device = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=cast.sae.ca)
        device.verify_mode = ssl.CERT_REQUIRED
        device.load_cert_chain(cast.port.cert, cast.port.key)
        device.maximum_version = ssl.TLSVersion.TLSv1_2

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=device)
        port = server.sockets[0].getsockname()[1]
        context = client_context(cast.sae, Policy.CLASSIC)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"status\n")
        assert await reader.read() == b"status\n"
        assert negotiated(writer.transport)["version"] == "TLSv1.2"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(scene())


@pytest.mark.parametrize(
    ("listener", "caller", "group"),
    [
        (Policy.PQ, Policy.PQ, "X25519MLKEM768"),
        (Policy.PQ, Policy.COMPATIBLE, "X25519MLKEM768"),
        (Policy.COMPATIBLE, Policy.PQ, "X25519MLKEM768"),
        (Policy.COMPATIBLE, Policy.COMPATIBLE, "X25519MLKEM768"),
        (Policy.COMPATIBLE, Policy.CLASSIC, "x25519"),
        (Policy.CLASSIC, Policy.COMPATIBLE, "x25519"),
        (Policy.CLASSIC, Policy.CLASSIC, "x25519"),
    ],
)
def test_the_best_group_both_policies_allow_is_taken(
    cast: Cast, listener: Policy, caller: Policy, group: str
) -> None:
    client, server = shake(server_context(cast.port, listener), client_context(cast.pq_sae, caller))
    assert client.group() == server.group() == group
    certificate = server.peer_certificate()
    assert certificate is not None
    assert sae_id(certificate) == "modern"


def test_a_peer_that_wants_the_larger_group_gets_it(cast: Cast) -> None:
    profile = dataclasses.replace(tls._PROFILES[Policy.PQ], groups="SecP384r1MLKEM1024")
    build = functools.partial(tls._build, cast.derio, cast.derio.ca, profile, False)
    caller = TlsContext(build, server_side=False, groups=frozenset({"secp384r1mlkem1024"}))
    client, _ = shake(server_context(cast.vigo, Policy.PQ), caller)
    assert client.group() == "SecP384r1MLKEM1024"


@pytest.mark.parametrize(("listener", "caller"), [("pq", "classic"), ("classic", "pq")])
def test_pq_refuses_classical_peers(cast: Cast, listener: str, caller: str) -> None:
    with pytest.raises(ssl.SSLError):
        shake(server_context(cast.vigo, Policy(listener)), client_context(cast.derio, Policy(caller)))


def test_the_negotiated_group_is_checked_even_if_the_settings_were_undone(cast: Cast) -> None:
    build = functools.partial(tls._build, cast.port, cast.port.ca, tls._PROFILES[Policy.COMPATIBLE], True)
    undone = TlsContext(build, server_side=True, groups=frozenset({"x25519mlkem768"}))
    with pytest.raises(ssl.SSLError, match="x25519 is not post-quantum"):
        shake(undone, client_context(cast.sae, Policy.CLASSIC))


def test_settings_of_the_machine_do_not_weaken_pq(cast: Cast, tmp_path: Path) -> None:
    settings = tmp_path / "openssl.cnf"
    settings.write_text(
        "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = all\n"
        "[all]\nGroups = x25519\nMinProtocol = TLSv1.2\nMaxProtocol = TLSv1.2\n"
        "CipherString = ALL@SECLEVEL=0\nSignatureAlgorithms = rsa_pkcs1_sha256\n"
    )
    script = tmp_path / "handshake.py"
    script.write_text(
        "import importlib.util as u, sys\n"
        f"spec = u.spec_from_file_location('t', {__file__!r})\n"
        "t = u.module_from_spec(spec); sys.modules['t'] = t; spec.loader.exec_module(t)\n"
        "own = lambda n: t.Credentials(*map(t.Path, sys.argv[n:n + 3]))\n"
        "c, s = t.shake(t.server_context(own(1), t.Policy.PQ), t.client_context(own(4), t.Policy.PQ))\n"
        "print(c.version(), c.group())\n"
    )
    files = [str(path) for own in (cast.vigo, cast.derio) for path in (own.cert, own.key, own.ca)]
    environment = {**os.environ, "OPENSSL_CONF": str(settings), "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, script, *files], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout == "TLSv1.3 X25519MLKEM768\n", result.stderr


REFUSALS: dict[str, tuple[str, str, str]] = {
    # listener, caller, what the caller learns
    "an SAE certificate of another domain": ("port", "foreign_sae", "unknown ca"),
    "an expired SAE certificate": ("port", "expired_sae", "certificate expired"),
    "a node certificate at the SAE port": ("port", "vigo", "unknown ca"),
    "an SAE certificate at the node port": ("vigo", "sae", "unknown ca"),
    "the SAE port's own certificate as a client": ("port", "port", "certificate"),
}


@pytest.mark.parametrize("case", sorted(REFUSALS))
def test_servers_refuse_and_say_why(cast: Cast, run: Any, case: str) -> None:
    listener, caller, alert = REFUSALS[case]
    server, client = getattr(cast, listener), getattr(cast, caller)

    async def scene() -> None:
        async with listening(server_context(server, Policy.COMPATIBLE)) as door:
            trusting = Credentials(
                client.cert, client.key, cast.vigo.ca if listener == "vigo" else cast.sae.ca
            )
            with pytest.raises(aiohttp.ClientError) as refused:
                await ask(door, client_context(trusting, Policy.COMPATIBLE))
            assert alert in str(refused.value)
            assert door.visits == 0

    run(scene())


@BOTH_VERSIONS
def test_a_client_without_certificate_is_refused(cast: Cast, run: Any, version: ssl.TLSVersion) -> None:
    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:
            with pytest.raises(aiohttp.ClientError):
                await ask(door, plain_client(cast.sae.ca, None, version))
            assert door.visits == 0

    run(scene())


@pytest.mark.parametrize(
    ("listener", "caller", "reason"),
    [
        ("port", "vigo", "unable to get local issuer certificate"),
        ("vigo", "sae", "unable to get local issuer certificate"),
        ("expired_port", "sae", "certificate has expired"),
        ("sae", "sae", "unsuitable certificate purpose"),
        ("elsewhere", "sae", "hostname mismatch"),
    ],
)
def test_clients_refuse_wrong_servers(cast: Cast, run: Any, listener: str, caller: str, reason: str) -> None:
    async def scene() -> None:
        async with listening(server_context(getattr(cast, listener), Policy.COMPATIBLE)) as door:
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as refused:
                await ask(door, client_context(getattr(cast, caller), Policy.COMPATIBLE))
            assert reason in str(refused.value).lower()
            assert door.visits == 0

    run(scene())


def test_addresses_are_checked_as_addresses(cast: Cast, run: Any) -> None:
    async def scene() -> None:
        context = client_context(cast.sae, Policy.COMPATIBLE)
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:
            assert (await ask(door, context, "127.0.0.1"))["version"] == "TLSv1.3"
        async with listening(server_context(cast.elsewhere, Policy.COMPATIBLE)) as door:
            with pytest.raises(aiohttp.ClientConnectorCertificateError, match="IP address mismatch"):
                await ask(door, context, "127.0.0.1")

    run(scene())


def test_a_server_is_never_called_without_its_name(cast: Cast) -> None:
    context = client_context(cast.sae, Policy.COMPATIBLE)
    with pytest.raises(ValueError, match="must name the host"):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    for name in ("127.0.0.1\0.example", "a" * 64 + ".example", "."):
        with pytest.raises(ssl.SSLError, match="no host name"):
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    with pytest.raises(ValueError, match="server context"):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 347_316, 5_000_000])
def test_bodies_arrive_whole_in_both_directions(cast: Cast, run: Any, size: int) -> None:
    body = os.urandom(size)

    async def scene() -> None:
        async with listening(server_context(cast.vigo, Policy.PQ)) as door:
            connector = aiohttp.TCPConnector(ssl=client_context(cast.derio, Policy.PQ), limit=4)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def echo() -> bytes:
                    async with session.post(door.url("127.0.0.1"), data=io.BytesIO(body)) as response:
                        return await response.read()

                assert set(await asyncio.gather(*(echo() for _ in range(6)))) == {body}

    run(scene())


def test_the_peers_certificate_is_parsed_once_per_connection(cast: Cast, run: Any) -> None:
    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:
            connector = aiohttp.TCPConnector(ssl=client_context(cast.sae, Policy.COMPATIBLE), limit=1)
            async with aiohttp.ClientSession(connector=connector) as session:
                for _ in range(3):
                    async with session.get(door.url("127.0.0.1")) as response:
                        await response.read()
            assert len(door.seen) == 3
            assert all(certificate is door.seen[0] for certificate in door.seen)

    run(scene())


def test_a_closed_or_plain_connection_has_no_certificate() -> None:
    async def scene() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(Unauthorized):
            peer_certificate(writer.transport)
        with pytest.raises(Unauthorized):
            negotiated(None)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    asyncio.run(scene())


def in_thread(work: Callable[[], Any]) -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(work)


GARBAGE = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": bytes(range(256)) * 40,
    "a hello cut short": bytes.fromhex("1603010200010001fc0303") + bytes(20),
    "a record of zeros": bytes.fromhex("1603010040") + bytes(64),
    "a hello of 16 MB": bytes.fromhex("160301400001ffffff0303") + bytes(4000),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", sorted(GARBAGE))
def test_garbage_handshakes_leave_the_server_up(cast: Cast, run: Any, kind: str) -> None:
    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:

            def throw() -> None:
                with socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire:
                    wire.sendall(GARBAGE[kind])
                    wire.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionError):
                        while wire.recv(4096):
                            pass

            for _ in range(5):
                await in_thread(throw)
            assert door.visits == 0
            answer = await ask(door, client_context(cast.sae, Policy.PQ))
            assert answer["group"] == "X25519MLKEM768"

    run(scene())


def test_half_closed_and_vanishing_peers_leave_the_server_up(cast: Cast, run: Any) -> None:
    context = plain_client(cast.sae.ca, cast.sae)

    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:

            def half_close() -> None:
                with socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire:
                    secure = context.wrap_socket(wire, server_hostname="localhost")
                    secure.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
                    socket.socket.shutdown(secure, socket.SHUT_WR)  # FIN without close_notify
                    with contextlib.suppress(ConnectionError, ssl.SSLError):
                        while secure.recv(4096):
                            pass
                    secure.close()

            def reset() -> None:
                wire = socket.create_connection(("127.0.0.1", door.port), timeout=10)
                secure = context.wrap_socket(wire, server_hostname="localhost")
                secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                secure.sendall(b"GET / HT")
                secure.close()

            for _ in range(3):
                await in_thread(half_close)
                await in_thread(reset)
            assert (await ask(door, context))["version"] == "TLSv1.3"

    run(scene())


@BOTH_VERSIONS
def test_the_server_answers_a_goodbye(cast: Cast, run: Any, version: ssl.TLSVersion) -> None:
    context = plain_client(cast.sae.ca, cast.sae, version)

    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:

            def leave() -> bytes:
                with socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire:
                    secure = context.wrap_socket(wire, server_hostname="localhost")
                    secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    head = secure.recv(12)
                    while b"}" not in secure.recv(4096):
                        pass
                    secure.unwrap().close()  # returns only when the server said goodbye too
                return head

            assert await in_thread(leave) == b"HTTP/1.1 200"

    run(scene())


@BOTH_VERSIONS
def test_no_session_outlives_its_connection(cast: Cast, version: ssl.TLSVersion) -> None:
    context = plain_client(cast.sae.ca, cast.sae, version)

    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:

            def visit(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
                with (
                    socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire,
                    context.wrap_socket(wire, server_hostname="localhost", session=session) as secure,
                ):
                    secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    while secure.recv(4096):
                        pass
                    return secure.session, secure.session_reused

            first, _ = await in_thread(lambda: visit(None))
            _, reused = await in_thread(lambda: visit(first))
            assert not reused
            assert door.visits == 2

    asyncio.run(scene())


def test_contexts_of_several_threads_do_not_mix(cast: Cast) -> None:
    """The scratch buffer belongs to the context: two loops in two threads, each with its own, keep apart."""
    wrong: list[str] = []

    def converse(fill: bytes) -> None:
        client, server = shake(server_context(cast.port, Policy.PQ), client_context(cast.sae, Policy.PQ))
        for _ in range(200):
            client.write(fill * 16_000)
            if server.read(16_000) != fill * 16_000:
                wrong.append(repr(fill))

    threads = [threading.Thread(target=converse, args=(bytes([n]),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_renewed_certificate_serves_new_connections(cast: Cast, tmp_path: Path) -> None:
    pki = Pki.create(tmp_path / "pki", ["d"])
    own = credentials(pki.sae_port("d", "n", HOSTS))
    caller = client_context(credentials(pki.sae("d", "app")), Policy.PQ)
    context = server_context(own, Policy.PQ)
    assert isinstance(context, TlsContext)

    def serial() -> int:
        client, _ = shake(context, caller)
        certificate = client.peer_certificate()
        assert certificate is not None
        return certificate.serial_number

    before = serial()
    Pki.open(tmp_path / "pki", overwrite=True).sae_port("d", "n", HOSTS)
    assert serial() == before
    context.reload()
    renewed = serial()
    assert renewed != before
    own.key.write_bytes(b"")
    with pytest.raises(ConfigError):
        context.reload()
    assert serial() == renewed


def test_the_object_reports_what_the_standard_library_would(cast: Cast) -> None:
    client, server = shake(server_context(cast.port, Policy.PQ), client_context(cast.sae, Policy.PQ))
    assert client.version() == "TLSv1.3"
    assert client.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    binding = client.get_channel_binding("tls-exporter")
    assert binding == server.get_channel_binding("tls-exporter")
    assert binding is not None
    assert len(binding) == 32
    assert server.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(cast.sae.cert.read_text())
    expected = ssl._ssl._test_decode_cert(str(cast.sae.cert))  # type: ignore[attr-defined]
    shown = server.getpeercert()
    assert isinstance(shown, dict)
    assert {name: value for name, value in shown.items() if name in expected} == expected


def test_before_the_handshake_nothing_is_known(cast: Cast) -> None:
    context = client_context(cast.sae, Policy.PQ)
    fresh = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    assert fresh.version() is None
    assert fresh.cipher() is None
    assert fresh.getpeercert() is None
    assert fresh.group() is None  # type: ignore[attr-defined]


def test_a_context_cannot_be_loosened_from_outside(cast: Cast) -> None:
    context = client_context(cast.sae, Policy.PQ)
    assert context.verify_mode is ssl.CERT_REQUIRED
    for change in (context.load_cert_chain, context.load_default_certs, context.set_ciphers):
        with pytest.raises(NotImplementedError):
            change("x")
    with socket.socket() as wire, pytest.raises(NotImplementedError):
        context.wrap_socket(wire)


def test_reading_into_a_buffer_and_past_the_goodbye(cast: Cast) -> None:
    client, server = shake(server_context(cast.port, Policy.PQ), client_context(cast.sae, Policy.PQ))
    room = bytearray(8)
    assert client.write(b"") == 0
    assert client.write(memoryview(b"abcdefghij")) == 10
    assert server.read(8, memoryview(room)) == 8
    assert bytes(room) == b"abcdefgh"
    assert server.pending() == 2
    client.write(b"klm")
    assert server.read(100) == b"ij"
    assert server.pending() > 0  # undecrypted, and already out of the event loop's buffer
    assert server.read(100) == b"klm"
    assert server.pending() == 0
    with pytest.raises(ssl.SSLWantReadError):
        server.read(1)
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()  # waits for the other side's goodbye
    assert server.read(1) == b""
    server.unwrap()
    client.unwrap()


def test_a_flipped_bit_ends_the_connection_only(cast: Cast) -> None:
    server_side, client_side = server_context(cast.port, Policy.PQ), client_context(cast.sae, Policy.PQ)
    client, server = shake(server_side, client_side)
    other_client, other_server = shake(server_side, client_side)
    client.write(b"a" * 100)
    record = bytearray(server._incoming.read())
    record[50] ^= 1
    server._incoming.write(record)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        server.read(100)
    other_client.write(b"still here")
    assert other_server.read(100) == b"still here"


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "directory", "other key", "encrypted", "no ca", "broken"]
)
def test_unusable_files_are_named_with_a_remedy(cast: Cast, tmp_path: Path, damage: str) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * (damage == "broken")
    )
    locked = tmp_path / "locked.key"
    key = openssl_key(cast.sae.key)
    locked.write_bytes(key)
    bad = {
        "missing": (dataclasses.replace(cast.sae, cert=tmp_path / "gone.pem"), "gone.pem: no such file"),
        "empty": (dataclasses.replace(cast.sae, key=empty), "empty.pem: no private key"),
        "directory": (dataclasses.replace(cast.sae, key=tmp_path), "Is a directory"),
        "other key": (dataclasses.replace(cast.sae, key=cast.vigo.key), "does not belong to the certificate"),
        "encrypted": (dataclasses.replace(cast.sae, key=locked), "locked.key: the key is encrypted"),
        "no ca": (dataclasses.replace(cast.sae, ca=cast.sae.key), "no certificate in PEM form"),
        "broken": (dataclasses.replace(cast.sae, ca=empty), "empty.pem: no certificate in PEM form"),
    }
    files, cause = bad[damage]
    for make in (server_context, client_context):
        with pytest.raises(ConfigError) as refused:
            make(files, Policy.COMPATIBLE)
        assert cause in refused.value.cause
        assert refused.value.remedy


def openssl_key(path: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(path.read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"test")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def test_a_pyopenssl_that_moved_its_hooks_is_named() -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    assert openssl.missing(openssl.lib, SSL.Connection(context, None), context) == []
    absent = openssl.missing(object(), SSL.Connection(context, None), object())
    assert "lib.SSL_read" in absent
    assert "Context._context" in absent
    with pytest.raises(ConfigError, match=r"SSL_read.*requirements\.lock"):
        openssl.require(absent)


def test_certificates_without_alternative_names_still_print(cast: Cast) -> None:
    ca = x509.load_pem_x509_certificate(cast.sae.ca.read_bytes())
    assert "subjectAltName" not in as_dict(ca)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("tls_max", ["1.2", "1.3"])
def test_curl_connects_with_an_sae_certificate_and_not_without(cast: Cast, tls_max: str) -> None:
    async def curl(door: Door, *options: str | Path) -> tuple[int, str]:
        common = ("-sS", "--tls-max", tls_max, "--cacert", cast.sae.ca, *options, door.url())
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("curl", *common, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        return process.returncode or 0, (out or err).decode()

    async def scene() -> None:
        async with listening(server_context(cast.port, Policy.COMPATIBLE)) as door:
            code, text = await curl(door, "--cert", cast.sae.cert, "--key", cast.sae.key)
            assert (code, f'"TLSv{tls_max}"' in text) == (0, True), text
            code, text = await curl(door)
            assert code != 0
            assert "alert" in text
            assert door.visits == 1

    asyncio.run(scene())
