"""One bounded HTTPS exchange with a QKD device, and what its answers mean in our own errors.

Vendors answer the same event differently (an empty store is 503 here and 400 there, an unknown key 400 here
and 404 there), so the reading is liberal. Nothing of a 200 body ever gets into an error.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec
from yarl import URL

from keyhaul.errors import (
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
from keyhaul.unanswered import seconds_until, words

Operation = Literal["status", "enc_keys", "dec_keys"]

_EMPTY = re.compile(
    r"not enough|insufficient|no (more )?keys?\b.*available|exhaust|key pool is empty|out of keys", re.I
)
_MISSING = re.compile(r"not found|unknown key|no such key|expired|does not exist", re.I)


class _Error(msgspec.Struct):
    message: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: HTTP status, body of bounded length, Retry-After in seconds if there was one."""

    status: int
    body: bytes
    retry_after: int | None


class Lost(Exception):
    """The connection failed before a whole answer arrived; the device may have acted all the same.

    The caller tries again, or turns it into PeerUnreachable.
    """


class Exchange:
    """Requests to one device over one TLS context. `limit` bounds an answer, in bytes."""

    def __init__(
        self, url: str, tls: ssl.SSLContext, session: aiohttp.ClientSession | None, limit: int
    ) -> None:
        self._url = url.rstrip("/")
        self._tls = tls
        self._session = session
        self._owned = session is None
        self._limit = limit

    async def send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """One request, no retry. `path` is percent-encoded already.

        Raises Lost if the connection failed, Unauthorized if the TLS handshake did, Malformed if the answer
        is too long.
        """
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._open().request(
                method,
                URL(self._url + path, encoded=True),
                data=body,
                headers=headers,
                ssl=self._tls,
                allow_redirects=False,
            ) as response:
                content = await self._read(response)
                return Reply(response.status, content, seconds_until(response.headers.get("Retry-After", "")))
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error, self._url) from None

    async def close(self) -> None:
        """Close what we opened; a session that was handed in stays open."""
        if self._owned and self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for chunk in response.content.iter_chunked(65_536):
            content += chunk
            if len(content) > self._limit:
                response.close()
                raise Malformed(f"the device's answer is longer than {self._limit} bytes")
        return bytes(content)


def _lost(error: Exception, url: str) -> Exception:
    tls = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(error, aiohttp.ClientConnectorCertificateError) or isinstance(
        tls, ssl.SSLCertVerificationError
    ):
        why = f" ({tls.strerror or tls})" if isinstance(tls, ssl.SSLCertVerificationError) else ""
        return PeerUnreachable(
            f"the certificate of the device at {url} is not one we trust{why}",
            "check its CA and host name in the link's configuration",
        )
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(tls, ssl.SSLError):
        why = f": {tls.strerror or tls}" if isinstance(tls, ssl.SSLError) else ""
        return Unauthorized(
            f"the TLS handshake with the device at {url} failed{why}",
            "check that the device trusts the CA of our certificate and speaks TLS 1.2 or newer",
        )
    if isinstance(error, aiohttp.InvalidURL):
        return PeerUnreachable(f"{url} is not a URL", "correct it in the link's configuration")
    return Lost(f"no answer from the device at {url} ({words(error)})")


def refusal(reply: Reply, operation: Operation) -> KeyhaulError:
    """What an answer other than 200 means."""
    said = _said(reply.body)
    status = reply.status
    if status in (401, 403):
        return Unauthorized(f"the device refused our certificate for {operation}: {said}")
    if operation == "dec_keys" and (status in (404, 410) or (status == 400 and _MISSING.search(said))):
        return KeyNotFound(f"the device has not all of these keys: {said}")
    if (operation == "enc_keys" and status in (429, 503)) or (status in (400, 503) and _EMPTY.search(said)):
        dry = InsufficientKey(f"the device has not enough key now: {said}")
        dry.retry_after = reply.retry_after or InsufficientKey.retry_after
        return dry
    if status == 408:
        return TimedOut(f"the device found our request too slow: {said}")
    if status >= 500 or status == 429:
        return Unavailable(f"the device failed with status {status}: {said}")
    if 400 <= status < 500:
        return Refused(f"the device refused {operation} with status {status}: {said}")
    return Malformed(f"the device answered {operation} with status {status}", "check the device's URL")


def _said(body: bytes) -> str:
    """The device's own words, cut and cleaned for logs."""
    try:
        words = msgspec.json.decode(body, type=_Error).message
    except (ValueError, RecursionError):  # msgspec.DecodeError, and what is not UTF-8
        words = ""
    return "".join(c for c in words[:200] if c.isprintable()) or "no reason given"
