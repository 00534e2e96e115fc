"""What happens inside a booted systemd: docs/howto/systemd.md to the letter, then all that a unit must bear.

`boot.sh` makes the system, `tests/e2e/test_systemd.py` starts it and reads what each scene came to. The
scenes follow one another. In the node's files the ports are moved, so that one is below 1024 and two nodes
fit.
"""

from __future__ import annotations

import json
import pwd
import re
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

PAGE = Path("/srv/docs/howto/systemd.md")
PATIENCE = 60.0  # seconds until what has to come has come
PKI = Path("/opt/all/pki")
"""All certificates of both nodes and their applications, with the CAs."""
PORTS = {
    "vigo": {"sae": 443, "node": 8444, "admin": 8445},
    "lugo": {"sae": 9443, "node": 9444, "admin": 9445},
}
VIGO, LUGO = "keyhaul@vigo", "keyhaul@lugo"
SCENES: list[Callable[[], None]] = []


def scene(function: Callable[[], None]) -> Callable[[], None]:
    """One of what happens, in the order of this file."""
    SCENES.append(function)
    return function


def sh(code: str, check: bool = True) -> str:
    """What a piece of shell prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd="/srv", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 or not check, f"{code}\n{done.stdout}"
    return done.stdout


def shown(unit: str, name: str) -> str:
    return sh(f"systemctl show --property={name} --value {unit}").strip()


def until(true: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def journal(unit: str) -> list[dict[str, Any]]:
    """What the node itself wrote."""
    printed = sh(f"journalctl --unit={unit} --output=cat --no-pager")
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def told(unit: str, event: str) -> list[dict[str, Any]]:
    return [line for line in journal(unit) if line["event"] == event]


def blocks() -> list[tuple[str, str]]:
    """The page's blocks for a shell, but for the first, and what each shows."""
    found = re.findall(r"^```sh\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", PAGE.read_text(), re.M | re.S)
    return found[1:]


@scene
def the_page_says_how_a_node_becomes_a_service() -> None:
    from tests.blocks import fits

    assert len(blocks()) == 6
    for code, expected in blocks()[:4]:
        code = code.replace(
            "systemctl enable", f"{sys.executable} -m tests.systemd.scenes move\nsystemctl enable"
        )
        printed = sh(code)
        assert not expected or fits(expected, printed.splitlines(keepends=True)[-1]), printed
    assert shown("keyhaul@vigo", "ActiveState") == "active"
    assert [line["node"] for line in told("keyhaul@vigo", "node ready")] == ["vigo"]
    assert Path("/etc/systemd/system/multi-user.target.wants/keyhaul@vigo.service").exists()


def move() -> None:
    """A neighbour for the node on the same machine, workers, and a port that only root may open."""
    from keyhaul.config.write import toml

    credential = "/etc/keyhaul/lugo/root.cred"
    sh(f"""
        install -d -m 0700 {PKI.parent}
        cp -r /etc/keyhaul/vigo/pki {PKI}
        cp /var/backups/keyhaul-ca/* {PKI}/galicia/ca/
        install -d -m 0700 /etc/keyhaul/lugo
        head -c 32 /dev/urandom | systemd-creds encrypt --name=keyhaul-root - {credential}
        systemd-run --quiet --pipe --wait --property=LoadCredentialEncrypted=keyhaul-root:{credential} \\
            /opt/keyhaul/bin/keyhaul init /etc/keyhaul/lugo --name lugo --domain galicia --sae sae-lugo \\
            --host lugo.example --pki {PKI}
        cp -r {PKI} /etc/keyhaul/lugo/pki
        rm /etc/keyhaul/lugo/pki/galicia/ca/*.key
        echo 127.0.0.1 vigo.example lugo.example >> /etc/hosts
    """)
    link = {"a": "vigo", "b": "lugo", "kind": "pqc"}
    nodes = {"vigo": "galicia", "lugo": "galicia"}
    network = {"nodes": nodes, "links": [link], "saes": {"sae-vigo": "vigo", "sae-lugo": "lugo"}}
    for name, other in (("vigo", "lugo"), ("lugo", "vigo")):
        file = Path(f"/etc/keyhaul/{name}/node.toml")
        tables = tomllib.loads(file.read_text().replace(str(PKI), f"/etc/keyhaul/{name}/pki"))
        tables["directory"] = f"/var/lib/keyhaul/{name}"
        tables["store"]["file"] = f"/var/lib/keyhaul/{name}/keyhaul.db"
        tables["delivery"] = {"pool": 0, "request_timeout": 300}
        tables["workers"] = 2 if name == "vigo" else 0
        url = f"https://{other}.example:{PORTS[other]['node']}"
        tables |= {"network": network, "peers": [{"name": other, "url": url, "kind": "pqc"}]}
        for port, number in PORTS[name].items():
            tables["listeners"][port]["port"] = number
        file.write_text(toml(tables))
        sh(f"chown -R keyhaul: /etc/keyhaul/{name}")


