"""A network as containers: the networks of paper B's Table 4, and nobody sees what is not his."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from keyhaul.config import check, load
from keyhaul.errors import ConfigError
from keyhaul.testbed.composing import USER, WAN, Plan, text
from keyhaul.testbed.devices import load as load_device
from keyhaul.testbed.topology import named

ROOT = Path(__file__).parents[2]
TABLE_4 = {  # its rows 5 to 8 all say "secure-zone-2", and it has one link less than figure 6
    "kms-link-a1-b1": "10.1.1.0/27",
    "kms-link-a2-b2": "10.1.2.0/27",
    "kms-link-a3-b3": "10.1.3.0/27",
    "secure-zone-1": "10.1.10.0/27",
    "secure-zone-2": "10.1.20.0/27",
    "secure-zone-3": "10.1.30.0/27",
    "secure-zone-4": "10.1.40.0/27",
    "secure-zone-5": "10.1.50.0/27",
    "inter-qkms-wan": "10.1.100.0/27",
}


def test_the_networks_of_paper_b_are_those_of_its_table() -> None:
    ours = {name: str(subnet) for name, subnet in Plan(named("tecnalia")).networks().items()}
    assert ours == {**TABLE_4, "kms-link-a4-b4": "10.1.4.0/27"}


@pytest.mark.parametrize("name", ["tecnalia", "galicia-basque", "galicia-basque-star", "ring-9", "line-2"])
def test_each_service_is_where_it_has_business_and_nowhere_else(name: str) -> None:
    plan = Plan(named(name))
    attached = {node: plan.of_node(node) for node in plan.nodes}
    attached |= {device: plan.of_device(device) for device in plan.spots}
    addresses = [each for networks in attached.values() for each in networks.values()]
    assert len(addresses) == len(set(addresses))
    for networks in attached.values():
        assert all(ip_address(address) in plan.networks()[name] for name, address in networks.items())
        assert len(networks) == 2
    for one in plan.nodes:
        for other in plan.nodes:
            if one != other:
                assert attached[one].keys() & attached[other].keys() == {WAN}
    for device, spot in plan.spots.items():
        assert WAN not in attached[device]
        for name_, networks in attached.items():
            shared = attached[device].keys() & networks.keys()
            if name_ == spot.peer:
                assert len(shared) == 1
                assert shared.pop().startswith("kms-link")
            elif name_ != device and name_ != spot.node and plan.spots.get(name_, spot).node != spot.node:
                assert not shared, (device, name_)


@pytest.mark.parametrize("name", ["tecnalia", "galicia-basque"])
def test_the_names_a_service_knows_are_in_networks_that_it_has(name: str) -> None:
    plan = Plan(named(name))
    known = {node: plan.hosts_of_node(node) for node in plan.nodes}
    known |= {device: plan.hosts_of_device(device) for device in plan.spots}
    for service, hosts in known.items():
        own = plan.of_device(service) if service in plan.spots else plan.of_node(service)
        assert hosts
        for host, address in hosts.items():
            theirs = plan.of_device(host) if host in plan.spots else plan.of_node(host)
            (network,) = [each for each, at in theirs.items() if at == address]
            assert network in own, (service, host)


def test_the_file_is_yaml_and_every_service_is_without_rights() -> None:
    plan = Plan(named("tecnalia"))
    document = yaml.safe_load(text(plan, "image", 1234))
    assert document["name"] == "keyhaul-tecnalia"
    assert [*document["services"]] == [*plan.nodes, *plan.spots]
    assert len(document["services"]) == 5 + 8
    for name, service in document["services"].items():
        assert service["user"] == "1234:1234"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service
        assert "privileged" not in service
        assert len(service["volumes"]) == 1
        assert service["volumes"][0].split(":")[0].endswith(f"/{name}")
    internal = {name for name, network in document["networks"].items() if network["internal"]}
    assert internal == {name for name in TABLE_4 if not name.startswith("secure")} | {"kms-link-a4-b4"}


def test_a_network_that_is_too_large_for_the_addresses_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 9"):
        Plan(named("line-10"))


def test_the_image_has_the_user_whom_the_files_are_given_to() -> None:
    assert f"USER {USER}:{USER}\n" in (ROOT / "Containerfile").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compose") / "D"
    done = compose(directory)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["services"] == ["n1", "n2", "n3", "qkd-n1-to-n2", "qkd-n2-to-n1"]
    return directory


def compose(directory: Path) -> subprocess.CompletedProcess[str]:
    words = ["testbed", "compose", "line-3", "--dir", str(directory), "--json"]
    command = [sys.executable, "-m", "keyhaul.cli", *words]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def test_each_folder_is_a_configuration_that_is_in_order_with_the_names_it_is_called_by(made: Path) -> None:
    plan = Plan(named("line-3"))
    for name in plan.nodes:
        file = made / "nodes" / name / "node.toml"
        assert [each for each in check(file) if not each.warning] == []
        config = load(file)
        assert config.listeners.node.host == plan.wan_address(name)
        assert config.listeners.sae.host == config.listeners.admin.host == plan.zone_address(name)
        for _, listener in config.listeners:
            assert {name, listener.host} <= names_in(listener.cert)
        assert (file.parent / "root.slots").exists()
    for name in plan.spots:
        device = load_device(made / "devices" / name / "device.json")
        assert (device.host, device.port) == ("0.0.0.0", 8440)
        ready = json.loads((made / "devices" / name / device.peer.ready).read_text())
        assert ready["url"] == f"https://{device.peer.name}:8440"
        assert name in names_in(made / "devices" / name / device.cert)


def names_in(cert: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def test_no_folder_has_a_secret_of_another_service(made: Path) -> None:
    folders = [*(made / "nodes").iterdir(), *(made / "devices").iterdir()]
    seen: dict[bytes, str] = {}
    for folder in folders:
        assert folder.is_dir()
        for file in folder.iterdir():
            if file.suffix in (".key", ".credential", ".slots"):
                assert file.stat().st_mode & 0o077 == 0
                assert seen.setdefault(file.read_bytes(), folder.name) == folder.name, file
            assert "-ca-" not in file.name or file.suffix == ".pem"
    assert len(seen) >= 5 * 2
    assert not (made / "network.toml").exists()


def test_testbed_json_leads_applications_into_the_zones(made: Path) -> None:
    state: dict[str, Any] = json.loads((made / "testbed.json").read_text())
    assert {sae["id"]: sae["sae_url"] for sae in state["saes"]} == {
        f"sae-n{number}": f"https://10.1.{number}0.2:8443" for number in (1, 2, 3)
    }
    assert state["devices"][0]["url"] == "https://10.1.10.3:8440"


def test_what_is_there_is_not_overwritten(made: Path) -> None:
    done = compose(made)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
