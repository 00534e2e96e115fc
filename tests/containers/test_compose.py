"""A network of containers delivers a key, and its networks are as far apart as the compose file says.

`make compose-test` runs this, after `make image`; it takes a minute or two, and needs podman.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyhaul.testbed.composing import USER, Plan
from keyhaul.testbed.topology import named

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        "KEYHAUL_CONTAINERS" not in os.environ, reason="needs podman: make image compose-test"
    ),
]
PROJECT = "keyhaul-line-2"
PATIENCE = 300.0  # seconds until all services are there
CONNECT = (
    "import socket, sys\n"
    "for at in sys.argv[1:]:\n"
    "    host, port = at.split(':')\n"
    "    try: socket.create_connection((host, int(port)), 3).close(); print(at, 'open')\n"
    "    except OSError: print(at, 'closed')\n"
)


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, text=True, capture_output=True, check=False)
    assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
    return done


def keyhaul(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "keyhaul.cli", *words, check=check)


def compose(directory: Path, *words: str) -> None:
    run(sys.executable, "-m", "podman_compose", "-f", str(directory / "compose.yaml"), *words)


def inside(service: str, *words: str) -> str:
    return run("podman", "exec", f"{PROJECT}_{service}_1", *words).stdout


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("compose") / "D"
    image = os.environ.get("IMAGE", "localhost/keyhaul")
    keyhaul("testbed", "compose", "line-2", "--dir", str(directory), "--image", image)
    try:
        compose(directory, "up", "-d")
        yield directory
    finally:
        compose(directory, "down")


def key_between(directory: Path, master: str, slave: str) -> tuple[str, str]:
    """The key as both ends have it; asks until the nodes have found each other."""
    until = time.monotonic() + PATIENCE
    at = ("--dir", str(directory))
    while (got := keyhaul("sae", "get", slave, *at, "--as", master, "--json", check=False)).returncode:
        assert time.monotonic() < until, got.stderr
    (key,) = json.loads(got.stdout)["keys"]
    fetched = keyhaul("sae", "fetch", master, key["key_ID"], *at, "--as", slave, "--json")
    (other,) = json.loads(fetched.stdout)["keys"]
    assert key["key_ID"] == other["key_ID"]
    return key["key"], other["key"]


def test_a_key_goes_from_container_to_container(network: Path) -> None:
    here, there = key_between(network, "sae-n1", "sae-n2")
    assert here == there
    back, forth = key_between(network, "sae-n2", "sae-n1")
    assert back == forth != here


def test_a_container_that_is_started_again_has_its_store_and_goes_on(network: Path) -> None:
    at = ("--dir", str(network))
    got = json.loads(keyhaul("sae", "get", "sae-n2", *at, "--as", "sae-n1", "--json").stdout)
    (key,) = got["keys"]
    run("podman", "restart", f"{PROJECT}_n2_1")
    until = time.monotonic() + PATIENCE
    words = ("sae", "fetch", "sae-n1", key["key_ID"], *at, "--as", "sae-n2", "--json")
    while (fetched := keyhaul(*words, check=False)).returncode:
        assert time.monotonic() < until, fetched.stderr
    assert json.loads(fetched.stdout)["keys"][0]["key"] == key["key"]


def test_no_service_reaches_what_is_not_its_own(network: Path) -> None:
    plan = Plan(named("line-2"))
    wide, zone, device = plan.wan_address("n2"), plan.zone_address("n2"), plan.device_address("qkd-n2-to-n1")
    link = plan.hosts_of_device("qkd-n1-to-n2")["qkd-n2-to-n1"]
    there = [f"{wide}:8444", f"{wide}:8443", f"{wide}:8445", f"{zone}:8443", f"{zone}:8445", f"{device}:8440"]
    seen = inside("n1", "python3", "-c", CONNECT, *there, f"{link}:8440").splitlines()
    assert seen[0] == f"{wide}:8444 open"
    assert all(line.endswith("closed") for line in seen[1:]), seen
    own = plan.device_address("qkd-n1-to-n2")
    assert "open" in inside("n1", "python3", "-c", CONNECT, f"{own}:8440")
    seen = inside("qkd-n1-to-n2", "python3", "-c", CONNECT, f"{link}:8440", f"{wide}:8444").splitlines()
    assert seen == [f"{link}:8440 open", f"{wide}:8444 closed"]


def test_a_service_has_no_rights_and_writes_only_where_its_store_is(network: Path) -> None:
    assert inside("n1", "id", "-u") == f"{USER}\n"
    status = inside("n1", "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    write = "import pathlib; pathlib.Path('/opt/keyhaul/x').write_text('')"
    refused: Any = run("podman", "exec", f"{PROJECT}_n1_1", "python3", "-c", write, check=False)
    assert refused.returncode != 0
    assert "Read-only" in refused.stderr
    files = inside("n1", "ls", "/var/lib/keyhaul").split()
    assert "keyhaul.db" in files
    assert not [file for file in files if "n2" in file]