def client(node: str, patience: float = PATIENCE) -> Any:
    from keyhaul.client import Client

    files = {
        part: f"{PKI}/galicia/sae/sae-{node}.{part[:3].replace('cer', 'pem')}" for part in ("cert", "key")
    }
    url = f"https://{node}.example:{PORTS[node]['sae']}"
    return Client(url, **files, ca=f"{PKI}/galicia/ca/sae.pem", patience=patience)


def main_pid(unit: str) -> int:
    return int(shown(unit, "MainPID"))


def fed() -> float:
    """When `lugo` last told its watchdog that it is well, in seconds of the system's clock."""
    return int(shown(LUGO, "WatchdogTimestampMonotonic")) / 1e6


def processes(unit: str) -> list[int]:
    """The main process and its workers."""
    group = Path("/sys/fs/cgroup") / shown(unit, "ControlGroup").lstrip("/")
    return [int(each) for each in (group / "cgroup.procs").read_text().split()]


def status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@scene
def the_node_and_its_workers_have_no_rights_but_low_ports() -> None:
    user = pwd.getpwnam("keyhaul")
    pids = processes(VIGO)
    assert len(pids) == 3
    for pid in pids:
        now = status(pid)
        assert now["Uid"].split() == [str(user.pw_uid)] * 4
        assert (now["NoNewPrivs"], now["Seccomp"], now["CapBnd"]) == ("1", "2", f"{1 << 10:016x}")
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0", limits, re.M)
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
    assert not told(VIGO, "not hardened")


@scene
def what_the_node_sees_of_the_system_it_cannot_change() -> None:
    enter = f"nsenter --target {main_pid(VIGO)} --mount --setuid {pwd.getpwnam('keyhaul').pw_uid}"
    for place in ("/etc/keyhaul/vigo/x", "/opt/x", "/usr/x", "/root/x", "/sys/fs/cgroup/x", "/dev/x"):
        assert sh(f"{enter} sh -c ': > {place}' 2>&1 || echo refused").endswith("refused\n"), place
    assert "refused" in sh(f"{enter} ls /root 2>&1 || echo refused")
    sh(f"{enter} sh -c ': > /var/lib/keyhaul/vigo/x && rm /var/lib/keyhaul/vigo/x'")
    assert Path("/var/lib/keyhaul/vigo").stat().st_mode & 0o777 == 0o700
    credential = Path("/run/credentials/keyhaul@vigo.service")
    assert [each.name for each in credential.iterdir()] == ["keyhaul-root"]
    assert "keyhaul-root" not in sh("ls /run/credentials/keyhaul@lugo.service 2>&1 || true")


@scene
def a_reload_is_told_and_a_mistake_changes_nothing() -> None:
    from tests.blocks import fits

    before = Path("/etc/keyhaul/vigo/node.toml").read_text()
    (change, _), (look, expected) = blocks()[4:]
    sh(change)
    until(lambda: told(VIGO, "reloaded"), "nothing was reloaded")
    assert fits(expected, sh(look))
    with client("vigo") as sae:
        assert sae.status("sae-vigo").max_key_per_request == 7
        Path("/etc/keyhaul/vigo/node.toml").write_text(before + "\n[limits]\nmax_key_per_request = -1\n")
        sh("systemctl reload keyhaul@vigo")
        (said,) = until(lambda: told(VIGO, "not reloaded: the configuration has mistakes"), "no word of it")
        assert "max_key_per_request" in said["cause"]
        assert sae.status("sae-vigo").max_key_per_request == 7
    assert shown(VIGO, "ActiveState") == "active"
    Path("/etc/keyhaul/vigo/node.toml").write_text(before)
    sh("systemctl reload keyhaul@vigo")
    until(lambda: len(told(VIGO, "reloaded")) == 2, "the old configuration is not back")


@scene
def a_key_crosses_from_service_to_service() -> None:
    sh("systemctl start keyhaul@lugo")
    assert shown(LUGO, "StatusText") == "lugo serves"
    with client("vigo") as vigo, client("lugo") as lugo:
        (key,) = vigo.get_key("sae-lugo")
        (same,) = lugo.fetch_key("sae-vigo", [key.key_id])
        assert key.bits.same_as(same.bits)


@scene
def a_node_that_is_killed_comes_back_with_its_keys() -> None:
    with client("vigo") as vigo, client("lugo") as lugo:
        (key,) = vigo.get_key("sae-lugo")
        before = main_pid(LUGO)
        sh("systemctl kill --kill-whom=main --signal=KILL keyhaul@lugo")
        until(lambda: main_pid(LUGO) not in (0, before), "it did not come back")
        until(lambda: shown(LUGO, "ActiveState") == "active", "it does not serve")
        assert shown(LUGO, "NRestarts") == "1"
        (same,) = lugo.fetch_key("sae-vigo", [key.key_id])
        assert key.bits.same_as(same.bits)


