"""One client connection: whose it is, and its requests as calls, read by aiohttp or known by their heads.

This is the one place that uses what aiohttp keeps for itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

import structlog
from aiohttp import web
from cryptography import x509

from keyhaul.edge.accepting import Bounds
from keyhaul.edge.calls import Reply, lists
from keyhaul.edge.heads import Head, Heads
from keyhaul.edge.refusing import Refusals
from keyhaul.edge.tls import peer_certificate
from keyhaul.edge.whole import written
from keyhaul.errors import KeyhaulError, Malformed, TimedOut, TooLarge

log = structlog.get_logger("keyhaul.edge")

REACHED = (  # what Connection uses of aiohttp's own; a release without one of them reads every head itself
    "_current_request",
    "_drain_helper",
    "_handler_waiter",
    "_keepalive_timeout",
    "_messages",
    "_next_keepalive_close_time",
    "_pause_transport_reading",
    "_paused",
    "_process_keepalive",
    "_request_in_progress",
    "_resume_transport_reading",
    "_waiter",
)


class Host(Protocol):
    """The port of a connection. `direct`: whether it answers calls, so that heads may be remembered."""

    role: str
    bounds: Bounds
    direct: bool
    refusals: Refusals

    def name_of(self, certificate: x509.Certificate, /) -> str:
        """Who it speaks for. Raises Unauthorized."""

    def met(self, connection: Connection) -> None:
        """A connection has its handshake behind it."""

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""

    async def reply(self, call: HttpCall) -> Reply:
        """The answer to a call, or what its error says."""

    def refuse(self, request: web.BaseRequest, error: KeyhaulError) -> web.Response:
        """The answer to a request that cannot be served."""


class Connection(web.RequestHandler):
    """One client connection, which remembers whose certificate it has, and the heads of its requests.

    A request whose head is remembered is answered here, while aiohttp's own task waits for the next one
    that it has to read. Where this touches what aiohttp keeps of a connection, it does as aiohttp does.
    """

    __slots__ = ("_behind", "_call", "_direct", "_heads", "caller", "number", "port", "surplus")

    def __init__(
        self, server: web.Server, port: Host, number: int, *, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=port.bounds.idle,
            lingering_time=port.bounds.linger,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp turns it off
            auto_decompress=False,  # a few bytes could become very many
        )
        self.port = port
        self.number = number
        self.caller: str | None = None
        self.surplus = False
        self._heads = Heads() if port.direct else None
        self._direct: asyncio.Task[None] | None = None
        self._call: HttpCall | None = None  # what it answers
        self._behind: deque[bytes] = deque()  # what came while it was at work

    def find_caller(self) -> str:
        """The name in the client's certificate, worked out once. Raises Unauthorized."""
        if self.caller is None:
            self.caller = self.port.name_of(peer_certificate(self.transport))
        return self.caller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.port.met(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.port.lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        heads = self._heads
        if heads is None or not data:  # aiohttp calls it without data, to go on with what it holds
            super().data_received(data)
        elif self._direct is not None:
            self._pause_transport_reading()
            self._behind.append(data)
        elif not heads.aligned:
            super().data_received(data)
        elif self._rests() and (found := heads.find(data)) is not None:
            self._request_in_progress = True
            self._call = HttpCall(self, None, *found)
            self._direct = self._loop.create_task(self._reply(self._call))
        else:
            before = len(self._messages)
            super().data_received(data)
            heads.learn(data, [*self._messages][before:])

    def _rests(self) -> bool:
        """Whether aiohttp's task waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    async def _reply(self, call: HttpCall) -> None:
        """Answer one call."""
        try:
            reply = await self.port.reply(call)
            if self.transport is None:
                return
            self.transport.write(written(reply))
            if reply.last:
                self.force_close()
            elif self._paused:
                await self._drain_helper()
        except ConnectionError:
            pass  # the client is gone
        except Exception as bug:  # noqa: BLE001  the root of a task
            self.log_exception("Unhandled exception", exc_info=bug)
            self.force_close()
        finally:
            self._replied()

    def _replied(self) -> None:
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._direct = None
        if self._behind:
            self._resume_transport_reading()
        while self._behind and self._direct is None:  # piece by piece, as it came
            self.data_received(self._behind.popleft())

    def _process_keepalive(self) -> None:
        if self._direct is not None:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  aiohttp's
        """Let the call in progress finish for at most so many seconds, in all; else the port hears of it.

        aiohttp waits for the request, and then as long again for its own task, which ends with the request
        if it serves it; while a call is served directly, that task is over, and nothing is waited for twice.
        """
        half = None if timeout is None else timeout / 2
        if self._direct is not None:
            await asyncio.wait({self._direct}, timeout=half)
        current = self._current_request
        await super().shutdown(half)
        if self._direct is not None:
            assert self._call is not None
            self.port.refusals.cut_off(self.caller, self._call.method, self._call.path)
            self._direct.cancel()
        elif current is not None and not current.writer.output_size:
            self.port.refusals.cut_off(self.caller, current.method, current.rel_url.raw_path)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not even HTTP; the connection is closed afterwards."""
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is on its way already")
        if status >= 500 and exc is not None:
            error: KeyhaulError = self.port.refusals.unexpected(exc)
        else:
            error = Malformed("the request is not HTTP/1.1", "send a well-formed request")
        response = self.port.refuse(request, error)
        response.force_close()
        return response

    def log_exception(self, *_: Any, **details: Any) -> None:
        """aiohttp's last resort; its own would print messages we cannot vouch for."""
        log.error("connection failed", role=self.port.role, error=type(details.get("exc_info")).__qualname__)


def caller_of(request: web.BaseRequest) -> str:
    """The name in the caller's certificate. Raises Unauthorized."""
    return connection_of(request).find_caller()


def connection_of(request: web.BaseRequest) -> Connection:
    """Which connection a request came over."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


class HttpCall:
    """A `Call` whose HTTP is read in this process: by aiohttp, or a remembered head with its body."""

    __slots__ = ("_body", "_request", "connection", "method", "parameters", "path")

    def __init__(
        self,
        connection: Connection,
        request: web.BaseRequest | None,
        head: Head | None = None,
        body: bytes = b"",
    ) -> None:
        self.connection = connection
        self._request = request
        self._body = body
        if head is not None:
            self.method, self.path, self.parameters, _ = head
        else:
            assert request is not None
            url = request.rel_url
            self.method, self.path, self.parameters = request.method, url.raw_path, url.raw_query_string

    @property
    def caller(self) -> str:
        return self.connection.caller or self.connection.find_caller()

    def query(self) -> dict[str, list[str]]:
        """The parameters, unescaped."""
        return lists(self.parameters)

    async def body(self) -> bytes:
        """All of it, asked for if the client waits for that."""
        if self._request is None:
            return _bounded(self._body, self.connection.port.bounds)
        if "Expect" in self._request.headers:
            await expect(self._request)
        return await read_body(self._request)


async def expect(request: web.BaseRequest) -> None:
    """Ask for the body of a client that waits to be asked (RFC 9110 §10.1.1); aiohttp's routes do it too."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # what counts is the answer that follows


async def read_body(request: web.BaseRequest) -> bytes:
    """The whole body. Raises TooLarge, TimedOut, and Malformed for broken framing or compression."""
    bounds = connection_of(request).port.bounds
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Malformed("the body is compressed", "send it as it is, without Content-Encoding")
    if (request.content_length or 0) > bounds.body:
        raise _too_large(bounds)
    if request.content.is_eof() and request.content.exception() is None:
        # It came with the header, as small bodies do.
        return _bounded(request.content.read_nowait(), bounds)
    body = bytearray()
    try:
        async with asyncio.timeout(bounds.body_time):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bounds.body:
                    raise _too_large(bounds)
    except TimeoutError:
        raise TimedOut(
            f"the body did not arrive within {bounds.body_time:g} s", "send it again in one piece"
        ) from None
    except web.RequestPayloadError:
        raise Malformed("the body is not framed as HTTP/1.1 says", "send Content-Length, or chunks") from None
    return bytes(body)


def _bounded(body: bytes, bounds: Bounds) -> bytes:
    if len(body) > bounds.body:
        raise _too_large(bounds)
    return body


def _too_large(bounds: Bounds) -> TooLarge:
    return TooLarge(f"the body is larger than {bounds.body} bytes", "ask for less in one request")
