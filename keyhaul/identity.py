"""Who a certificate speaks for, and signatures by and about nodes. Pure: bytes in, values out.

A name is the certificate's URI SAN, else its DNS SAN, else its CN (design §3). Certificates made by
`keyhaul init` carry `urn:keyhaul:<role>:<name>`, percent-encoded, and count in that role only: an SAE
certificate never names a node, whichever CA signed it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtensionOID, NameOID

from keyhaul.errors import ConfigError, Tampered, Unauthorized

URN = "urn:keyhaul:"

_ENCODED = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})+")
_NODE = re.compile(r"[a-z0-9-]+")
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_MALFORMED = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)

Signer = mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey | ec.EllipticCurvePrivateKey
Verifier = mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey | ec.EllipticCurvePublicKey


def urn(role: str, name: str) -> str:
    """The URI that certificates of this project carry: `role` is node, sae, admin or device."""
    return f"{URN}{role}:{quote(name, safe='')}"


def sae_id(certificate: x509.Certificate) -> str:
    """The SAE a certificate speaks for; a URI that is not one of ours is the id as it stands.

    Raises Unauthorized for a certificate of another role, and for one without a single usable name.
    """
    return _name(certificate, "sae")


def node_name(certificate: x509.Certificate) -> str:
    """The node, or foreign KME, a certificate speaks for. Raises Unauthorized as `sae_id` does."""
    return _name(certificate, "node")


def admin_name(certificate: x509.Certificate) -> str:
    """The operator a certificate speaks for. Raises Unauthorized as `sae_id` does."""
    return _name(certificate, "admin")


def domain(certificate: x509.Certificate) -> str | None:
    """The organisation of the CA that issued it, which is the domain if `keyhaul init` made the CA."""
    return organisation(certificate.issuer)


def organisation(name: x509.Name) -> str | None:
    """The one organisation in a name; for the subject of a CA the domain it speaks for."""
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if len(found) == 1 else None


def _name(certificate: x509.Certificate, role: str) -> str:
    try:
        uris, hosts = _alternatives(certificate)
        common = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except _MALFORMED:
        raise Unauthorized("the certificate's names cannot be read", "have it issued again") from None
    ours = [uri for uri in uris if uri.lower().startswith(URN)]
    if ours:
        return _our_name(ours, role)
    # Several URIs or CNs would let the peer be whoever a later reader picks; several host names are usual.
    if len(uris) > 1 or (not uris and not hosts and len(common) > 1):
        raise Unauthorized("the certificate names more than one identity", "issue one certificate per name")
    for name in (*uris, *hosts, *common):
        return _printable(name)
    raise Unauthorized(
        "the certificate has neither URI, nor DNS name, nor CN",
        f"issue one with the URI {URN}{role}:<name> as subject alternative name",
    )


def _alternatives(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    return (
        names.get_values_for_type(x509.UniformResourceIdentifier),
        names.get_values_for_type(x509.DNSName),
    )


def _our_name(uris: list[str], role: str) -> str:
    if len(uris) > 1:
        raise Unauthorized("the certificate names more than one identity", "issue one certificate per name")
    found, _, encoded = uris[0][len(URN) :].partition(":")
    if found.lower() != role:
        raise Unauthorized(
            f"the certificate is one of role {found[:16]!r}, not {role!r}",
            f"connect with a certificate whose URI starts with {URN}{role}:",
        )
    try:
        name = unquote(encoded, errors="strict") if _ENCODED.fullmatch(encoded) else ""
    except UnicodeDecodeError:
        name = ""
    if role == "node" and not _NODE.fullmatch(name):
        raise Unauthorized("a node name has other characters than a-z, 0-9 and -", "have the node renamed")
    return _printable(name)


def _printable(name: str) -> str:
    """Names go into logs, URLs and file names: control characters and empty names stop here."""
    if not name or not name.isprintable():
        raise Unauthorized("the name in the certificate is empty or not printable", "have it issued again")
    return name


class Identity:
    """One node's own certificate and signing key. Neither repr nor errors show the key."""

    __slots__ = ("_key", "certificate", "der", "name")

    def __init__(self, name: str, certificate: x509.Certificate, key: Signer) -> None:
        self.name = name
        self.certificate = certificate
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        self._key = key

    @classmethod
    def load(cls, cert_pem: bytes, key_pem: bytes) -> Identity:
        """From PEM: the first certificate counts, the key is not encrypted. Raises ConfigError."""
        try:
            certificate = x509.load_pem_x509_certificates(cert_pem)[0]
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError("the node's certificate or key is not readable PEM", _REISSUE) from None
        if not isinstance(key, Signer):
            raise ConfigError("the node's key is neither ML-DSA nor ECDSA", _REISSUE)
        if key.public_key() != certificate.public_key():
            raise ConfigError("the node's key does not belong to its certificate", _REISSUE)
        try:
            return cls(node_name(certificate), certificate, key)
        except Unauthorized as refused:
            raise ConfigError(f"the node's own certificate: {refused.cause}", refused.remedy) from None

    def sign(self, message: bytes) -> bytes:
        """A signature of `message`; 3,309 bytes under ML-DSA-65. The caller puts a label into the message."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, _ecdsa(self._key.curve))
        return self._key.sign(message)

    def renew(self, fresh: Identity) -> None:
        """Sign with another certificate of the same node from now on. Raises ConfigError for another's."""
        if fresh.name != self.name:
            raise ConfigError(f"the certificate is for {fresh.name!r}, the node is {self.name!r}", _REISSUE)
        self.certificate, self.der, self._key = fresh.certificate, fresh.der, fresh._key

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"


