"""Sources of raw random bytes: files and FIFOs, HTTP QRNGs, and whatever has a blocking read.

They do not test, mix or retry: `feed` does. Nothing they raise or log holds a sample.
"""

from __future__ import annotations

import asyncio
import base64
import os
import select
import ssl
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
import msgspec
from yarl import URL

from keyhaul.errors import KeyhaulError, Malformed, PeerUnreachable, Unavailable
from keyhaul.keys import Secret

Encoding = Literal["hex", "base64", "uint8", "raw"]

TIMEOUT = 10.0  # seconds in which a source must give something
LARGEST_ANSWER = 1024 * 1024  # bytes of one HTTP answer
PER_REQUEST = 1024  # bytes of one HTTP request; what a public QRNG allows
_GLANCE = 0.2  # seconds a thread waits on a file, so that closing never waits long
_BREATH = 0.05  # seconds until a device that had nothing is asked again
_PAUSES = 3600  # seconds: the longest Retry-After that is believed


class Source(Protocol):
    """A generator of samples of one byte, `min_entropy` bits of entropy each as its maker claims."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def min_entropy(self) -> float: ...

    async def read(self, length: int) -> bytes:
        """At least one raw byte, not many more than `length`.

        Raises a KeyhaulError that says what is wrong; `pause` among its details is how many seconds the
        source asked to be left alone.
        """

    async def close(self) -> None:
        """Give up what it holds; safe while a cancelled read is still ending in its thread."""


class FileSource:
    """A device file such as /dev/hwrng, a FIFO that a vendor's program fills, or a plain file.

    A plain file is read once, from its start to its end: it is meant for trials, because after a restart
    the same bytes come again.
    """

    kind = "file"

    def __init__(self, name: str, path: Path, min_entropy: float, timeout: float = TIMEOUT) -> None:
        self.name = name
        self.path = path
        self.min_entropy = min_entropy
        self._timeout = timeout
        self._descriptor: int | None = None
        self._lock = threading.Lock()  # a descriptor is never closed under a read
        self._closed = False

    async def read(self, length: int) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    if chunk := await asyncio.to_thread(self._glance, length):
                        return chunk
                    await asyncio.sleep(_BREATH)
        except TimeoutError:
            raise Unavailable(
                f"{self.path} gave nothing for {self._timeout:g} s", "see what fills it"
            ) from None
        except OSError as error:
            raise Unavailable(
                f"{self.path} cannot be read ({error.strerror})", "check the path and its permissions"
            ) from None

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _glance(self, length: int) -> bytes:
        """What is there within a moment, or nothing. O_NONBLOCK: a FIFO without a writer opens at once."""
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self.path} is closed")
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if not poll.poll(_GLANCE * 1000):
                return b""
            try:
                chunk = os.read(self._descriptor, length)
            except BlockingIOError:
                return b""  # a device that has no poll, and no byte either
            return chunk or self._ended(self._descriptor)

    def _ended(self, descriptor: int) -> bytes:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return b""  # nobody writes; somebody may come
        raise Unavailable(f"{self.path} is at its end", "name a device or a FIFO")

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


class HttpSource:
    """A QRNG behind HTTPS. Its maker and whoever ends its TLS know the bytes, so it is never used alone.

    `{bytes}` in the URL becomes the number of bytes wanted. `json_path` names the value in the answer,
    members and list positions joined by dots; `$` is the whole body. `headers` may hold an API key.
    """

    kind = "http"

    def __init__(
        self,
        name: str,
        url: str,
        tls: ssl.SSLContext,
        min_entropy: float,
        *,
        json_path: str = "data",
        encoding: Encoding = "hex",
        headers: Mapping[str, Secret] | None = None,
        per_request: int = PER_REQUEST,
        timeout: float = TIMEOUT,
    ) -> None:
        self.name = name
        self.min_entropy = min_entropy
        self._url = url
        self._tls = tls
        self._json_path = json_path
        self._encoding: Encoding = encoding
        self._headers = dict(headers or {})
        self._per_request = per_request
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    @property
    def place(self) -> str:
        """The URL without its query, which may hold a key."""
        return self._url.partition("?")[0]

    async def read(self, length: int) -> bytes:
        """One request; no redirects. Raises PeerUnreachable, Malformed, or Unavailable for another status."""
        body = await self._get(min(length, self._per_request))
        chunk = decode(body, self._json_path, self._encoding)
        if not chunk:
            raise Malformed(f"{self.place} answered without a byte", "check url and json_path")
        return chunk

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _get(self, length: int) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout), cookie_jar=aiohttp.DummyCookieJar()
            )
        url = URL(self._url.replace("{bytes}", str(length)), encoded=True)
        headers = {name: value.reveal().decode() for name, value in self._headers.items()}
        headers |= {"Accept-Encoding": "identity", "Cache-Control": "no-store"}
        try:
            async with self._session.get(
                url, ssl=self._tls, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise self._refused(answer)
                return await self._body(answer)
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise PeerUnreachable(
                f"{self.place} does not answer ({type(error).__name__})",
                "check the address, the CA and the client certificate",
            ) from None

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > LARGEST_ANSWER:
                raise Malformed(f"{self.place} answered more than {LARGEST_ANSWER} bytes", "ask it for less")
        return bytes(body)

    def _refused(self, answer: aiohttp.ClientResponse) -> KeyhaulError:
        told = answer.headers.get("Retry-After", "")
        pause = min(int(told), _PAUSES) if told.isdecimal() and len(told) <= 6 else 0
        cause = f"{self.place} answered {answer.status}"
        return Unavailable(cause, "check its API key and its quota", pause=pause)


class BlockingSource:
    """Anything with a blocking read, such as a TPM or a PKCS#11 token; it is read in a thread."""

    def __init__(self, name: str, kind: str, min_entropy: float, read: Callable[[int], bytes]) -> None:
        self.name = name
        self.kind = kind
        self.min_entropy = min_entropy
        self._read = read

    async def read(self, length: int) -> bytes:
        return await asyncio.to_thread(self._read, length)

    async def close(self) -> None:
        """Nothing is held between reads."""


def decode(body: bytes, json_path: str, encoding: Encoding) -> bytes:
    """The bytes in an HTTP answer. Raises Malformed, and says nothing of the body."""
    if encoding == "raw":
        return body
    try:
        value = msgspec.json.decode(body)
        for step in filter(None, json_path.removeprefix("$").split(".")):
            value = value[int(step)] if isinstance(value, list) else value[step]
        return _bytes_of(value, encoding)
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, RecursionError):
        raise Malformed(
            f"the answer holds no {encoding} value at {json_path}",
            "check json_path and encoding",
        ) from None


def _bytes_of(value: Any, encoding: Encoding) -> bytes:
    """A string, a list of strings, or a list of numbers from 0 to 255."""
    if encoding == "uint8":
        numbers: Sequence[Any] = value if isinstance(value, list) else ()
        if not all(type(number) is int for number in numbers):
            raise ValueError("not whole numbers")
        return bytes(numbers)
    parts = value if isinstance(value, list) else [value]
    if encoding == "hex":
        return b"".join(bytes.fromhex(part) for part in parts)
    return b"".join(base64.b64decode(part, validate=True) for part in parts)
