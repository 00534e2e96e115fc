"""An `ssl.SSLContext` whose TLS runs on the OpenSSL of the `cryptography` wheel: post-quantum on any Python.

asyncio, uvloop and aiohttp (server and client) use it like one of the standard library. They drive TLS
through `wrap_bio`, two memory buffers and an `ssl.SSLObject`; here the object is a `TlsObject` over a
pyOpenSSL connection with memory BIOs.

One context belongs to one event-loop thread: its connections share a scratch buffer, and the calls below
release the GIL. Contexts of different threads do not disturb each other.

There is no session resumption (a resumed session would outlive the certificate it was opened with), no
renegotiation and no ALPN (the ports speak HTTP/1.1).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from io import UnsupportedOperation
from typing import Any, NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from keyhaul.edge.openssl import expect_host, failure, ffi, lib
from keyhaul.edge.peercert import as_dict
from keyhaul.errors import Unauthorized

log = logging.getLogger(__name__)

Check = Callable[[x509.Certificate], None]

SCRATCH = 65_536  # bytes; four TLS records


class TlsContext(ssl.SSLContext):
    """Goes wherever an `ssl.SSLContext` goes, as long as that place uses `wrap_bio`.

    `build` makes the pyOpenSSL context; `groups`, if not empty, are the only key exchange groups (lower
    case) a finished handshake may have used. `check`, if given, sees the peer's certificate at the end of the
    handshake and raises Unauthorized; a client then expects no host name. The inherited settings describe
    what `build` did and cannot loosen it: nothing reads them.
    """

    _build: Callable[[], SSL.Context]
    _native: SSL.Context
    _server_side: bool
    groups: frozenset[str]
    check: Check | None
    scratch: Any
    start: Any

    def __new__(
        cls,
        build: Callable[[], SSL.Context],
        *,
        server_side: bool,
        groups: frozenset[str],
        check: Check | None = None,
    ) -> Self:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        self.verify_mode = ssl.CERT_REQUIRED
        self._build = build
        self._native = build()
        self._server_side = server_side
        self.groups = groups
        self.check = check
        self.scratch = ffi.new("char[]", SCRATCH)
        self.start = ffi.new("char *[1]")
        return self

    def reload(self) -> None:
        """Read the files again: new connections show the new certificate, open ones stay as they are.

        Raises ConfigError and keeps the old certificate if the new one does not load.
        """
        self._native = self._build()

    def wrap_bio(  # type: ignore[override]
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: object = None,
    ) -> TlsObject:
        """A connection between two memory buffers. A client must name the host it wants to reach."""
        if server_side is not self._server_side:
            raise ValueError("a server context was used for a client, or the other way round")
        return TlsObject(self, SSL.Connection(self._native, None), incoming, outgoing, server_hostname)

    def wrap_socket(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered: this TLS has no blocking sockets."""
        raise UnsupportedOperation("this context serves event loops; it wraps no blocking socket")

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise UnsupportedOperation("this context is made whole from its policy and files; use reload()")

    # Without these the caller would believe to have changed something.
    load_cert_chain = _fixed
    load_verify_locations = _fixed
    load_default_certs = _fixed
    set_default_verify_paths = _fixed
    set_ciphers = _fixed
    set_alpn_protocols = _fixed
    set_ecdh_curve = _fixed


