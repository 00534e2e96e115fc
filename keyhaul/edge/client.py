"""An SAE's side of ETSI GS QKD 014: ask for keys, fetch them by id, read the status; errors are typed.

Speaks to any 014 node over one mutually authenticated TLS context. What the server says in its Error body
becomes the `cause` of the exception, so a person sees the node's own words.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import aiohttp
from msgspec import UNSET
from yarl import URL

from keyhaul.errors import (
    ExtensionRefused,
    InsufficientKey,
    KeyhaulError,
    KeyNotFound,
    Malformed,
    PeerUnreachable,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from keyhaul.messages import etsi014
from keyhaul.messages.etsi014 import Delivered, Extensions, KeyRequest, Refusal, Status
from keyhaul.unanswered import seconds_until

MAX_ANSWER = 4 * 1024 * 1024  # bytes; 1 MiB of key is 1.4 MiB of base64
MAX_RETRIES = 20
DEFAULT_PAUSE = 2.0  # seconds, where a 503 has no Retry-After
LEAST_PAUSE = 0.1

Received = Delivered


class SaeClient:
    """One SAE at one node: `async with SaeClient("https://node:8443", tls) as sae: ...`.

    `timeout` bounds each call, `patience` the time spent on repeating calls that the node answered with
    503, both in seconds; no call is repeated by default. All calls raise Unauthorized, Refused or one of
    its kinds, Unavailable or one of its kinds (PeerUnreachable if there was no answer), TimedOut,
    and Malformed for an answer that is not 014.
    """

    def __init__(self, url: str, tls: ssl.SSLContext, timeout: float = 30.0, patience: float = 0.0) -> None:
        self._base = url.rstrip("/") + etsi014.PREFIX
        self._tls = tls
        self._timeout = timeout
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get_key(
        self,
        slave: str,
        number: int = 1,
        size: int | None = None,
        additional: Sequence[str] = (),
        mandatory: Sequence[Mapping[str, Any]] = (),
        optional: Sequence[Mapping[str, Any]] = (),
    ) -> list[Received]:
        """`number` fresh keys shared with `slave` and the `additional` slaves; `size` in bits per key."""
        asked = KeyRequest(
            number, UNSET if size is None else size, tuple(additional), _plain(mandatory), _plain(optional)
        )
        keys = etsi014.decode_container(
            await self._call("POST", slave, "enc_keys", etsi014.encode_request(asked))
        )
        if len(keys) != number or any(size not in (None, len(key.bits) * 8) for key in keys):
            raise Malformed("the node gave other keys than were ordered", _NOT_014)
        return keys

    async def fetch_key(self, master: str, key_ids: Sequence[UUID], *, trust: bool = False) -> list[Received]:
        """The keys `master` got under these ids, in this order; `trust` asks for the trust statements.

        A key is delivered once: if the answer is lost on the way, so is the key.
        """
        body = etsi014.encode_key_ids(key_ids, trust=trust)
        keys = {
            key.key_id: key
            for key in etsi014.decode_container(await self._call("POST", master, "dec_keys", body))
        }
        if keys.keys() != set(key_ids):
            raise Malformed("the node gave other keys than were asked for", _NOT_014)
        return [keys[key_id] for key_id in key_ids]

    async def status(self, slave: str) -> Status:
        """What this SAE could get, as master, for `slave`."""
        return etsi014.decode_status(await self._call("GET", slave, "status"))

    async def _call(self, method: str, sae: str, operation: str, body: bytes | None = None) -> bytes:
        """One call; repeated while the node says 503 and the patience lasts."""
        # Built as it goes onto the wire: the library would read `%2F` and friends once more.
        url = URL(f"{self._base}/{etsi014.quote_sae(sae)}/{operation}", encoded=True)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience
        for _ in range(MAX_RETRIES):
            try:
                return await self._once(method, url, body)
            except PeerUnreachable:
                raise  # nobody knows whether the node acted on it
            except Unavailable as busy:
                pause = max(LEAST_PAUSE, DEFAULT_PAUSE if busy.retry_after is None else busy.retry_after)
                if loop.time() + pause > give_up:
                    raise
            await asyncio.sleep(pause)
        return await self._once(method, url, body)

    async def _once(self, method: str, url: URL, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with (
            _explained(url),
            self._open().request(method, url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            content = await _bounded(answer)
        if answer.status != 200:
            raise _error(answer.status, answer.headers.get("Retry-After", ""), content)
        return content

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept-Encoding",),
            )
        return self._session


_NOT_014 = "check that the address is that of an ETSI GS QKD 014 node"


def _plain(extensions: Sequence[Mapping[str, Any]]) -> Extensions:
    return tuple(dict(extension) for extension in extensions)


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise Malformed(f"the node's answer is larger than {MAX_ANSWER} bytes", _NOT_014)
    return bytes(content)


@contextlib.asynccontextmanager
async def _explained(url: URL) -> AsyncIterator[None]:
    """No answer, as an error that says which of the usual reasons it has; `sent` is 0 if nothing left us."""
    where = f"{url.host}:{url.port}"
    try:
        yield
    except TimeoutError:
        raise TimedOut(f"no answer from {where} in time", "see whether the node is up") from None
    except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError, ssl.SSLError) as problem:
        raise PeerUnreachable(
            f"TLS with {where} failed: {problem}",
            "check that both sides trust each other's CA and that the host name is in the node's certificate",
        ) from None
    except aiohttp.ClientConnectorError as problem:
        said = f"cannot connect to {where}: {problem.strerror}"
        raise PeerUnreachable(said, "start the node", sent=0) from None
    except (aiohttp.ClientError, ConnectionError) as problem:
        raise PeerUnreachable(
            f"{where} hung up: {problem}",
            "if it never answers, check that your certificate is of the CA it trusts and has not expired",
        ) from None


_KINDS = {
    etsi014.KEYS_NOT_FOUND: KeyNotFound,
    etsi014.MANDATORY_UNMET: ExtensionRefused,
    etsi014.MANDATORY_UNSUPPORTED: ExtensionRefused,
}


def _error(status: int, retry_after: str, content: bytes) -> KeyhaulError:
    """A refusal of the node, with its message as cause and its details as they came."""
    said = etsi014.decode_refusal(content)
    cause, remedy = _words(said, status)
    pairs = {name: value for entry in said.details for name, value in entry.items()}
    details = {
        name: value
        for name, value in pairs.items()
        if isinstance(value, str | int) and name not in ("cause", "remedy", "next_step", "self")
    }
    if status == 400:
        return _KINDS.get(said.message, Refused)(cause, remedy, **details)
    if status == 401:
        return Unauthorized(cause, remedy, **details)
    if status == 503:
        kind = InsufficientKey if "key_bits_available" in details else Unavailable
        busy: KeyhaulError = kind(cause, remedy, **details)
        busy.retry_after = seconds_until(retry_after)
        return busy
    return Malformed(f"the node answered {status}: {cause}", remedy or _NOT_014, **details)


def _words(said: Refusal, status: int) -> tuple[str, str]:
    """The node's message, with the cause and the next step our nodes put into `details`."""
    extra = {name: str(value) for entry in said.details for name, value in entry.items()}
    cause = said.message or f"the node refused with status {status} and gave no reason"
    if extra.get("cause", cause) != cause:
        cause = f"{cause} ({extra['cause']})"
    return cause, extra.get("next_step", "")
