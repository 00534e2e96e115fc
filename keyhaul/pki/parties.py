"""Certificates on disk: four CAs per domain, and everything they sign. Private keys are born with mode 0600.

<directory>/
  node-anchors.pem              the node CAs of all domains: whom a node port believes
  <domain>/
    ca/{node,sae,admin,device}.{pem,key}    and `plain`, once a node has a port for foreign key managers
    node/<name>.{pem,key}       ML-DSA-65, client and server
    sae-port/, admin-port/      the server side of those ports
    sae/, admin/                clients
    device/, device-client/     014 servers of QKD devices, and nodes in the role of their SAE
    plain/<name>.{pem,key,ca.pem}   ECDSA, client and server: nodes before key managers of other makers
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from keyhaul.certificates import CLIENT, SERVER, Leaf, authority, issue
from keyhaul.errors import ConfigError
from keyhaul.pki.files import certificates_in, pem, signer, write, write_pair

ROLES = ("node", "sae", "admin", "device")

_NAME = re.compile(r"[a-z0-9-]{1,63}")
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_SKEW = timedelta(minutes=5)  # certificates must work at once on a neighbour whose clock is a bit behind


@dataclass(frozen=True, slots=True)
class Party:
    """What the certificates of one kind of party have: the CA that signs, the role, the uses, the key.

    `node`: it is named after a node.
    """

    ca: str
    role: str | None
    uses: tuple[x509.ObjectIdentifier, ...]
    algorithm: str = "ecdsa"
    node: bool = False


PARTIES = {
    "node": Party("node", "node", (*SERVER, *CLIENT), "ml-dsa-65", node=True),
    "sae-port": Party("sae", None, SERVER, node=True),
    "admin-port": Party("admin", None, SERVER, node=True),
    "sae": Party("sae", "sae", CLIENT),
    "admin": Party("admin", "admin", CLIENT),
    "device": Party("device", "device", SERVER),
    "device-client": Party("device", "sae", CLIENT),
    "plain": Party("plain", "node", (*SERVER, *CLIENT), node=True),
}
"""By the folder their files are in."""


def leaf(party: str, name: str, hosts: Sequence[str] = (), algorithm: str = "") -> Leaf:
    """What the certificate of a party says. Raises ConfigError if it cannot be."""
    kind = PARTIES[party]
    if kind.node:
        _check_name("node", name)
    return Leaf(name, kind.role, hosts, kind.uses, algorithm or kind.algorithm)


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files of one party: its certificate, its key, and the CAs it accepts on the other side."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Days that certificates are valid from `start`, which is now unless given."""

    leaf: int = 365
    ca: int = 3650
    start: datetime | None = None

    def window(self, days: int) -> tuple[datetime, datetime]:
        """First and last moment of validity."""
        start = (self.start or datetime.now(UTC)) - _SKEW
        return start, start + timedelta(days=days)