class TlsObject:
    """What `ssl.SSLObject` is, over a pyOpenSSL connection; errors are those of `ssl`."""

    __slots__ = (
        "__weakref__",
        "_connection",
        "_from",
        "_incoming",
        "_into",
        "_outgoing",
        "_peer",
        "_refusal",
        "_scratch",
        "_ssl",
        "_start",
        "context",
        "server_hostname",
        "server_side",
    )

    def __init__(
        self,
        context: TlsContext,
        connection: SSL.Connection,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_hostname: str | bytes | None,
    ) -> None:
        self._connection = connection
        self._ssl: Any = connection._ssl
        self._into: Any = connection._into_ssl
        self._from: Any = connection._from_ssl
        self._incoming, self._outgoing = incoming, outgoing
        self._scratch, self._start = context.scratch, context.start
        self._peer: x509.Certificate | None = None
        self._refusal: ssl.SSLError | None = None
        self.context, self.server_side = context, context._server_side
        if isinstance(server_hostname, bytes):
            server_hostname = server_hostname.decode("ascii")
        self.server_hostname = server_hostname
        if self.server_side:
            connection.set_accept_state()
            return
        if not server_hostname:
            raise ValueError("a TLS client must name the host it wants to reach")
        connection.set_connect_state()
        if context.check is None:
            expect_host(connection, server_hostname)

    # Moving bytes between the event loop's buffers and OpenSSL's.

    def _pump_in(self) -> None:
        data = self._incoming.read()
        if data:
            lib.BIO_write(self._into, data, len(data))
        elif self._incoming.eof:
            lib.BIO_set_mem_eof_return(self._into, 0)

    def _pump_out(self) -> None:
        scratch = self._scratch
        while (size := lib.BIO_read(self._from, scratch, SCRATCH)) > 0:
            self._outgoing.write(ffi.buffer(scratch, size))
            if size < SCRATCH:
                return

    # The four operations of the record layer. OpenSSL's error queue belongs to the thread and must be
    # empty before each, or SSL_get_error blames this connection for another's failure.

    def do_handshake(self) -> None:
        """Go on with the handshake; raises SSLWantReadError until the peer answered.

        A server that refuses raises SSLWantReadError once more, so that the event loop sends the alert
        and the peer learns why; the refusal itself is raised at the next call.
        """
        if self._refusal is not None:
            raise self._refusal
        self._pump_in()
        lib.ERR_clear_error()
        result = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            self._pump_out()
            self._check_peer()
            return
        error = failure(self._ssl, result)
        self._pump_out()
        if not self.server_side or isinstance(error, (ssl.SSLWantReadError, ssl.SSLEOFError)):
            raise error
        log.warning("TLS handshake refused: %s", error.strerror)
        self._refusal = error
        if self._outgoing.pending:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "an alert is waiting to be sent")
        raise error

    def _check_peer(self) -> None:
        """What the settings should have made sure of already: OPENSSL_CONF and upgrades can undo settings."""
        self._peer = self._connection.get_peer_certificate(as_cryptography=True)
        if self._peer is None:
            raise ssl.SSLError(1, "the peer showed no certificate")
        if self.context.groups and (self.group() or "").lower() not in self.context.groups:
            raise ssl.SSLError(1, f"the key exchange {self.group()} is not post-quantum")
        if self.context.check is not None:
            try:
                self.context.check(self._peer)
            except Unauthorized as refused:
                raise ssl.SSLError(1, refused.cause) from None

    def read(self, n: int = 1024, buffer: Any = None) -> bytes | int:
        """Up to `n` decrypted bytes, or their number if they went into `buffer`; empty or 0 at the end."""
        if self._incoming.pending or self._incoming.eof:
            self._pump_in()
        if buffer is None:
            target, size = self._scratch, min(n, SCRATCH)
        else:
            target, size = ffi.from_buffer(buffer, require_writable=True), min(n or len(buffer), len(buffer))
        lib.ERR_clear_error()
        result: int = lib.SSL_read(self._ssl, target, size)
        if result > 0:
            return result if buffer is not None else bytes(ffi.buffer(target, result))
        error = failure(self._ssl, result)
        self._pump_out()  # answers to key updates, alerts
        if isinstance(error, ssl.SSLZeroReturnError):
            return b"" if buffer is None else 0
        raise error

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt all of `data`; the number of bytes taken."""
        source = ffi.from_buffer(data)
        size = len(source)
        done = 0
        lib.ERR_clear_error()
        while done < size:  # OpenSSL takes one record, 16 KiB, at a time
            result = lib.SSL_write(self._ssl, source + done, size - done)
            if result <= 0:
                error = failure(self._ssl, result)
                self._pump_out()
                raise error
            done += result
        self._pump_out()
        return size

    def unwrap(self) -> None:
        """Say goodbye; raises SSLWantReadError until the peer said it too."""
        self._pump_in()
        lib.ERR_clear_error()
        result = lib.SSL_shutdown(self._ssl)
        if result == 0:  # ours is sent, now look for the peer's
            result = lib.SSL_shutdown(self._ssl)
        error = failure(self._ssl, result) if result < 0 else None
        self._pump_out()
        if error is not None:
            raise error

    def pending(self) -> int:
        """Bytes, decrypted or not yet, that a read can look at without new input.

        uvloop reads on only while this or the incoming buffer says so, and the buffer is always empty after
        a pump: a request that came in one segment with the end of the handshake must be counted here.
        """
        return int(lib.SSL_pending(self._ssl) or lib.BIO_get_mem_data(self._into, self._start))

    # What handlers ask for.

    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, parsed once in the handshake; None before."""
        return self._peer

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """As `ssl.SSLObject.getpeercert`."""
        if self._peer is None:
            return None
        return self._peer.public_bytes(Encoding.DER) if binary_form else as_dict(self._peer)

    def group(self) -> str | None:
        """Name of the key exchange group, for instance X25519MLKEM768."""
        return self._connection.get_group_name()

    def version(self) -> str | None:
        """For instance TLSv1.3; None before the handshake is done, as in `ssl`."""
        return self._connection.get_protocol_version_name() if self.cipher() else None

    def cipher(self) -> tuple[str, str, int] | None:
        """Name, protocol version and secret bits of the cipher; None before the handshake."""
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        return name, self._connection.get_cipher_version() or "", self._connection.get_cipher_bits() or 0

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """Only `tls-exporter` (RFC 9266): `tls-unique` does not exist in TLS 1.3."""
        if cb_type != "tls-exporter":
            raise ValueError(f"channel binding type {cb_type} is not offered")
        return self._connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def compression(self) -> None:
        """TLS compression is off."""

    def selected_alpn_protocol(self) -> None:
        """No ALPN is spoken."""

    def shared_ciphers(self) -> None:
        """Not known here."""

    @property
    def session(self) -> None:
        """No sessions are kept."""

    @property
    def session_reused(self) -> bool:
        """Never: every connection checks the peer's certificate."""
        return False
