"""A node's directory for tests: configured, its root secret made, never started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from keyhaul.config import NodeConfig, load
from keyhaul.config.write import toml
from keyhaul.node import prepare
from keyhaul.pki import Files, Pki

CREDENTIAL = {"kind": "credential", "file": "root.credential"}
Ports = dict[str, Files]


def make_ports(directory: Path) -> Ports:
    """Certificates for the three ports of node vigo in galicia."""
    pki, hosts = Pki.create(directory, ["galicia"]), ("localhost",)
    return {
        "sae": pki.sae_port("galicia", "vigo", hosts),
        "node": pki.node("galicia", "vigo", hosts),
        "admin": pki.admin_port("galicia", "vigo", hosts),
    }


def make_node(directory: Path, ports: Ports, **tables: Any) -> NodeConfig:
    """Node vigo in a new directory; a credential file opens its store unless `tables` say otherwise."""
    directory.mkdir()
    listeners = {
        port: {"cert": str(each.cert), "key": str(each.key), "ca": str(each.ca)}
        for port, each in ports.items()
    }
    store = {"slots": [CREDENTIAL]}
    network = {"file": "network.toml"}
    node = {"name": "vigo", "domain": "galicia", "listeners": listeners, "store": store, "network": network}
    (directory / "node.toml").write_text(toml({**node, **tables}))
    (directory / "network.toml").write_text(toml({"nodes": {"vigo": "galicia"}, "links": [], "saes": {}}))
    credential = os.open(directory / "root.credential", os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(credential, "w") as file:
        file.write(os.urandom(32).hex())
    config = load(directory / "node.toml")
    prepare(config)
    return config
