"""TLS contexts for every port: mutual authentication always, key exchange by policy.

All three policies run on the same OpenSSL, that of the `cryptography` wheel, so the interpreter's own
library does not matter. Everything a configuration file of the machine (OPENSSL_CONF) could change is set
here, and under `Policy.PQ` the negotiated group is checked once more after the handshake.

asyncio, uvloop and aiohttp all set TCP_NODELAY on their sockets; without it a small request takes 40 ms.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from keyhaul.edge.openssl import expect_clients, lib, restrict
from keyhaul.edge.pqssl import Check, TlsContext, TlsObject
from keyhaul.errors import ConfigError, Unauthorized

PQ_GROUPS = ("X25519MLKEM768", "SecP384r1MLKEM1024")

# OpenSSL list syntax: `*` sends a key share at once, `/` separates tuples of falling preference. A server
# takes from the first tuple both sides know, even if the client sent its key share for the second.
_PQ = "*X25519MLKEM768:SecP384r1MLKEM1024"
_CLASSICAL = "*x25519:secp256r1:secp384r1"

_SIGNATURES = (
    "mldsa65:mldsa87:mldsa44"
    ":ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512:ed25519:ed448"
    ":rsa_pss_pss_sha256:rsa_pss_pss_sha384:rsa_pss_pss_sha512"
    ":rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512"
    ":rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512"
)
_CIPHERS_13 = b"TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"
_CIPHERS_12 = b"ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
_CIPHERS_12_DEVICES = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES:@SECLEVEL=2"

# SSL_MODE_NO_AUTO_CHAIN: show the chain that stands in our file and no root the peer has anyway, which
# under ML-DSA-65 is 5.5 kB per handshake. pyOpenSSL has no name for it.
_NO_AUTO_CHAIN = 0x00000008


class Policy(enum.StrEnum):
    """Which peers a port talks to."""

    PQ = "pq"
    """TLS 1.3 with a post-quantum hybrid group, nothing else."""
    COMPATIBLE = "compatible"
    """TLS 1.2 or newer; post-quantum groups first, classical ones for clients that have no others."""
    CLASSIC = "classic"
    """TLS 1.2 or newer, classical groups only: for devices that reset on a large or unknown hello."""


@dataclass(frozen=True, slots=True)
class _Profile:
    groups: str
    version: int
    ciphers: bytes


_PROFILES = {
    Policy.PQ: _Profile(_PQ, SSL.TLS1_3_VERSION, _CIPHERS_12),
    Policy.COMPATIBLE: _Profile(f"{_PQ}/{_CLASSICAL}", SSL.TLS1_2_VERSION, _CIPHERS_12),
    Policy.CLASSIC: _Profile(_CLASSICAL, SSL.TLS1_2_VERSION, _CIPHERS_12_DEVICES),
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM files: our certificate (and its chain), its key, and the CAs we accept on the other side."""

    cert: Path
    key: Path
    ca: Path


def server_context(credentials: Credentials, policy: Policy) -> ssl.SSLContext:
    """A context for listeners; a client without a certificate of our CAs is refused in the handshake.

    Raises ConfigError, naming the file and the remedy, if a file is missing, unreadable or does not fit.
    """
    return _context(credentials, credentials.ca, policy, server_side=True)


def client_context(credentials: Credentials, policy: Policy) -> ssl.SSLContext:
    """A context for callers; the server's certificate must be of our CAs and for the host we called.

    Raises ConfigError as `server_context` does.
    """
    return _context(credentials, credentials.ca, policy, server_side=False)


def equals_context(credentials: Credentials, check: Check, *, server_side: bool) -> ssl.SSLContext:
    """A context for either end of a connection between two callers, under `Policy.PQ`.

    Both show client certificates of CAs in `credentials.ca`, wherever they run: `check` says whose they may
    be, and raises Unauthorized in the handshake. Raises ConfigError as `server_context` does.
    """

    def build() -> SSL.Context:
        context = _build(credentials, credentials.ca, _PROFILES[Policy.PQ], server_side)
        expect_clients(context)
        return context

    groups = frozenset(group.lower() for group in PQ_GROUPS)
    made = TlsContext(build, server_side=server_side, groups=groups, check=check)
    _shown[made] = _remembered(credentials)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def anonymous_context(ca: Path, policy: Policy) -> ssl.SSLContext:
    """A context for a caller without any certificate, to see that a port turns it away.

    Raises ConfigError as `server_context` does.
    """
    return _context(None, ca, policy, server_side=False)


