"""The shapes of test networks: read from TOML files, or generated as line, ring, mesh or random graph."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keyhaul.config.reader import Mistake, Mistakes, Section, Source
from keyhaul.config.schemes import DEFAULTS, missing_libraries
from keyhaul.errors import ConfigError
from keyhaul.testbed.presets import PRESETS

FOLDER = Path(__file__).parent / "topologies"
SMALLEST, LARGEST = 2, 64
"""Nodes of a generated topology; each is a process of its own."""

_NAME = r"[a-z0-9-]{1,40}"
_GENERATED = re.compile(r"(line|ring|mesh|random)-(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Node:
    """A site: its name, its domain, and the SAEs it serves."""

    name: str
    domain: str
    saes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """Two neighbours. `devices` are the presets at `a` and `b`; a link of kind `pqc` has none."""

    a: str
    b: str
    kind: str
    mode: str = "expanded"
    devices: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """How files and people call it."""
        return f"{self.a}--{self.b}"


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole test network. `scheme` is its nodes' default; `blind` whether they take part in that scheme."""

    name: str
    title: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    scheme: str = "auto"
    blind: bool = False

    @property
    def domains(self) -> tuple[str, ...]:
        """Each once, in order of appearance."""
        return tuple(dict.fromkeys(node.domain for node in self.nodes))

    def schemes(self) -> dict[str, object] | None:
        """The `[schemes]` table of its nodes; None where they need none.

        A network that wants `blind` goes on without it where its library is missing; see `left_out`.
        """
        if not self.blind or missing_libraries():
            return None
        return {"default": self.scheme, "blind": {"enabled": True}}

    def left_out(self) -> str:
        """What of the network cannot be had on this machine, in words."""
        if self.blind and (missing := missing_libraries()):
            return f"scheme blind is left out: {missing} cannot be imported (install the extra 'blind')"
        return ""

    def with_devices(self, preset: str) -> Topology:
        """The same network with all devices of one preset, such as `instant` for benchmarks."""
        if preset not in PRESETS:
            raise ConfigError(f"there is no device preset {preset!r}", f"use one of {', '.join(PRESETS)}")
        links = (replace(link, devices=(preset, preset)) if link.devices else link for link in self.links)
        return replace(self, links=tuple(links))


def named(name: str) -> Topology:
    """A topology by its name: one that ships with the testbed, or `line-N`, `ring-N`, `mesh-N`, `random-N`.

    A path that ends in `.toml` is read too. Raises ConfigError.
    """
    if name.endswith(".toml"):
        return read(Path(name))
    if (FOLDER / f"{name}.toml").is_file() and re.fullmatch(_NAME, name):
        return read(FOLDER / f"{name}.toml")
    if found := _GENERATED.fullmatch(name):
        return generate(found.group(1), int(found.group(2)))
    raise ConfigError(f"there is no topology {name!r}", f"use one of {', '.join(available())}")


def available() -> list[str]:
    """What `named` understands, for help and messages."""
    return [*sorted(file.stem for file in FOLDER.glob("*.toml")), "line-N", "ring-N", "mesh-N", "random-N"]


def read(file: Path) -> Topology:
    """A topology file; raises `Mistakes` (a ConfigError) with all that is wrong."""
    mistakes: list[Mistake] = []
    root = Source(file, mistakes).read()
    if root is None:
        raise Mistakes(mistakes)
    title = root.text("title", file.stem)
    nodes = tuple(_node(section) for section in root.sections("nodes"))
    names = [node.name for node in nodes]
    if len(nodes) < SMALLEST or len(set(names)) < len(names):
        root.report("nodes", "a network needs two nodes or more, each name once", "correct [[nodes]]")
    links = tuple(_link(section, names) for section in root.sections("links"))
    if len({frozenset((link.a, link.b)) for link in links}) < len(links):
        root.report("links", "two nodes are linked twice", "remove one of the links")
    scheme = root.choice("scheme", DEFAULTS, "auto")
    blind = root.flag("blind", False)
    if scheme == "blind" and not blind:
        root.report("scheme", "the default scheme is not enabled", "add blind = true")
    root.done()
    if mistakes:
        raise Mistakes(mistakes)
    return Topology(file.stem, title, nodes, links, scheme, blind)


def generate(shape: str, size: int, largest: int = LARGEST) -> Topology:
    """`line`, `ring`, `mesh` (all with all) or `random` (connected, the same for the same size).

    Quantum links with instant devices and post-quantum ones take turns, as in paper A. Raises ConfigError.
    """
    if not SMALLEST <= size <= largest:
        raise ConfigError(f"{size} nodes is no size for {shape}", f"use {SMALLEST} to {largest}")
    width = len(str(size))
    names = [f"n{number:0{width}}" for number in range(1, size + 1)]
    pairs = _SHAPES[shape](names)
    links = tuple(
        Link(a, b, "pqc") if index % 2 else Link(a, b, "qkd", devices=("instant", "instant"))
        for index, (a, b) in enumerate(pairs)
    )
    nodes = tuple(Node(name, "lab", (f"sae-{name}",)) for name in names)
    return Topology(f"{shape}-{size}", f"{shape} of {size} nodes", nodes, links)


def _node(table: Section) -> Node:
    name = table.text("name", pattern=_NAME, shape="1 to 40 characters of a-z, 0-9 and -")
    node = Node(name, table.text("domain", "lab", pattern=_NAME, shape="a domain name"), _saes(table, name))
    table.done()
    return node


def _saes(table: Section, name: str) -> tuple[str, ...]:
    return tuple(table.texts("saes", (f"sae-{name}",)))


def _link(table: Section, names: Sequence[str]) -> Link:
    kind = table.choice("kind", ("qkd", "pqc"))
    mode = table.choice("mode", ("expanded", "otp"), "expanded")
    ends = [table.choice(end, [*names] or [""]) for end in ("a", "b")]
    devices = table.texts("devices", ())
    if len(devices) != (2 if kind == "qkd" else 0):
        table.report(
            "devices", f"a {kind} link has {len(devices)} devices", "a qkd link has two, a pqc link none"
        )
    elif unknown := [preset for preset in devices if preset not in PRESETS]:
        table.report("devices", f"no device preset {unknown[0]!r}", f"use one of {', '.join(PRESETS)}")
    if ends[0] == ends[1]:
        table.report("b", f"a link joins {ends[0]} with itself", "name two nodes")
    table.done()
    return Link(ends[0], ends[1], kind, mode, (devices[0], devices[1]) if len(devices) == 2 else None)


def _line(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(names))


def _ring(names: Sequence[str]) -> list[tuple[str, str]]:
    closing = [(names[-1], names[0])] if len(names) > 2 else []
    return _line(names) + closing


def _mesh(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(names, 2))


def _random(names: Sequence[str]) -> list[tuple[str, str]]:
    """A random tree and half as many links again; of average degree 3, as backbones have."""
    rng = random.Random(len(names))  # noqa: S311 - a shape, not a secret
    pairs = [(rng.choice(names[:index]), name) for index, name in enumerate(names) if index]
    rest = sorted(set(itertools.combinations(names, 2)) - set(pairs))
    return pairs + rng.sample(rest, min(len(names) // 2, len(rest)))


_SHAPES = {"line": _line, "ring": _ring, "mesh": _mesh, "random": _random}


def device_links(topology: Topology) -> Iterable[tuple[Link, tuple[str, str]]]:
    """The links that a pair of devices stands behind, with the presets at both ends."""
    return ((link, link.devices) for link in topology.links if link.devices)
