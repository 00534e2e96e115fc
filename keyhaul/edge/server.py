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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from cryptography import x509

from keyhaul import story
from keyhaul.edge.accepting import Acceptor, Bounds, Traffic
from keyhaul.edge.calls import Calls, NoSuchMethod, NoSuchPath, Reply
from keyhaul.edge.connection import REACHED, Connection, HttpCall, connection_of
from keyhaul.edge.refusing import Note, Refusals
from keyhaul.edge.whole import answer, http
from keyhaul.errors import (
    ConfigError,
    KeyhaulError,
    Refused,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Application = web.Application | Calls
Render = Callable[[KeyhaulError], web.Response | Reply]
NameOf = Callable[[x509.Certificate], str]
TLS_SHUTDOWN = 2.0  # seconds to say goodbye

log = structlog.get_logger("keyhaul.edge")


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
            hasattr(web.RequestHandler, name) for name in REACHED
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
        """Stop listening, let requests in progress finish for at most `grace` seconds, hang up.

        One log line says which did not.
        """
        for acceptor in self._acceptors:
            await acceptor.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self.refusals.tell_cut_off()
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
            self._admit(connection_of(request))
            response = await handler(request)
            self.traffic.answers[response.status] += 1
            return response
        except ConnectionError as lost:
            if request.transport is None:
                raise  # nobody is left to answer
            return self.refuse(request, self.refusals.unexpected(lost))
        except web.HTTPException as raised:
            return self.refuse(request, _as_error(raised))
        except Exception as bug:  # noqa: BLE001  the root of a request: the port must stay up
            return self.refuse(request, self.refusals.shown(bug))

    async def _answer_call(self, request: web.BaseRequest) -> web.StreamResponse:
        """The same for a port around one function."""
        reply = await self.reply(HttpCall(connection_of(request), request))
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

    def refuse(self, request: web.BaseRequest, error: KeyhaulError) -> web.Response:
        """The answer to a request that cannot be served."""
        rendered, connection = self.render(error), connection_of(request)
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


def named() -> dict[str, str]:
    """What the log names the request by."""
    now = story.current()
    return {} if now is None else {"X-Request-ID": now.request}


def bind(host: str, port: int) -> socket.socket:
    """A listening socket for `Port.open`; port 0 takes a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as problem:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {problem.strerror}", "free the address or choose another"
        ) from None


def _as_error(raised: web.HTTPException) -> KeyhaulError:
    """What aiohttp's router refuses: a path or a method that the port does not have."""
    if isinstance(raised, web.HTTPNotFound):
        return NoSuchPath()
    if isinstance(raised, web.HTTPMethodNotAllowed):
        return NoSuchMethod(raised.allowed_methods)
    error = Refused(f"the request cannot be served: {raised.reason}", "see the interface")
    error.status = raised.status
    return error