@scene
def a_node_that_hangs_is_found_by_the_watchdog() -> None:
    drop_in = Path("/run/systemd/system/keyhaul@lugo.service.d/soon.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=4\nTimeoutAbortSec=4\n")
    sh("systemctl daemon-reload; systemctl restart keyhaul@lugo")
    before, begun = main_pid(LUGO), fed()
    until(lambda: fed() > begun + 8, "the watchdog is not fed")  # twice its time, while the node is well
    assert main_pid(LUGO) == before
    sh("systemctl kill --kill-whom=main --signal=STOP keyhaul@lugo")
    until(lambda: main_pid(LUGO) not in (0, before), "nobody missed it")
    until(lambda: shown(LUGO, "ActiveState") == "active", "it does not serve")
    assert "Watchdog timeout" in sh("journalctl --no-pager --unit=keyhaul@lugo")
    drop_in.unlink()
    sh("systemctl daemon-reload; systemctl restart keyhaul@lugo")


def asked(wanted: Queue[Any]) -> None:
    """A key for an application at the other node, or what was raised instead."""
    try:
        with client("vigo", patience=0) as vigo:
            wanted.put(vigo.get_key("sae-lugo"))
    except Exception as error:  # noqa: BLE001  whoever waits looks at it
        wanted.put(error)


def waiting_request() -> Queue[Any]:
    """A request at `vigo` that cannot go on, because `lugo` is stopped."""
    with client("vigo") as vigo:
        vigo.get_key("sae-lugo")  # they know each other
    sh("/opt/keyhaul/bin/keyhaul log level DEBUG --url https://vigo.example:8445"
       f" --cert {PKI}/galicia/admin/operator-vigo.pem --key {PKI}/galicia/admin/operator-vigo.key"
       f" --cacert {PKI}/galicia/ca/admin.pem")  # fmt: skip
    sh("systemctl kill --kill-whom=main --signal=STOP keyhaul@lugo")
    before = len(told(VIGO, "keys leave"))
    wanted: Queue[Any] = Queue()
    Thread(target=asked, args=(wanted,), daemon=True).start()
    until(lambda: len(told(VIGO, "keys leave")) > before, "the request has not begun")
    return wanted


@scene
def a_stop_lets_a_request_finish() -> None:
    wanted = waiting_request()
    sh("systemctl stop --no-block keyhaul@vigo")
    until(lambda: told(VIGO, "node stops"), "it does not stop")
    assert shown(VIGO, "StatusText") == "vigo finishes its requests"
    sh("systemctl kill --kill-whom=main --signal=CONT keyhaul@lugo")
    (key,) = wanted.get(timeout=PATIENCE)
    until(lambda: shown(VIGO, "ActiveState") == "inactive", "it has not ended")
    assert (shown(VIGO, "Result"), shown(VIGO, "ExecMainStatus")) == ("success", "0")
    with client("lugo") as lugo:
        (same,) = lugo.fetch_key("sae-vigo", [key.key_id])
        assert key.bits.same_as(same.bits)


@scene
def a_stop_ends_in_time_although_a_request_does_not() -> None:
    sh("systemctl start keyhaul@vigo")
    wanted = waiting_request()
    sh("systemctl stop keyhaul@vigo")  # systemd kills what takes longer than TimeoutStopSec=
    assert (shown(VIGO, "Result"), shown(VIGO, "ExecMainStatus")) == ("success", "0")
    assert "Killing process" not in sh("journalctl --no-pager --unit=keyhaul@vigo")
    assert isinstance(wanted.get(timeout=PATIENCE), Exception)
    sh("systemctl kill --kill-whom=main --signal=CONT keyhaul@lugo; systemctl stop keyhaul@lugo")
    assert shown(LUGO, "Result") == "success"


@scene
def a_socket_of_systemd_is_served_and_starts_the_node() -> None:
    unit = "[Socket]\nListenStream=0.0.0.0:9443\nFileDescriptorName=sae\nService=keyhaul@lugo.service\n"
    Path("/run/systemd/system/lugo.socket").write_text(unit)
    sh("systemctl daemon-reload; systemctl start lugo.socket")
    assert shown(LUGO, "ActiveState") == "inactive"
    with client("lugo") as lugo:
        assert lugo.status("sae-vigo").source_kme == "lugo"
        sh("systemctl stop keyhaul@lugo")
        assert lugo.status("sae-vigo").source_kme == "lugo"  # nobody was turned away meanwhile
    sh("systemctl stop lugo.socket keyhaul@lugo")


def main() -> None:
    """`move`, or all scenes; what each came to goes into /srv/results.json."""
    if sys.argv[1:] == ["move"]:
        move()
        return
    results = {}
    for each in SCENES:
        try:
            each()
            results[each.__name__] = "ok"
        except Exception:  # noqa: BLE001  the test shows it
            results[each.__name__] = traceback.format_exc()
    units = " ".join(f"--unit={unit}" for unit in ("keyhaul@vigo", "keyhaul@lugo", "scenes"))
    results["journal"] = sh(f"journalctl --no-pager --output=short-monotonic {units}", check=False)
    Path("/srv/results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
