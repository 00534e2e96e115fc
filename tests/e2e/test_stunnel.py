"""stunnel itself: TLS 1.3 under delivered keys, and no connection that fails while they change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from keyhaul.consumers import stunnel
from keyhaul.consumers.port import AgreedKey
from keyhaul.consumers.stunnel import LOCKED, Stunnel, file_system, listening
from keyhaul.errors import ConfigError, Unavailable
from keyhaul.keys import Secret
from tests.agents import INITIATOR, PATIENCE, RESPONDER, Lines, Network, agent, network

MEMORY = Path("/dev/shm")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("stunnel") is None, reason="not installed: stunnel4 (group `consumers`)"),
    pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="no file system in memory to write to"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("net") / "net") as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="keyhaul-test-", dir=MEMORY) as made:
        yield Path(made)


class Tunnel:
    """A stunnel at each end of one connection, before a service that sends back what it gets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: dict[str, Lines] = {}
        for name in ("server", "client"):
            self.secrets(name).write_text(f"none:{os.urandom(32).hex()}\n")

    def secrets(self, name: str) -> Path:
        return self.folder / f"{name}.psk"

    def consumer(self, name: str) -> dict[str, str]:
        pid = self.folder / f"{name}.pid"
        return {"kind": "stunnel", "secrets": str(self.secrets(name)), "pid_file": str(pid)}

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._service = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._service.bind(str(self.folder / "service"))
            self._service.listen()
            self._start(stack, "server", "service")
            self._start(stack, "client", "server", "client = yes\n")
            yield

    def _start(self, stack: ExitStack, name: str, target: str, more: str = "") -> None:
        file = self.folder / f"{name}.conf"
        file.write_text(
            f"foreground = yes\ndebug = info\npid = {self.folder / name}.pid\n{more}[keys]\n"
            f"accept = {self.folder / name}\nconnect = {self.folder / target}\nciphers = PSK\n"
            f"sslVersionMin = TLSv1.3\nsessionResume = no\nPSKsecrets = {self.secrets(name)}\n"
        )
        words = ["stunnel", str(file)]
        process = stack.enter_context(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        self.logs.setdefault(name, Lines(process.stderr))
        pid, give_up = self.folder / f"{name}.pid", time.monotonic() + PATIENCE
        while not (pid.exists() and pid.read_text() and listening(process.pid)):
            assert process.poll() is None, "stunnel has ended"
            assert time.monotonic() < give_up, "stunnel does not listen"
            time.sleep(0.02)

    def connect(self) -> tuple[socket.socket, socket.socket] | None:
        """A connection through both, from the application to the service; None if TLS fails."""
        near = socket.socket(socket.AF_UNIX)
        near.settimeout(PATIENCE)
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # it opens its port anew
                near.connect(str(self.folder / "client"))
                break
        near.sendall(b"hello")
        found, _, _ = select.select([near, self._service], [], [], PATIENCE)
        assert found, "nothing comes"
        if self._service not in found:
            near.close()
            return None
        far, _ = self._service.accept()
        assert far.recv(5) == b"hello"
        return near, far


def works(tunnel: Tunnel) -> bool:
    ends = tunnel.connect()
    for each in ends or ():
        each.close()
    return ends is not None


def test_keys_change_under_new_connections_and_no_key_is_refused(
    two: Network, tmp_path: Path, folder: Path
) -> None:
    tunnel = Tunnel(folder)
    with tunnel.running():
        assert not works(tunnel)  # two different keys that nobody else has
        with agent(tmp_path, two.settings(RESPONDER, tunnel.consumer("server"))) as responder:
            settings = two.settings(INITIATOR, tunnel.consumer("client"), responder.url, interval=0.1)
            with agent(tmp_path, settings) as initiator:
                first = initiator.until("key settled")["key_id"]
                near, far = connected(tunnel)
                before = "".join(tunnel.logs["server"].so_far())
                for _ in range(5):
                    initiator.until("key settled")
                    for each in connected(tunnel):
                        each.close()
        assert works(tunnel)
        assert "binder does not verify" in before  # so that it can be seen in what follows
        assert "SSL_accept" not in "".join(tunnel.logs["server"].so_far())
        near.sendall(b"still here")  # the connection that was open all the time
        assert far.recv(10) == b"still here"
        near.close()
        far.close()
        there = tunnel.secrets("server").read_text()
        assert there == tunnel.secrets("client").read_text()  # one key, the same at both ends
        (line,) = there.splitlines()
        identity, _, bits = line.partition(":")
        assert UUID(identity) != UUID(first)
        assert len(bits) == 64
        for name in ("server", "client"):
            assert stat.S_IMODE(tunnel.secrets(name).stat().st_mode) == 0o600
        assert bits not in str([initiator.logs, responder.logs])


def connected(tunnel: Tunnel) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection; one that met a port that was being opened anew is tried again."""
    give_up = time.monotonic() + PATIENCE
    while (ends := tunnel.connect()) is None:
        assert time.monotonic() < give_up, "no connection comes about"
        time.sleep(0.02)
    return ends


def key() -> AgreedKey:
    return AgreedKey(uuid4(), Secret(os.urandom(32)))


def copy(given: AgreedKey) -> AgreedKey:
    return AgreedKey(given.key_id, Secret(given.bits.reveal()))


def test_a_server_takes_what_it_holds_and_a_lock_lets_nobody_in(folder: Path) -> None:
    tunnel = Tunnel(folder)

    async def story() -> None:
        server, client = (
            Stunnel(tunnel.secrets(name), folder / f"{name}.pid", client=name == "client")
            for name in ("server", "client")
        )
        assert await server.held() == []
        old, new = key(), key()
        await server.install(copy(old))
        await client.install(copy(old))
        assert works(tunnel)
        await server.install(copy(new))
        assert works(tunnel)  # the client has the old one still
        again = Stunnel(tunnel.secrets("server"), folder / "server.pid", client=False)
        assert await again.held() == [old.key_id, new.key_id]
        await client.install(copy(new))
        assert works(tunnel)
        assert await client.held() == [new.key_id]
        await again.drop(old.key_id)
        assert works(tunnel)
        await client.install(copy(old))
        assert not works(tunnel)  # the old one is not taken any more
        await client.install(copy(new))
        assert works(tunnel)
        await again.lock()
        assert tunnel.secrets("server").read_text().startswith(f"{LOCKED}:")
        assert not works(tunnel)

    with tunnel.running():
        asyncio.run(story())


def test_keys_on_a_disk_are_refused_unless_that_is_wanted(tmp_path: Path, folder: Path) -> None:
    assert file_system(folder) == "tmpfs"
    if file_system(tmp_path) == "tmpfs":
        pytest.skip("temporary files lie in memory here")
    with pytest.raises(ConfigError, match="would lie on a disk"):
        Stunnel(tmp_path / "psk", tmp_path / "pid", client=True)
    Stunnel(tmp_path / "psk", tmp_path / "pid", client=True, on_disk=True)
    with pytest.raises(ConfigError, match="No such file"):
        file_system(tmp_path / "nowhere")


def test_a_stunnel_that_is_not_there_or_reads_another_file_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = Stunnel(folder / "psk", folder / "pid", client=True)
    with pytest.raises(Unavailable, match="cannot be told"):
        asyncio.run(consumer.install(key()))
    monkeypatch.setattr(stunnel, "PATIENCE", 0.05)
    program = "import signal; signal.signal(1, signal.SIG_IGN); print('ready', flush=True); input()"
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as deaf:
        assert Lines(deaf.stdout).next() == "ready\n"
        (folder / "pid").write_text(str(deaf.pid))
        with pytest.raises(Unavailable, match="did not take"):
            asyncio.run(consumer.install(key()))
        deaf.kill()
    assert asyncio.run(consumer.held()) == []
