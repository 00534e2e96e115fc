"""A real node process: no core, no tracer, no new rights, no root; reloaded, and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from keyhaul import hardening, notify
from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import ConfigError
from keyhaul.pki import Pki
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named
from tests.e2e.test_operate import eventually, lines
from tests.nodes import make_node, make_ports

pytestmark = pytest.mark.e2e

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "keyhaul@.service"
PATH = os.pathsep.join([str(UNIT.parents[2]), *(each for each in sys.path if each.endswith("site-packages"))])
AS_ROOT = os.geteuid() == 0


class Daemon:
    """One `keyhaul serve` with a socket in place of systemd's."""

    def __init__(self, process: asyncio.subprocess.Process, told: socket.socket, log: Path) -> None:
        self.process = process
        self.log = log
        self._told = told

    async def hears(self, line: str) -> list[str]:
        """All lines of the first datagram that holds this one."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(180):
            while True:
                datagram = (await loop.sock_recv(self._told, 4096)).decode()
                if line in (found := datagram.split("\n")):
                    return found

    async def workers(self, tls: ssl.SSLContext) -> list[int]:
        """Their process ids, of the node's own status."""
        ready = next(line for line in self.log.read_text().splitlines() if '"node ready"' in line)
        url = json.loads(ready)["urls"]["admin"].replace("127.0.0.1", "localhost")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/admin/v1/status", ssl=tls) as said:
            return [each["pid"] for each in (await said.json())["workers"]["running"]]


def status_of(pid: int) -> dict[str, str]:
    """`/proc/PID/status`, which the kernel shows of a process that nobody may trace, too."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@contextlib.asynccontextmanager
async def daemon(file: Path, python: str = sys.executable, **environment: str) -> AsyncIterator[Daemon]:
    address = file.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(address))
        os.chmod(address, 0o666)
        told.setblocking(False)
        log = file.parent / "log"
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                python, "-m", "keyhaul.cli", "serve", "--config", str(file),
                env={**os.environ, "NOTIFY_SOCKET": str(address), **environment},
                stdout=stream, stderr=stream, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        try:
            yield Daemon(process, told, log)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def test_a_running_node_gives_away_neither_memory_nor_rights_and_ends_in_order(tmp_path: Path) -> None:
    config = make_node(tmp_path / "node", make_ports(tmp_path / "pki"))

    async def scene() -> None:
        async with daemon(config.file, WATCHDOG_USEC="200000") as node:
            assert "STATUS=vigo serves" in await node.hears("READY=1")
            await node.hears("WATCHDOG=1")
            status = status_of(node.process.pid)
            assert status["NoNewPrivs"] == "1"
            assert status["Umask"] == "0077"
            limits = Path(f"/proc/{node.process.pid}/limits").read_text()
            core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
            assert core.split()[4:6] == ["0", "0"]
            # What is not dumpable belongs to root in /proc, whoever runs it.
            assert Path(f"/proc/{node.process.pid}/mem").stat().st_uid == 0
            node.process.send_signal(signal.SIGTERM)
            await node.hears("STOPPING=1")
            assert await node.process.wait() == 0

    asyncio.run(scene())


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users can get to: those that pytest makes lie in one that is closed to them."""
    with tempfile.TemporaryDirectory(prefix="keyhaul-test-") as made:
        path = Path(made)
        if closed := [str(each) for each in path.parents if not each.stat().st_mode & stat.S_IXOTH]:
            pytest.skip(f"other users cannot get into {closed[0]}")
        yield path


def given_to(user: pwd.struct_passwd, directory: Path) -> None:
    """All that is in it."""
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, user.pw_uid, user.pw_gid)


@pytest.mark.skipif(not AS_ROOT, reason="only root can give up the rights of root")
def test_root_is_given_up_for_ever_and_other_processes_of_the_user_cannot_read_the_node(
    open_path: Path,
) -> None:
    nobody = pwd.getpwnam("nobody")
    config = make_node(open_path / "node", make_ports(open_path / "pki"), user="nobody")
    given_to(nobody, open_path)

    async def scene() -> None:
        async with daemon(config.file) as node:
            await node.hears("READY=1")
            has_given_up(nobody, node.process.pid)
            assert node.process.returncode is None
            await asyncio.to_thread(refused_to, nobody, node.process.pid, open_path)

    asyncio.run(scene())


