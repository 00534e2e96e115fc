"""The `[network]` tables, which are the same on every node and may stand in a file of their own.

[nodes]                [[links]]            [saes]                     [foreign]
vigo = "galicia"       a = "vigo"           "backup-vigo" = "vigo"     "far-sae" = {node = …, peer = …}
                       b = "santiago"
                       kind = "qkd"         [costs]
"""

from __future__ import annotations

from typing import Any, cast

from keyhaul.config import model
from keyhaul.config.reader import Mistake, Section, Source
from keyhaul.errors import KeyhaulError
from keyhaul.policy import check_sae


def read_network(table: Section, mistakes: list[Mistake]) -> model.NetworkView:
    """The network, here or in the file that `[network] file` names; its mistakes carry that file's name."""
    if "file" not in table:
        return _network(table)
    file = table.file("file")
    table.done()
    if not file.is_file():
        table.report("file", f"there is no network file {file}", "correct the path, or copy the file here")
        return model.NetworkView({}, (), {})
    shared = Source(file.resolve(), mistakes).read()
    return model.NetworkView({}, (), {}) if shared is None else _network(shared)


def _network(table: Section) -> model.NetworkView:
    nodes = _texts(table.section("nodes"))
    links = _links(table, nodes)
    view = model.NetworkView(
        nodes=nodes,
        links=links,
        saes=_saes(table.section("saes", required=False), nodes),
        foreign=_foreign(table.section("foreign", required=False), nodes),
        costs=_costs(table.section("costs", required=False)),
    )
    table.done()
    return view


def _texts(table: Section) -> dict[str, str]:
    return {name: table.text(name) for name in table.names()}


def _links(table: Section, nodes: dict[str, str]) -> tuple[model.NetworkLink, ...]:
    links: list[model.NetworkLink] = []
    seen: set[frozenset[str]] = set()
    for section in table.sections("links"):
        kind = section.choice("kind", ("qkd", "pqc"))
        mode = section.choice("mode", ("expanded", "otp"), "expanded")
        link = model.NetworkLink(section.text("a"), section.text("b"), cast(Any, kind), cast(Any, mode))
        section.done()
        for end in ("a", "b"):
            _known(section, end, getattr(link, end), nodes)
        ends = frozenset((link.a, link.b))
        if len(ends) == 1 and link.a:
            section.report("b", f"a link joins {link.a} with itself", "name two nodes")
        elif ends in seen:
            section.report(None, f"{link.a} and {link.b} are linked twice", "remove one of the links")
        seen.add(ends)
        links.append(link)
    return tuple(links)


def _known(section: Section, setting: str, node: str, nodes: dict[str, str]) -> None:
    if node and node not in nodes:
        section.report(setting, f"{node} is not a node of the network", "add it to [nodes], or correct it")


def _saes(table: Section, nodes: dict[str, str]) -> dict[str, str]:
    saes = _texts(table)
    for sae, node in saes.items():
        _fit(table, sae)
        _known(table, sae, node, nodes)
    return saes


def _fit(table: Section, sae: str) -> None:
    try:
        check_sae(sae)
    except KeyhaulError as error:
        table.report(sae, f"SAE {sae!r}: {error.cause}", error.remedy)


def _foreign(table: Section, nodes: dict[str, str]) -> dict[str, model.ForeignSae]:
    found: dict[str, model.ForeignSae] = {}
    for sae in table.names():
        _fit(table, sae)
        section = table.section(sae)
        found[sae] = model.ForeignSae(section.text("node"), section.text("peer"))
        _known(section, "node", found[sae].node, nodes)
        section.done()
    return found


def _costs(table: Section) -> dict[str, float]:
    costs = {kind: table.number(kind, cost, low=0.001, high=1e6) for kind, cost in model.COSTS.items()}
    table.done()
    return costs


def check_peers(config: model.NodeConfig, root: Section) -> None:
    """This node's peers against the network's links: what one says the other must say too."""
    peers = _unique_peers(config, root)
    if config.network.nodes and config.name and config.name not in config.network.nodes:
        root.report("name", f"{config.name} is not a node of the network", "add it to the network's nodes")
    elif config.name in config.network.nodes and config.network.nodes[config.name] != config.domain:
        other = config.network.nodes[config.name]
        root.report("domain", f"domain is {config.domain} here and {other} in the network", "make them agree")
    links = {
        _far(link, config.name): link for link in config.network.links if config.name in (link.a, link.b)
    }
    for name in links.keys() - peers.keys():
        root.report("peers", f"the network links {config.name} with {name}", f"add [[peers]] for {name}")
    for name, (peer, section) in peers.items():
        _agree(peer, links.get(name), section)
    for sae, foreign in config.network.foreign.items():
        _check_foreign(config, root, sae, foreign)
    if config.listeners.plain is not None and not any(peer.kind == "plain" for peer in config.peers):
        text = "there is a plain port and no peer that may use it"
        root.report("listeners", text, 'add [[peers]] with kind = "plain", or remove it', warning=True)


def _unique_peers(config: model.NodeConfig, root: Section) -> dict[str, tuple[model.Peer, Section]]:
    peers: dict[str, tuple[model.Peer, Section]] = {}
    for peer, section in zip(config.peers, root.sections("peers"), strict=False):
        if peer.name in peers:
            section.report("name", f"peer {peer.name} is there twice", "remove one, or correct its name")
        if peer.name == config.name and peer.name:
            section.report("name", f"{peer.name} is this node itself", "name a neighbour")
        peers[peer.name] = (peer, section)
    return peers


def _check_foreign(config: model.NodeConfig, root: Section, sae: str, foreign: model.ForeignSae) -> None:
    if sae in config.network.saes:
        root.report("network", f"SAE {sae} is both ours and foreign", "leave it in one of the two tables")
    plain = [peer.name for peer in config.peers if peer.kind == "plain"]
    if foreign.node == config.name and foreign.peer not in plain:
        cause = f"foreign SAE {sae} lies behind {foreign.peer}, which is no plain peer of this node"
        root.report("network", cause, 'add [[peers]] with kind = "plain", or correct the name')


def _agree(peer: model.Peer, link: model.NetworkLink | None, section: Section) -> None:
    if peer.kind == "plain":
        return
    if link is None:
        section.report("name", f"the network has no link to {peer.name}", "add it to the network's links")
    elif link.kind != peer.kind:
        section.report("kind", f"kind is {peer.kind} here and {link.kind} in the network", "make them agree")
    elif link.mode != peer.mode:
        section.report("mode", f"mode is {peer.mode} here and {link.mode} in the network", "make them agree")


def _far(link: model.NetworkLink, name: str) -> str:
    return link.b if link.a == name else link.a
