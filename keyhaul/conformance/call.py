"""One HTTP exchange as one party, on a connection of its own, read without any codec of the node.

Requests go out exactly as a probe writes them, paths and bodies included. JSON is read by Python's own
reader. Nothing is retried and no redirect is followed.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from keyhaul.conformance.probe import Deviation, expect

TIMEOUT = 60.0  # seconds for one answer; probes have their own, shorter patience
MAX_ANSWER = 16 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got; `tls` is the protocol version of its connection."""

    status: int
    body: bytes = field(repr=False)
    content_type: str = ""
    tls: str = ""

    def json(self) -> Any:
        """The body. Raises Deviation unless it is JSON in UTF-8 without a member twice."""
        try:
            return json.loads(self.body.decode(), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise Deviation(f"{self.status} with a body that is no JSON ({error})") from None

    def object(self) -> dict[str, Any]:
        """The body as a JSON object, announced as JSON. Raises Deviation."""
        expect(
            self.content_type.partition(";")[0].strip().lower() == "application/json",
            f"{self.status} with content type {self.content_type or 'none'}",
        )
        value = self.json()
        expect(isinstance(value, dict), f"{self.status} with JSON that is no object")
        return dict(value)

    def brief(self) -> str:
        """Status and, of an error, its words: never a body that may hold keys."""
        if self.status < 400:
            return str(self.status)
        return f"{self.status} {self.body[:160].decode(errors='replace').strip()}".strip()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has a member twice")
    return members


@dataclass(frozen=True, slots=True)
class Caller:
    """One party: its `name` (an SAE id, a KME id), whom it calls, and the TLS context it does that with."""

    name: str
    url: str
    tls: ssl.SSLContext

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One exchange. `path` is sent as it is. Raises what aiohttp raises when there is no answer."""
        fields = dict(headers or {})
        if body is not None:
            fields.setdefault("Content-Type", "application/json; charset=UTF-8")
        connector = _Noting(ssl=self.tls, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
            session.request(
                method,
                URL(self.url.rstrip("/") + path, encoded=True),
                data=body,
                headers=fields,
                allow_redirects=False,
            ) as response,
        ):
            content = await response.content.read(MAX_ANSWER)
            while not response.content.at_eof() and len(content) < MAX_ANSWER:
                content += await response.content.read(MAX_ANSWER - len(content))
            return Answer(
                response.status, content, response.headers.get("Content-Type", ""), connector.version
            )

    async def post(self, path: str, value: object) -> Answer:
        """POST a JSON value."""
        return await self.ask("POST", path, json.dumps(value, ensure_ascii=False).encode())

    async def get(self, path: str) -> Answer:
        """GET."""
        return await self.ask("GET", path)


class _Noting(aiohttp.TCPConnector):
    """Remembers the TLS version of its connection, which may be gone before the answer is read."""

    version = ""

    async def connect(self, *arguments: Any, **named: Any) -> Connection:
        connection = await super().connect(*arguments, **named)
        handshake = connection.transport.get_extra_info("ssl_object") if connection.transport else None
        self.version = (handshake.version() if handshake is not None else "") or ""
        return connection


async def refused(caller: Caller, path: str) -> str:
    """How a caller was turned away: in the handshake, or with 401. Raises Deviation if it was served."""
    try:
        answer = await caller.get(path)
    except (aiohttp.ClientError, OSError) as error:
        cause = error.__cause__ or error
        expect(not isinstance(error, aiohttp.ClientConnectorDNSError), f"no such host: {error}")
        expect(not isinstance(cause, ConnectionRefusedError), "nothing listens there")
        # It was this side that hung up, so nothing is known about the other.
        expect(not isinstance(error, aiohttp.ClientConnectorCertificateError), f"not believed: {error}")
        return f"connection refused ({type(error).__name__})"
    expect(answer.status == 401, f"served: {answer.brief()}")
    return "401"
