"""Who a command calls, and as whom: given file by file, or found in a testbed's directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from keyhaul.errors import ConfigError

Url = Annotated[str, typer.Option("--url", help="Address of the node, https://HOST:PORT.")]
Cert = Annotated[Path | None, typer.Option("--cert", help="Our certificate, PEM.")]
Key = Annotated[Path | None, typer.Option("--key", help="Its private key, PEM.")]
Ca = Annotated[Path | None, typer.Option("--cacert", help="The CA of the node's port, PEM.")]
Directory = Annotated[Path | None, typer.Option("--dir", help="A testbed's directory, instead of the above.")]


@dataclass(frozen=True, slots=True)
class Access:
    """An address and the PEM files to go there with."""

    name: str
    url: str
    cert: Path
    key: Path
    ca: Path


def explicit(url: str, cert: Path | None, key: Path | None, ca: Path | None) -> Access:
    """What the options say. Raises ConfigError if they say too little."""
    if not (url and cert and key and ca):
        raise ConfigError(
            "it is not clear whom to call as whom", "give --url, --cert, --key and --cacert, or --dir"
        )
    return Access(url, url, cert, key, ca)


def one(
    directory: Path | None, url: str, cert: Path | None, key: Path | None, ca: Path | None
) -> Access | None:
    """The one node that the options name; None if they name a testbed instead. Raises ConfigError."""
    return None if directory is not None else explicit(url, cert, key, ca)


def of_sae(directory: Path, sae: str) -> Access:
    """One SAE of a testbed. Raises ConfigError."""
    saes = {each["id"]: each for each in testbed(directory)["saes"]}
    if sae not in saes:
        raise ConfigError(f"no SAE {sae!r} in this testbed", f"use --as with one of {', '.join(saes)}")
    return _access(sae, saes[sae]["sae_url"], saes[sae])


def of_operator(directory: Path) -> list[Access]:
    """The admin ports of all nodes of a testbed. Raises ConfigError."""
    state = testbed(directory)
    return [_access(node["name"], node["admin_url"], state["admin"]) for node in state["nodes"]]


def node_anchors(directory: Path) -> Path:
    """The CAs of all nodes of a testbed. Raises ConfigError."""
    return Path(testbed(directory)["ca"]["node"])


def _access(name: str, url: str, files: dict[str, str]) -> Access:
    return Access(name, url, Path(files["cert"]), Path(files["key"]), Path(files["ca"]))


def testbed(directory: Path) -> dict[str, Any]:
    """What testbed.json says. Raises ConfigError."""
    file = directory / "testbed.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", "start one: keyhaul testbed up") from None
    except ValueError:
        raise ConfigError(f"{file} is no testbed.json", "check --dir") from None
    return state
