"""A new certificate that says the same as an old one: the same party, hosts and uses, another time.

It is signed by the CA that signs today, so after a rotation it comes from the new one. With its old key only
the certificate is replaced, at once; with a new key there is a moment, between two renames, in which the two
files do not fit. A node that reads them then keeps what it has; an application reads them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from keyhaul.certificates import PublicKey, new_key_like, reissue
from keyhaul.errors import ConfigError
from keyhaul.identity import is_ca, issued_by
from keyhaul.pki.files import certificates_in, key_in, pem, signer, write, write_pair
from keyhaul.pki.parties import ROLES, Pki

_ISSUE = "issue one with `keyhaul pki issue`"


@dataclass(frozen=True, slots=True)
class Renewed:
    """One certificate file: what it held, and what it holds now."""

    file: Path
    before: x509.Certificate
    after: x509.Certificate
    new_key: bool


def renew(pki: Pki, file: Path, *, new_key: bool = False) -> Renewed:
    """Replace one end certificate, and with `new_key` its private key, beside it as `.key`.

    Where there is no key beside it, as it stays with its party, the certificate is for the same one. Raises
    ConfigError unless a CA of the PKI issued it and the key beside it is its own.
    """
    before = certificates_in(file, _ISSUE)[0]
    if is_ca(before):
        raise ConfigError(f"{file}: that is a CA", "give it a successor with `keyhaul pki rotate-ca`")
    domain, role = _issuer(pki, file, before)
    key_file = file.with_suffix(".key")
    key, public = None, before.public_key()
    if key_file.exists() and key_in(key_file).public_key() != public:
        raise ConfigError(f"{key_file} does not belong to the certificate beside it", _ISSUE)
    if new_key:
        if not key_file.exists():
            raise ConfigError(f"{key_file} is not here", "have its party ask with `keyhaul pki request`")
        key = new_key_like(before)
        public = key.public_key()
    if not isinstance(public, PublicKey):
        raise ConfigError(f"{file}: the key is neither ECDSA nor ML-DSA-65", _ISSUE)
    ca, ca_key = signer(pki.ca(domain, role))
    after = reissue(before, public, ca, ca_key, pki.lifetimes.window(pki.lifetimes.leaf))
    if key is not None:
        write_pair(key_file, key, file, after, overwrite=True)
    else:
        write(file, pem([after]), 0o644, overwrite=True)
    return Renewed(file, before, after, new_key)


def _issuer(pki: Pki, file: Path, certificate: x509.Certificate) -> tuple[str, str]:
    """Domain and role of the CA that issued it: nobody gets a certificate by putting a file here."""
    for domain in pki.domains:
        for role in (*ROLES, "plain"):
            path = pki.ca(domain, role)
            if path.exists() and any(
                issued_by(certificate, ca) for ca in certificates_in(path, "restore it from its backup")
            ):
                return domain, role
    raise ConfigError(f"{file}: no CA of this PKI issued it", _ISSUE)
