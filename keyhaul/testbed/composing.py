"""The compose file of a topology: which service is in which network, and with what address.

Names and addresses are those of paper B, Table 4, where it has them: `secure-zone-N` 10.1.N0.0/27 for the
N-th node, `kms-link-aN-bN` 10.1.N.0/27 for the N-th quantum link, `inter-qkms-wan` 10.1.100.0/27.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from typing import Any

from keyhaul.errors import ConfigError
from keyhaul.testbed.layout import spots
from keyhaul.testbed.topology import Topology, device_links

PORTS = {"sae": 8443, "node": 8444, "admin": 8445}
DEVICE_PORT = 8440
MONITOR = "127.0.0.1:9464"
USER = 10_001
"""Who the image runs as; the Containerfile has the same number."""
HOME = "/var/lib/keyhaul"
LARGEST = 9
"""Nodes, and quantum links, that these addresses have room for."""
WAN = "inter-qkms-wan"

Attachments = dict[str, str]  # network -> address in it


class Plan:
    """Networks and addresses of one topology. Raises ConfigError if it has more nodes or links than fit."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.nodes = [node.name for node in topology.nodes]
        self.links = [link.name for link, _ in device_links(topology)]
        self.spots = {spot.name: spot for spot in spots(topology)}
        if max(len(self.nodes), len(self.links)) > LARGEST:
            raise ConfigError(
                f"{topology.name} has more than {LARGEST} nodes or quantum links",
                "use `keyhaul testbed up`, which has no such limit",
            )

    def networks(self) -> dict[str, IPv4Network]:
        """Every network by its name."""
        found = {_link(number): _network(number) for number, _ in enumerate(self.links, 1)}
        found |= {_zone(number): _network(10 * number) for number, _ in enumerate(self.nodes, 1)}
        return {**found, WAN: _network(100)}

    def zone_address(self, node: str) -> str:
        """Where a node listens to applications and operators."""
        return self.of_node(node)[_zone(self._number(node))]

    def wan_address(self, node: str) -> str:
        """Where a node listens to its neighbours."""
        return self.of_node(node)[WAN]

    def device_address(self, device: str) -> str:
        """Where a device answers its node, and who turns its knobs."""
        return self.of_device(device)[_zone(self._number(self.spots[device].node))]

    def of_node(self, node: str) -> Attachments:
        """The two networks of a node."""
        number = self._number(node)
        return {_zone(number): _host(10 * number, 0), WAN: _host(100, number - 1)}

    def of_device(self, device: str) -> Attachments:
        """The two networks of a device: that of its node and that of its link."""
        spot = self.spots[device]
        zone, link = self._number(spot.node), self.links.index(spot.link.name) + 1
        neighbours = [each.name for each in self.spots.values() if each.node == spot.node]
        place = neighbours.index(device) + 1
        return {_zone(zone): _host(10 * zone, place), _link(link): _host(link, int(spot.role == "mirror"))}

    def hosts_of_node(self, node: str) -> Attachments:
        """The names a node has to know: its neighbours in the wide area network, its devices in its own."""
        found = {
            far: self.wan_address(far)
            for link in self.topology.links
            for far in (link.a, link.b)
            if node in (link.a, link.b) and far != node
        }
        zone = _zone(self._number(node))
        devices = {
            each.name: self.of_device(each.name)[zone] for each in self.spots.values() if each.node == node
        }
        return found | devices

    def hosts_of_device(self, device: str) -> Attachments:
        """The one name a device has to know: the device at the other end of its link."""
        peer = self.spots[device].peer
        link = _link(self.links.index(self.spots[device].link.name) + 1)
        return {peer: self.of_device(peer)[link]}

    def names(self, name: str) -> tuple[str, ...]:
        """What the certificate of a node or device has to say: its name, and its addresses."""
        attached = self.of_device(name) if name in self.spots else self.of_node(name)
        return (name, *attached.values())

    def _number(self, node: str) -> int:
        return self.nodes.index(node) + 1


def text(plan: Plan, image: str, user: int) -> str:
    """The compose file; `user` is the number that all services run as."""
    services = {
        node: _service(plan.of_node(node), plan.hosts_of_node(node), image, user)
        | {
            "command": ["serve", "--config", f"{HOME}/node.toml"],
            "volumes": [f"./nodes/{node}:{HOME}"],
            "healthcheck": {"test": ["CMD", "python3", "-c", _READY], "interval": "10s", "timeout": "5s"},
        }
        for node in plan.nodes
    }
    services |= {
        name: _service(plan.of_device(name), plan.hosts_of_device(name), image, user)
        | {
            "entrypoint": ["python3", "-m", "keyhaul.testbed.devices"],
            "command": ["--config", f"{HOME}/device.json"],
            "working_dir": HOME,
            "volumes": [f"./devices/{name}:{HOME}:ro"],
        }
        for name in plan.spots
    }
    networks = {
        name: {
            # Applications on this machine reach into a zone; link and wide area lead nowhere else.
            "internal": not name.startswith("secure-zone"),
            "driver_opts": {"isolate": "true"},
            "ipam": {"config": [{"subnet": str(subnet)}]},
        }
        for name, subnet in plan.networks().items()
    }
    head = f"# {plan.topology.title}\n# Made by `keyhaul testbed compose {plan.topology.name}`.\n"
    document = {"name": f"keyhaul-{plan.topology.name}", "services": services, "networks": networks}
    return head + "\n".join(_yaml(document)) + "\n"


_READY = f"import urllib.request as r; r.urlopen('http://{MONITOR}/ready')"


def _service(attached: Attachments, hosts: Attachments, image: str, user: int) -> dict[str, Any]:
    """What nodes and devices have in common: no rights, nothing to write to but their own folder."""
    return {
        "image": image,
        "user": f"{user}:{user}",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - a file system of the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
        "networks": {name: {"ipv4_address": address} for name, address in attached.items()},
        "extra_hosts": [f"{name}:{address}" for name, address in hosts.items()],
    }


def _yaml(value: Any, indent: str = "") -> Iterable[str]:
    """YAML of dicts, lists of scalars, and scalars; text is in quotes, so nothing is taken for a number."""
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield f"{indent}{name}:"
            yield from _yaml(each, f"{indent}  ")
        elif isinstance(each, list) and each and isinstance(each[0], Mapping):
            yield f"{indent}{name}:"
            for item in each:
                first, *rest = _yaml(item, "")
                yield f"{indent}  - {first}"
                yield from (f"{indent}    {line}" for line in rest)
        else:
            yield f"{indent}{name}: {json.dumps(each)}"


def _network(third: int) -> IPv4Network:
    return IPv4Network(f"10.1.{third}.0/27")


def _host(third: int, number: int) -> str:
    return str(_network(third)[2 + number])


def _zone(number: int) -> str:
    return f"secure-zone-{number}"


def _link(number: int) -> str:
    return f"kms-link-a{number}-b{number}"