@dataclass(slots=True)
class Reloaded:
    """Names of contexts that show another certificate now, of those that believe other CAs, and, with the
    cause, of those whose files do not load: they go on with what they have."""

    shows: list[str] = field(default_factory=list)
    believes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def reload(contexts: Mapping[str, ssl.SSLContext]) -> Reloaded:
    """Read the files of all contexts again, for new connections."""
    done = Reloaded()
    for name, context in contexts.items():
        assert isinstance(context, TlsContext)
        credentials, shown, believed = _shown[context]
        try:
            context.reload()
        except ConfigError as error:
            done.refused.append(f"{name}: {error.cause}")
            continue
        fresh = _shown[context] = _remembered(credentials)
        if fresh[1] != shown:
            done.shows.append(name)
        if fresh[2] != believed:
            done.believes.append(name)
    return done


_shown: WeakKeyDictionary[TlsContext, tuple[Credentials, bytes, bytes]] = WeakKeyDictionary()
"""The files of a context, and the digests of the certificate it shows and of the CAs it believes."""


def _remembered(credentials: Credentials) -> tuple[Credentials, bytes, bytes]:
    return credentials, _digest(credentials.cert), _digest(credentials.ca)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(_read(path)).digest()


def peer_certificate(transport: asyncio.BaseTransport | None) -> x509.Certificate:
    """The certificate the peer proved in the handshake, parsed once per connection.

    Raises Unauthorized if there is none: the listeners demand one, this makes sure.
    """
    certificate = _tls(transport).peer_certificate()
    if certificate is None:
        raise Unauthorized("the peer showed no certificate", "connect with a client certificate")
    return certificate


def negotiated(transport: asyncio.BaseTransport | None) -> dict[str, str]:
    """What the handshake agreed on, for logs and diagnosis: `version`, `group`, `cipher`."""
    tls = _tls(transport)
    cipher = tls.cipher()
    return {
        "version": tls.version() or "",
        "group": tls.group() or "",
        "cipher": cipher[0] if cipher else "",
    }


def _tls(transport: asyncio.BaseTransport | None) -> TlsObject:
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    if not isinstance(tls, TlsObject):
        raise Unauthorized("the connection is closed or has no TLS", "connect with a client certificate")
    return tls


def _context(own: Credentials | None, ca: Path, policy: Policy, *, server_side: bool) -> TlsContext:
    build = functools.partial(_build, own, ca, _PROFILES[policy], server_side)
    demanded = frozenset(group.lower() for group in PQ_GROUPS) if policy is Policy.PQ else frozenset[str]()
    context = TlsContext(build, server_side=server_side, groups=demanded)
    if own is not None:
        _shown[context] = _remembered(own)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if policy is Policy.PQ else ssl.TLSVersion.TLSv1_2
    return context


def _build(own: Credentials | None, ca: Path, profile: _Profile, server_side: bool) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server_side else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(profile.version)
    context.set_max_proto_version(0)  # no upper limit
    context.set_cipher_list(profile.ciphers)
    context.set_tls13_ciphersuites(_CIPHERS_13)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | lib.SSL_OP_NO_RENEGOTIATION)
    context.set_mode(_NO_AUTO_CHAIN)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    restrict(context, profile.groups, _SIGNATURES)
    if own is not None:
        _show(context, own)
    anchors = _certificates(ca)
    context.load_verify_locations(str(ca))
    if server_side:
        for anchor in anchors:  # the list of names lets a client with many certificates pick the right one
            context.add_client_ca(anchor)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, None)
    return context


def _show(context: SSL.Context, credentials: Credentials) -> None:
    """Load our certificate, its chain and its key, in a way that says what is wrong with which file."""
    chain = _certificates(credentials.cert)
    try:
        key = serialization.load_pem_private_key(_read(credentials.key), password=None)
    except TypeError:
        raise ConfigError(
            f"{credentials.key}: the key is encrypted", "store it without a passphrase, mode 0600"
        ) from None
    except ValueError:
        raise ConfigError(f"{credentials.key}: no private key in PEM form", _REMAKE) from None
    encoding = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*encoding) != chain[0].public_key().public_bytes(*encoding):
        raise ConfigError(
            f"{credentials.key}: the key does not belong to the certificate in {credentials.cert}",
            "name the two files that were made together; the node's own certificate comes first in its file",
        )
    try:
        context.use_certificate_chain_file(str(credentials.cert))
        context.use_privatekey_file(str(credentials.key))
        context.check_privatekey()
    except SSL.Error as refused:
        reason = refused.args[0][0][2] if refused.args and refused.args[0] else "unknown reason"
        raise ConfigError(
            f"{credentials.cert}: TLS cannot use the certificate or its key ({reason})", _REMAKE
        ) from None


_REMAKE = "make the certificates again with `keyhaul init`, or name another file"


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise ConfigError(f"{path}: no certificate in PEM form", _REMAKE) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file", "make it with `keyhaul init`, or correct the path"
        ) from None
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}", "let the user keyhaul runs as read it") from None
