"""Certificates for keys that stay where they were made: a request there, and what a CA says to it.

The CA's operator names the party and its hosts; a request has to ask for exactly that, and to prove that
whoever made it has the key. Of the request only the public key gets into the certificate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import NameOID

from keyhaul.certificates import SERVER, Leaf, PublicKey, new_key, request, vouch
from keyhaul.errors import ConfigError, Refused
from keyhaul.pki.files import pem, signer, write, write_key
from keyhaul.pki.parties import PARTIES, Pki, file_name, leaf

_AGAIN = "have the request made anew with `keyhaul pki request`"


def named(party: str, name: str, hosts: Sequence[str], *, ml_dsa: bool = False) -> Leaf:
    """What the certificate of a party shall say. Raises ConfigError if it cannot be."""
    if party == "plain":
        raise ConfigError("a plain port has a CA of its own with its key", "use `keyhaul pki issue plain`")
    serves = SERVER[0] in PARTIES[party].uses
    if serves != bool(hosts):
        raise ConfigError(f"{party} certificates have {'hosts' if serves else 'no hosts'}", "see --host")
    return leaf(party, name, hosts, "ml-dsa-65" if party == "sae" and ml_dsa else "")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was written: its files, and the digest of its public key."""

    request: Path
    key: Path
    digest: str


def ask(wanted: Leaf, into: Path, *, overwrite: bool = False) -> Asked:
    """Make a private key, mode 0600, and the request for its certificate. Raises ConfigError."""
    stem = into / file_name(wanted.name)
    done = [stem.with_name(stem.name + suffix) for suffix in (".csr", ".key")]
    for file in done:
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists already", "remove it, or say --overwrite")
    key = new_key("p-256" if wanted.algorithm == "ecdsa" else wanted.algorithm)
    asked = request(wanted, key)
    write_key(done[1], key, overwrite=overwrite)
    write(done[0], asked.public_bytes(serialization.Encoding.PEM), 0o644, overwrite=overwrite)
    return Asked(done[0], done[1], digest(asked.public_key()))


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate that was issued to a request, and its file with the CA's beside."""

    certificate: x509.Certificate
    file: Path
    ca: Path
    digest: str


def sign(pki: Pki, domain: str, party: str, wanted: Leaf, file: Path, known: str = "") -> Signed:
    """Issue what `wanted` says to the key of the request in `file`, into the party's folder of the PKI.

    `known`, if given, is the digest that the key has to have.
    Raises Refused, and nothing was signed, if the request lacks proof of possession or asks for anything
    else; ConfigError for what is wrong on this side.
    """
    if domain not in pki.domains:
        raise ConfigError(f"there is no domain {domain!r} here", f"use one of {', '.join(pki.domains)}")
    stem = pki.stem(domain, party, wanted.name)
    cert, key = (stem.with_name(stem.name + suffix) for suffix in (".pem", ".key"))
    if key.exists():
        raise ConfigError(
            f"{key}: the private key of that party is here", "remove it, or use `keyhaul pki issue`"
        )
    if cert.exists() and not pki.overwrite:
        raise ConfigError(f"{cert} exists already", "remove it, or say --overwrite")
    public = _checked(file, party, domain, wanted)
    if known and digest(public) != known.lower():
        raise Refused(f"{file}: the public key is {digest(public)}, not the one given", "ask its holder")
    path = pki.ca(domain, PARTIES[party].ca)
    ca, ca_key = signer(path)
    certificate = vouch(wanted, domain, public, ca, ca_key, pki.lifetimes.window(pki.lifetimes.leaf))
    write(cert, pem([certificate]), 0o644, overwrite=pki.overwrite)
    return Signed(certificate, cert, pki.anchors if party == "node" else path, digest(public))


def digest(public: object) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo), for people to compare."""
    assert isinstance(public, PublicKey)
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(*form)).hexdigest()


def _checked(file: Path, party: str, domain: str, wanted: Leaf) -> PublicKey:
    """The public key of a request that asks for what is wanted. Raises Refused."""
    try:
        asked = x509.load_pem_x509_csr(file.read_bytes())
        public, proved = asked.public_key(), asked.is_signature_valid
        found = {each.oid: each for each in asked.extensions}
    except OSError as problem:
        raise ConfigError(f"{file}: {problem.strerror}", "correct the path") from None
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Refused(f"{file}: no certificate request that can be read", _AGAIN) from None
    except UnsupportedAlgorithm:
        raise Refused(f"{file}: the key is of a kind that is not used here", _AGAIN) from None
    if not proved:
        raise Refused(f"{file}: its signature is not of its key, so nobody proves to have it", _AGAIN)
    if not _fits(public, wanted, party) or not isinstance(public, PublicKey):
        raise Refused(f"{file}: that kind of key is not for {party} certificates", _AGAIN)
    expected = {each.oid: each for each in request(wanted, new_key("p-256")).extensions}
    _names(file, asked, found, expected, domain, wanted)
    for oid, each in found.items():
        if oid not in expected or each.value != expected[oid].value:
            what = getattr(oid, "_name", oid.dotted_string)
            raise Refused(f"{file}: it asks for {what} that {party} certificates do not have", _AGAIN)
    return public


def _fits(public: object, wanted: Leaf, party: str) -> bool:
    if isinstance(public, mldsa.MLDSA65PublicKey):
        return party in ("node", "sae")
    curves = (ec.SECP256R1, ec.SECP384R1)
    return (
        wanted.algorithm == "ecdsa"
        and isinstance(public, ec.EllipticCurvePublicKey)
        and isinstance(public.curve, curves)
    )


Found = dict[x509.ObjectIdentifier, "x509.Extension[x509.ExtensionType]"]


def _names(
    file: Path,
    asked: x509.CertificateSigningRequest,
    found: Found,
    expected: Found,
    domain: str,
    wanted: Leaf,
) -> None:
    """Subject and alternative names have to be the party's. Raises Refused."""
    for attribute in asked.subject:
        allowed = {NameOID.COMMON_NAME: wanted.name, NameOID.ORGANIZATION_NAME: domain}.get(attribute.oid)
        if attribute.value != allowed:
            raise Refused(f"{file}: its subject has {attribute.rfc4514_string()}", _AGAIN)
    oid = x509.SubjectAlternativeName.oid
    want = _listed(expected[oid].value) if oid in expected else []
    have = _listed(found.pop(oid).value) if oid in found else []
    expected.pop(oid, None)
    if sorted(want) != sorted(have):
        raise Refused(
            f"{file}: it asks for the names {', '.join(have) or '(none)'}, not for {', '.join(want)}",
            "if those are the party's, say so with NAME and --host; else " + _AGAIN,
        )


def _listed(names: object) -> list[str]:
    assert isinstance(names, x509.SubjectAlternativeName)
    return [str(each.value) for each in names]
