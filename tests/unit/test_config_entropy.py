"""The `[entropy]` table, in the file and as JSON: values, defaults, and mistakes with their remedies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keyhaul import config
from keyhaul.config.entropy import parse_entropy
from keyhaul.entropy import FileSource, HttpSource, configured
from keyhaul.errors import ConfigError, Refused
from keyhaul.pki import Pki
from tests.unit.test_config import NETWORK, NODE

TABLE = """
[entropy]
on_failure = "degrade-with-alarm"
buffer = 8192

[[entropy.sources]]
kind = "os"
[[entropy.sources]]
kind = "file"
name = "quantis"
path = "/dev/qrandom0"
min_entropy = 7.2
[[entropy.sources]]
kind = "http"
url = "https://qrng.example/api?length={bytes}"
json_path = "result.0"
encoding = "uint8"
ca = "qrng-ca.pem"
cert = "qrng.pem"
key = "qrng.key"
api_key_header = "x-key"
api_key_file = "key"
[[entropy.sources]]
kind = "tpm"
[[entropy.sources]]
kind = "pkcs11"
module = "/usr/lib/hsm.so"
token = "hsm"
pin_file = "pin"
"""


def node_file(directory: Path, table: str) -> Path:
    (directory / "network.toml").write_text(NETWORK)
    (directory / "node.toml").write_text(NODE + table)
    return directory / "node.toml"


def http(**values: Any) -> dict[str, Any]:
    return {"kind": "http", "url": "https://qrng.example/api", **values}


def parsed(directory: Path, *sources: dict[str, Any], **values: Any) -> config.EntropyConfig:
    return parse_entropy({"sources": list(sources), **values}, directory / "node.toml")


def test_the_default_is_the_operating_system_alone(tmp_path: Path) -> None:
    entropy = config.load(node_file(tmp_path, "")).entropy
    assert entropy == config.EntropyConfig()
    assert [source.kind for source in entropy.sources] == ["os"]
    assert (entropy.on_failure, configured.sources(entropy)) == ("fail-closed", [])


def test_a_full_table_becomes_values(tmp_path: Path) -> None:
    entropy = config.load(node_file(tmp_path, TABLE)).entropy
    assert (entropy.on_failure, entropy.buffer) == ("degrade-with-alarm", 8192)
    assert entropy.sources == (
        config.EntropySource("os", "os"),
        config.EntropySource("file", "quantis", 7.2, path=Path("/dev/qrandom0")),
        config.EntropySource(
            "http",
            "http",
            url="https://qrng.example/api?length={bytes}",
            json_path="result.0",
            encoding="uint8",
            ca=tmp_path / "qrng-ca.pem",
            cert=tmp_path / "qrng.pem",
            key=tmp_path / "qrng.key",
            api_key_header="x-key",
            api_key_file=tmp_path / "key",
        ),
        config.EntropySource("tpm", "tpm"),
        config.EntropySource(
            "pkcs11", "pkcs11", module=Path("/usr/lib/hsm.so"), token="hsm", pin_file=tmp_path / "pin"
        ),
    )


def test_degrading_draws_a_warning_with_its_line(tmp_path: Path) -> None:
    file = node_file(tmp_path, TABLE)
    warnings = [mistake for mistake in config.check(file) if "operating system alone" in mistake.cause]
    assert [mistake.warning for mistake in warnings] == [True]
    assert file.read_text().splitlines()[warnings[0].line - 1].startswith("on_failure")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "kind is missing"),
        ({"kind": "qrng"}, "kind = 'qrng' is not known"),
        ({"kind": "file"}, "path is missing"),
        ({"kind": "file", "path": ""}, "not a filled string"),
        ({"kind": "file", "path": "/dev/hwrng", "min_entropy": 0}, "out of range"),
        ({"kind": "file", "path": "/dev/hwrng", "min_entropy": 8.1}, "out of range"),
        ({"kind": "file", "path": "/dev/hwrng", "min_entropy": True}, "true or false, not a whole number"),
        ({"kind": "file", "path": "/dev/hwrng", "minentropy": 7}, "did you mean 'min_entropy'"),
        ({"kind": "file", "path": "/dev/hwrng", "name": "with space"}, "1 to 63 letters"),
        ({"kind": "os", "min_entropy": 7.0}, "'min_entropy' is not a setting"),
        ({"kind": "http"}, "url is missing"),
        (http(url="http://qrng.example/"), "not an https URL"),
        (http(url="https:///api"), "not an https URL"),
        (http(url="https://user:word@qrng.example/"), "not an https URL"),
        (http(url="https://qrng.example/#here"), "not an https URL"),
        (http(url="https://qrng.example/a b"), "not an https URL"),
        (http(url="https://qrng.example:0x/"), "not an https URL"),
        (http(encoding="base32"), "encoding = 'base32' is not known"),
        (http(json_path="a..b"), "members joined by dots"),
        (http(cert="a.pem"), "cert and key belong together"),
        (http(cert="a.pem", key="a.key"), "client certificate without ca"),
        (http(api_key="abc"), "api_key stands in the configuration"),
        (http(api_key_header="x key"), "a header's name"),
        (http(api_key_header="x-key\r\nHost: other"), "a header's name"),
        ({"kind": "tpm", "tcti": ""}, "not a filled string"),
        ({"kind": "pkcs11", "module": "/usr/lib/hsm.so"}, "token is missing"),
        ({"kind": "pkcs11", "module": "m", "token": "t", "pin": "1"}, "pin stands in the configuration"),
    ],
)
def test_mistakes_in_a_source_are_told(tmp_path: Path, source: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(tmp_path, source)
    assert said in str(caught.value)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"on_failure": "ignore"}, "on_failure = 'ignore' is not known"),
        ({"buffer": 10}, "out of range"),
        ({"sources": []}, "no source is named"),
        ({"sources": {}}, "sources is a table, not an array"),
        ({"sources": ["os"]}, "not a table"),
        ({"sources": [{"kind": "tpm"}, {"kind": "tpm"}]}, "several sources are called 'tpm'"),
        ({"sources": [{"kind": "os", "name": str(n)} for n in range(9)]}, "too many"),
        ({"source": []}, "did you mean 'sources'"),
    ],
)
def test_mistakes_in_the_table_are_told(tmp_path: Path, table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_entropy(table, tmp_path / "node.toml")
    assert said in str(caught.value)


def test_a_mistake_in_the_file_has_its_line(tmp_path: Path) -> None:
    file = node_file(tmp_path, TABLE.replace('encoding = "uint8"', 'encoding = "uint9"'))
    with pytest.raises(config.Mistakes) as caught:
        config.load(file)
    (mistake,) = caught.value.mistakes
    assert "uint9" in file.read_text().splitlines()[mistake.line - 1]


# --- from values to sources ----------------------------------------------------------------------


def test_sources_are_made_as_named(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path / "pki", ["lab"])
    files = pki.device_client("lab", "vigo")
    (tmp_path / "api.key").write_text("abc-123\n")
    trust = {"ca": str(files.ca)}
    mutual = {**trust, "cert": str(files.cert), "key": str(files.key)}
    made = configured.sources(
        parsed(
            tmp_path,
            {"kind": "os"},
            {"kind": "file", "path": "fifo", "min_entropy": 6},
            http(**trust, api_key_file="api.key"),
            http(**mutual, name="mutual"),
            http(name="public"),
            {"kind": "tpm", "tcti": "swtpm"},
            {"kind": "pkcs11", "module": "hsm.so", "token": "t"},
        )
    )
    assert [(source.kind, source.name) for source in made] == [
        ("file", "file"),
        ("http", "http"),
        ("http", "mutual"),
        ("http", "public"),
        ("tpm", "tpm"),
        ("pkcs11", "pkcs11"),
    ]
    assert isinstance(made[0], FileSource)
    assert (made[0].path, made[0].min_entropy) == (tmp_path / "fifo", 6.0)
    assert isinstance(made[1], HttpSource)
    assert "abc-123" not in repr(vars(made[1]))


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines", "ñ".encode(), b"x" * 5000])
def test_an_unusable_api_key_is_refused_and_not_shown(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "api.key").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        configured.sources(parsed(tmp_path, http(api_key_file="api.key")))
    assert "api.key" in str(caught.value)
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unusable_ca_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        configured.sources(parsed(tmp_path, http(ca="ca.pem")))


# --- what an operator may set from afar ----------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "tpm", "tcti": "cmd:touch /tmp/owned"},
        {"kind": "pkcs11", "module": "/tmp/evil.so", "token": "hsm"},
        {"kind": "pkcs11", "module": "/usr/lib/hsm.so", "token": "elsewhere", "pin_file": "pin"},
        {"kind": "pkcs11", "module": "/usr/lib/hsm.so", "token": "hsm", "pin_file": "node.key"},
        http(api_key_file="node.key"),
        http(url="https://attacker.example/", api_key_file="key", api_key_header="x-key"),
        http(ca="ca.pem", cert="node.pem", key="node.key"),
    ],
)
def test_code_and_secrets_come_from_the_file_only(tmp_path: Path, source: dict[str, Any]) -> None:
    written = config.load(node_file(tmp_path, TABLE)).entropy
    with pytest.raises(Refused, match="configuration file does not name"):
        configured.check_remote(parsed(tmp_path, source), written)


def test_everything_else_may_be_set_and_what_is_written_repeated(tmp_path: Path) -> None:
    written = config.load(node_file(tmp_path, TABLE)).entropy
    configured.check_remote(written, written)
    free = parsed(tmp_path, {"kind": "file", "path": "fifo"}, http(ca="ca.pem"), {"kind": "tpm"})
    configured.check_remote(free, config.EntropyConfig())
