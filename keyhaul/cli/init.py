"""`keyhaul init`: a new node in one step, certificates, root secret and configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from keyhaul.cli.output import Json, document, say
from keyhaul.errors import ConfigError

_GRADES = {
    "hardware": "a chip keeps the root secret; a copy of this disk is worth nothing without it",
    "external": "the root secret is kept outside of this disk",
    "software": "SOFTWARE ONLY: whoever copies this disk and knows the passphrase or has the software TPM "
    "reads the store; it is no boundary",
}


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(init)


def init(
    directory: Annotated[Path, typer.Argument(help="Where the node shall live; made if need be.")],
    name: Annotated[str, typer.Option(help="The node's name: a-z, 0-9 and -.")],
    domain: Annotated[str, typer.Option(help="The domain it belongs to: a-z, 0-9 and -.")],
    sae: Annotated[list[str] | None, typer.Option(help="An SAE to serve; repeat for more.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="Host names or addresses of the node.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="A QKD device that needs a server certificate.")
    ] = None,
    pki: Annotated[
        Path | None, typer.Option(help="Use the CAs there; without it, DIRECTORY/pki is made.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Passphrase of the root secret, also for recovery (mode 0600).")
    ] = None,
    tcti: Annotated[
        str | None, typer.Option(help="TPM to use, such as swtpm:host=…; else the kernel's.")
    ] = None,
    foreign_ca: Annotated[
        list[Path] | None,
        typer.Option(help="CA of key managers of other makers, PEM; adds a port for them; repeat for more."),
    ] = None,
    pqc_saes: Annotated[bool, typer.Option("--ml-dsa", help="ML-DSA-65 certificates for SAEs.")] = False,
    as_json: Json = False,
) -> None:
    """Make a node: CAs, certificates for node, SAEs and devices, root secret, configuration."""
    from keyhaul.config import load
    from keyhaul.node import prepare

    file = directory.resolve() / "node.toml"
    if file.exists():
        raise ConfigError(f"{file} exists already", "remove it, or choose another directory")
    hosts = host or ["localhost", "127.0.0.1"]
    slots = _slots(passphrase_file, tcti)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = _certificates(pki, directory.resolve(), domain, name, sae or [], hosts, device or [], pqc_saes)
    if foreign_ca:
        made["plain"] = _foreign_port(pki or directory.resolve() / "pki", domain, name, hosts, foreign_ca)
    _write(file, name, domain, hosts, sae or [], slots, made)
    config = load(file)
    remarks = prepare(config)
    grade = _grade(config.store.root)
    if as_json:
        document({"config": str(file), "grade": grade, "remarks": remarks, "certificates": made})
        return
    say(f"node {name} of domain {domain}: {file}")
    for remark in remarks:
        say(f"  {remark}")
    say(f"  GRADE {grade}: {_GRADES[grade]}")
    for role, files in made.items():
        say(f"  {role:<24} {files['cert']}")
    say(f"next: add neighbours to {file}, then keyhaul config check {file} && keyhaul serve --config {file}")


def _slots(passphrase_file: Path | None, tcti: str | None) -> list[dict[str, Any]]:
    """The ways to the root secret this machine offers, best first; the passphrase also for recovery."""
    from keyhaul.stores.sealing import default_tcti, systemd_credential

    slots: list[dict[str, Any]] = []
    if tcti or default_tcti():
        slots.append({"kind": "tpm", "tcti": tcti})
    if systemd_credential():
        slots.append({"kind": "credential"})
    if passphrase_file:
        slots.append({"kind": "passphrase", "file": passphrase_file.resolve()})
    elif not slots and sys.stdin.isatty():
        slots.append({"kind": "passphrase"})
    if not slots:
        raise ConfigError(
            "this machine offers no TPM and no credential to keep the root secret, and nobody can be asked",
            "give --passphrase-file FILE, or hand in a systemd credential keyhaul-root",
        )
    if passphrase_file and passphrase_file.stat().st_mode & 0o077:
        raise ConfigError(f"{passphrase_file} can be read by others", f"chmod 600 {passphrase_file}")
    return slots


def _certificates(
    pki: Path | None,
    directory: Path,
    domain: str,
    name: str,
    saes: list[str],
    hosts: list[str],
    devices: list[str],
    pqc_saes: bool,
) -> dict[str, dict[str, str]]:
    from keyhaul.pki import Pki

    authorities = Pki.open(pki.resolve()) if pki else Pki.create(directory / "pki", [domain])
    algorithm = "ml-dsa-65" if pqc_saes else "ecdsa"
    files = {
        "node": authorities.node(domain, name, hosts),
        "sae": authorities.sae_port(domain, name, hosts),
        "admin": authorities.admin_port(domain, name, hosts),
        "operator": authorities.admin(domain, f"operator-{name}"),
        "device client": authorities.device_client(domain, name),
        **{f"SAE {sae}": authorities.sae(domain, sae, algorithm) for sae in saes},
        **{f"device {device}": authorities.device(domain, device, hosts) for device in devices},
    }
    return {
        role: {"cert": str(each.cert), "key": str(each.key), "ca": str(each.ca)}
        for role, each in files.items()
    }


def _foreign_port(
    pki: Path, domain: str, name: str, hosts: list[str], foreign_ca: list[Path]
) -> dict[str, str]:
    """The certificate for KMEs of other makers; they have to be given the CA that issued it."""
    from keyhaul.pki import Pki

    files = Pki.open(pki.resolve()).plain(domain, name, hosts, foreign_ca)
    return {"cert": str(files.cert), "key": str(files.key), "ca": str(files.ca)}


def _write(
    file: Path,
    name: str,
    domain: str,
    hosts: list[str],
    saes: list[str],
    slots: list[dict[str, Any]],
    made: dict[str, dict[str, str]],
) -> None:
    from keyhaul.config.write import toml, write

    host = "127.0.0.1" if set(hosts) <= {"localhost", "127.0.0.1"} else "0.0.0.0"  # noqa: S104 - the operator's wish
    ports = {"sae": 8443, "node": 8444, "admin": 8445, **({"plain": 8446} if "plain" in made else {})}
    client = {side: os.path.relpath(path, file.parent) for side, path in made["device client"].items()}
    listeners = {port: {"host": host, "port": ports[port], **made[port]} for port in ports}
    if "plain" in made:
        listeners["plain"]["url"] = f"https://{hosts[0]}:{ports['plain']}"
    tables = {
        "name": name,
        "domain": domain,
        "directory": ".",
        "listeners": listeners,
        "store": {"file": "keyhaul.db", "root": "root.slots", "slots": slots},
        "network": {"nodes": {name: domain}, "saes": dict.fromkeys(saes, name)},
    }
    write(file, toml(tables, f"Node {name}, made by keyhaul init.") + _neighbours(name, client))


def _neighbours(name: str, client: dict[str, str]) -> str:
    """What to add for a neighbour, as comments: the tables differ from link to link."""
    return f"""
# A neighbour, and a quantum link to it; every node has the same [network] tables (or `[network] file = …`).
#
# [[network.links]]
# a = "{name}"
# b = "neighbour"
# kind = "qkd"                 # or "pqc", then without a device
#
# [[peers]]
# name = "neighbour"
# url = "https://neighbour.example:8444"
# kind = "qkd"
# [peers.device]
# url = "https://device.example"
# cert = "{client["cert"]}"
# key = "{client["key"]}"
# ca = "{client["ca"]}"
# own_sae = "{name}"
# peer_sae = "neighbour"
"""


def _grade(root: Path) -> str:
    from keyhaul.stores.sealing import describe

    return str(describe(root)[0]["grade"])
