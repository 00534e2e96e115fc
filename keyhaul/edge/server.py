"""One TLS port: bounded in size and time, JSON on every path, one log line for each refused request.

The ports for SAEs, nodes and operators are each a `Port` around an aiohttp application, or around one
function that answers every call, which spares the busiest of them aiohttp's routes, and for requests whose
head came before (`heads`) all of aiohttp. Handlers raise errors of `keyhaul.errors`; the port's `render` is
the one place that turns them into answers.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from cryptography import x509

from keyhaul import story
from keyhaul.edge.accepting import Acceptor, Crowd, Traffic
from keyhaul.edge.calls import Calls, NoSuchMethod, NoSuchPath, Reply, lists
from keyhaul.edge.heads import Head, Heads
from keyhaul.edge.refusing import Note, Refusals
from keyhaul.edge.tls import peer_certificate
from keyhaul.edge.whole import answer, http, written
from keyhaul.errors import (
    ConfigError,
    KeyhaulError,
    Malformed,
    Refused,
    TimedOut,
    TooLarge,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Application = web.Application | Calls
Render = Callable[[KeyhaulError], web.Response | Reply]
NameOf = Callable[[x509.Certificate], str]
TLS_SHUTDOWN = 2.0  # seconds to say goodbye

log = structlog.get_logger("keyhaul.edge")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one caller may cost: `body` in bytes, the rest in seconds.

    `idle` runs from the opening of a connection, or from its last answer, until the next request's header
    is complete; so it also ends connections that send their header drop by drop. `body_time` is for one
    whole body; a sender that was refused before its end may go on for `linger`, so that it can read the
    answer. On closing, requests in progress get `grace` to finish. `crowd`: how many connections.
    """

    body: int = 1024 * 1024
    crowd: Crowd = field(default_factory=Crowd)
    handshake: float = 10.0
    idle: float = 60.0
    body_time: float = 15.0
    linger: float = 2.0
    grace: float = 10.0


