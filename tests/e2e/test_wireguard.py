"""WireGuard itself, between two network namespaces: keys change under traffic, and none of it is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from keyhaul.consumers.port import AgreedKey
from keyhaul.consumers.wireguard import WireGuard
from keyhaul.errors import Unavailable
from keyhaul.keys import Secret
from tests.agents import INITIATOR, PATIENCE, RESPONDER, Lines, Network, agent, network, traffic
from tests.wires import call, wired

PROGRAMS = ("wg", "wireguard-go", "ip", "ping")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (group `consumers`)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun here"),
]


@dataclass
class End:
    """One side: a namespace with a wire to the other, and WireGuard in it."""

    name: str
    outer: str
    inner: str
    private: str
    public: str

    def ip(self, *words: str) -> str:
        return call("ip", "-n", self.name, *words)

    @property
    def interface(self) -> str:
        return f"w{self.name}"

    @property
    def preshared(self) -> bytes:
        (line,) = call("wg", "show", self.interface, "preshared-keys").splitlines()
        return base64.b64decode(line.split("\t")[1])

    @property
    def handshake(self) -> int:
        (line,) = call("wg", "show", self.interface, "latest-handshakes").splitlines()
        return int(line.split("\t")[1])

    def forget(self, far: End) -> None:
        """End the session; the preshared key stays, and the next packet needs a handshake under it."""
        preshared = base64.b64encode(self.preshared).decode()
        call("wg", "set", self.interface, "peer", far.public, "remove")
        self.know(far)
        words = ["peer", far.public, "preshared-key", "/dev/stdin"]
        call("wg", "set", self.interface, *words, given=preshared)

    def know(self, far: End) -> None:
        words = ["endpoint", f"{far.outer}:51820", "allowed-ips", f"{far.inner}/32"]
        call("wg", "set", self.interface, "peer", far.public, *words)

    def consumer(self, far: End) -> dict[str, Any]:
        return {"kind": "wireguard", "interface": self.interface, "public_key": far.public}


@contextmanager
def tunnel(folder: Path) -> Iterator[tuple[End, End]]:
    """Two namespaces with a tunnel that has no preshared key yet."""
    tag = f"{os.getpid() % 100_000}"
    ends = []
    for side, number in (("a", 1), ("b", 2)):
        private = call("wg", "genkey").strip()
        public = call("wg", "pubkey", given=private).strip()
        ends.append(End(f"kh{side}{tag}", f"10.77.0.{number}", f"10.78.0.{number}", private, public))
    a, b = ends
    with ExitStack() as stack:
        stack.enter_context(wired({end.name: end.outer for end in ends}))
        for end, far in ((a, b), (b, a)):
            stack.enter_context(_running(end))
            file = folder / f"{end.name}.key"
            file.write_text(end.private)
            call("wg", "set", end.interface, "listen-port", "51820", "private-key", str(file))
            end.know(far)
            end.ip("address", "add", f"{end.inner}/24", "dev", end.interface)
            end.ip("link", "set", end.interface, "up")
        yield a, b


@contextmanager
def _running(end: End) -> Iterator[None]:
    """WireGuard in user space; its socket is what `wg` talks to, from any namespace."""
    words = ["ip", "netns", "exec", end.name, "wireguard-go", "-f", end.interface]
    environment = {**os.environ, "LOG_LEVEL": "debug", "WG_PROCESS_FOREGROUND": "1"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            # `wg` removes the socket of a program that does not listen on it yet, so it is not asked.
            lines = Lines(process.stdout)
            while "UAPI listener started" not in lines.next():
                pass
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def ping(a: End, b: End, count: int = 3) -> int:
    """How many of `count` pings came back."""
    words = ["ip", "netns", "exec", a.name, "ping", "-q", "-c", str(count), "-i", "0.2", "-W", "3", b.inner]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) received", done.stdout)
    assert found is not None, done
    return int(found[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("net") / "net") as running:
        yield running


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[End, End]]:
    with tunnel(tmp_path) as made:
        yield made


def test_keys_change_under_traffic_and_nothing_is_lost(
    two: Network, tmp_path: Path, ends: tuple[End, End]
) -> None:
    """KEYHAUL_HANDSHAKES=3 goes on until WireGuard has renewed its session so often, two minutes each."""
    a, b = ends
    handshakes = int(os.environ.get("KEYHAUL_HANDSHAKES", "0"))
    with agent(tmp_path, two.settings(RESPONDER, b.consumer(a))) as responder:
        settings = two.settings(INITIATOR, a.consumer(b), responder.url, interval=0.2)
        with agent(tmp_path, settings) as initiator:
            initiator.until("key settled")
            keys, seen = {a.preshared}, set[int]()
            with traffic(a.name, b.inner) as lost:
                while len(keys) < 6 or len(seen) <= handshakes:
                    initiator.until("key settled")
                    keys.add(a.preshared)
                    seen.add(a.handshake)
    assert lost == set()
    assert a.preshared == b.preshared
    # The newest key is what the next handshake needs: it works, and with another it does not.
    a.forget(b)
    b.forget(a)
    assert ping(a, b) == 3
    shown = json.dumps([initiator.logs, responder.logs])
    assert not any(base64.b64encode(key).decode() in shown for key in keys)


def test_a_handshake_needs_the_same_key_at_both_ends_and_a_lock_lets_none_through(
    ends: tuple[End, End],
) -> None:
    a, b = ends

    def both(here: bytes, there: bytes) -> int:
        for end, far, bits in ((a, b, here), (b, a, there)):
            key = AgreedKey(uuid4(), Secret(bits))
            asyncio.run(WireGuard(end.interface, far.public).install(key))
            assert end.preshared == bits
            end.forget(far)
        return ping(a, b, 2)

    first, second = os.urandom(32), os.urandom(32)
    assert both(first, first) == 2
    assert both(first, second) == 0
    assert both(second, second) == 2
    asyncio.run(WireGuard(b.interface, a.public).lock())
    assert b.preshared not in (first, second, bytes(32))
    b.forget(a)
    assert ping(a, b, 2) == 0


def test_a_peer_or_an_interface_that_is_not_there_is_not_made(ends: tuple[End, End]) -> None:
    a, b = ends
    key = AgreedKey(uuid4(), Secret(os.urandom(32)))
    with pytest.raises(Unavailable, match="has no peer"):
        asyncio.run(WireGuard(a.interface, a.public).install(key))
    assert call("wg", "show", a.interface, "peers").split() == [b.public]
    with pytest.raises(Unavailable, match=r"No such device|exit code 1"):
        asyncio.run(WireGuard("nowhere0", b.public).install(key))
