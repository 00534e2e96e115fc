"""What the certificates of a PKI say and how they are signed: keys, names, extensions. No files here.

Node CAs sign with ML-DSA-65. The others are ECDSA, P-384 for the CA and P-256 for what it signs, which
curl, OpenSSL 3.0, Go and Java understand today. Profiles follow RFC 5280 §4.2 and, for ML-DSA, RFC 9881.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyhaul.errors import ConfigError
from keyhaul.identity import urn

CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)

Key = ec.EllipticCurvePrivateKey | mldsa.MLDSA65PrivateKey
PublicKey = ec.EllipticCurvePublicKey | mldsa.MLDSA65PublicKey
Window = tuple[datetime, datetime]
Builder = TypeVar("Builder", x509.CertificateBuilder, x509.CertificateSigningRequestBuilder)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one end certificate says: its name, its role (None: no URI), its hosts, its uses.

    Hosts are DNS names and IP addresses. Raises ConfigError for a name that `identity` would refuse.
    """

    name: str
    role: str | None
    hosts: Sequence[str]
    uses: tuple[x509.ObjectIdentifier, ...]
    algorithm: str = "ecdsa"

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ConfigError(f"{self.name!r} is no name for a certificate", "use printable characters")

    def extend(self, builder: Builder) -> Builder:
        """Add the extensions of an end certificate, or of the request for one."""
        names: list[x509.GeneralName] = (
            [x509.UniformResourceIdentifier(urn(self.role, self.name))] if self.role else []
        )
        alternatives = x509.SubjectAlternativeName([*names, *map(_host, self.hosts)])
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(self.uses), critical=False)
        return builder.add_extension(alternatives, critical=False)


def authority(domain: str, role: str, window: Window) -> tuple[x509.Certificate, Key]:
    """A self-signed CA that signs end certificates only."""
    key = new_key("ml-dsa-65" if role == "node" else "p-384")
    return _authority(_subject(domain, f"{domain} {role} CA"), key, window), key


def successor(ca: x509.Certificate, window: Window, key: Key | None = None) -> tuple[x509.Certificate, Key]:
    """A self-signed CA of the same name with another key, of the same kind or given."""
    key = key or new_key_like(ca)
    return _authority(ca.subject, key, window), key


def _authority(name: x509.Name, key: Key, window: Window) -> x509.Certificate:
    builder = _builder(name, name, key.public_key(), window)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _sign(builder.add_extension(_usage(ca=True), critical=True), key)


def vouching(of: x509.Certificate, ca: x509.Certificate, ca_key: Key) -> x509.Certificate:
    """A CA's word for the key of another of its name (RFC 4210 §4.4), and no more than that.

    It lacks keyCertSign, so no chain leads through it: else whoever got hold of an old key could show that of
    the new CA for it long after the old one was dropped.
    """
    window = (
        max(of.not_valid_before_utc, ca.not_valid_before_utc),
        min(of.not_valid_after_utc, ca.not_valid_after_utc),
    )
    public = of.public_key()
    if not isinstance(public, PublicKey):
        raise ConfigError("the CA's key is of a kind that is not made here", "use ECDSA or ML-DSA-65")
    builder = _builder(of.subject, ca.subject, public, window)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(ca=True, signs=False), critical=True)
    return _sign(builder.add_extension(_issuer_key(ca), critical=False), ca_key)


def issue(
    leaf: Leaf, domain: str, ca: x509.Certificate, ca_key: Key, window: Window
) -> tuple[x509.Certificate, Key]:
    """An end certificate; it never outlives its CA. Raises ConfigError for a host it cannot carry."""
    key = new_key("p-256" if leaf.algorithm == "ecdsa" else leaf.algorithm)
    return vouch(leaf, domain, key.public_key(), ca, ca_key, window), key


def vouch(
    leaf: Leaf, domain: str, public: PublicKey, ca: x509.Certificate, ca_key: Key, window: Window
) -> x509.Certificate:
    """An end certificate for a key that is elsewhere; as `issue`."""
    return _sign(leaf.extend(_issued(_subject(domain, leaf.name), public, ca, window)), ca_key)


def request(leaf: Leaf, key: Key) -> x509.CertificateSigningRequest:
    """What the holder of a key asks a CA for (PKCS #10). The domain is the CA's to say."""
    common = [x509.NameAttribute(NameOID.COMMON_NAME, leaf.name)] if len(leaf.name.encode()) <= 64 else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(common))
    return leaf.extend(builder).sign(
        key, hashes.SHA384() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    )


def reissue(
    certificate: x509.Certificate, public: PublicKey, ca: x509.Certificate, ca_key: Key, window: Window
) -> x509.Certificate:
    """An end certificate that says the same of a key, its own or a new one, for another time."""
    builder = _issued(certificate.subject, public, ca, window)
    for extension in certificate.extensions:
        if not isinstance(extension.value, (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier)):
            builder = builder.add_extension(extension.value, extension.critical)
    return _sign(builder, ca_key)


def _issued(
    subject: x509.Name, public: PublicKey, ca: x509.Certificate, window: Window
) -> x509.CertificateBuilder:
    start, end = window
    builder = _builder(subject, ca.subject, public, (start, min(end, ca.not_valid_after_utc)))
    return builder.add_extension(_issuer_key(ca), critical=False)


def _issuer_key(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except ValueError:
        raise ConfigError(f"{host!r} is no host name", "use a DNS name or an IP address") from None


def _subject(domain: str, name: str) -> x509.Name:
    """O=domain, CN=name; names that X.520 does not allow as CN (over 64 characters) stand in the SAN only."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, domain)]
    if 1 <= len(name.encode()) <= 64:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
    return x509.Name(attributes)


def new_key_like(certificate: x509.Certificate) -> Key:
    """A new private key of the kind that a certificate is for."""
    public = certificate.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return ec.generate_private_key(public.curve)
    return new_key("ml-dsa-65" if isinstance(public, mldsa.MLDSA65PublicKey) else type(public).__name__)


def new_key(algorithm: str) -> Key:
    """A private key: ml-dsa-65, p-256 or p-384. Raises ConfigError for any other kind."""
    match algorithm:
        case "ml-dsa-65":
            return mldsa.MLDSA65PrivateKey.generate()
        case "p-256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p-384":
            return ec.generate_private_key(ec.SECP384R1())
    raise ConfigError(f"{algorithm!r} is no certificate algorithm", "use ecdsa or ml-dsa-65")


def _builder(
    subject: x509.Name, issuer: x509.Name, public: PublicKey, window: Window
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(window[0])
        .not_valid_after(window[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, ca: bool, signs: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca and signs,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    """ML-DSA hashes by itself; a P-384 CA signs with the hash of its strength."""
    return builder.sign(key, hashes.SHA384() if isinstance(key, ec.EllipticCurvePrivateKey) else None)
