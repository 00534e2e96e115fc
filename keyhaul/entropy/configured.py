"""Makes the sources that an `[entropy]` table names, and says what an operator may set from afar."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyhaul.config import EntropyConfig, EntropySource, Mistakes, load, parse_entropy
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.entropy import hardware
from keyhaul.entropy.mixer import MixedEntropy
from keyhaul.entropy.sources import FileSource, HttpSource, Source
from keyhaul.errors import ConfigError, Malformed, Refused
from keyhaul.keys import Secret

_LARGEST_KEY = 4096  # bytes of an API key's or PIN's file


def sources(config: EntropyConfig) -> list[Source]:
    """The sources beside the operating system's, which is always mixed in. Raises ConfigError."""
    return [_source(source) for source in config.sources if source.kind != "os"]


async def replace(entropy: MixedEntropy, file: Path, table: Mapping[str, Any]) -> None:
    """Put the sources of a JSON `table` in the place of those in use; `file` is the node's configuration.

    Raises Malformed for mistakes, Refused by `check_remote`, Unavailable for a source that does not work;
    then nothing has changed.
    """
    try:
        asked = parse_entropy(table, file)
        written = await asyncio.to_thread(load, file)  # as it is now, not as it was at the start
        check_remote(asked, written.entropy)
        made = await asyncio.to_thread(sources, asked)
    except Mistakes as found:
        said = "; ".join(f"{mistake.cause} ({mistake.remedy})" for mistake in found.mistakes)
        raise Malformed(said, "correct the table, or the configuration file, and send it again") from None
    except ConfigError as error:
        raise Malformed(error.cause, error.remedy) from None
    await entropy.replace(made, asked.on_failure, asked.buffer)


def check_remote(asked: EntropyConfig, written: EntropyConfig) -> None:
    """Refuse what an operator at the admin port may only repeat from the node's own file.

    Whoever names a PKCS#11 module or a TCTI (`cmd:`, `tcti-….so`) runs code in the node; whoever names an
    API key's file and a URL reads that file. A certificate for the admin port is no right to either.
    """
    known = {_local(source) for source in written.sources}
    for source in asked.sources:
        if any(part is not None for part in _local(source)) and _local(source) not in known:
            raise Refused(
                f"source {source.name} names a library, a TCTI, a client key or a secret's file "
                "that the node's configuration file does not name together",
                "write the source into the node's [entropy] table first; no restart is needed",
            )


def _local(source: EntropySource) -> tuple[object, ...]:
    secret = source.api_key_file, source.api_key_header if source.api_key_file else None
    # A secret goes to the place it was meant for and to no other.
    place = source.url if source.api_key_file or source.key else source.token if source.pin_file else None
    return (source.module, source.tcti, source.pin_file, source.cert, source.key, *secret, place)


def _source(source: EntropySource) -> Source:
    if source.kind == "file":
        assert source.path is not None
        return FileSource(source.name, source.path, source.min_entropy)
    if source.kind == "http":
        return _http(source)
    if source.kind == "tpm":
        return hardware.tpm(source.name, source.tcti, source.min_entropy)
    assert source.module is not None
    pin = functools.partial(_line, source.pin_file, "PIN") if source.pin_file else None
    return hardware.token(source.name, source.module, source.token, source.min_entropy, pin)


def _http(source: EntropySource) -> HttpSource:
    headers = {}
    if source.api_key_file is not None:
        headers[source.api_key_header] = Secret(_line(source.api_key_file, "API key").encode())
    return HttpSource(
        source.name,
        source.url,
        _tls(source),
        source.min_entropy,
        json_path=source.json_path,
        encoding=source.encoding,
        headers=headers,
        per_request=source.per_request,
    )


def _tls(source: EntropySource) -> ssl.SSLContext:
    """Certificates and host names are checked in any case; without `ca`, by the system's CAs."""
    if source.cert is not None and source.key is not None and source.ca is not None:
        return client_context(Credentials(source.cert, source.key, source.ca), Policy.COMPATIBLE)
    try:
        return ssl.create_default_context(cafile=source.ca)
    except (OSError, ssl.SSLError):
        raise ConfigError(
            f"{source.ca}: no CA certificates in PEM form can be read there", "correct the path in [entropy]"
        ) from None


def _line(file: Path | None, what: str) -> str:
    """A secret of one line, printable ASCII. Raises ConfigError, and shows nothing of it."""
    assert file is not None
    try:
        with file.open("rb") as stream:
            text = stream.read(_LARGEST_KEY + 1).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", f"put the {what} there, mode 0600") from None
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or len(text) > _LARGEST_KEY:
        raise ConfigError(f"{file} does not hold an {what} in one line", "put it there, mode 0600")
    return text
