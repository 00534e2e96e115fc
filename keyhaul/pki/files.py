"""PEM files: written whole and with their final mode, or not at all; read with errors that name the file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from keyhaul.certificates import Key
from keyhaul.errors import ConfigError
from keyhaul.identity import issued_by

_PEM = serialization.Encoding.PEM
_LOST = "restore the CA from its backup, or make a new PKI with `keyhaul init`"


def write(path: Path, content: bytes, mode: int, *, overwrite: bool) -> None:
    """Atomic: a reader sees the old file or the new one, whole, and never with a wider mode."""
    with _drafted(path, content, mode) as fresh:
        _put(fresh, path, overwrite=overwrite)


def write_key(path: Path, key: Key, *, overwrite: bool) -> None:
    """A private key, PKCS#8 without a passphrase, mode 0600 from its first byte on."""
    write(path, _private(key), 0o600, overwrite=overwrite)


def write_pair(
    key_path: Path, key: Key, cert_path: Path, certificate: x509.Certificate, *, overwrite: bool
) -> None:
    """A key and its certificate, each as `write` does it.

    Both are on disk before the first gets its name, so hardly any time passes in which they do not fit.
    """
    with (
        _drafted(key_path, _private(key), 0o600) as fresh_key,
        _drafted(cert_path, pem([certificate]), 0o644) as fresh_cert,
    ):
        _put(fresh_key, key_path, overwrite=overwrite)
        _put(fresh_cert, cert_path, overwrite=overwrite)


@contextlib.contextmanager
def _drafted(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """The content on disk, beside where it will be, under a name that is gone afterwards."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with _telling(path):
        _make_folder(path.parent)
    try:
        with _telling(path):
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


def _put(fresh: Path, path: Path, *, overwrite: bool) -> None:
    with _telling(path):
        if overwrite:
            fresh.replace(path)
        else:
            os.link(fresh, path)  # fails if somebody else made the file meanwhile


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """What the system refuses, in our words."""
    try:
        yield
    except FileExistsError:
        raise ConfigError(f"{path} exists already", "remove it, or ask for it to be overwritten") from None
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}", "choose a directory you may write to") from None


def _private(key: Key) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates one after another."""
    return b"".join(each.public_bytes(_PEM) for each in certificates)


def certificates_in(path: Path, remedy: str) -> list[x509.Certificate]:
    """All certificates of a file. Raises ConfigError, with `remedy`, if there is none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}", "correct the path") from None
    except ValueError:
        raise ConfigError(f"{path}: no certificate in PEM form", remedy) from None


def key_in(path: Path) -> Key:
    """The private key of a file. Raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}", _LOST) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is not readable PEM, or is encrypted", _LOST) from None
    if not isinstance(key, Key):
        raise ConfigError(f"{path}: the key is neither ECDSA nor ML-DSA-65", _LOST)
    return key


def signer(path: Path) -> tuple[x509.Certificate, Key]:
    """The CA of a file that signs, and its key: of several certificates the one that the key belongs to."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}", _LOST) from None
    except ValueError:
        raise ConfigError(f"{path} is not readable PEM", _LOST) from None
    key = key_in(path.with_suffix(".key"))
    own = [each for each in found if each.public_key() == key.public_key()]
    if not own:
        raise ConfigError(f"{path} and its key do not belong together", _LOST)
    return next((each for each in own if issued_by(each, each)), own[0]), key


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait until nobody else changes the certificates of a directory by these commands."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise ConfigError(f"{directory}: {problem.strerror}", "name the directory of the PKI") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """`mkdir -p` would give the folders in between the umask's mode, not 0700."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
