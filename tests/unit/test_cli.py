"""The command line: what help lists, exit codes, one clear line per error, what init leaves behind."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from keyhaul import cli
from keyhaul.config import load
from keyhaul.edge.activation import inherited
from keyhaul.errors import ConfigError


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    text = " ".join(out.split())
    assert code == 0
    commands = ["init", "serve", "status", "version", "demo", "config check", "testbed up", "testbed down"]
    commands += ["conformance 014", "conformance 020", "pki show", "pki issue", "pki renew", "pki trust"]
    for command in [*commands, "sae get", "sae fetch", "sae status", "key trace"]:
        assert command in text


@pytest.mark.parametrize(
    "words",
    [("init",), ("serve",), ("config", "check"), ("testbed", "up"), ("sae", "fetch"), ("key", "trace")],
)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert "--json" in out


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("testbed", "up"),
        ("sae", "fetch", "master", "no-uuid"),
        ("serve",),
        ("serve", "--config", "x", "--port", "1"),
        ("testbed", "up", "moebius-5", "--dir", "/nonexistent"),
        ("sae", "get", "someone"),
        ("sae", "get", "someone", "--dir", "/nonexistent"),
    ],
)
def test_misuse_gives_2_and_no_traceback(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_an_error_is_one_line_with_cause_and_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "sae", "get", "someone")
    assert err == (
        "keyhaul: it is not clear whom to call as whom: give --url, --cert, --key and --cacert, or --dir\n"
    )
    _, _, err = run(capsys, "sae", "get", "someone", "--json")
    assert json.loads(err) == {
        "error": "ConfigError",
        "cause": "it is not clear whom to call as whom",
        "next": "give --url, --cert, --key and --cacert, or --dir",
    }


def test_version_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "version")
    _, as_json, _ = run(capsys, "version", "--json")
    assert out.strip() == "keyhaul " + json.loads(as_json)["version"]


def test_down_without_a_testbed_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "testbed", "down", "--dir", str(tmp_path), "--json")[:2] == (
        0,
        '{\n  "ended": false\n}\n',
    )


def test_a_stale_pid_file_does_not_end_a_stranger(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "testbed.pid").write_text(f"{os.getpid()} 1\n")  # our pid, another start time
    assert run(capsys, "testbed", "down", "--dir", str(tmp_path))[0] == 0


@pytest.fixture
def made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> tuple[Path, str]:
    """A fresh node with a passphrase, and what init printed."""
    phrase = tmp_path / "phrase"
    phrase.touch(0o600)
    phrase.write_text("five random words are better\n")
    words = ("--name", "vigo", "--domain", "galicia", "--sae", "bank", "--sae", "a/b #?%", "--device", "qkd1")
    code, out, err = run(capsys, "init", str(tmp_path / "node"), *words, "--passphrase-file", str(phrase))
    assert (code, err) == (0, "")
    return tmp_path / "node" / "node.toml", out


def test_init_makes_a_node_that_passes_its_own_check(
    made: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = made
    assert "GRADE" in out
    assert "five random" not in out
    code, text, _ = run(capsys, "config", "check", str(file), "--json")
    answer = json.loads(text)
    assert (code, answer["ok"]) == (0, True)
    assert all(mistake["warning"] for mistake in answer["mistakes"])
    for path in file.parent.rglob("*"):
        if path.suffix in (".key", ".toml", ".slots"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_init_adds_a_port_for_foreign_key_managers_on_request(
    made: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "[listeners.plain]" not in made[0].read_text()
    foreign = made[0].parent / "pki" / "galicia" / "ca" / "sae.pem"
    words = ("--name", "derio", "--domain", "euskadi", "--host", "kme.example", "--foreign-ca", str(foreign))
    node = tmp_path / "second"
    code, out, err = run(capsys, "init", str(node), *words, "--passphrase-file", str(tmp_path / "phrase"))
    assert (code, err) == (0, "")
    assert "plain" in out
    plain = load(node / "node.toml").listeners.plain
    assert plain is not None
    assert plain.url == "https://kme.example:8446"
    assert plain.ca.read_bytes() == foreign.read_bytes()
    code, text, _ = run(capsys, "config", "check", str(node / "node.toml"), "--json")
    answer = json.loads(text)
    assert (code, answer["ok"]) == (0, True)
    assert any("no peer that may use it" in mistake["cause"] for mistake in answer["mistakes"])


def test_init_never_overwrites(made: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = made[0].read_bytes()
    words = (
        "--name",
        "vigo",
        "--domain",
        "galicia",
        "--passphrase-file",
        str(made[0].parent.parent / "phrase"),
    )
    code, _, err = run(capsys, "init", str(made[0].parent), *words)
    assert code == 2
    assert "exists already" in err
    assert made[0].read_bytes() == before


def test_init_refuses_a_passphrase_file_others_can_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text("x")
    phrase.chmod(0o644)
    words = ("--name", "vigo", "--domain", "galicia", "--passphrase-file", str(phrase))
    code, _, err = run(capsys, "init", str(tmp_path / "node"), *words)
    assert code == 2
    assert "chmod 600" in err
    assert not (tmp_path / "node").exists()


def test_config_check_names_file_line_and_remedy(
    made: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = made[0]
    text = file.read_text().replace('name = "vigo"', 'nome = "vigo"', 1)
    file.write_text(text)
    line = text.splitlines().index('nome = "vigo"') + 1
    code, out, _ = run(capsys, "config", "check", str(file))
    assert code == 1
    assert f"{file}:{line}: 'nome' is not a setting of the file; did you mean 'name'?" in out


def test_serve_loads_nothing_made_for_terminals() -> None:
    """Eight nodes on one machine pay for every module eight times."""
    script = """
