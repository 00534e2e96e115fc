"""Posts messages to neighbours: one bounded set of keep-alive TLS connections each, and never another host.

A connection is used only if the certificate at its end names the neighbour we meant, besides being good for
the host name; this is checked before the first byte of a message leaves. Redirects are not followed. Sealed
messages that are ready at the same moment share one POST (`keyhaul.edge.joining`).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from keyhaul.edge.joining import Joined, Sent, Waiting
from keyhaul.edge.neighbours import neighbour_of
from keyhaul.edge.peer import BOUNDS, BUNDLE_PATH, ENVELOPE_PATH
from keyhaul.errors import (
    InsufficientKey,
    KeyhaulError,
    Malformed,
    PeerUnreachable,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from keyhaul.identity import Federation
from keyhaul.keys import Message
from keyhaul.messages import bundle
from keyhaul.messages.etsi020 import PATHS
from keyhaul.messages.problems import parse_problem, problem_slug
from keyhaul.ports import Answer, Peers
from keyhaul.unanswered import words

_PROBLEM_LIMIT = 64 * 1024  # bytes of an answer to a message
_SINGLY = frozenset({400, 404, 405, 413})  # what neighbours that know no bundles answer to one
_SINGLY_FOR = 600.0  # seconds until such a neighbour is tried with one again
_JSON = "application/json; charset=UTF-8"
_OCTETS = "application/octet-stream"
_PIECEWISE = 256 * 1024  # bytes from which a body is written in pieces, so that others get their turn
_Result = TypeVar("_Result")
_Request = AbstractAsyncContextManager[aiohttp.ClientResponse]
_IDLE_SECONDS = BOUNDS.idle / 2  # so that it is we who close idle connections, not the listener


class HttpPeers(Peers):
    """Neighbours by name, each with its base URL (`https://host:port`) and a TLS context for it.

    The mapping is looked at for every message; after a change of it `hang_up`.

    `connect_seconds` bounds name lookup, TCP and TLS; `answer_seconds` a whole exchange. At most
    `connections` are open to one neighbour, and as many sealed messages unanswered there. Use it inside
    one event loop and `close` it there.
    """

    def __init__(
        self,
        neighbours: Mapping[str, tuple[str, ssl.SSLContext]],
        *,
        connect_seconds: float = 5.0,
        answer_seconds: float = 30.0,
        connections: int = 8,
        federation: Federation | None = None,
    ) -> None:
        self._neighbours = neighbours
        self._timeout = aiohttp.ClientTimeout(total=answer_seconds, connect=connect_seconds)
        self._connections = connections
        self._federation = federation
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._joined: dict[str, Joined] = {}
        self._singly: dict[str, float] = {}
        self._patience = connect_seconds
        self.skew: dict[str, float] = {}
        """By neighbour: its clock less ours in seconds, from the Date of its last answer, so to a second."""

    async def post(self, message: Message) -> Answer:
        """Send one message once; any HTTP status is an answer.

        Raises PeerUnreachable if none came: the neighbour may or may not have kept the message.
        """
        peer, base = message.peer, self._base(message.peer)
        async with _unreachable(peer):
            if message.sealed:
                status, body = await self._queue(peer).post(message.body)
            else:
                url = self._plain_url(message, base)
                status, body = await _twice(
                    partial(self._exchange, peer, url, message.body, _JSON, _PROBLEM_LIMIT)
                )
        if 300 <= status < 400:
            return Answer(status, "the peer redirects, and redirects are not followed")
        return Answer(status, "" if status < 300 else parse_problem(body))

    async def call(self, peer: str, path: str, body: bytes) -> bytes:
        """Ask a sealed neighbour something (`refill`, `records`) and return its answer.

        Raises PeerUnreachable if none came, else by status: Malformed, Unauthorized, TimedOut,
        InsufficientKey, Unavailable.
        """
        url = f"{self._base(peer)}/keyhaul/v1/{path}"
        async with _unreachable(peer):
            status, answer = await self._exchange(peer, url, body, _OCTETS, BOUNDS.body)
        if 200 <= status < 300:
            return answer
        raise _refusal(peer, status, answer)

    async def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        queues, self._joined = list(self._joined.values()), {}
        for queue in queues:
            await queue.close()
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    async def hang_up(self, peer: str) -> None:
        """Close the connections to one neighbour; a later message opens new ones, to where it is then."""
        self._singly.pop(peer, None)
        session = self._sessions.pop(peer, None)
        if session is not None:
            await session.close()

    def _base(self, peer: str) -> str:
        if peer not in self._neighbours:
            raise PeerUnreachable(f"there is no address for {peer}", "add it to the configuration")
        return self._neighbours[peer][0].rstrip("/")

    def _plain_url(self, message: Message, base: str) -> str:
        if message.url is None:
            return base + PATHS[message.path]
        if not _same_origin(message.url, base):
            raise PeerUnreachable(
                f"the callback URL is not at the address of {message.peer}",
                "correct the address in the configuration",
            )
        return message.url

    def _session(self, peer: str) -> aiohttp.ClientSession:
        """One per neighbour, so that one that hangs never takes another's connections."""
        if peer not in self._sessions:
            self._sessions[peer] = aiohttp.ClientSession(
                connector=_Pinned(
                    peer,
                    self._federation,
                    ssl=self._neighbours[peer][1],
                    limit=self._connections,
                    keepalive_timeout=_IDLE_SECONDS,
                ),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "keyhaul"},
            )
        return self._sessions[peer]

    def _request(self, peer: str, url: str, body: bytes, kind: str) -> _Request:
        return self._session(peer).post(
            URL(url, encoded=True),
            data=body if len(body) < _PIECEWISE else io.BytesIO(body),
            headers={"Content-Type": kind},
            allow_redirects=False,
        )

    async def _exchange(self, peer: str, url: str, body: bytes, kind: str, limit: int) -> Sent:
        async with self._request(peer, url, body, kind) as response:
            self._compare_clocks(peer, response.headers.get("Date", ""))
            return response.status, await _bounded(response, limit)

    # --- sealed messages

    def _queue(self, peer: str) -> Joined:
        if peer not in self._joined:
            self._joined[peer] = Joined(partial(self._carry, peer), self._connections, self._patience)
        return self._joined[peer]

    async def _carry(self, peer: str, lot: Sequence[Waiting]) -> None:
        if len(lot) == 1:
            await self._alone(peer, lot[0])
        elif time.monotonic() < self._singly.get(peer, 0.0) or not await _twice(
            partial(self._together, peer, lot)
        ):
            results = await asyncio.gather(*(self._alone(peer, each) for each in lot), return_exceptions=True)
            for each, error in zip(lot, results, strict=True):
                if isinstance(error, Exception):
                    each.failed(error)

    async def _alone(self, peer: str, one: Waiting) -> None:
        url = self._base(peer) + ENVELOPE_PATH
        one.told(*await _twice(partial(self._exchange, peer, url, one.body, _OCTETS, _PROBLEM_LIMIT)))

    async def _together(self, peer: str, lot: Sequence[Waiting]) -> bool:
        """One POST for several; whether the neighbour takes such."""
        body = bundle.encode([each.body for each in lot])
        async with self._request(peer, self._base(peer) + BUNDLE_PATH, body, _OCTETS) as response:
            self._compare_clocks(peer, response.headers.get("Date", ""))
            if response.status != 200:
                problem = await _bounded(response, _PROBLEM_LIMIT)
                if response.status in _SINGLY:
                    self._singly[peer] = time.monotonic() + _SINGLY_FOR
                    return False
                for each in lot:
                    each.told(response.status, problem)
                return True
            verdicts = bundle.Verdicts(len(lot))
            try:
                while piece := await response.content.readany():
                    for place, status, problem in verdicts.feed(piece):
                        lot[place].told(status, problem)
            except Malformed as error:
                response.close()
                raise aiohttp.ClientPayloadError(error.cause) from None
        if verdicts.open:
            raise aiohttp.ClientPayloadError("the answer says nothing of some envelopes")
        return True

    def _compare_clocks(self, peer: str, date: str) -> None:
        with contextlib.suppress(ValueError, TypeError):
            # The answer's whole second began up to a second ago.
            behind = parsedate_to_datetime(date).timestamp() - time.time()
            self.skew[peer] = 0.0 if -1.0 <= behind <= 0.0 else behind


