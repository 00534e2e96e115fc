"""A new key for a CA under its old name, in steps between which everybody goes on believing everybody.

    begin    the next CA stands beside the present one, and both are believed; the present one signs
    switch   the next one signs, and both are believed
    drop     the other one is believed no more, and its key is erased

Between two steps the new files have to reach everybody who believes them, and before `drop` the certificates
of the old key have to be renewed. Where a CA speaks for a domain, that of nodes, the two keys vouch for each
other: so the next one speaks for the domain, and a stranger who uses its name does not. Every step can be
repeated after a crash.

    ca/<role>.pem       both, and their words for each other; the key says which one signs
    ca/<role>.key       of the one that signs
    ca/<role>.next.key  of the next one, until it signs
    ca/<role>.old.key   of the one that signed, until it is dropped
    ca/retired/         certificates of CAs that were dropped, for old logs and receipts
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from keyhaul.certificates import successor, vouching
from keyhaul.errors import ConfigError
from keyhaul.identity import Anchors, issued_by, organisation, public_bytes
from keyhaul.pki.files import certificates_in, key_in, pem, signer, write, write_key
from keyhaul.pki.parties import Pki

_BUNDLE = "name a file with CA certificates"


@dataclass(frozen=True, slots=True)
class Step:
    """The two CAs after a step: the one that signs, and the other, which is believed or was."""

    signs: x509.Certificate
    other: x509.Certificate
    files: tuple[Path, ...]
    """What was written, and has to reach those who believe this CA."""


def begin(pki: Pki, domain: str, role: str) -> Step:
    """Make the next CA, believed from now on, of the same name. Raises ConfigError if there is one."""
    path = _path(pki, domain, role)
    present, key = signer(path)
    believed = certificates_in(path, _BUNDLE)
    if len({public_bytes(each) for each in believed}) > 1 or _old(path).exists():
        raise ConfigError(f"{path}: a rotation is under way", "end it with `keyhaul pki drop-ca` first")
    window = pki.lifetimes.window(pki.lifetimes.ca)
    left = key_in(_next(path)) if _next(path).exists() else None  # of a run that came no further
    following, following_key = successor(present, window, left)
    if left is None:
        write_key(_next(path), following_key, overwrite=False)
    both = [present, following]
    if role == "node":
        both += [vouching(following, present, key), vouching(present, following, following_key)]
    return Step(present, following, _believe(pki, domain, role, both))


def switch(pki: Pki, domain: str, role: str) -> Step:
    """Sign with the next CA. Raises ConfigError if there is none."""
    path = _path(pki, domain, role)
    if not _next(path).exists():
        raise ConfigError(f"{path}: there is no next CA", "make it with `keyhaul pki rotate-ca`")
    following = key_in(_next(path))
    believed = certificates_in(path, _BUNDLE)
    mine = [each for each in believed if each.public_key() == following.public_key()]
    if not mine:
        raise ConfigError(f"{path}: the next CA is not believed yet", "run `keyhaul pki rotate-ca` again")
    present, _ = signer(path)
    # One rename decides which of the two signs; a crash before it leaves a second name of the same key.
    _old(path).unlink(missing_ok=True)
    os.link(path.with_suffix(".key"), _old(path))
    _next(path).replace(path.with_suffix(".key"))
    return Step(mine[0], present, (path,))


def drop(pki: Pki, domain: str, role: str, *, next_one: bool = False, even_if_used: bool = False) -> Step:
    """Believe only the CA that signs; keep the other's certificate in `ca/retired`, and erase its key.

    The other is the old one, or with `next_one` the next one, which gives the rotation up. Raises ConfigError
    if there is none, or certificates of the PKI are of it and not `even_if_used`.
    """
    path = _path(pki, domain, role)
    if next_one and not _next(path).exists():
        raise ConfigError(f"{path}: there is no next CA", "leave --next out")
    if _next(path).exists() and not next_one:
        raise ConfigError(f"{path}: the CA that shall go still signs", _NOT_YET)
    present, _ = signer(path)
    stays: list[x509.Certificate] = []
    goes: list[x509.Certificate] = []
    for each in certificates_in(path, _BUNDLE):
        mine = public_bytes(each) == public_bytes(present)
        (stays if mine and (_is_root(each) or each == present) else goes).append(each)
    roots = [each for each in goes if public_bytes(each) != public_bytes(present) and _is_root(each)]
    if not roots:
        raise ConfigError(f"{path}: there is no other CA beside the one that signs", "nothing has to be done")
    now = datetime.now(UTC)
    used = [
        file
        for file, leaf in issued_under(pki, domain)
        if leaf.not_valid_after_utc > now and any(issued_by(leaf, ca) for ca in roots)
    ]
    if used and not even_if_used:
        first = ", ".join(map(str, used[:3]))
        raise ConfigError(
            f"{len(used)} certificates are of the CA that shall go, such as {first}",
            "renew them with `keyhaul pki renew`, or say --even-if-used",
        )
    for each in roots:
        retired = path.parent / "retired" / f"{role}-{fingerprint(each)[:16]}.pem"
        write(retired, pem([each]), 0o644, overwrite=True)
    (_next if next_one else _old)(path).unlink(missing_ok=True)
    return Step(present, roots[0], _believe(pki, domain, role, stays))


_NOT_YET = "let the next one sign with `keyhaul pki switch-ca`, or give the rotation up with --next"


def issued_under(pki: Pki, domain: str) -> list[tuple[Path, x509.Certificate]]:
    """The end certificates of a domain in the directory, with their files."""
    found = []
    for file in sorted((pki.directory / domain).glob("*/*.pem")):
        believed = file.parent.name == "plain" and file.name.endswith(".ca.pem")
        if file.parent.name != "ca" and not believed:
            found.append((file, certificates_in(file, "remove it, or put a certificate there")[0]))
    return found


# ---------------------------------------------------------------------- what others' CAs do


@dataclass(frozen=True, slots=True)
class Trusted:
    """What changed in a bundle for one domain: CAs that are believed now and were not, and the other way."""

    domain: str
    added: tuple[x509.Certificate, ...]
    removed: tuple[x509.Certificate, ...]


def trust(
    bundle: Path,
    source: Path,
    domain: str | None = None,
    *,
    replace: bool = False,
    fingerprints: Sequence[str] = (),
) -> Trusted:
    """Believe of one domain the CAs in `source` and no others; the other domains of `bundle` stay.

    A domain that is known already has to speak with the key it is known by, or one that this key and it vouch
    for, unless `replace`. With `fingerprints` (SHA-256, hexadecimal) no CA comes in that is not among them.
    `domain` may be left out where `source` has one. Raises ConfigError, and then nothing has changed.
    """
    coming = Anchors.of_domains(_content(source)).certificates
    present = Anchors.load(_content(bundle)).certificates if bundle.exists() else ()
    domain = domain or _only(source, [organisation(each.subject) for each in coming])
    theirs = [each for each in coming if organisation(each.subject) == domain]
    known = [each for each in present if organisation(each.subject) == domain]
    if not theirs:
        raise ConfigError(f"{source}: no CA there speaks for {domain!r}", "name a domain it has")
    if known and not replace:
        _must_go_on(domain, known, theirs)
    added = [each for each in theirs if each not in known and _is_root(each)]
    _must_be_among(added, fingerprints)
    believed = [*(each for each in present if each not in known), *theirs]
    Anchors.of_domains(pem(believed))
    if believed != list(present):
        write(bundle, pem(believed), 0o644, overwrite=True)
    gone = [each for each in known if each not in theirs and _is_root(each)]
    return Trusted(domain, tuple(added), tuple(gone))


def _only(source: Path, domains: Sequence[str | None]) -> str:
    found = dict.fromkeys(domains)
    if None in found:
        raise ConfigError(f"{source}: a CA names no single organisation, so it speaks for no domain", _O)
    if len(found) > 1:
        raise ConfigError(
            f"{source}: CAs of the domains {', '.join(map(str, found))}", "say whose to take in with --domain"
        )
    return str(domains[0])


_O = "have it issued with the domain as its organisation (O)"


def _must_go_on(domain: str, known: list[x509.Certificate], theirs: list[x509.Certificate]) -> None:
    try:
        Anchors.of_domains(pem([*known, *theirs]))
    except ConfigError:
        raise ConfigError(
            f"the domain {domain!r} is known by another CA, which does not vouch for this one",
            "compare fingerprints with its operators; if they lost the key of the old one, say --replace",
        ) from None


def _must_be_among(added: Sequence[x509.Certificate], fingerprints: Sequence[str]) -> None:
    allowed = {each.replace(":", "").lower() for each in fingerprints}
    for each in added:
        if allowed and fingerprint(each) not in allowed:
            raise ConfigError(
                f"the fingerprint of {each.subject.rfc4514_string()} is {fingerprint(each)}",
                "that is not the one given; ask the domain's operators",
            )


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


# ---------------------------------------------------------------------- files


def _path(pki: Pki, domain: str, role: str) -> Path:
    path = pki.ca(domain, role)
    if domain not in pki.domains or not path.exists():
        raise ConfigError(f"{path}: no such CA", f"domains here are {', '.join(pki.domains)}")
    return path


def _next(path: Path) -> Path:
    return path.with_suffix(".next.key")


def _old(path: Path) -> Path:
    return path.with_suffix(".old.key")


def _is_root(certificate: x509.Certificate) -> bool:
    return issued_by(certificate, certificate)


def _believe(pki: Pki, domain: str, role: str, certificates: Sequence[x509.Certificate]) -> tuple[Path, ...]:
    """Put a CA's certificates where they are believed: its file, and for nodes the bundle of all domains."""
    path = pki.ca(domain, role)
    if role != "node":
        write(path, pem(certificates), 0o644, overwrite=True)
        return (path,)
    others = [
        each
        for each in (certificates_in(pki.anchors, _BUNDLE) if pki.anchors.exists() else [])
        if organisation(each.subject) != organisation(certificates[0].subject)
    ]
    write(pki.anchors, pem([*certificates, *others]), 0o644, overwrite=True)
    write(path, pem(certificates), 0o644, overwrite=True)
    return path, pki.anchors


def _content(path: Path) -> bytes:
    return pem(certificates_in(path, _BUNDLE))
