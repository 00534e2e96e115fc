"""A call as its handler sees it, wherever the HTTP was read: who calls, what is asked, and the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from keyhaul.errors import Refused


class Call(Protocol):
    """One request. `caller` is the name in the certificate, `path` the path with its escapes kept."""

    @property
    def caller(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    def query(self) -> Mapping[str, Sequence[str]]:
        """The parameters behind the question mark, unescaped."""

    async def body(self) -> bytes:
        """All of it. Raises TooLarge, TimedOut and Malformed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back: a status, a body of JSON, and headers besides those that every answer has."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NoSuchPath(Refused):
    """A path that the port does not have."""

    status = 404

    def __init__(self) -> None:
        super().__init__("this path does not exist here", "see the interface's list of paths")


class NoSuchMethod(Refused):
    """A method that the path does not take; `allow` are those it does."""

    status = 405

    def __init__(self, allow: Iterable[str]) -> None:
        self.allow = ",".join(sorted(allow))
        super().__init__("this path does not take this method", f"use {self.allow}")
