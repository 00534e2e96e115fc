"""A topology as containers: one service per node and device, networks apart as in paper B, Table 4.

Every quantum link has a network of its own for its two devices; every node one that it shares with its
devices and applications; and all nodes share a wide area network. A node listens to its neighbours in the
last, to applications and operators in its own, and no service is in a network that it has no business in.

<directory>/
  compose.yaml            for podman-compose or docker compose
  testbed.json            for `keyhaul sae --dir` and other commands on this machine
  nodes/<name>/           all that the container of a node sees: configuration, certificates, its store
  devices/<name>/         the same for a device
  pki/                    everybody's certificates and the CAs, which no container sees
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from keyhaul.config import load
from keyhaul.config.write import toml, write
from keyhaul.errors import ConfigError
from keyhaul.node import prepare
from keyhaul.testbed.channel import Ready
from keyhaul.testbed.composing import DEVICE_PORT, MONITOR, PORTS, USER, Plan, text
from keyhaul.testbed.layout import DeviceSpot, Layout
from keyhaul.testbed.state import describe
from keyhaul.testbed.topology import Topology


class _Layout(Layout):
    """A layout whose certificates name each service as the other containers call it."""

    def __init__(self, topology: Topology, directory: Path, plan: Plan) -> None:
        super().__init__(topology, directory)
        self._plan = plan

    def hosts(self, process: str) -> tuple[str, ...]:
        return self._plan.names(process)


class Containers:
    """The files of one network in `directory`. Raises ConfigError if it is too large for the addresses."""

    def __init__(self, topology: Topology, directory: Path, image: str) -> None:
        self.topology = topology
        self.plan = Plan(topology)
        self.layout = _Layout(topology, directory, self.plan)
        self.directory = self.layout.directory
        self._image = image

    def make(self) -> Path:
        """Make everything and return the compose file. Raises ConfigError if something is there already."""
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ConfigError(f"{self.directory} is not empty", "choose another directory")
        self.layout.make_folders()
        made = self.layout.make_certificates()
        for spot in self.layout.spots:
            ready = Ready(spot.name, f"https://{spot.name}:{DEVICE_PORT}", 0)
            write(self.layout.ready_file(spot.name), msgspec.json.encode(ready).decode())
        self.layout.write_devices(made)
        inside = {node.name: _urls(node.name) for node in self.topology.nodes}
        self.layout.write_nodes(made, inside, {"monitor": {"listen": MONITOR}}, {})
        for node in self.topology.nodes:
            self._settle_node(node.name)
        for spot in self.layout.spots:
            self._settle_device(spot)
        outside = {name: _urls(self.plan.zone_address(name)) for name in inside}
        outside |= {spot.name: {"device": self._device_url(spot)} for spot in self.layout.spots}
        state = describe(self.layout, made, outside, lambda _: 0)
        write(self.directory / "testbed.json", json.dumps(state, indent=1))
        shutil.rmtree(self.directory / "ready")
        shutil.rmtree(self.directory / "logs")
        for left in (self.directory / "network.toml", *self.directory.glob("devices/*.seed")):
            left.unlink()
        file = self.directory / "compose.yaml"
        write(file, text(self.plan, self._image, _owner()), 0o644)
        return file

    def _settle_node(self, name: str) -> None:
        """Everything a node needs into its own folder, under names that hold in the container as well."""
        folder, file = self.layout.node_folder(name), self.layout.node_file(name)
        tables = tomllib.loads(file.read_text())
        del tables["ready_file"]
        tables["network"] = tomllib.loads((self.directory / "network.toml").read_text())
        for port, listener in tables["listeners"].items():
            wide = port == "node"
            listener["host"] = self.plan.wan_address(name) if wide else self.plan.zone_address(name)
        write(
            file, toml(self._carried(tables, folder), f"{self.topology.name}: node {name}, in a container.")
        )
        prepare(load(file))
        _hand_over(folder)

    def _settle_device(self, spot: DeviceSpot) -> None:
        folder = self.directory / "devices" / spot.name
        folder.mkdir(mode=0o700)
        config = json.loads(self.layout.device_file(spot.name).read_text())
        self.layout.device_file(spot.name).unlink()
        config |= {"host": "0.0.0.0", "port": DEVICE_PORT}  # noqa: S104 - both networks of a container
        config["ready"] = f"/tmp/{spot.name}"  # noqa: S108 - the container's own, read by nobody
        write(folder / "device.json", json.dumps(self._carried(config, folder), indent=1))
        _hand_over(folder)

    def _device_url(self, spot: DeviceSpot) -> str:
        return f"https://{self.plan.device_address(spot.name)}:{DEVICE_PORT}"

    def _carried(self, value: Any, folder: Path) -> Any:
        """`value` with every file of this network that it names copied into `folder`."""
        if isinstance(value, dict):
            return {name: self._carried(each, folder) for name, each in value.items()}
        if isinstance(value, list):
            return [self._carried(each, folder) for each in value]
        if not isinstance(value, str) or not value.startswith(f"{self.directory}/"):
            return value
        name = "-".join(Path(value).relative_to(self.directory).parts)
        shutil.copy2(value, folder / name)
        return name


def _urls(host: str) -> dict[str, str]:
    return {port: f"https://{host}:{number}" for port, number in PORTS.items()}


def _owner() -> int:
    """Who the containers run as: whoever makes the files, but never root."""
    return os.geteuid() or USER


def _hand_over(folder: Path) -> None:
    """To the user of the containers, if that is somebody else."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER)
