"""An agent's file: what it may say, and that every mistake is named with its line."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from keyhaul import cli
from keyhaul.config.reader import Mistakes
from keyhaul.config.write import toml
from keyhaul.consumers import settings
from keyhaul.consumers.exec import Exec
from keyhaul.consumers.strongswan import StrongSwan
from keyhaul.consumers.wireguard import WireGuard
from keyhaul.errors import ConfigError
from tests.blocks import Block, blocks

PAGE = Path(__file__).parents[2] / "docs" / "consumers.md"
PUBLIC = "S/rRxdGkuQlFWYyKUbgu/px2ja8I6PC+M0AdJpav6Uk="
FULL: dict[str, Any] = {
    "peer": "sae-bilbao",
    "role": "initiator",
    "interval": 30,
    "max_age": 90,
    "on_expiry": "keep",
    "ready_file": "ready.json",
    "sae": {"url": "https://node:8443", "cert": "sae.pem", "key": "sae.key", "ca": "node-ca.pem"},
    "channel": {"url": "https://far:7443/", "ca": "sae-ca.pem"},
    "consumer": {"kind": "exec", "command": ["/bin/true", "x"], "key_bits": 128, "encoding": "hex"},
}
SWAN: dict[str, Any] = {"kind": "strongswan", "name": "tunnel"}


def written(folder: Path, **changed: Any) -> Path:
    file = folder / "agent.toml"
    tables = {**FULL, **changed}
    file.write_text(toml({name: value for name, value in tables.items() if value is not None}))
    return file


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    found = settings.load(written(tmp_path))
    assert (found.peer, found.role, found.interval, found.max_age) == ("sae-bilbao", "initiator", 30.0, 90.0)
    assert found.lock is False
    assert found.node == "https://node:8443"
    assert found.url == "https://far:7443"
    assert found.own.cert == tmp_path / "sae.pem"
    assert found.own.ca == tmp_path / "node-ca.pem"
    assert found.channel.ca == tmp_path / "sae-ca.pem"
    assert (found.channel.cert, found.channel.key) == (found.own.cert, found.own.key)
    assert found.ready_file == tmp_path / "ready.json"
    consumer = found.consumer()
    assert isinstance(consumer, Exec)
    assert consumer.key_bits == 128


def test_a_responder_listens_and_locks_unless_told_otherwise(tmp_path: Path) -> None:
    channel = {"listen": "[::1]:7443", "ca": "sae-ca.pem"}
    file = written(tmp_path, role="responder", interval=None, on_expiry=None, channel=channel)
    found = settings.load(file)
    assert (found.host, found.port, found.url) == ("::1", 7443, "")
    assert found.lock is True


def test_wireguard(tmp_path: Path) -> None:
    consumer = {"kind": "wireguard", "interface": "wg0", "public_key": PUBLIC}
    made = settings.load(written(tmp_path, consumer=consumer)).consumer()
    assert isinstance(made, WireGuard)
    assert made.key_bits == 256


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"role": "both"}, "role = 'both' is not known"),
        ({"max_age": 30}, "keys expire before the next one comes"),
        ({"on_expiry": "explode"}, "on_expiry"),
        ({"pear": "x"}, "did you mean 'peer'?"),
        ({"channel": {"url": "http://far", "ca": "c"}}, "is not an https URL"),
        ({"channel": {"listen": "1.2.3.4:5", "ca": "c"}}, "url is missing in [channel]"),
        ({"role": "responder", "interval": None}, "listen is missing in [channel]"),
        ({"role": "responder", "channel": {"listen": "7443", "ca": "c"}}, "is no address and port"),
        ({"role": "responder", "channel": {"listen": "h:99999", "ca": "c"}}, "is no address and port"),
        ({"role": "responder"}, "'interval' is not a setting of the file"),
        ({"consumer": {"kind": "telepathy"}}, "kind = 'telepathy' is not known"),
        ({"consumer": {"kind": "exec"}}, "there is no command to run"),
        ({"consumer": {"kind": "exec", "command": ["x"], "encoding": "rot13"}}, "encoding"),
        ({"consumer": {"kind": "wireguard", "interface": "wg 0", "public_key": PUBLIC}}, "interface"),
        ({"consumer": {"kind": "wireguard", "interface": "wg0", "public_key": PUBLIC[1:]}}, "public_key"),
        ({"consumer": SWAN | {"connection": {}}}, "the connection has not one child"),
        ({"consumer": SWAN | {"connection": {"children": {"a": {}, "b": {}}}}}, "has not one child"),
        ({"consumer": SWAN | {"connection": {"ppk_id": "x", "children": {"a": {}}}}}, "ppk_id cannot be set"),
        ({"consumer": {"kind": "strongswan"}}, "connection is missing in [consumer]"),
        ({"sae": {"url": "https://n", "cert": "a", "key": "b"}}, "ca is missing in [sae]"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(Mistakes) as caught:
        settings.load(written(tmp_path, **changed))
    assert said in str(caught.value)
    assert all(each.line > 0 or "missing" in each.cause for each in caught.value.mistakes)


@pytest.mark.parametrize(
    "block",
    [each for each in blocks(PAGE.read_text()) if each.language == "toml" and "[consumer]" in each.code],
    ids=str,
)
def test_the_pieces_on_the_page_fit_into_a_file(tmp_path: Path, block: Block) -> None:
    piece = tomllib.loads(block.code)
    settings.load(written(tmp_path, **piece))


def test_the_page_has_every_setting() -> None:
    known = ["peer", "role", "interval", "max_age", "on_expiry", "ready_file", "url", "cert", "key", "ca"]
    known += ["listen", "kind", "command", "key_bits", "encoding", "timeout"]
    known += ["vici", "name", "connection"]
    known += ["secrets", "pid_file", "on_disk"]
    known += ["interface", "public_key", "wg"]
    text = PAGE.read_text()
    assert not [name for name in known if f"`{name}`" not in text]


def test_without_its_package_strongswan_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vici", None)
    with pytest.raises(ConfigError, match=r"keyhaul\[strongswan\]"):
        StrongSwan("tunnel", {"children": {"net": {}}}, Path("vici"), "responder")


def test_the_command_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["agent", *words])
        return (int(end.value.code or 0), *capsys.readouterr())

    code, out, _ = run(str(written(tmp_path)), "--check")
    assert (code, out) == (0, f"{tmp_path / 'agent.toml'} is right\n")
    code, out, _ = run(str(written(tmp_path)), "--check", "--json")
    assert (code, json.loads(out)) == (0, {"mistakes": []})
    code, _, err = run(str(written(tmp_path, role="elder")), "--check")
    assert code == 2
    assert "role = 'elder'" in err
    channel = {"listen": "127.0.0.1:0", "ca": "c"}
    file = written(tmp_path, role="responder", interval=None, channel=channel)
    code, _, err = run(str(file), "--once")
    assert code == 2
    assert "use --once at the initiator's end" in err


def test_files_that_are_not_there_are_named_before_anything_begins(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "keyhaul.cli", "agent", str(written(tmp_path))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sae.pem: no such file" in done.stderr
    assert "Traceback" not in done.stderr
