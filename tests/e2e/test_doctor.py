"""The doctor on a real network: nothing to say about a sound one, and of each mistake its cause and cure."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from keyhaul import config
from keyhaul.client import AsyncClient
from keyhaul.doctor import Finding, examine, neighbour, plain, tls_advice, worst
from keyhaul.edge import tls
from keyhaul.errors import Unavailable
from keyhaul.pki import Lifetimes, Pki
from keyhaul.testbed.chaos.faults import turn
from keyhaul.testbed.layout import HOSTS
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def network(folder: Path) -> AsyncIterator[Testbed]:
    """Two nodes and the pair of devices between them."""
    topology, settings = named("line-2").with_devices("instant"), {"delivery": {"request_timeout": 3}}
    async with Testbed(topology, folder / "net", restart=False, settings=settings) as testbed:
        yield testbed


def of(found: list[Finding], what: str) -> Finding:
    return next(each for each in found if what in each.what)


def files(testbed: Testbed) -> tuple[Path, Path]:
    first, second = (node.name for node in testbed.topology.nodes)
    return testbed.layout.node_file(first), testbed.layout.node_file(second)


def test_a_sound_network_and_then_everything_that_breaks_in_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            first, _ = files(testbed)
            name = testbed.topology.nodes[1].name
            await all_is_well(first, name)
            await keys_cross(testbed, first, name)
            await a_dry_device_is_said(testbed, first)
            await an_expired_neighbour_is_said(testbed, first, name)
            await testbed.kill(name)
            found = await examine(first)
            assert of(found, f"{name}: TCP").state == "failed"
            assert "start" in of(found, f"{name}: TCP").next_step
            assert of(found, "device at").state == "ok", "one thing that is broken hides no other"

    asyncio.run(story())


async def all_is_well(file: Path, peer: str) -> None:
    found = await examine(file)
    assert [each for each in found if each.state == "failed"] == []
    for what in ("certificate of the sae port", "store", "device at"):
        assert of(found, what).state == "ok", of(found, what)
    steps = [each.what.removeprefix(f"{peer}: ") for each in found if each.what.startswith(f"{peer}: ")]
    assert steps == ["name", "TCP", "TLS", "certificate", "identity", "clock", "versions"]
    assert "MLKEM" in of(found, f"{peer}: TLS").seen.upper()


async def keys_cross(testbed: Testbed, file: Path, peer: str) -> None:
    state = testbed.state()
    node = next(each for each in state["nodes"] if each["name"] != peer)
    admin = state["admin"]
    words = ["federation", "test", peer, "--config", str(file), "--url", node["admin_url"], "--json"]
    words += ["--cert", admin["cert"], "--key", admin["key"], "--cacert", admin["ca"]]
    said = json.loads((await keyhaul(*words)).stdout)
    key = next(each for each in said["findings"] if "test key" in each["what"])
    assert key["state"] == "ok", key
    assert "trusted" in key["seen"]
    without = await keyhaul("federation", "test", peer, "--config", str(file))
    assert without.returncode == 0
    assert "skipped" in without.stdout
    unknown = await keyhaul("federation", "test", "nobody", "--config", str(file))
    assert unknown.returncode == 2
    assert peer in unknown.stderr


async def keyhaul(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keyhaul.cli", *words]
    return await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    )


async def a_dry_device_is_said(testbed: Testbed, file: Path) -> None:
    spot = next(each for each in testbed.layout.spots if each.node == testbed.topology.nodes[0].name)
    await turn(testbed, spot.name, {"dry": 1})
    dry = of(await examine(file), "device at")
    assert (dry.state, dry.seen.split()[0]) == ("failed", "0")
    await turn(testbed, spot.name, {"dry": 0})


async def an_expired_neighbour_is_said(testbed: Testbed, file: Path, peer: str) -> None:
    node = testbed.topology.nodes[1]
    past = Lifetimes(leaf=1, start=datetime.now(UTC) - timedelta(days=3))
    pki = Pki.open(testbed.directory / "pki", lifetimes=past, overwrite=True)
    await asyncio.to_thread(pki.node, node.domain, node.name, HOSTS)
    await testbed.restart(node.name)
    found = of(await examine(file), f"{peer}: TLS")
    assert found.state == "failed"
    assert "issue it anew" in found.next_step
    sae, other = testbed.state()["saes"]
    secrets = {name: sae[name] for name in ("cert", "key", "ca")}
    async with AsyncClient(sae["sae_url"], **secrets, patience=0.0) as application:
        with pytest.raises(Unavailable) as refused:
            await application.get_key(other["id"])
    assert f"{peer}: certificate verify failed: certificate has expired" in refused.value.cause
    good = Pki.open(testbed.directory / "pki", overwrite=True)
    await asyncio.to_thread(good.node, node.domain, node.name, HOSTS)
    await testbed.restart(node.name)
    assert of(await examine(file), f"{peer}: TLS").state == "ok"


# ---------------------------------------------------------------------- mistakes in the configuration


Change = Callable[[str, str], str]


@pytest.mark.parametrize(
    ("change", "step", "advice"),
    [
        (lambda text, url: text.replace(url, "https://no-such-host.invalid:1"), "name", "DNS"),
        (lambda text, url: text.replace(url, "https://127.0.0.1:1"), "TCP", "nothing listens there"),
    ],
)
def test_a_neighbour_that_is_not_there(tmp_path: Path, change: Change, step: str, advice: str) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            file, _ = files(testbed)
            url = config.load(file).peers[0].url
            file.write_text(change(file.read_text(), url))
            settings = config.load(file)
            found = await neighbour(settings, settings.peers[0])
            assert found[-1].state == "failed"
            assert found[-1].what.endswith(step)
            assert advice in found[-1].next_step

    asyncio.run(story())


def test_strange_anchors_and_swapped_names(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            file, _ = files(testbed)
            settings = config.load(file)
            strangers = Pki.create(tmp_path / "strangers", ["elsewhere"])
            anchors = settings.listeners.node.ca
            original = anchors.read_bytes()
            shutil.copy(strangers.directory / "node-anchors.pem", anchors)
            found = await neighbour(settings, settings.peers[0])
            assert found[-1].what.endswith("TLS")
            assert str(anchors) in found[-1].next_step
            anchors.write_bytes(original)
            ours = testbed.state()["nodes"][0]["node_url"]
            file.write_text(file.read_text().replace(settings.peers[0].url, ours))
            settings = config.load(file)
            found = await neighbour(settings, settings.peers[0])
            assert found[-1].what.endswith("identity")
            assert f"is {settings.name}" in found[-1].seen

    asyncio.run(story())


@asynccontextmanager
async def posing(context: ssl.SSLContext | None, answer: bytes = b"") -> AsyncIterator[str]:
    """What a neighbour's address may lead to: takes connections, reads a request, answers, hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n" if context else b"\x03")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def classical(folder: Path, newest: ssl.TLSVersion) -> ssl.SSLContext:
    """A server of the interpreter's own TLS, which knows no post-quantum group."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    pem = folder / "old.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(made.sign(key, SHA256()).public_bytes(Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.load_cert_chain(pem)
    return context


def dated(seconds: float) -> bytes:
    """An answer whose clock is that far from ours."""
    date = email.utils.formatdate(time.time() + seconds, usegmt=True)
    return f"HTTP/1.1 405 no\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode()


def test_whatever_stands_at_a_neighbours_address_is_told_with_cause_and_cure(tmp_path: Path) -> None:
    """A mistake in mutual TLS never ends in a bare failure: which CA, which file, which setting."""

    async def story() -> None:
        async with network(tmp_path) as testbed:
            first, second = files(testbed)
            settings, theirs = config.load(first), config.load(second).listeners.node
            peer, ours = settings.peers[0], settings.listeners.node
            name, text = peer.name, first.read_text()

            async def seen(
                context: ssl.SSLContext | None, step: str, words: str, mends: str, answer: bytes = b""
            ) -> None:
                async with posing(context, answer) as url:
                    first.write_text(text.replace(peer.url, url))
                    moved = config.load(first)
                    found = of((await neighbour(moved, moved.peers[0]))[::-1], f"{name}: {step}")
                assert found.state in ("failed", "warning"), found
                assert words in found.seen
                assert mends in found.next_step

            def shown(cert: Path, key: Path, ca: Path = theirs.ca) -> ssl.SSLContext:
                return tls.server_context(tls.Credentials(cert, key, ca), tls.Policy.PQ)

            strangers = Pki.create(tmp_path / "strangers", ["elsewhere"])
            stranger = strangers.node("elsewhere", name, HOSTS)
            good = shown(theirs.cert, theirs.key)
            await seen(
                shown(theirs.cert, theirs.key, strangers.directory / "node-anchors.pem"),
                "TLS",
                "unknown ca",
                f"does not trust the CA of {ours.cert}",
            )
            await seen(shown(stranger.cert, stranger.key), "TLS", "local issuer", str(ours.ca))
            domain, pki = testbed.topology.nodes[1].domain, testbed.directory / "pki"
            for lifetimes, hosts, words, mends in (
                (None, ["n2.example.org"], "IP address mismatch", "issue it for 127.0.0.1"),
                (Lifetimes(leaf=1, start=days(-3)), HOSTS, "expired", f"`keyhaul reload` on {name}"),
                (Lifetimes(start=days(3)), HOSTS, "not yet valid", "chronyc tracking"),
            ):
                again = {} if lifetimes is None else {"lifetimes": lifetimes}
                made = Pki.open(pki, overwrite=True, **again).node(domain, name, hosts)
                await seen(shown(made.cert, made.key), "TLS", words, mends)
            await seen(None, "TLS", "wrong version number", "speaks no TLS", b"HTTP/1.1 400 no\r\n\r\n")
            for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                await seen(classical(tmp_path, newest), "TLS", "hung up", "[listeners.node]")
            await seen(good, "clock", "+", "NTP", dated(60))
            await seen(good, "clock", "beyond 300 s", "NTP", dated(-4000))
            await seen(good, "answer", "it hung up", str(ours.cert))
            refused = b"HTTP/1.1 401 no\r\nContent-Length: 0\r\n\r\n"
            await seen(good, "admission", "does not know us", "among its peers", refused)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("alert", "mends"),
    [
        ("tlsv1 alert protocol version", 'kind = "plain"'),
        ("tls alert handshake failure", "[listeners.node]"),
        ("sslv3 alert certificate expired", "issue it anew"),
        ("sslv3 alert bad certificate", "log says why"),
    ],
)
def test_an_alert_of_the_other_side_is_put_into_words(tmp_path: Path, alert: str, mends: str) -> None:
    node = SimpleNamespace(cert=tmp_path / "node.pem")
    settings: Any = SimpleNamespace(listeners=SimpleNamespace(node=node))
    peer: Any = SimpleNamespace(name="derio", url="https://derio:1")
    assert mends in tls_advice(alert, settings, peer)


def days(number: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=number)


def test_a_configuration_that_does_not_load_ends_the_examination(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('name = "a"\nnonsense = 1\n')
    found = asyncio.run(examine(file))
    assert worst(found) == "failed"
    assert found[-1].state == "skipped"
    assert all(each.next_step for each in found)
    answer = subprocess.run(
        [sys.executable, "-m", "keyhaul.cli", "doctor", "--config", str(file), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert json.loads(answer.stdout) == plain(found)


def test_a_broken_root_secret_is_said_when_no_node_runs(tmp_path: Path) -> None:
    async def story() -> None:
        async with network(tmp_path) as testbed:
            file, _ = files(testbed)
            await testbed.kill(testbed.topology.nodes[0].name)
            good: Any = of(await examine(file), "root secret")
            assert good.state in ("ok", "warning")
            assert of(await examine(file), "store").state == "ok"
            store = config.load(file).store.file
            whole = store.read_bytes()
            store.write_bytes(bytes(len(whole)))
            damaged = of(await examine(file), "store")
            assert damaged.state == "failed"
            assert "backup" in damaged.next_step
            store.unlink()
            assert "keyhaul restore" in of(await examine(file), "store").next_step
            store.write_bytes(whole)
            assert of(await examine(file), "store").state == "ok", "nothing was changed"
            (file.parent / "root.credential").write_text("0" * 64)
            bad = of(await examine(file), "root secret")
            assert bad.state == "failed"
            assert bad.next_step

    asyncio.run(story())
