"""Real handshakes: who gets in under which policy, who does not, and that the server survives all of them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa

from keyhaul.edge import tls
from keyhaul.edge.pqssl import TlsContext
from keyhaul.edge.tls import Credentials, Policy, client_context, negotiated, peer_certificate, server_context
from keyhaul.errors import Unauthorized
from keyhaul.identity import node_name, sae_id
from tests.doors import (
    BOTH_VERSIONS,
    SAE,
    Cast,
    ask,
    listening,
    plain_client,
    shake,
)


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
