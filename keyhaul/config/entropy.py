"""The `[entropy]` table: where end keys come from. Also read from JSON, when an operator replaces it.

[entropy]
on_failure = "fail-closed"
sources = [{ kind = "file", name = "quantis", path = "/dev/qrandom0", min_entropy = 7.2 }]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from keyhaul.config import model
from keyhaul.config.reader import Mistakes, Section, Source

KINDS = ("os", "file", "http", "tpm", "pkcs11")
ENCODINGS = ("hex", "base64", "uint8", "raw")
NAME = r"[A-Za-z0-9._-]{1,63}"
JSON_PATH = r"\$|(\$\.)?[^.\s]+(\.[^.\s]+)*"
HEADER = r"[A-Za-z0-9-]{1,64}"
MOST_SOURCES = 8


def read_entropy(table: Section) -> model.EntropyConfig:
    """What the table says; mistakes are reported to its file."""
    plain = model.EntropyConfig()
    named = "sources" in table
    sources = tuple(_source(section) for section in table.sections("sources"))
    config = model.EntropyConfig(
        sources=sources if named else plain.sources,
        on_failure=cast(
            model.OnFailure,
            table.choice("on_failure", ("fail-closed", "degrade-with-alarm"), plain.on_failure),
        ),
        buffer=table.integer("buffer", plain.buffer, low=1024, high=16_777_216),
    )
    _check_names(table, sources, named)
    if config.on_failure == "degrade-with-alarm":
        risk = "keys may come from the operating system alone"
        table.report("on_failure", f"on_failure: {risk}", "watch the alarm, or use fail-closed", warning=True)
    table.done()
    return config


def parse_entropy(value: Mapping[str, Any], file: Path) -> model.EntropyConfig:
    """The same table as JSON, with paths relative to the configuration `file`. Raises `Mistakes`."""
    source = Source(file.resolve(), [])
    config = read_entropy(Section(source, value, ("entropy",)))
    errors = [mistake for mistake in source.mistakes if not mistake.warning]
    if errors:
        raise Mistakes(errors)
    return config


def _check_names(table: Section, sources: tuple[model.EntropySource, ...], named: bool) -> None:
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        table.report("sources", f"several sources are called {name!r}", "give each a name of its own")
    if named and not sources:
        table.report("sources", "no source is named", 'write sources = [{ kind = "os" }], or leave it out')
    if len(sources) > MOST_SOURCES:
        table.report("sources", f"{len(sources)} sources are too many", f"name at most {MOST_SOURCES}")


def _source(table: Section) -> model.EntropySource:
    kind = table.choice("kind", KINDS)
    values: dict[str, Any] = {"kind": kind}
    values["name"] = table.text("name", kind, pattern=NAME, shape="1 to 63 letters, digits, '.', '_' or '-'")
    if kind != "os":
        values["min_entropy"] = table.number("min_entropy", model.MIN_ENTROPY, low=0.1, high=8.0)
    if kind == "file":
        values["path"] = table.file("path")
    if kind == "http":
        values |= _http(table)
    if kind == "tpm":
        values["tcti"] = table.text("tcti") if "tcti" in table else None
    if kind == "pkcs11":
        values["module"] = table.file("module")
        values["token"] = table.text("token")
        values["pin_file"] = table.optional_file("pin_file")
        _refuse_spoken(table, "pin", "pin_file")
    table.done()
    return model.EntropySource(**values)


def _http(table: Section) -> dict[str, Any]:
    values: dict[str, Any] = {
        "url": _url(table),
        "json_path": table.text("json_path", "data", pattern=JSON_PATH, shape="members joined by dots, or $"),
        "encoding": table.choice("encoding", ENCODINGS, "hex"),
        "per_request": table.integer("per_request", model.PER_REQUEST, low=1, high=262_144),
        "api_key_header": table.text("api_key_header", "x-api-key", pattern=HEADER, shape="a header's name"),
    }
    for name in ("ca", "cert", "key", "api_key_file"):
        values[name] = table.optional_file(name)
    _refuse_spoken(table, "api_key", "api_key_file")
    if (values["cert"] is None) != (values["key"] is None):
        table.report(None, "cert and key belong together", "name both, or none")
    elif values["cert"] is not None and values["ca"] is None:
        table.report("cert", "a client certificate without ca", "name the CA of the server too")
    return values


def _url(table: Section) -> str:
    """https, with a query if need be; `{bytes}` in it becomes the number of bytes wanted."""
    value = table.text("url")
    filled = value.replace("{bytes}", "1")
    try:
        parts = urlsplit(filled)
        fine = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine, parts = False, urlsplit("")
    if value and (not fine or parts.fragment or parts.username or not re.fullmatch(r"[!-z|~]+", filled)):
        table.report("url", "url is not an https URL", "write https://HOST/PATH, percent-encoded")
    return value


def _refuse_spoken(table: Section, secret: str, instead: str) -> None:
    if secret in table:
        table.report(
            secret, f"{secret} stands in the configuration", f"move it to a file, named by {instead}"
        )
        table.text(secret)