class Port:
    """A listening TLS port. `role` is what its callers are in the log: sae, node or admin.

    `name_of` says who a certificate speaks for. It is asked before any handler runs, so a caller without
    a name in this role reaches none of them. `note` is told each refusal.
    """

    def __init__(
        self,
        role: str,
        application: Application,
        render: Render,
        name_of: NameOf,
        tls: ssl.SSLContext,
        bounds: Bounds | None = None,
        *,
        note: Note = lambda event, **fields: None,
    ) -> None:
        self.role = role
        self.render = render
        self.name_of = name_of
        self.bounds = bounds or Bounds()
        self._tls = tls
        self._application = application
        self.direct = not isinstance(application, web.Application) and all(
            hasattr(web.RequestHandler, name) for name in _REACHED
        )
        self._runner: web.BaseRunner | None = None
        self._acceptors: list[Acceptor] = []
        self.traffic = Traffic()
        self.refusals = Refusals(role, self.traffic, note)
        if isinstance(application, web.Application):
            application.middlewares.insert(0, self._middleware())

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on these bound sockets; they belong to the port from now on."""
        await self.start()
        for listener in sockets:
            self._acceptors.append(Acceptor(listener, self.greet, self.bounds.crowd, self.traffic))

    async def start(self) -> None:
        """Be ready to `greet`."""
        self._runner = self._make_runner()
        await self._runner.setup()

    async def greet(self, connection: socket.socket, number: int = 0) -> None:
        """Shake hands on an accepted connection and serve it. Raises OSError if there is no handshake."""
        assert self._runner is not None
        assert self._runner.server is not None
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(
            functools.partial(Connection, self._runner.server, self, number, loop=loop),
            connection,
            ssl=self._tls,
            ssl_handshake_timeout=self.bounds.handshake,
            ssl_shutdown_timeout=TLS_SHUTDOWN,
        )

    def _make_runner(self) -> web.BaseRunner:
        application, grace = self._application, self.bounds.grace
        if isinstance(application, web.Application):
            return web.AppRunner(application, access_log=None, shutdown_timeout=grace)
        server = web.Server(self._answer_call, access_log=None)
        return web.ServerRunner(server, shutdown_timeout=grace)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of every listener."""
        return [acceptor.listener.getsockname()[:2] for acceptor in self._acceptors]

    async def close(self) -> None:
        """Stop listening, let requests in progress finish for at most `grace` seconds, hang up."""
        for acceptor in self._acceptors:
            await acceptor.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._acceptors.clear()

    def _middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request, handler)

        return middleware

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What a handler answers, or what its error says; the story of the request begins here."""
        story.begin()
        try:
            self._admit(_connection(request))
            response = await handler(request)
            self.traffic.answers[response.status] += 1
            return response
        except ConnectionError as lost:
            if request.transport is None:
                raise  # nobody is left to answer
            return self._refuse(request, self.refusals.unexpected(lost))
        except web.HTTPException as raised:
            return self._refuse(request, _as_error(raised))
        except Exception as bug:  # noqa: BLE001  the root of a request: the port must stay up
            return self._refuse(request, self.refusals.shown(bug))

    async def _answer_call(self, request: web.BaseRequest) -> web.StreamResponse:
        """The same for a port around one function."""
        reply = await self.reply(HttpCall(_connection(request), request))
        cut = reply.status >= 400 and not request.content.is_eof()
        return answer(replace(reply, last=True) if cut else reply, request)

    async def reply(self, call: HttpCall) -> Reply:
        """What the function answers, or what its error says; the story of the call begins here."""
        story.begin()
        try:
            self._admit(call.connection)
            assert not isinstance(self._application, web.Application)
            reply = await self._application(call)
            self.traffic.answers[reply.status] += 1
            return reply
        except ConnectionError as lost:
            if call.connection.transport is None:
                raise  # nobody is left to answer
            error: KeyhaulError = self.refusals.unexpected(lost)
        except Exception as bug:  # noqa: BLE001  the root of a call: the port must stay up
            error = self.refusals.shown(bug)
        rendered = self.render(error)
        assert isinstance(rendered, Reply)
        reply = replace(rendered, headers={**rendered.headers, **named()}, last=call.connection.surplus)
        self.refusals.tell(error, reply.status, call.connection.caller, call.method, call.path)
        return reply

    def met(self, connection: Connection) -> None:
        """A connection has its handshake behind it."""
        self.traffic.met()

    def named(self, connection: Connection, caller: str) -> None:
        """Whose connection it is; a client with too many gets its answer on this one, and no more."""
        connection.surplus = not self.traffic.named(caller, self.bounds.crowd)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self.traffic.lost(connection.caller)

    def _admit(self, connection: Connection) -> None:
        if connection.caller is None:
            self.named(connection, connection.find_caller())
        if connection.surplus:
            raise self.bounds.crowd.surplus()

    def _refuse(self, request: web.BaseRequest, error: KeyhaulError) -> web.Response:
        rendered, connection = self.render(error), _connection(request)
        response = http(rendered) if isinstance(rendered, Reply) else rendered
        if isinstance(error, NoSuchMethod):
            response.headers["Allow"] = error.allow
        response.headers.update(named())
        if connection.surplus or not request.content.is_eof():
            response.force_close()  # the rest of a body is never taken for the next request
        self.refusals.tell(
            error, response.status, connection.caller, request.method, request.rel_url.raw_path
        )
        return response


_REACHED = (  # what Connection uses of aiohttp's own; a release without one of them reads every head itself
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


class Connection(web.RequestHandler):
    """One client connection, which remembers whose certificate it has, and the heads of its requests.

    A request whose head is remembered is answered here, while aiohttp's own task waits for the next one
    that it has to read. Where this touches what aiohttp keeps of a connection, it does as aiohttp does.
    """

    __slots__ = ("_behind", "_direct", "_heads", "caller", "number", "port", "surplus")

    def __init__(
        self, server: web.Server, port: Port, number: int, *, loop: asyncio.AbstractEventLoop
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
            self._direct = self._loop.create_task(self._reply(HttpCall(self, None, *found)))
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
        """Let the call in progress finish for at most so many seconds, in all.

        aiohttp waits for the request, and then as long again for its own task, which ends with the request
        if it serves it; while a call is served directly, that task is over, and nothing is waited for twice.
        """
        half = None if timeout is None else timeout / 2
        if self._direct is not None:
            await asyncio.wait({self._direct}, timeout=half)
        await super().shutdown(half)
        if self._direct is not None:
            self._direct.cancel()

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
        response = self.port._refuse(request, error)
        response.force_close()
        return response

    def log_exception(self, *_: Any, **details: Any) -> None:
        """aiohttp's last resort; its own would print messages we cannot vouch for."""
        log.error("connection failed", role=self.port.role, error=type(details.get("exc_info")).__qualname__)


def caller_of(request: web.BaseRequest) -> str:
    """The name in the caller's certificate. Raises Unauthorized."""
    return _connection(request).find_caller()


def _connection(request: web.BaseRequest) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


def named() -> dict[str, str]:
    """What the log names the request by."""
    now = story.current()
    return {} if now is None else {"X-Request-ID": now.request}


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
            return self._body
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
    bounds = _connection(request).port.bounds
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Malformed("the body is compressed", "send it as it is, without Content-Encoding")
    if (request.content_length or 0) > bounds.body:
        raise _too_large(bounds)
    if request.content.is_eof() and request.content.exception() is None:
        whole = request.content.read_nowait()  # it came with the header, as small bodies do
        if len(whole) > bounds.body:
            raise _too_large(bounds)
        return whole
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


def bind(host: str, port: int) -> socket.socket:
    """A listening socket for `Port.open`; port 0 takes a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as problem:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {problem.strerror}", "free the address or choose another"
        ) from None


def _too_large(bounds: Bounds) -> TooLarge:
    return TooLarge(f"the body is larger than {bounds.body} bytes", "ask for less in one request")


def _as_error(raised: web.HTTPException) -> KeyhaulError:
    """What aiohttp's router refuses: a path or a method that the port does not have."""
    if isinstance(raised, web.HTTPNotFound):
        return NoSuchPath()
    if isinstance(raised, web.HTTPMethodNotAllowed):
        return NoSuchMethod(raised.allowed_methods)
    error = Refused(f"the request cannot be served: {raised.reason}", "see the interface")
    error.status = raised.status
    return error
