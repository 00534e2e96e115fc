"""Key ids between two agents: HTTP inside TLS 1.3 with post-quantum key exchange; each proves to be its SAE.

    POST /keyhaul/agent/v1/stage    {"key_ID": UUID, "in_use": UUID or null}    200 fetched and installed
    POST /keyhaul/agent/v1/settle   {"key_ID": UUID}                            200 all others are gone

A refusal has the body {"cause", "next_step"} and the status of its error. Both ends show their SAE
certificates; whose it is, is checked at the end of the handshake, before anything is said.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from uuid import UUID

import aiohttp
import msgspec
import structlog
from cryptography import x509

from keyhaul.consumers.agreement import Responder, Step
from keyhaul.edge.accepting import Bounds
from keyhaul.edge.calls import Call, NoSuchMethod, NoSuchPath, Reply
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Credentials, equals_context
from keyhaul.errors import (
    KeyhaulError,
    Malformed,
    PeerUnreachable,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from keyhaul.identity import sae_id

PREFIX = "/keyhaul/agent/v1"
PATIENCE = 90.0  # seconds for one telling: the other end asks its node, which may make it wait
MAX_BODY = 4096  # bytes

log = structlog.get_logger("keyhaul.agent")


class Told(msgspec.Struct, frozen=True, rename={"key_id": "key_ID"}):
    """Which key a step is about, and the one that the initiator begins with until then."""

    key_id: UUID
    in_use: UUID | None = None


class No(msgspec.Struct, frozen=True):
    """Why a step was not done."""

    cause: str = ""
    next_step: str = ""


def only(peer: str) -> Callable[[x509.Certificate], None]:
    """A check that lets in nobody but this SAE."""

    def check(certificate: x509.Certificate) -> None:
        found = sae_id(certificate)
        if found != peer:
            log.warning("somebody else on the channel", sae=found, expected=peer)
            raise Unauthorized(
                f"the other end is SAE {found!r}, not {peer!r}", "correct `peer` or the address"
            )

    return check


class Caller:
    """The initiator's end. Certificates are read for every telling, so renewed ones count at once."""

    def __init__(self, url: str, files: Credentials, peer: str, patience: float = PATIENCE) -> None:
        self._url, self._files, self._peer, self._patience = url.rstrip("/"), files, peer, patience

    async def tell(self, step: Step, key_id: UUID, in_use: UUID | None = None) -> None:
        """One step at the other end. Raises what it refused with, PeerUnreachable and TimedOut."""
        context = await asyncio.to_thread(equals_context, self._files, only(self._peer), server_side=False)
        body = msgspec.json.encode(Told(key_id, in_use))
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context),
                    timeout=aiohttp.ClientTimeout(total=self._patience),
                ) as session,
                session.post(f"{self._url}{PREFIX}/{step}", data=body, allow_redirects=False) as answer,
            ):
                said = await answer.content.read(MAX_BODY)
        except TimeoutError:
            raise TimedOut(
                f"no answer from {self._url} in time", "see whether the other agent is up"
            ) from None
        except (aiohttp.ClientError, ssl.SSLError, ConnectionError) as problem:
            raise PeerUnreachable(
                f"the agent of {self._peer} at {self._url} cannot be reached: {problem}",
                "see that it runs, and that each end's `channel.ca` has issued the other's certificate",
            ) from None
        if answer.status != 200:
            raise _error(answer.status, said)


class Listening:
    """The responder's end: a port that one SAE may call."""

    def __init__(self, files: Credentials, peer: str, responder: Responder) -> None:
        self._files, self._peer = files, peer
        self._steps: dict[str, Callable[[UUID, UUID | None], Awaitable[None]]] = {
            f"{PREFIX}/stage": responder.stage,
            f"{PREFIX}/settle": responder.settle,
        }
        self._port: Port | None = None
        self.context: ssl.SSLContext | None = None
        """For `edge.tls.reload`, once it is open."""

    async def open(self, host: str, port: int) -> str:
        """Listen; the address as a URL. Raises ConfigError."""
        self.context = equals_context(self._files, only(self._peer), server_side=True)
        bounds = Bounds(body=MAX_BODY)
        self._port = Port("agent", self._answer, _refusal, sae_id, self.context, bounds)
        await self._port.open([bind(host, port)])
        name = f"[{host}]" if ":" in host else host
        return f"https://{name}:{self._port.addresses[0][1]}"

    async def close(self) -> None:
        """Finish the step in progress, and stop listening."""
        if self._port is not None:
            await self._port.close()

    async def _answer(self, call: Call) -> Reply:
        step = self._steps.get(call.path)
        if step is None:
            raise NoSuchPath
        if call.method != "POST":
            raise NoSuchMethod(["POST"])
        told = decode(await call.body())
        await step(told.key_id, told.in_use)
        return Reply(200, b"{}")


def decode(body: bytes) -> Told:
    """What an initiator says. Raises Malformed."""
    try:
        return msgspec.json.decode(body, type=Told)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Malformed('the body is not {"key_ID": UUID}', "use the same release at both ends") from None


def _refusal(error: KeyhaulError) -> Reply:
    headers = {"Allow": error.allow} if isinstance(error, NoSuchMethod) else {}
    return Reply(error.status, msgspec.json.encode(No(error.cause, error.remedy)), headers)


def _error(status: int, said: bytes) -> KeyhaulError:
    try:
        no = msgspec.json.decode(said, type=No)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        no = No(f"status {status}")
    kind = Unavailable if status >= 500 else Unauthorized if status == 401 else Refused
    return kind(f"the other agent says: {no.cause}", no.next_step)