_REISSUE = "make the node's certificate again with `keyhaul init`"


@dataclass(frozen=True, slots=True)
class Verified:
    """A node whose certificate chains to an anchor; `domain` is that anchor's organisation, if it has one."""

    name: str
    certificate: x509.Certificate
    domain: str | None = None

    def check(self, signature: bytes, message: bytes) -> None:
        """Raise Tampered unless this node signed `message`."""
        key = self.certificate.public_key()
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, message, _ecdsa(key.curve))
            elif isinstance(key, Verifier):
                key.verify(signature, message)
            else:
                raise Tampered
        except (InvalidSignature, ValueError):
            raise Tampered from None


@dataclass(frozen=True, slots=True)
class Anchors:
    """The CAs whose node certificates we believe: our own, and those of the domains we federate with."""

    certificates: tuple[x509.Certificate, ...] = field(repr=False)

    @classmethod
    def load(cls, pem: bytes) -> Anchors:
        """From a PEM bundle. Raises ConfigError if it is empty, or an entry is no CA.

        Several CAs of one name are as good as several names: the signature says which one issued what.
        """
        try:
            certificates = tuple(x509.load_pem_x509_certificates(pem))
        except ValueError:
            raise ConfigError("the bundle of trusted CAs holds no certificate in PEM form", _BUNDLE) from None
        for certificate in certificates:
            if not is_ca(certificate):
                shown = certificate.subject.rfc4514_string()
                raise ConfigError(f"{shown} in the bundle of trusted CAs is no CA", _BUNDLE)
        return cls(tuple(dict.fromkeys(certificates)))

    @classmethod
    def of_domains(cls, pem: bytes) -> Anchors:
        """As `load`, for a node port, where a CA speaks for the domain that is its organisation.

        Raises ConfigError too if several keys speak for one domain and do not vouch for each other: each
        certified by another, and that one by it, as in a rollover (RFC 4210 §4.4). One direction would not
        do: anybody can certify the key of a CA that exists, and call himself its predecessor.
        """
        anchors = cls.load(pem)
        spoken: dict[str | None, list[x509.Certificate]] = {}
        for certificate in anchors.certificates:
            spoken.setdefault(organisation(certificate.subject), []).append(certificate)
        spoken.pop(None, None)  # speak for no node
        for name, certificates in spoken.items():
            if not _vouch_for_each_other(certificates):
                raise ConfigError(
                    f"two CAs in the bundle claim the domain {name!r}, and do not vouch for each other",
                    "ask its operators for the fingerprint and keep that one; "
                    "what `keyhaul pki rotate-ca` makes brings its proof along",
                )
        return anchors

    def verify(self, der: bytes, now: float) -> Verified:
        """The node that a certificate, issued directly by one of these CAs, speaks for at Unix time `now`.

        Raises Unauthorized if it is malformed, of a foreign CA, out of date, a CA itself, or not for
        signatures (RFC 5280 §6.1 for paths of length one).
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
            _fit_to_sign(certificate)
        except (*_MALFORMED, UnsupportedAlgorithm):
            raise Unauthorized("the certificate is malformed", "have it issued again") from None
        moment = datetime.fromtimestamp(now, UTC)
        issuer = self._issuer(certificate, moment)
        for checked, whose in ((certificate, "certificate"), (issuer, "certificate's CA")):
            if not _valid(checked, moment):
                raise Unauthorized(f"the {whose} is not valid at this time", "renew it, or set the clock")
        return Verified(node_name(certificate), certificate, domain(certificate))

    def _issuer(self, certificate: x509.Certificate, moment: datetime) -> x509.Certificate:
        """The anchor that signed it, of several the one that is valid. Key identifiers only save work."""
        named = [anchor for anchor in self.certificates if anchor.subject == certificate.issuer]
        wanted = authority_key(certificate)
        named.sort(key=lambda anchor: subject_key(anchor) != wanted)
        found = [anchor for anchor in named if issued_by(certificate, anchor)]
        if not found:
            raise Unauthorized(
                "the certificate was not issued by a trusted CA",
                "a CA of this name is known by another key: `keyhaul pki trust` takes in a rotated one"
                if named
                else "exchange CA certificates with that domain, and add its CA to the bundle",
            )
        return next((anchor for anchor in found if _valid(anchor, moment)), found[0])


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether this CA's name and key issued it; dates and uses are not looked at."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def subject_key(certificate: x509.Certificate) -> bytes | None:
    """The subject key identifier, if it has one that can be read."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, *_MALFORMED):
        return None


