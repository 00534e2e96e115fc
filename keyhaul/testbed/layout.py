"""What a testbed puts on disk: a PKI made on the spot, and a configuration for every process.

<directory>/
  testbed.json  testbed.pid     where everything is; who keeps it running
  pki/                          see keyhaul.pki; admin-anchors.pem joins the admin CAs of all domains
  network.toml                  the same for all nodes
  nodes/<name>/                 node.toml, root.credential, root.slots, keyhaul.db
  devices/                      one configuration per device, one seed per pair
  ready/  logs/                 one file per process
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul.config.write import toml, write
from keyhaul.pki import Files, Pki
from keyhaul.testbed.topology import Link, Node, Topology, device_links

HOSTS = ("localhost", "127.0.0.1")
PORTS = ("sae", "node", "admin")
OPERATOR = "testbed-operator"


@dataclass(frozen=True, slots=True)
class DeviceSpot:
    """One end of a quantum link: the device, the node it belongs to and the node at the far end."""

    name: str
    node: str
    far: str
    link: Link
    preset: str
    role: str

    @property
    def peer(self) -> str:
        """The device at the far end."""
        return _device_name(self.far, self.node)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The PEM files of everybody in a testbed, by name."""

    ports: Mapping[str, Mapping[str, Files]]  # node -> port -> files
    saes: Mapping[str, Files]
    devices: Mapping[str, Files]
    clients: Mapping[str, Files]  # device -> the node as its SAE
    channels: Mapping[str, Files]  # device -> itself as client of its peer
    operators: Mapping[str, Files]  # domain -> who may turn the knobs of its devices
    admin: Files