import sys
from keyhaul import cli
try:
    cli.main(["serve", "--config", "/nonexistent.toml"])
except SystemExit as end:
    assert end.code == 2, end.code
print(sorted({"rich", "typer", "click", "numpy"} & {name for name, found in sys.modules.items() if found}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr.startswith("keyhaul: /nonexistent.toml:0: cannot be read")


def test_sockets_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "sae")
    assert inherited(frozenset({"sae"})) == {}
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize(("count", "names"), [("2", "sae"), ("1", "other"), ("2", "sae:sae"), ("x", "sae")])
def test_wrongly_named_sockets_are_refused(monkeypatch: pytest.MonkeyPatch, count: str, names: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", names)
    with pytest.raises(ConfigError):
        inherited(frozenset({"sae"}))


def test_launcher_hands_sockets_over_and_children_die_with_it(tmp_path: Path) -> None:
    """A child gets its sockets by name; when the parent is killed, so is the child."""
    child = """
import os, sys
from keyhaul.edge.activation import inherited
got = inherited(frozenset({"sae", "node"}))
print({name: found.getsockname()[1] for name, found in got.items()}, os.getpid(), flush=True)
import signal; signal.pause()
"""
    parent = f"""
import asyncio, sys
from pathlib import Path
from keyhaul.testbed.processes import Process, listening
async def main():
    sockets = {{"sae": listening(), "node": listening()}}
    print({{name: each.getsockname()[1] for name, each in sockets.items()}}, flush=True)
    command = [sys.executable, "-c", {child!r}]
    process = Process("p", command, Path({str(tmp_path / "log")!r}), Path("/nowhere"))
    await process.start(sockets)
    await process.wait()
asyncio.run(main())
"""
    log = tmp_path / "log"
    os.mkfifo(log)
    outer = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert outer.stdout is not None
    expected = outer.stdout.readline().strip()
    with log.open() as lines:
        told, pid = lines.readline().rsplit(" ", 1)
    assert told == expected
    handle = os.pidfd_open(int(pid))
    outer.kill()
    outer.wait()
    outer.stdout.close()
    assert poll(handle), "the child outlived its parent"
    os.close(handle)


def poll(handle: int) -> bool:
    """Whether a process ends within 30 s."""
    return bool(select.select([handle], [], [], 30)[0])