def authority_key(certificate: x509.Certificate) -> bytes | None:
    """The identifier of the key that issued it, if the certificate names one that can be read."""
    try:
        return certificate.extensions.get_extension_for_class(
            x509.AuthorityKeyIdentifier
        ).value.key_identifier
    except (x509.ExtensionNotFound, *_MALFORMED):
        return None


def public_bytes(certificate: x509.Certificate) -> bytes:
    """The public key, as its DER: two certificates of one key speak with one voice. Raises ConfigError."""
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    try:
        return certificate.public_key().public_bytes(*encoding)
    except (ValueError, UnsupportedAlgorithm):
        shown = certificate.subject.rfc4514_string()
        raise ConfigError(f"the key of {shown} cannot be read", "have the certificate issued again") from None


def _valid(certificate: x509.Certificate, moment: datetime) -> bool:
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _vouch_for_each_other(certificates: Sequence[x509.Certificate]) -> bool:
    """Whether the keys hang together by certificates in both directions."""
    by_key: dict[bytes, list[x509.Certificate]] = {}
    for certificate in certificates:
        by_key.setdefault(public_bytes(certificate), []).append(certificate)

    def vouches(one: bytes, other: bytes) -> bool:
        return any(issued_by(of, ca) for of in by_key[other] for ca in by_key[one])

    first, *rest = by_key
    reached, strangers = [first], set(rest)
    for known in reached:
        friends = {key for key in strangers if vouches(known, key) and vouches(key, known)}
        reached.extend(friends)
        strangers -= friends
    return not strangers


_BUNDLE = "name the file with the CA certificates of the domains you trust"


class Federation:
    """The anchors of all domains, and which domain each node belongs to.

    Any CA of a federation could sign any name, or an intermediate CA in another domain's name. So a node
    counts only if the anchor of its own domain issued its certificate directly.
    """

    def __init__(self, anchors: Anchors, domains: Mapping[str, str]) -> None:
        self.domains = domains
        self.anchors = anchors

    def change(self, anchors: Anchors, domains: Mapping[str, str]) -> None:
        """Believe others from now on; connections that are open stay open."""
        self.anchors, self.domains = anchors, domains

    def verify(self, der: bytes, now: float) -> Verified:
        """As `Anchors.verify`, and raises Unauthorized for a name of another domain, or of none."""
        verified = self.anchors.verify(der, now)
        expected = self.domains.get(verified.name)
        if verified.domain is None or verified.domain != expected:
            raise Unauthorized(
                f"the certificate for {verified.name} comes from domain {verified.domain}, not {expected}",
                "have it issued by the CA of the node's own domain",
            )
        return verified


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether it says of itself that it is a CA."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *_MALFORMED):
        return False


def _fit_to_sign(certificate: x509.Certificate) -> None:
    extensions = certificate.extensions
    if any(extension.critical and extension.oid not in _UNDERSTOOD for extension in extensions):
        raise Unauthorized("the certificate has a critical extension unknown here", "issue it without")
    if is_ca(certificate):
        raise Unauthorized("the certificate is that of a CA", "issue a node certificate")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.digital_signature:
        raise Unauthorized("the certificate is not for signatures", "issue it with digitalSignature")


def _ecdsa(curve: ec.EllipticCurve) -> ec.ECDSA:
    """The hash of matching strength (FIPS 186-5 §6.4)."""
    if curve.key_size <= 256:
        return ec.ECDSA(hashes.SHA256())
    return ec.ECDSA(hashes.SHA384() if curve.key_size <= 384 else hashes.SHA512())