@dataclass(frozen=True, slots=True)
class Pki:
    """The authorities under one directory. Every method writes files and raises ConfigError if it cannot.

    Nothing that exists is overwritten unless `overwrite` is set.
    """

    directory: Path
    domains: tuple[str, ...]
    lifetimes: Lifetimes = Lifetimes()
    overwrite: bool = False

    @classmethod
    def create(
        cls,
        directory: Path,
        domains: Sequence[str],
        *,
        lifetimes: Lifetimes | None = None,
        overwrite: bool = False,
    ) -> Pki:
        """Make the CAs of these domains, and the bundle that lets their nodes believe each other."""
        if not domains or len(set(domains)) < len(domains):
            raise ConfigError("a PKI needs at least one domain, and each once", "name the domains")
        for name in domains:
            _check_name("domain", name)
        pki = cls(directory, tuple(domains), lifetimes or Lifetimes(), overwrite)
        pki._refuse(pki.anchors, *(pki.ca(d, role) for d in domains for role in ROLES))
        for name in domains:
            for role in ROLES:
                pki._found(name, role)
        bundle = b"".join(pki.ca(name, "node").read_bytes() for name in domains)
        write(pki.anchors, bundle, 0o644, overwrite=overwrite)
        return pki

    @classmethod
    def open(cls, directory: Path, *, lifetimes: Lifetimes | None = None, overwrite: bool = False) -> Pki:
        """Use the CAs that `create` made there earlier."""
        found = sorted(path.parent.parent.name for path in directory.glob("*/ca/node.pem"))
        if not found:
            raise ConfigError(
                f"{directory}: no certificate authorities here", "make them with `keyhaul init`"
            )
        return cls(directory, tuple(found), lifetimes or Lifetimes(), overwrite)

    def node(self, domain: str, name: str, hosts: Sequence[str]) -> Files:
        """A node, as server and client of its neighbours; it believes the nodes of all domains."""
        return self._issue(domain, "node", leaf("node", name, hosts), self.anchors)

    def sae_port(self, domain: str, name: str, hosts: Sequence[str]) -> Files:
        """The port of node `name` for SAEs of its domain."""
        return self._issue(domain, "sae-port", leaf("sae-port", name, hosts))

    def admin_port(self, domain: str, name: str, hosts: Sequence[str]) -> Files:
        """The port of node `name` for operators of its domain."""
        return self._issue(domain, "admin-port", leaf("admin-port", name, hosts))

    def admin(self, domain: str, name: str) -> Files:
        """An operator."""
        return self._issue(domain, "admin", leaf("admin", name))

    def sae(self, domain: str, sae_id: str, algorithm: str = "ecdsa") -> Files:
        """An SAE; `algorithm` is ecdsa, or ml-dsa-65 for clients that can use it."""
        return self._issue(domain, "sae", leaf("sae", sae_id, algorithm=algorithm))

    def device(self, domain: str, name: str, hosts: Sequence[str]) -> Files:
        """The 014 server of a QKD device."""
        return self._issue(domain, "device", leaf("device", name, hosts))

    def device_client(self, domain: str, sae_id: str) -> Files:
        """A node in the role of an SAE of its device."""
        return self._issue(domain, "device-client", leaf("device-client", sae_id))

    def plain(self, domain: str, name: str, hosts: Sequence[str], believed: Sequence[Path]) -> Files:
        """Node `name` before key managers of other makers, whose CAs are in the files `believed`.

        Its own CA, ECDSA, is made with the first of these certificates; foreign KMEs have to trust it.
        """
        wanted = leaf("plain", name, hosts)
        if domain in self.domains and not self.ca(domain, "plain").exists():
            self._found(domain, "plain")
        bundle = self.directory / domain / "plain" / f"{name}.ca.pem"
        self._refuse(bundle)
        foreign = [each for path in believed for each in certificates_in(path, "name the foreign KME's CA")]
        files = self._issue(domain, "plain", wanted, bundle)
        write(bundle, pem(foreign), 0o644, overwrite=self.overwrite)
        return files

    @property
    def anchors(self) -> Path:
        """The CAs that node ports believe."""
        return self.directory / "node-anchors.pem"

    def stem(self, domain: str, party: str, name: str) -> Path:
        """Where the files of a party are, without their suffix."""
        return self.directory / domain / party / file_name(name)

    def ca(self, domain: str, role: str) -> Path:
        """The CA of a role: during a rotation two in one file, and the key says which one signs."""
        return self.directory / domain / "ca" / f"{role}.pem"

    def _issue(self, domain: str, party: str, wanted: Leaf, trust: Path | None = None) -> Files:
        if domain not in self.domains:
            raise ConfigError(f"there is no domain {domain!r} here", f"use one of {', '.join(self.domains)}")
        stem, authority_file = self.stem(domain, party, wanted.name), self.ca(domain, PARTIES[party].ca)
        files = Files(_suffixed(stem, ".pem"), _suffixed(stem, ".key"), trust or authority_file)
        self._refuse(files.cert, files.key)
        ca, ca_key = signer(authority_file)
        certificate, key = issue(wanted, domain, ca, ca_key, self.lifetimes.window(self.lifetimes.leaf))
        write_pair(files.key, key, files.cert, certificate, overwrite=self.overwrite)
        return files

    def _found(self, domain: str, role: str) -> None:
        certificate, key = authority(domain, role, self.lifetimes.window(self.lifetimes.ca))
        path = self.ca(domain, role)
        write_pair(path.with_suffix(".key"), key, path, certificate, overwrite=self.overwrite)

    def _refuse(self, *paths: Path) -> None:
        for path in paths:
            if not self.overwrite and path.exists():
                raise ConfigError(f"{path} exists already", "remove it, or ask for it to be overwritten")


def file_name(name: str) -> str:
    """A file name for any id: itself if it is harmless, else what is left of it and a hash (48 bits)."""
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40].strip("_")
    return f"{readable or 'id'}.{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _suffixed(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no {kind} name", "use 1 to 63 characters of a-z, 0-9 and -")
