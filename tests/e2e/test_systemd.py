"""The unit under a systemd that is booted for it: installed by the how-to, watched, reloaded, drained.

A systemd of its own is the first process of its own namespaces, on a copy of this system (tests/systemd). The
unit is not changed: every line of its hardening is in force, except that no cgroup controllers may be there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.scenes import SCENES

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "systemd" / "keyhaul@.service"
HOMES = ("/home", "/root", "/run/user")  # which the unit hides
EXPOSURE = 16  # tenths; systemd-analyze calls everything up to 20 OK, and 92 is a unit without a word
SITES = [Path(each) for each in sys.path if each.endswith("site-packages")]
NEEDED = (
    "systemd",
    "systemd-creds",
    "systemd-run",
    "systemctl",
    "journalctl",
    "dbus-daemon",
    "unshare",
    "nsenter",
)
TARGET = "[Unit]\nRequires=scenes.service\nAllowIsolate=yes\n"
SERVICE = """[Unit]
Wants=systemd-journald.service dbus.socket
After=systemd-journald.service dbus.socket
[Service]
Type=oneshot
TimeoutStartSec=900
WorkingDirectory=/srv
Environment=PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/srv:{path}
ExecStart={python} -m tests.systemd.scenes
ExecStopPost=/bin/systemctl --force exit 0
"""
PROGRAM = """#!{python}
import sys

sys.path[1:1] = ["/opt/own", *{path!r}.split(":")]
from keyhaul.cli import main

main()
"""

pytestmark = pytest.mark.e2e


def python() -> str:
    """An interpreter of this version that no home directory hides."""
    tell = "import sys; print(*sys.version_info[:2])"
    for each in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if Path(each).exists() and not each.startswith(HOMES):
            done = subprocess.run([each, "-I", "-c", tell], capture_output=True, text=True, check=False)
            if done.stdout.split() == [str(number) for number in sys.version_info[:2]]:
                return each
    pytest.skip("this version of Python stands in a home directory, which the unit hides")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each scene came to, and the journal."""
    if os.geteuid() != 0:
        pytest.skip("a systemd is booted by root")
    path = f"{os.environ['PATH']}:/lib/systemd"
    if missing := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (group `systemd`)")
    home = tmp_path_factory.mktemp("systemd")
    words = _laid_out(home, python())
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1000)
    file = home / "shared" / "results.json"
    if not file.exists() and re.search(r"mount|unshare|pivot_root", done.stderr):
        pytest.skip(f"no namespaces for a systemd here: {done.stderr.strip()}")
    assert file.exists(), done.stdout + done.stderr
    return json.loads(file.read_text())


def _laid_out(home: Path, interpreter: str) -> list[str]:
    """All that the copy of this system is given; returns the command that boots it."""
    shared = home / "shared"
    for folder in ("units", "opt/keyhaul/bin", "opt/own"):
        (shared / folder).mkdir(parents=True)
    (home / "work").mkdir()
    for folder in ("keyhaul", "tests", "docs", "packaging"):
        shutil.copytree(ROOT / folder, shared / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", shared)
    shutil.copytree(shared / "keyhaul", shared / "opt/own/keyhaul")
    path = ":".join(f"/opt/site/{number}" for number, _ in enumerate(SITES, 1))
    program = shared / "opt/keyhaul/bin/keyhaul"
    program.write_text(PROGRAM.format(python=interpreter, path=path))
    program.chmod(0o755)
    (shared / "units/first.target").write_text(TARGET)
    (shared / "units/scenes.service").write_text(SERVICE.format(python=interpreter, path=path))
    for each in home.rglob("*"):
        each.chmod(each.stat().st_mode | (0o555 if each.is_dir() else 0o444))
    spaces = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")
    boot = str(ROOT / "tests/systemd/boot.sh")
    return [
        "unshare",
        *spaces,
        "--fork",
        "--kill-child",
        boot,
        str(home / "work"),
        str(shared),
        *map(str, SITES),
    ]


@pytest.mark.parametrize("scene", [each.__name__ for each in SCENES])
def test_under_a_booted_systemd(results: dict[str, str], scene: str) -> None:
    assert results[scene] == "ok", f"{results[scene]}\n{results['journal']}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_exposes_little(tmp_path: Path) -> None:
    unit = tmp_path / "keyhaul@vigo.service"
    unit.write_text(UNIT.read_text())
    words = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        f"--threshold={EXPOSURE}",
        "--no-pager",
        str(unit),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot look at a unit that is not loaded")
    assert done.returncode == 0, done.stdout + done.stderr