def has_given_up(user: pwd.struct_passwd, pid: int) -> None:
    """That user in every respect, with no right of root and no way back."""
    status = status_of(pid)
    assert status["Uid"].split() == [str(user.pw_uid)] * 4
    assert status["Gid"].split() == [str(user.pw_gid)] * 4
    assert {*status["Groups"].split()} <= {str(user.pw_gid)}
    assert {status[each] for each in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def python_of(user: pwd.struct_passwd) -> str:
    """An interpreter that this user can run with this package: ours may lie in a private home."""
    tell = "import sys, cryptography, msgspec, keyhaul.edge.spawning; print(*sys.version_info[:2])"
    for each in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [each, "-c", tell], env={"PYTHONPATH": PATH}, capture_output=True, text=True, check=False,
                user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            )  # fmt: skip
            if done.stdout.split() == [str(number) for number in sys.version_info[:2]]:
                return each
    pytest.skip(f"{user.pw_name} cannot run this version of Python, or read this checkout")


@pytest.mark.skipif(not AS_ROOT, reason="only root can give up the rights of root")
def test_workers_of_a_node_that_gave_up_root_have_none_of_it_either_and_come_back(open_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = python_of(nobody)
    config = make_node(open_path / "node", make_ports(open_path / "pki"), user="nobody", workers=2)
    operators = Pki.open(open_path / "pki").admin("galicia", "ops")
    tls = client_context(Credentials(operators.cert, operators.key, operators.ca), Policy.COMPATIBLE)
    given_to(nobody, open_path)

    async def scene() -> None:
        async with daemon(config.file, python, PYTHONPATH=PATH) as node:
            await node.hears("READY=1")
            has_given_up(nobody, node.process.pid)
            before = await node.workers(tls)
            assert len(before) == 2
            for pid in before:
                has_given_up(nobody, pid)
                assert Path(f"/proc/{pid}/mem").stat().st_uid == 0, "its user could trace it"
                await asyncio.to_thread(refused_to, nobody, pid, open_path)
            os.kill(before[0], signal.SIGKILL)
            async with asyncio.timeout(60):
                while len(after := await node.workers(tls)) < 2 or before[0] in after:
                    await asyncio.sleep(0.05)
            for pid in after:
                has_given_up(nobody, pid)
            # A reload, too, reads everything as that user.
            node.process.send_signal(signal.SIGHUP)
            await node.hears("RELOADING=1")
            await node.hears("READY=1")
            assert "not reloaded" not in node.log.read_text()
            node.process.send_signal(signal.SIGTERM)
            assert await node.process.wait() == 0
            assert not any(Path(f"/proc/{pid}").exists() for pid in after)

    asyncio.run(scene())


def refused_to(user: pwd.struct_passwd, pid: int, directory: Path) -> None:
    """Neither gcore nor a plain look at its memory works for another process of the same user."""
    look = f"open('/proc/{pid}/mem', 'rb').read(1)"
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", look],
        user=user.pw_uid, group=user.pw_gid, extra_groups=[], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Permission denied" in done.stderr
    if shutil.which("gcore"):
        subprocess.run(
            ["gcore", "-o", str(directory / "core"), str(pid)],
            user=user.pw_uid, group=user.pw_gid, extra_groups=[], capture_output=True, check=False,
        )  # fmt: skip
        assert not list(directory.glob("core*"))


def test_another_user_is_taken_only_where_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such user"):
        hardening.drop_privileges("nobody-of-that-name")
    monkeypatch.setattr(hardening.os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="started as uid 12345"):
        hardening.drop_privileges("nobody")


def test_memory_is_locked_only_where_there_is_swap_and_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename Type Size Used Priority\n")
    assert not hardening._swaps(swaps)
    swaps.write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n")
    assert hardening._swaps(swaps)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2048 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert hardening._free(tmp_path / "meminfo", tmp_path / "memory.max") == 2 << 20
    (tmp_path / "memory.max").write_text("1500000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert hardening._free(tmp_path / "meminfo", tmp_path / "memory.max") == 1_000_000
    monkeypatch.setattr(hardening, "_swaps", lambda: True)
    monkeypatch.setattr(hardening, "_free", lambda: 1 << 20)
    assert "only 1 MiB are free" in hardening._lock_memory()[0]
    monkeypatch.setattr(hardening, "_free", lambda: 1 << 40)
    monkeypatch.setattr(hardening.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(hardening.resource, "getrlimit", lambda _: (65_536, 65_536))
    assert "LimitMEMLOCK" in hardening._lock_memory()[0]


def test_memory_that_may_be_locked_is_locked(tmp_path: Path) -> None:
    """In a process of its own: locking cannot be taken back for what this one will need."""
    program = (
        "from keyhaul import hardening\n"
        "hardening._swaps = lambda: True\n"
        "hardening._free = lambda: 1 << 40\n"
        "print(hardening.harden())\n"
        "locked = [l for l in open('/proc/self/status') if l.startswith('VmLck')][0].split()[1]\n"
        "print(int(locked) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    missing, locked = done.stdout.splitlines()
    permitted = AS_ROOT or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    assert (locked == "True") == ("memory is not locked" not in missing)
    if not permitted:
        assert "memory is not locked" in missing


def test_systemd_is_told_by_path_and_by_abstract_name_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (str(tmp_path / "socket"), f"@keyhaul-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(name.replace("@", "\0", 1))
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            assert notify.notify("READY=1", "STATUS=well")
            assert told.recv(100) == b"READY=1\nSTATUS=well"
            assert notify.reloading()
            assert told.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    for absent in ("", "relative", str(tmp_path / "nobody-listens")):
        monkeypatch.setenv("NOTIFY_SOCKET", absent)
        assert not notify.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("", "", None), ("0", "", None), ("x", "", None), ("3000000", "", 1.5), ("3000000", "1", None)],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert notify.watchdog_seconds() == seconds
    if seconds:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        assert notify.watchdog_seconds() == seconds


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_what_systemd_understands(tmp_path: Path) -> None:
    keyhaul = tmp_path / "keyhaul"
    keyhaul.write_text("#!/bin/sh\n")
    keyhaul.chmod(0o755)
    unit = tmp_path / "keyhaul@vigo.service"
    unit.write_text(UNIT.read_text().replace("/opt/keyhaul/bin/keyhaul", str(keyhaul)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    about = [line for line in done.stderr.splitlines() if "keyhaul@" in line]
    assert about == []
    assert "SystemCallFilter=" in UNIT.read_text()


def test_a_reload_shows_new_certificates_and_limits_and_keeps_the_last_good(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Testbed(named("line-2"), tmp_path / "net") as testbed:
            sae = next(each for each in testbed.state()["saes"] if each["node"] == "n1")
            files = Credentials(*(Path(sae[part]) for part in ("cert", "key", "ca")))
            file = testbed.layout.node_file("n1")

            async def reloaded(expected: str) -> dict[str, object]:
                before = len(lines(testbed, "n1"))
                os.kill(testbed.pid("n1"), signal.SIGHUP)
                found: list[dict[str, object]] = await eventually(
                    lambda: [line for line in lines(testbed, "n1")[before:] if expected in line["event"]]
                )
                return found[0]

            async def most() -> int:
                tls = client_context(files, Policy.COMPATIBLE)
                async with SaeClient(sae["sae_url"], tls, patience=60.0) as client:
                    await client.get_key("sae-n2")
                    return (await client.status("sae-n2")).max_key_per_request

            assert await most() == 128
            cert = testbed.config("n1").listeners.sae.cert
            serial = cert.read_bytes()
            pki = Pki.open(testbed.directory / "pki", overwrite=True)
            pki.sae_port("lab", "n1", ("localhost", "127.0.0.1"))
            assert cert.read_bytes() != serial
            whole = file.read_text()
            file.write_text(whole + "\n[limits]\nmax_key_per_request = 7\n")
            said = await reloaded("reloaded")
            assert said["changed"] == ["certificate of the sae port", "limits"]
            assert said["kept_as_it_was"] == []
            assert said["needs_a_restart"] == []
            assert await most() == 7

            file.write_text(whole + "\n[limits]\nmax_key_per_request = -1\n")
            await reloaded("not reloaded")
            assert await most() == 7
            file.write_text(whole + "\n[prefetch]\nlow = 3\n")
            cert.write_text("no certificate")
            said = await reloaded("reloaded")
            assert "sae port" in str(said["kept_as_it_was"])
            assert said["needs_a_restart"] == ["prefetch.low"]
            assert await most() == 128

    asyncio.run(scene())
