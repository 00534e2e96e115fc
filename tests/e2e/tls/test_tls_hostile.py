"""Handshakes and connections gone wrong: garbage, half-closed, renewed, damaged; the server survives all."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from io import UnsupportedOperation
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL

from keyhaul.edge import openssl
from keyhaul.edge.peercert import as_dict
from keyhaul.edge.pqssl import TlsContext
from keyhaul.edge.tls import Policy, client_context, server_context
from keyhaul.errors import ConfigError
from keyhaul.pki import Pki
from tests.doors import (
    BOTH_VERSIONS,
    HOSTS,
    Cast,
    Door,
    ask,
    credentials,
    listening,
    plain_client,
    shake,
)


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
                with socket.create_connection(("127.0.0.1", door.port), timeout=60) as wire:
                    wire.sendall(GARBAGE[kind])
                    with contextlib.suppress(OSError):  # the server may have hung up already
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
                with socket.create_connection(("127.0.0.1", door.port), timeout=60) as wire:
                    secure = context.wrap_socket(wire, server_hostname="localhost")
                    secure.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
                    socket.socket.shutdown(secure, socket.SHUT_WR)  # FIN without close_notify
                    with contextlib.suppress(ConnectionError, ssl.SSLError):
                        while secure.recv(4096):
                            pass
                    secure.close()

            def reset() -> None:
                wire = socket.create_connection(("127.0.0.1", door.port), timeout=60)
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
                with socket.create_connection(("127.0.0.1", door.port), timeout=60) as wire:
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
                    socket.create_connection(("127.0.0.1", door.port), timeout=60) as wire,
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
        with pytest.raises(UnsupportedOperation):
            change("x")
    with socket.socket() as wire, pytest.raises(UnsupportedOperation):
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
