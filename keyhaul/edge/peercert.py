"""A certificate as the dictionary that `ssl.SSLObject.getpeercert` gives, for libraries that look at it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cryptography import x509

_SPELLING = {
    "CN": "commonName",
    "L": "localityName",
    "ST": "stateOrProvinceName",
    "O": "organizationName",
    "OU": "organizationalUnitName",
    "C": "countryName",
    "STREET": "streetAddress",
    "DC": "domainComponent",
    "UID": "userId",
}
_KINDS: tuple[tuple[type[Any], str], ...] = (
    (x509.DNSName, "DNS"),
    (x509.IPAddress, "IP Address"),
    (x509.UniformResourceIdentifier, "URI"),
    (x509.RFC822Name, "email"),
)


def as_dict(certificate: x509.Certificate) -> dict[str, Any]:
    """Subject, issuer, version, serial number, validity and alternative names, in the shape of `ssl`."""
    fields: dict[str, Any] = {
        "subject": _name(certificate.subject),
        "issuer": _name(certificate.issuer),
        "version": certificate.version.value + 1,
        "serialNumber": _serial(certificate.serial_number),
        "notBefore": _time(certificate.not_valid_before_utc),
        "notAfter": _time(certificate.not_valid_after_utc),
    }
    if names := _alternatives(certificate):
        fields["subjectAltName"] = names
    return fields


def _serial(number: int) -> str:
    """Whole octets, as OpenSSL writes them: the first may start with a zero."""
    digits = f"{number:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _name(name: x509.Name) -> tuple[tuple[tuple[str, str | bytes], ...], ...]:
    return tuple(
        tuple((_SPELLING.get(a.rfc4514_attribute_name, a.rfc4514_attribute_name), a.value) for a in rdn)
        for rdn in name.rdns
    )


def _time(moment: datetime) -> str:
    return moment.strftime("%b %e %H:%M:%S %Y GMT")


def _alternatives(certificate: x509.Certificate) -> tuple[tuple[str, str], ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ()
    return tuple(
        (kind, str(name.value)) for name in names for type_, kind in _KINDS if isinstance(name, type_)
    )
