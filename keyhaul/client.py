"""keyhaul for Python programs: get keys, fetch them at the other end, read the status; async or not.

    with Client(url, cert=..., key=..., ca=...) as sae:          # one SAE, known by its certificate
        for key in sae.get_key("sae-b", number=2, size=256):     # bits
            use(key.key_id, key.bits.reveal())

`AsyncClient` has the same methods as coroutines. Any ETSI GS QKD 014 node will do. The PEM files are looked
at before every call: a renewed certificate is used from the next call on, without a restart. A node that
says 503 is asked again when its Retry-After says, for `patience` seconds; a call without an answer is not
repeated, for nobody knows whether the node acted on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import structlog

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import ConfigError, Refused
from keyhaul.messages.etsi014 import Delivered, Status

__all__ = ["AsyncClient", "Client", "Delivered", "Status"]

PATIENCE = 60.0  # seconds
T = TypeVar("T")

log = structlog.get_logger("keyhaul.client")


class AsyncClient:
    """One SAE at one node: `async with AsyncClient("https://node:8443", cert=..., key=..., ca=...)`.

    `cert`, `key`, `ca` are PEM files. `post_quantum` refuses nodes without a post-quantum key exchange.
    `timeout` bounds one call, `patience` the repetitions after 503, both in seconds. Raises the errors of
    `keyhaul.errors`: Unauthorized (401), Refused and its kinds (400), Unavailable and its kinds (503, or no
    connection), TimedOut, Malformed for an answer that is not 014, ConfigError for files that do not fit.
    """

    def __init__(
        self,
        url: str,
        *,
        cert: Path | str,
        key: Path | str,
        ca: Path | str,
        timeout: float = 30.0,
        patience: float = PATIENCE,
        post_quantum: bool = False,
    ) -> None:
        if not url.startswith("https://"):
            raise ConfigError(f"{url!r} is no https:// address", "give the node's SAE port")
        self._url = url
        self._files = Credentials(Path(cert), Path(key), Path(ca))
        self._policy = Policy.PQ if post_quantum else Policy.COMPATIBLE
        self._bounds = (timeout, patience)
        self._seen: tuple[object, ...] = ()
        self._connected: _Connected | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        connected, self._connected, self._seen = self._connected, None, ()
        if connected is not None:
            await connected.client.close()

    async def get_key(
        self,
        slave: str,
        *,
        number: int = 1,
        size: int | None = None,
        additional: Sequence[str] = (),
        mandatory: Sequence[Mapping[str, Any]] = (),
        optional: Sequence[Mapping[str, Any]] = (),
    ) -> list[Delivered]:
        """`number` fresh keys shared with `slave` and the `additional` slaves (014 clause 5.2).

        `size` in bits per key; without it the node's default. What stands in `mandatory` is met, or the
        call fails: `[{"keyhaul_labels": ["relay-blind"]}]`.
        """
        async with self._current() as sae:
            return await sae.get_key(slave, number, size, additional, mandatory, optional)

    async def fetch_key(
        self, master: str, key_ids: Sequence[UUID | str], *, trust: bool = False
    ) -> list[Delivered]:
        """The keys that `master` got under these ids, in this order, each once (014 clause 5.3).

        `trust` asks for the trust statement of each. If the answer is lost on the way, so are the keys.
        """
        async with self._current() as sae:
            return await sae.fetch_key(master, [_uuid(each) for each in key_ids], trust=trust)

    async def status(self, slave: str) -> Status:
        """What this SAE could get, as master, for `slave` (014 clause 5.1)."""
        async with self._current() as sae:
            return await sae.status(slave)

    @contextlib.asynccontextmanager
    async def _current(self) -> AsyncIterator[SaeClient]:
        """Connections under the certificate that lies there now."""
        connected = await self._fresh()
        connected.calls += 1
        try:
            yield connected.client
        finally:
            connected.calls -= 1
            if connected is not self._connected and not connected.calls:
                await connected.client.close()

    async def _fresh(self) -> _Connected:
        found = _stamp(self._files)
        if self._connected is not None and found == self._seen:
            return self._connected
        try:
            context = await asyncio.to_thread(client_context, self._files, self._policy)
        except ConfigError as error:
            if self._connected is None:
                raise
            log.warning("the new certificate cannot be used; the last one stays", cause=error.cause)
            self._seen = found  # said once; the next change is looked at again
            return self._connected
        old = self._connected
        self._seen = found
        self._connected = _Connected(SaeClient(self._url, context, *self._bounds))
        if old is not None and not old.calls:
            await old.client.close()
        return self._connected


class _Connected:
    """Connections under one certificate, and the calls that use them now."""

    def __init__(self, client: SaeClient) -> None:
        self.client = client
        self.calls = 0


class Client:
    """`AsyncClient` for programs without an event loop; may be used by several threads at once.

    Its loop runs in a thread of its own, so it also works where another loop runs already, as in notebooks.
    """

    def __init__(
        self,
        url: str,
        *,
        cert: Path | str,
        key: Path | str,
        ca: Path | str,
        timeout: float = 30.0,
        patience: float = PATIENCE,
        post_quantum: bool = False,
    ) -> None:
        self._client = AsyncClient(
            url, cert=cert, key=key, ca=ca, timeout=timeout, patience=patience, post_quantum=post_quantum
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="keyhaul-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; calling it again is fine."""
        if self._loop.is_closed():
            return
        self._await(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def get_key(
        self,
        slave: str,
        *,
        number: int = 1,
        size: int | None = None,
        additional: Sequence[str] = (),
        mandatory: Sequence[Mapping[str, Any]] = (),
        optional: Sequence[Mapping[str, Any]] = (),
    ) -> list[Delivered]:
        """See `AsyncClient.get_key`."""
        return self._await(
            self._client.get_key(
                slave,
                number=number,
                size=size,
                additional=additional,
                mandatory=mandatory,
                optional=optional,
            )
        )

    def fetch_key(
        self, master: str, key_ids: Sequence[UUID | str], *, trust: bool = False
    ) -> list[Delivered]:
        """See `AsyncClient.fetch_key`."""
        return self._await(self._client.fetch_key(master, key_ids, trust=trust))

    def status(self, slave: str) -> Status:
        """See `AsyncClient.status`."""
        return self._await(self._client.status(slave))

    def _await(self, call: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            call.close()
            raise Refused("this client is closed", "make a new one")
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


def _uuid(key_id: UUID | str) -> UUID:
    try:
        return key_id if isinstance(key_id, UUID) else UUID(key_id)
    except ValueError:
        raise Refused(f"{key_id!r} is no key ID", "copy it from what the master was given") from None


def _stamp(files: Credentials) -> tuple[object, ...]:
    """What changes when one of the files is written anew or replaced; missing ones count as themselves."""
    stamp: list[object] = []
    for file in (files.cert, files.key, files.ca):
        try:
            found = file.stat()
        except OSError as problem:
            stamp.append(problem.errno)
        else:
            stamp.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(stamp)
