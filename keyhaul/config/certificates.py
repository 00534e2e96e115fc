"""Checks the certificates and keys a configuration names: there, matching, in date, with the right names."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from keyhaul import identity
from keyhaul.config.model import DeviceEnd, Listener, NodeConfig
from keyhaul.config.positions import Path as Position
from keyhaul.config.reader import Mistake, Source
from keyhaul.errors import ConfigError, Unauthorized

_QUANTUM_SAFE = (mldsa.MLDSA44PublicKey, mldsa.MLDSA65PublicKey, mldsa.MLDSA87PublicKey)
SOON = timedelta(days=14)
_ISSUE = "issue a new one with `keyhaul init`, or correct the path"
_ANY = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to


@dataclass(slots=True)
class _Place:
    """One `cert`, `key`, `ca` trio and where it stands in the configuration."""

    source: Source
    path: Position
    title: str

    def report(self, name: str, cause: str, remedy: str, *, warning: bool = False) -> None:
        self.source.report((*self.path, name), f"{self.title}: {cause}", remedy, warning=warning)


def check_certificates(config: NodeConfig, source: Source) -> list[Mistake]:
    """Mistakes and warnings in all PEM files of one configuration; `source` gives the lines."""
    for name, listener in config.listeners:
        place = _Place(source, ("listeners", name), f"{name} port")
        certificate = _trio(place, listener)
        if certificate is not None:
            _server(place, certificate, listener)
            if name == "node":
                _node(place, certificate, config, listener)
            elif name == "plain":
                _plain(place, certificate, config)
    for index, peer in enumerate(config.peers):
        if peer.device is not None:
            place = _Place(source, ("peers", index, "device"), f"device of {peer.name}")
            certificate = _trio(place, peer.device)
            if certificate is not None:
                _use(place, certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "clients")
                _named(place, certificate, identity.sae_id, peer.device.own_sae, "own_sae")
    return source.mistakes


def _trio(place: _Place, files: Listener | DeviceEnd) -> x509.Certificate | None:
    """Check the three files; the certificate if it can be read."""
    _authorities(place, files.ca)
    chain = _certificates(place, "cert", files.cert)
    if not chain:
        return None
    _dates(place, "cert", chain[0])
    _key(place, files.key, chain[0])
    return chain[0]


def _authorities(place: _Place, file: Path) -> None:
    for certificate in _certificates(place, "ca", file):
        _dates(place, "ca", certificate)
    read = identity.Anchors.of_domains if place.path[-1] == "node" else identity.Anchors.load
    try:
        read(file.read_bytes())
    except ConfigError as error:
        if "no certificate in PEM form" not in error.cause:  # said above
            place.report("ca", error.cause, error.remedy)
    except OSError:
        return  # said above


def _read(place: _Place, name: str, file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError as error:
        place.report(name, f"{file}: {error.strerror}", _ISSUE)
        return None


def _certificates(place: _Place, name: str, file: Path) -> list[x509.Certificate]:
    content = _read(place, name, file)
    if content is None:
        return []
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        place.report(name, f"{file} holds no certificate in PEM form", _ISSUE)
        return []


def _dates(place: _Place, name: str, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    whose = certificate.subject.rfc4514_string() or "the certificate"
    if now > certificate.not_valid_after_utc:
        end = certificate.not_valid_after_utc
        place.report(name, f"{whose} expired on {end:%Y-%m-%d %H:%M} UTC", "issue a new one")
    elif now < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc
        place.report(name, f"{whose} is valid only from {start:%Y-%m-%d %H:%M} UTC", "set the clock, or wait")
    elif now > certificate.not_valid_after_utc - SOON:
        end = certificate.not_valid_after_utc
        place.report(name, f"{whose} expires on {end:%Y-%m-%d}", "issue a new one in time", warning=True)


def _key(place: _Place, file: Path, certificate: x509.Certificate) -> None:
    content = _read(place, "key", file)
    if content is None:
        return
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        place.report("key", f"{file} can be read by others than its owner", f"chmod 600 {file}")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        place.report("key", f"{file} is encrypted", "store it without a passphrase, mode 0600")
    except (ValueError, UnsupportedAlgorithm):
        place.report("key", f"{file} holds no private key in PEM form", _ISSUE)
    else:
        if key.public_key() != certificate.public_key():
            place.report("key", f"{file} does not belong to the certificate", "name the key made with it")


def _server(place: _Place, certificate: x509.Certificate, listener: Listener) -> None:
    _use(place, certificate, ExtendedKeyUsageOID.SERVER_AUTH, "servers")
    hosts, addresses = _hosts(certificate)
    if not hosts and not addresses:
        place.report(
            "cert", "the certificate names no host, so no client will accept it", "issue one with hosts"
        )
    elif listener.host not in _ANY and listener.host not in {*hosts, *addresses}:
        named = ", ".join(sorted({*hosts, *addresses}))
        cause = f"the certificate is for {named}, the port listens on {listener.host}"
        place.report("cert", cause, "fine if clients use one of those names", warning=True)


def _hosts(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return [], []
    addresses: list[
        ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network
    ]
    addresses = names.get_values_for_type(x509.IPAddress)
    return names.get_values_for_type(x509.DNSName), [str(address) for address in addresses]


def _node(place: _Place, certificate: x509.Certificate, config: NodeConfig, listener: Listener) -> None:
    _use(place, certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "clients (a node calls its neighbours with it)")
    _named(place, certificate, identity.node_name, config.name, "name")
    if listener.tls == "pq" and not isinstance(certificate.public_key(), _QUANTUM_SAFE):
        cause = "the certificate's signature key is classical"
        place.report("cert", cause, "issue ML-DSA-65 ones between nodes", warning=True)


def _plain(place: _Place, certificate: x509.Certificate, config: NodeConfig) -> None:
    """The foreign side chose what it wants to read in a certificate, so only the obvious is looked at."""
    _use(place, certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "clients (foreign KMEs are called with it)")
    if isinstance(certificate.public_key(), _QUANTUM_SAFE):
        cause = "the certificate's key is ML-DSA, which few KMEs of other makers can check"
        place.report("cert", cause, "issue an ECDSA one: keyhaul init --foreign-ca", warning=True)
    if config.listeners.plain is not None and config.listeners.plain.ca == config.listeners.node.ca:
        cause = "the plain port believes the CAs of the node port"
        place.report("ca", cause, "name a file with the CAs of the foreign KMEs only", warning=True)


def _named(
    place: _Place,
    certificate: x509.Certificate,
    read: Callable[[x509.Certificate], str],
    wanted: str,
    setting: str,
) -> None:
    try:
        found = read(certificate)
    except Unauthorized as error:
        place.report("cert", error.cause, error.remedy)
        return
    if found != wanted:
        cause = f"the certificate speaks for {found!r}, {setting} is {wanted!r}"
        place.report("cert", cause, "issue one for this name, or correct the setting")


def _use(place: _Place, certificate: x509.Certificate, use: x509.ObjectIdentifier, whom: str) -> None:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except ValueError:
        place.report("cert", "its extensions cannot be read", "have it issued again")
        return
    if use not in uses:
        place.report("cert", f"the certificate is not for {whom}", "issue it with that extended key usage")
