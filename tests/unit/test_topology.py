"""Test networks have the shape the papers give them, and mistakes in a topology file are told by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyhaul.config import Mistakes, schemes
from keyhaul.errors import ConfigError
from keyhaul.routing import Edge, Network
from keyhaul.testbed.layout import Layout
from keyhaul.testbed.presets import PRESETS
from keyhaul.testbed.topology import FOLDER, Topology, available, generate, named, read


def network(topology: Topology) -> Network:
    return Network(
        {node.name: node.domain for node in topology.nodes},
        [Edge(link.a, link.b, link.kind) for link in topology.links],
        {sae: node.name for node in topology.nodes for sae in node.saes},
    )


def test_galicia_basque_is_paper_a_line() -> None:
    topology = named("galicia-basque")
    assert topology.domains == ("galicia", "basque")
    picture = network(topology).route("itg-1", "tecnalia-8").picture()
    assert picture == "itg-1=itg-2-uvigo-3=uvigo-4-cesga-5=cesga-6-tecnalia-7=tecnalia-8"
    devices = [preset for link in topology.links for preset in link.devices or ()]
    assert devices == [f"kmstn{number}" for number in range(1, 9)]
    assert topology.nodes[0].saes == ("sae-itg-1",)


def test_the_star_needs_fewer_hops_between_its_tips() -> None:
    route = network(named("galicia-basque-star")).route("itg-1", "tecnalia-8")
    assert route.picture() == "itg-1=itg-2-cesga-5-tecnalia-7=tecnalia-8"


def test_tecnalia_is_paper_b_line_of_quantum_links() -> None:
    topology = named("tecnalia")
    assert len(topology.nodes) == 5
    assert [link.devices for link in topology.links] == [("clavis3", "clavis3")] * 4


@pytest.mark.parametrize(
    "name", ["galicia-basque", "galicia-basque-star", "tecnalia", "line-7", "ring-6", "mesh-5", "random-20"]
)
def test_every_topology_is_connected_and_its_files_are_laid_out(name: str, tmp_path: Path) -> None:
    topology = named(name)
    view = network(topology)
    first = topology.nodes[0].name
    for node in topology.nodes:
        assert view.route(first, node.name).hops[-1] == node.name
    spots = Layout(topology, tmp_path).spots
    assert len({spot.name for spot in spots}) == 2 * sum(link.devices is not None for link in topology.links)
    by_name = {spot.name: spot for spot in spots}
    for spot in spots:
        assert by_name[spot.peer].peer == spot.name
        assert {spot.role, by_name[spot.peer].role} == {"keeper", "mirror"}


def test_generated_shapes_have_their_links_and_repeat() -> None:
    assert [len(named(f"{shape}-6").links) for shape in ("line", "ring", "mesh", "random")] == [5, 6, 15, 8]
    assert len(generate("ring", 2).links) == 1
    assert named("random-9") == named("random-9")
    assert {link.kind for link in named("line-4").links} == {"qkd", "pqc"}


@pytest.mark.parametrize("name", ["line-1", "ring-65", "nothing", "cube-4", "../node", "line-"])
def test_unknown_topologies_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError):
        named(name)


def test_help_lists_what_exists() -> None:
    assert set(available()) >= {file.stem for file in FOLDER.glob("*.toml")}


def test_devices_can_be_replaced_for_benchmarks() -> None:
    quick = named("galicia-basque").with_devices("instant")
    assert {preset for link in quick.links for preset in link.devices or ()} == {"instant"}
    assert [link.kind for link in quick.links] == [link.kind for link in named("galicia-basque").links]
    with pytest.raises(ConfigError):
        quick.with_devices("imaginary")


GOOD = """nodes = [ { name = "a" }, { name = "b", saes = ["x", "y"] } ]
links = [ { a = "a", b = "b", kind = "pqc" } ]
"""


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    topology = named(str(file))
    assert topology.name == "mine"
    assert topology.nodes[1].saes == ("x", "y")
    assert PRESETS


@pytest.mark.parametrize(
    ("old", "new", "line", "cause"),
    [
        ('kind = "pqc"', 'kind = "qkd"', 2, "a qkd link has 0 devices"),
        ('kind = "pqc"', 'kind = "qkd", devices = ["clavis3", "clavis4"]', 2, "no device preset 'clavis4'"),
        ('b = "b"', 'b = "c"', 2, "b = 'c' is not known"),
        ('b = "b"', 'b = "a"', 2, "a link joins a with itself"),
        ('name = "b"', 'name = "a"', 1, "each name once"),
        ('"y"', "7", 1, "not a filled string"),
    ],
)
def test_mistakes_in_a_topology_are_told(tmp_path: Path, old: str, new: str, line: int, cause: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        named(str(file))
    assert any(
        each.startswith(f"{file}:{line}: ") and cause in each for each in caught.value.cause.splitlines()
    )


@pytest.mark.parametrize(("name", "default"), [("tecnalia", "blind"), ("galicia-basque", "auto")])
def test_networks_of_the_papers_enable_blind_where_its_library_is(
    name: str, default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemes, "LIBRARIES", ("json",))
    assert named(name).schemes() == {"default": default, "blind": {"enabled": True}}
    assert named(name).left_out() == ""
    monkeypatch.setattr(schemes, "LIBRARIES", ("json", "seal_of_nobody"))
    assert named(name).schemes() is None
    assert "seal_of_nobody cannot be imported" in named(name).left_out()


def test_other_networks_do_without_blind_and_lack_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "LIBRARIES", ("seal_of_nobody",))
    assert named("line-3").schemes() is None
    assert named("line-3").left_out() == ""


def test_a_default_that_is_not_enabled_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text('scheme = "blind"\nnodes = [{ name = "a" }, { name = "b" }]\n')
    with pytest.raises(Mistakes, match="not enabled"):
        read(file)
