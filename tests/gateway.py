"""A node with a port for key managers of other makers: its PKI, theirs, and its configuration."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul import config
from keyhaul.config.write import toml, write
from keyhaul.edge import tls
from keyhaul.edge.client import SaeClient
from keyhaul.node import Node, prepare
from keyhaul.pki import Files, Pki
from tests.sideways import Ecdsa

HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Gateway:
    """Node `vigo` of domain `others`, on the disk; `maker` issues certificates of the foreign KMEs."""

    directory: Path
    pki: Pki
    maker: Ecdsa
    plain: Files
    sae: Files

    @property
    def file(self) -> Path:
        """The node's configuration."""
        return self.directory / "node.toml"

    @property
    def anchor(self) -> Path:
        """The CA that foreign KMEs have to believe."""
        return self.pki.directory / "others" / "ca" / "plain.pem"

    def foreign(self, name: str) -> tls.Credentials:
        """A certificate of the foreign maker that believes this node."""
        issued = self.maker.issue(name)
        return tls.Credentials(issued.cert, issued.key, self.anchor)

    def configure(
        self, sae: str, peers: Mapping[str, str], foreign: Mapping[str, str], **tables: Mapping[str, Any]
    ) -> None:
        """Write the configuration: `peers` maps KMEs to URLs, `foreign` SAE ids to KMEs.

        A table `skip` opens that port as well.
        """
        applications = _port(self.pki.sae_port("others", "vigo", HOSTS))
        write(self.directory / "root.credential", "0123456789abcdef" * 4)
        everything = {
            "name": "vigo",
            "domain": "others",
            "directory": ".",
            "listeners": {
                "sae": applications,
                **({"skip": applications} if "skip" in tables else {}),
                "node": _port(self.pki.node("others", "vigo", HOSTS)),
                "admin": _port(self.pki.admin_port("others", "vigo", HOSTS)),
                "plain": _port(self.plain),
            },
            "store": {
                "file": "keyhaul.db",
                "root": "root.slots",
                "slots": [{"kind": "credential", "file": "root.credential"}],
            },
            "peers": [{"name": name, "url": url, "kind": "plain"} for name, url in peers.items()],
            "network": {
                "nodes": {"vigo": "others"},
                "saes": {sae: "vigo"},
                "foreign": {name: {"node": "vigo", "peer": peer} for name, peer in foreign.items()},
            },
            **tables,
        }
        write(self.file, toml(everything, "A gateway for the tests."))
        prepare(config.load(self.file))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """The node, for as long as it is needed; the store stays for the next time."""
        node = Node(config.load(self.file))
        await node.start()
        try:
            yield node
        finally:
            await node.stop()

    def application(self, node: Node) -> SaeClient:
        """The node's own SAE."""
        files = tls.Credentials(self.sae.cert, self.sae.key, self.sae.ca)
        return SaeClient(node.urls["sae"], tls.client_context(files, tls.Policy.COMPATIBLE))


def make_gateway(directory: Path, sae: str) -> Gateway:
    """Both PKIs; `configure` has the rest."""
    maker = Ecdsa(directory / "maker", "maker")
    pki = Pki.create(directory / "pki", ["others"])
    plain = pki.plain("others", "vigo", HOSTS, [maker.anchor])
    return Gateway(directory, pki, maker, plain, pki.sae("others", sae))


def _port(files: Files) -> dict[str, object]:
    return {"host": "127.0.0.1", "cert": files.cert, "key": files.key, "ca": files.ca}
