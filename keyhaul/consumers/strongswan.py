"""strongSwan: the delivered key is a postquantum preshared key (RFC 8784), and its key id the PPK id.

A PPK goes into an IKE_SA when that is made. So the initiator makes a new IKE_SA with every key, and ends the
one before when both ends have the new one. A packet can be lost then: the responder's charon sends through
the new one from the moment it makes it (it waits only when it rekeys within an IKE_SA), and the initiator's
knows it when the last message of the exchange has come. Keys reach charon over its VICI socket only.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from keyhaul.consumers.port import AgreedKey, Role, unusable
from keyhaul.errors import ConfigError

PREFIX = "keyhaul-"
"""In front of the key id: how charon's list of secrets shows that one is ours."""
PATIENCE = 20.0  # seconds for one answer of charon
WAIT = "15000"  # milliseconds that it may take to make or end an IKE_SA

T = TypeVar("T")


class StrongSwan:
    """One connection. `settings` is its section of swanctl.conf without `ppk_id`, as tables; `name` its name.

    Raises ConfigError where the package `vici` is missing.
    """

    key_bits = 256

    def __init__(self, name: str, settings: Mapping[str, Any], vici_socket: Path, role: Role) -> None:
        try:
            import vici  # noqa: F401
        except ImportError:
            raise ConfigError(
                "strongSwan is spoken to with the package vici, which is not installed",
                "pip install 'keyhaul[strongswan]'",
            ) from None
        self._name, self._settings, self._socket, self._role = name, settings, vici_socket, role
        (self._child,) = settings["children"]
        self._old: list[str] = []

    async def held(self) -> list[UUID]:
        """Our PPKs in charon. A responder's connection is loaded now."""
        return await self._call(self._held)

    async def install(self, key: AgreedKey) -> None:
        """See `port.Consumer.install`."""
        await self._call(lambda session: self._install(session, key))

    async def drop(self, key_id: UUID) -> None:
        """See `port.Consumer.drop`."""
        await self._call(lambda session: self._drop(session, key_id))

    async def lock(self) -> None:
        """No PPK is left, and what was made with one ends."""
        await self._call(self._lock)

    async def close(self) -> None:
        """Nothing is open."""

    def _held(self, session: Any) -> list[UUID]:
        if self._role == "responder":
            session.load_conn({self._name: self._with()})
        names = [_text(each) for each in session.get_shared().get("keys", [])]
        return [UUID(each.removeprefix(PREFIX)) for each in names if each.startswith(PREFIX)]

    def _install(self, session: Any, key: AgreedKey) -> None:
        name = str(key.key_id)
        secret = {"id": f"{PREFIX}{name}", "type": "ppk", "data": key.bits.reveal(), "owners": [name]}
        session.load_shared(secret)
        if self._role == "responder":
            return
        try:
            self._old = self._made(session)
            session.load_conn({self._name: self._with(ppk_id=name)})
            wanted = {"ike": self._name, "child": self._child, "timeout": WAIT}
            list(session.initiate(wanted))
        except BaseException:
            session.unload_shared({"id": f"{PREFIX}{name}"})
            raise

    def _drop(self, session: Any, key_id: UUID) -> None:
        session.unload_shared({"id": f"{PREFIX}{key_id}"})
        for each in set(self._old) & set(self._made(session)):
            list(session.terminate({"ike-id": each, "timeout": WAIT}))
        self._old = []

    def _with(self, **more: str) -> dict[str, Any]:
        return {**self._settings, "ppk_required": "yes", **more}

    def _made(self, session: Any) -> list[str]:
        """The unique ids of this connection's IKE_SAs."""
        sas = [sa for each in session.list_sas({"ike": self._name}) for sa in each.values()]
        return [_text(sa["uniqueid"]) for sa in sas]

    def _lock(self, session: Any) -> None:
        for key_id in self._held(session):
            session.unload_shared({"id": f"{PREFIX}{key_id}"})
        for each in self._made(session):
            list(session.terminate({"ike-id": each, "force": "yes", "timeout": "-1"}))

    async def _call(self, work: Callable[[Any], T]) -> T:
        """Its library waits for answers, so it works in a thread."""
        return await asyncio.to_thread(self._in_session, work)

    def _in_session(self, work: Callable[[Any], T]) -> T:
        with vici_session(self._socket) as session:
            return work(session)


@contextmanager
def vici_session(path: Path) -> Iterator[Any]:
    """A connection to charon; its refusals become Unavailable."""
    import vici
    from vici import exception

    refusals = (exception.CommandException, exception.SessionException, exception.EventUnknownException)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(PATIENCE)
        try:
            link.connect(str(path))
            yield vici.Session(link)
        except refusals as refused:
            raise unusable("charon", str(refused)) from None
        except OSError as problem:
            raise unusable("charon", f"{path}: {problem.strerror or problem}") from None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