async def _twice(exchange: Callable[[], Awaitable[_Result]]) -> _Result:
    """Most likely the neighbour just closed an idle connection; a message bears being sent again."""
    try:
        return await exchange()
    except aiohttp.ServerDisconnectedError:
        return await exchange()


class _Pinned(aiohttp.TCPConnector):
    """Hands out connections to one named neighbour only."""

    def __init__(self, peer: str, federation: Federation | None, **options: Any) -> None:
        super().__init__(**options)
        self._peer = peer
        self._federation = federation

    async def connect(self, *arguments: Any, **named: Any) -> Connection:
        """As aiohttp's, if its certificate names the neighbour. Raises Unauthorized."""
        connection = await super().connect(*arguments, **named)
        try:
            found = neighbour_of(connection.transport, self._federation)
            if found != self._peer:
                raise Unauthorized(f"the certificate at that address names {found}")
        except Unauthorized:
            connection.close()
            raise
        return connection


@asynccontextmanager
async def _unreachable(peer: str) -> AsyncIterator[None]:
    """Say of every way not to get an answer what to look at."""
    try:
        yield
    except Unauthorized as error:
        cause, remedy = error.cause, "check address and name of the neighbour in the configuration"
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        cause, remedy = words(error), "check that both domains exchanged their CA certificates"
    except TimeoutError:
        cause, remedy = "no answer in time", "check that the neighbour runs and the network between"
    except (aiohttp.ClientError, OSError) as error:
        cause, remedy = words(error), "check that the neighbour runs and the network between"
        if "alert" in cause or "certificate" in cause:
            remedy = "see which certificate is refused and why: `keyhaul federation test` names it"
    else:
        return
    raise PeerUnreachable(f"{peer}: {cause}", remedy) from None


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` bytes; the connection is given up if there are more."""
    body = bytearray()
    while len(body) <= limit and (part := await response.content.read(limit + 1 - len(body))):
        body += part
    if len(body) > limit:
        response.close()
        raise aiohttp.ClientPayloadError(f"the answer is larger than {limit} bytes")
    return bytes(body)


def _same_origin(url: str, base: str) -> bool:
    """Whether a callback URL is https at the host and port we have for the peer, and only a path beyond."""
    try:
        there, here = URL(url, encoded=True), URL(base)
    except ValueError:
        return False
    if there.scheme != "https" or there.user is not None or there.password is not None or there.fragment:
        return False
    return (there.host, there.port) == (here.host, here.port)


def _refusal(peer: str, status: int, body: bytes) -> KeyhaulError:
    text = f"{peer} answered {status}: {parse_problem(body) or 'no reason given'}"
    if status == 503 and problem_slug(body) == "insufficient-key-material":
        return InsufficientKey(text)
    kinds: dict[int, type[KeyhaulError]] = {400: Malformed, 401: Unauthorized, 408: TimedOut}
    return kinds.get(status, Unavailable)(text)
