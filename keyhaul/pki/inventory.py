"""What certificates there are in files and directories, who they speak for, and what is wrong with them."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyhaul.errors import ConfigError
from keyhaul.identity import URN, is_ca, issued_by, organisation, public_bytes
from keyhaul.pki.files import certificates_in, key_in
from keyhaul.pki.rollover import fingerprint

_USES = {ExtendedKeyUsageOID.CLIENT_AUTH: "client", ExtendedKeyUsageOID.SERVER_AUTH: "server"}


@dataclass(slots=True)
class Entry:
    """One certificate in one file. `days_left` is rounded down, negative once it has expired."""

    file: str
    kind: str  # "end", "ca", or "ca's word" where one CA vouches for another's key
    subject: str
    common: str  # the common name in it, or all of it
    domain: str | None
    role: str | None
    name: str | None
    names: list[str]
    uses: list[str]
    algorithm: str
    issuer: str
    chain: str
    not_before: str
    not_after: str
    days_left: int
    serial: str
    fingerprint: str
    key: str  # "none", "fits", "next", "old"
    problems: list[str] = field(default_factory=list)


def look(paths: Sequence[Path], more: Sequence[Path], now: datetime, within: int = 0) -> list[Entry]:
    """All certificates under these paths; `more` are files of CAs that may have issued them.

    An end certificate with fewer than `within` days left counts as a problem. CAs that were retired are
    left out. Raises ConfigError for a path without any.
    """
    found = [(file, each) for path in paths for file in _files(path) for each in _content(file)]
    if not found:
        raise ConfigError(f"{', '.join(map(str, paths))}: no certificates here", "name a file or directory")
    known = [each for path in more for each in certificates_in(path, "name a file of CAs")]
    authorities = list(dict.fromkeys(each for each in (*known, *(c for _, c in found)) if is_ca(each)))
    entries = [_entry(file, each, authorities, now, within) for file, each in found]
    if more or any(path.is_dir() for path in paths):  # a single file says nothing about who issued it
        for entry in entries:
            if not entry.chain:
                entry.problems.append("its issuer is not here")
    return entries


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*.pem") if "retired" not in file.relative_to(path).parts)


def _content(file: Path) -> list[x509.Certificate]:
    return certificates_in(file, "name a file of certificates")


def _entry(
    file: Path, certificate: x509.Certificate, authorities: list[x509.Certificate], now: datetime, within: int
) -> Entry:
    ca = is_ca(certificate)
    uris, hosts = _alternatives(certificate)
    role, name = _ours(uris)
    left = certificate.not_valid_after_utc - now
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    issuer = next((each for each in authorities if issued_by(certificate, each)), None)
    own = issuer is not None and public_bytes(issuer) == public_bytes(certificate)
    entry = Entry(
        file=str(file),
        kind="end" if not ca else "ca" if own or certificate.issuer != certificate.subject else "ca's word",
        subject=certificate.subject.rfc4514_string(),
        common=str(common[0].value) if common else certificate.subject.rfc4514_string(),
        domain=organisation(certificate.subject if ca else certificate.issuer),
        role=role,
        name=name,
        names=[*uris, *hosts],
        uses=_uses(certificate),
        algorithm=_algorithm(certificate),
        issuer=certificate.issuer.rfc4514_string(),
        chain="self-signed" if own else fingerprint(issuer) if issuer is not None else "",
        not_before=certificate.not_valid_before_utc.isoformat(),
        not_after=certificate.not_valid_after_utc.isoformat(),
        days_left=left.days,
        serial=f"{certificate.serial_number:X}",
        fingerprint=fingerprint(certificate),
        key="none",
    )
    _times(entry, certificate, now, within)
    if issuer is not None and not issuer.not_valid_before_utc <= now <= issuer.not_valid_after_utc:
        entry.problems.append("its CA is out of date")
    _key(entry, file, certificate)
    return entry


def _times(entry: Entry, certificate: x509.Certificate, now: datetime, within: int) -> None:
    if now > certificate.not_valid_after_utc:
        entry.problems.append("expired")
    elif now < certificate.not_valid_before_utc:
        entry.problems.append("not valid yet")
    elif entry.kind == "end" and entry.days_left < within:
        entry.problems.append(f"expires within {within} days")


def _key(entry: Entry, file: Path, certificate: x509.Certificate) -> None:
    """Which private key beside a file is this certificate's; a single certificate has to fit its own."""
    if entry.kind == "ca's word":
        return
    for suffix, word in ((".key", "fits"), (".next.key", "next"), (".old.key", "old")):
        path = file.with_suffix(suffix)
        if not path.exists():
            continue
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            entry.problems.append(f"{path.name} can be read by others")
        try:
            mine = key_in(path).public_key() == certificate.public_key()
        except ConfigError as error:
            entry.problems.append(error.cause)
            continue
        if mine:
            entry.key = word
            return
    if entry.kind == "end" and file.with_suffix(".key").exists():
        entry.problems.append(f"{file.with_suffix('.key').name} does not belong to it")


def _alternatives(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return [], []
    uris = [each.value for each in names if isinstance(each, x509.UniformResourceIdentifier)]
    return uris, [str(each.value) for each in names if isinstance(each, (x509.DNSName, x509.IPAddress))]


def _ours(uris: Sequence[str]) -> tuple[str | None, str | None]:
    """Role and name of the one URI of ours."""
    ours = [uri for uri in uris if uri.lower().startswith(URN)]
    if len(ours) != 1:
        return None, None
    role, _, name = ours[0][len(URN) :].partition(":")
    return role, unquote(name)


def _uses(certificate: x509.Certificate) -> list[str]:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [_USES.get(use, use.dotted_string) for use in uses]


def _algorithm(certificate: x509.Certificate) -> str:
    key: Any = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey").replace("MLDSA", "ML-DSA-")
