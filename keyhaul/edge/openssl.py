"""The one place that touches private parts of pyOpenSSL; it checks at import that all of them are there.

pyOpenSSL sits on the OpenSSL that the `cryptography` wheel carries (4.x: ML-KEM groups, ML-DSA
certificates), whatever the interpreter's own `ssl` is linked to. Its public interface copies every record
twice and knows neither groups nor host names, so the record path uses the handles below it. pyca does not
promise to keep those: both packages are pinned, and a release that moves one fails here, by name, before
a port is opened.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from typing import Any

import OpenSSL
from OpenSSL import SSL, _util

from keyhaul.errors import ConfigError

FUNCTIONS = (
    "BIO_get_mem_data",
    "BIO_read",
    "BIO_set_mem_eof_return",
    "BIO_write",
    "ERR_clear_error",
    "ERR_get_error",
    "ERR_reason_error_string",
    "SSL_CTX_set1_curves_list",
    "SSL_CTX_set1_sigalgs_list",
    "SSL_ERROR_SYSCALL",
    "SSL_ERROR_WANT_READ",
    "SSL_ERROR_WANT_WRITE",
    "SSL_ERROR_ZERO_RETURN",
    "SSL_OP_NO_RENEGOTIATION",
    "SSL_do_handshake",
    "SSL_get0_param",
    "SSL_get_error",
    "SSL_get_verify_result",
    "SSL_pending",
    "SSL_read",
    "SSL_shutdown",
    "SSL_write",
    "X509_CHECK_FLAG_NEVER_CHECK_SUBJECT",
    "X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS",
    "X509_PURPOSE_SSL_CLIENT",
    "X509_STORE_set_purpose",
    "X509_VERIFY_PARAM_set1_host",
    "X509_VERIFY_PARAM_set1_ip",
    "X509_VERIFY_PARAM_set_hostflags",
    "X509_verify_cert_error_string",
)
HANDLES = ("_ssl", "_into_ssl", "_from_ssl")


def missing(library: object, connection: object, context: object) -> list[str]:
    """The names this module needs and these objects lack; empty when all is well."""
    absent = [f"lib.{name}" for name in FUNCTIONS if not hasattr(library, name)]
    absent += [f"Connection.{name}" for name in HANDLES if getattr(connection, name, None) is None]
    return absent + ([] if hasattr(context, "_context") else ["Context._context"])


def require(absent: Iterable[str]) -> None:
    """Raise ConfigError if anything is absent, naming it and the pinned releases."""
    if names := ", ".join(absent):
        raise ConfigError(
            f"pyOpenSSL {OpenSSL.__version__} does not offer {names}, which post-quantum TLS needs",
            "install the releases of pyOpenSSL and cryptography that requirements.lock pins",
        )


def _probe() -> list[str]:
    if not hasattr(_util, "lib") or not hasattr(_util, "ffi"):
        return ["_util.lib", "_util.ffi"]
    context = SSL.Context(SSL.TLS_METHOD)
    return missing(_util.lib, SSL.Connection(context, None), context)


require(_probe())

lib: Any = _util.lib
ffi: Any = _util.ffi


def restrict(context: SSL.Context, groups: str, signatures: str) -> None:
    """Fix key exchange groups and signature schemes (OpenSSL list syntax), whatever OPENSSL_CONF says.

    Raises ConfigError if this OpenSSL does not know one of them.
    """
    handle = context._context
    if lib.SSL_CTX_set1_curves_list(handle, groups.encode()) != 1:
        lib.ERR_clear_error()
        raise ConfigError(f"the OpenSSL in use does not know all TLS groups of {groups}", _PINNED)
    if lib.SSL_CTX_set1_sigalgs_list(handle, signatures.encode()) != 1:
        lib.ERR_clear_error()
        raise ConfigError(f"the OpenSSL in use does not know all signature schemes of {signatures}", _PINNED)


_PINNED = "install the release of cryptography that requirements.lock pins"


def expect_clients(context: SSL.Context) -> None:
    """Let a caller believe a peer that answers with a client certificate (RFC 5280 §4.2.1.12, clientAuth).

    For connections between two equals whose certificates make them callers elsewhere.
    """
    store: Any = context.get_cert_store()
    lib.X509_STORE_set_purpose(store._store, lib.X509_PURPOSE_SSL_CLIENT)


def expect_host(connection: SSL.Connection, host: str) -> None:
    """Make the handshake fail unless the server's certificate is for `host`, a DNS name or an IP address.

    As RFC 9525 has it: subject alternative names only, whole-label wildcards only, no SNI for addresses.
    """
    parameters = lib.SSL_get0_param(connection._ssl)
    flags = lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
    lib.X509_VERIFY_PARAM_set_hostflags(parameters, flags)
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        name = _encoded(host)
        connection.set_tlsext_host_name(name)
        done = lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
    else:
        done = lib.X509_VERIFY_PARAM_set1_ip(parameters, packed, len(packed))
    if done != 1:
        lib.ERR_clear_error()
        raise ssl.SSLError(1, f"cannot check a certificate against the host name {host!r}")


def _encoded(host: str) -> bytes:
    try:
        name = host.encode("idna")
    except UnicodeError:
        name = b""
    if not name or b"\0" in name:
        raise ssl.SSLError(1, f"{host!r} is no host name")
    return name


def failure(handle: Any, result: int) -> ssl.SSLError:
    """What stdlib `ssl` would raise for a non-positive result of an SSL_* call. Empties the error queue."""
    code = lib.SSL_get_error(handle, result)
    if code == lib.SSL_ERROR_WANT_READ:
        return ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)")
    if code == lib.SSL_ERROR_ZERO_RETURN:
        return ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "TLS connection has been closed (EOF)")
    if code == lib.SSL_ERROR_WANT_WRITE:
        return ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")
    reason = _drain()
    if code == lib.SSL_ERROR_SYSCALL or reason == "unexpected eof while reading":
        return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")
    verdict = lib.SSL_get_verify_result(handle)
    if verdict and reason == "certificate verify failed":
        why = ffi.string(lib.X509_verify_cert_error_string(verdict)).decode()
        refused = ssl.SSLCertVerificationError(1, f"certificate verify failed: {why}")
        refused.verify_code, refused.verify_message = verdict, why
        return refused
    return ssl.SSLError(1, reason or "unknown TLS error")


def _drain() -> str:
    """Empty this thread's error queue and return the reason of its oldest entry."""
    reason = ""
    while code := lib.ERR_get_error():
        text = lib.ERR_reason_error_string(code)
        if not reason and text != ffi.NULL:
            reason = ffi.string(text).decode()
    return reason