class Layout:
    """The files of one testbed. Everything under `directory` is 0700 or 0600, certificates apart."""

    def __init__(
        self, topology: Topology, directory: Path, addresses: Mapping[str, str] | None = None
    ) -> None:
        self.topology = topology
        self._addresses = addresses or {}
        self.directory = directory.resolve()
        self.domains = {node.name: node.domain for node in topology.nodes}
        self.spots = spots(topology)

    def make_folders(self) -> None:
        """The directory and its folders."""
        for folder in ("", "nodes", "devices", "ready", "logs"):
            (self.directory / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        for node in self.topology.nodes:
            self.node_folder(node.name).mkdir(mode=0o700, exist_ok=True)

    def site(self, process: str) -> str:
        """The node at whose site a process runs: a device's node, or the node itself."""
        return next((spot.node for spot in self.spots if spot.name == process), process)

    def hosts(self, process: str) -> tuple[str, ...]:
        """Under which a node or a device is reached; its certificates name them."""
        site = self.site(process)
        return (*HOSTS, self._addresses[site]) if site in self._addresses else HOSTS

    def node_folder(self, node: str) -> Path:
        """Where one node keeps its configuration and its store."""
        return self.directory / "nodes" / node

    def node_file(self, node: str) -> Path:
        """The configuration of one node."""
        return self.node_folder(node) / "node.toml"

    def device_file(self, device: str) -> Path:
        """The configuration of one device."""
        return self.directory / "devices" / f"{device}.json"

    def ready_file(self, process: str) -> Path:
        """What a process writes when it serves."""
        return self.directory / "ready" / process

    def log_file(self, process: str) -> Path:
        """Where the output of a process goes."""
        return self.directory / "logs" / f"{process}.log"

    def make_certificates(self) -> Certificates:
        """All certificates; a few milliseconds each."""
        pki = Pki.create(self.directory / "pki", self.topology.domains)
        anchors = pki.directory / "admin-anchors.pem"
        write(
            anchors,
            "".join((pki.directory / name / "ca" / "admin.pem").read_text() for name in pki.domains),
            0o644,
        )
        # Both devices of a pair, and the nodes as their SAEs, are one link's equipment, so of one domain.
        home = {spot.name: self.domains[spot.link.a] for spot in self.spots}
        people = {(home[spot.name], spot.node) for spot in self.spots}
        clients = {key: pki.device_client(*key) for key in sorted(people)}
        admin = pki.admin(pki.domains[0], OPERATOR)
        return Certificates(
            ports={
                node.name: _ports(pki, node, self.hosts(node.name), anchors) for node in self.topology.nodes
            },
            saes={sae: pki.sae(node.domain, sae) for node in self.topology.nodes for sae in node.saes},
            devices={
                spot.name: pki.device(home[spot.name], spot.name, self.hosts(spot.name))
                for spot in self.spots
            },
            clients={spot.name: clients[home[spot.name], spot.node] for spot in self.spots},
            channels={name: pki.device_client(domain, name) for name, domain in home.items()},
            operators={domain: pki.device_client(domain, OPERATOR) for domain in sorted(set(home.values()))},
            admin=Files(admin.cert, admin.key, anchors),
        )

    def write_devices(self, certificates: Certificates) -> None:
        """One configuration per device, and the seed that a pair shares as if by quantum means."""
        for link, _ in device_links(self.topology):
            write(self._seed(link), secrets.token_hex(32))
        for spot in self.spots:
            server, channel = certificates.devices[spot.name], certificates.channels[spot.name]
            config = {
                "name": spot.name,
                "preset": spot.preset,
                "role": spot.role,
                "seed": str(self._seed(spot.link)),
                "cert": str(server.cert),
                "key": str(server.key),
                "ca": str(server.ca),
                "channel_cert": str(channel.cert),
                "channel_key": str(channel.key),
                "ready": str(self.ready_file(spot.name)),
                "peer": {"name": spot.peer, "ready": str(self.ready_file(spot.peer))},
                "saes": [spot.node],
                "remote_saes": [spot.far],
                "operator": OPERATOR,
            }
            write(self.device_file(spot.name), json.dumps(config, indent=1))

    def device_url(self, device: str) -> str:
        """Where a device that is ready listens."""
        return str(json.loads(self.ready_file(device).read_text())["url"])

    def write_nodes(
        self,
        certificates: Certificates,
        urls: Mapping[str, Mapping[str, str]],
        settings: Mapping[str, Any],
        ways: Mapping[tuple[str, str], str],
    ) -> None:
        """One configuration per node.

        `urls` maps nodes to their ports, `settings` are tables for all, `ways` maps a node and its neighbour
        to the URL between them where that is another than the neighbour's own.
        """
        head = f"Testbed {self.topology.name}: the network as every node knows it."
        write(self.directory / "network.toml", toml(self._network(), head))
        for node in self.topology.nodes:
            tables = {**self._node(node, certificates, urls, ways), **settings}
            write(self.node_file(node.name), toml(tables, f"Testbed {self.topology.name}: node {node.name}."))
            write(self.node_folder(node.name) / "root.credential", secrets.token_hex(32))

    def _network(self) -> dict[str, Any]:
        return {
            "nodes": dict(self.domains),
            "links": [
                {"a": link.a, "b": link.b, "kind": link.kind, "mode": link.mode}
                for link in self.topology.links
            ],
            "saes": {sae: node.name for node in self.topology.nodes for sae in node.saes},
        }

    def _node(
        self,
        node: Node,
        certificates: Certificates,
        urls: Mapping[str, Mapping[str, str]],
        ways: Mapping[tuple[str, str], str],
    ) -> dict[str, Any]:
        tls = {"sae": "compatible", "node": "pq", "admin": "compatible"}
        return {
            "name": node.name,
            "domain": node.domain,
            "directory": ".",
            "ready_file": self.ready_file(node.name),
            "listeners": {
                port: {
                    **_host_and_port(urls[node.name][port]),
                    **pem_paths(certificates.ports[node.name][port]),
                    "tls": tls[port],
                }
                for port in PORTS
            },
            "store": {
                "file": "keyhaul.db",
                "root": "root.slots",
                "slots": [{"kind": "credential", "file": "root.credential"}],
            },
            "peers": [
                self._peer(node.name, link, certificates, urls, ways)
                for link in self.topology.links
                if node.name in (link.a, link.b)
            ],
            "network": {"file": "../../network.toml"},
            "schemes": self.topology.schemes(),
        }

    def _peer(
        self,
        node: str,
        link: Link,
        certificates: Certificates,
        urls: Mapping[str, Mapping[str, str]],
        ways: Mapping[tuple[str, str], str],
    ) -> dict[str, Any]:
        far = link.b if link.a == node else link.a
        url = ways.get((node, far), urls[far]["node"])
        peer = {"name": far, "url": url, "kind": link.kind, "mode": link.mode}
        if link.devices is None:
            return peer
        device = _device_name(node, far)
        end = {
            "url": self.device_url(device),
            **pem_paths(certificates.clients[device]),
            "own_sae": node,
            "peer_sae": far,
        }
        return {**peer, "device": end}

    def _seed(self, link: Link) -> Path:
        return self.directory / "devices" / f"{link.name}.seed"


def _device_name(node: str, far: str) -> str:
    return f"qkd-{node}-to-{far}"


def spots(topology: Topology) -> list[DeviceSpot]:
    """All devices of a network, the two of a link one after the other."""
    return [spot for link, presets in device_links(topology) for spot in _spots(link, presets)]


def _spots(link: Link, presets: tuple[str, str]) -> list[DeviceSpot]:
    return [
        DeviceSpot(_device_name(link.a, link.b), link.a, link.b, link, presets[0], "keeper"),
        DeviceSpot(_device_name(link.b, link.a), link.b, link.a, link, presets[1], "mirror"),
    ]


def _host_and_port(url: str) -> dict[str, object]:
    host, _, port = url.removeprefix("https://").rpartition(":")
    return {"host": host, "port": int(port)}


def _ports(pki: Pki, node: Node, hosts: tuple[str, ...], admin_anchors: Path) -> dict[str, Files]:
    admin = pki.admin_port(node.domain, node.name, hosts)
    return {
        "sae": pki.sae_port(node.domain, node.name, hosts),
        "node": pki.node(node.domain, node.name, hosts),
        "admin": Files(admin.cert, admin.key, admin_anchors),
    }


def pem_paths(files: Files) -> dict[str, str]:
    """As configurations and testbed.json write them."""
    return {"cert": str(files.cert), "key": str(files.key), "ca": str(files.ca)}
