"""A call as its handler sees it, wherever the HTTP was read: who calls, what is asked, and the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from yarl import URL

from keyhaul.errors import Refused

_NONE: Mapping[str, str] = MappingProxyType({})


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
    """What goes back: a status, a body of JSON, and headers besides those that every answer has.

    `last`: the connection ends after it.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)
    last: bool = False


Calls = Callable[[Call], Awaitable[Reply]]
"""Answers calls; raises errors of keyhaul.errors."""


def lists(parameters: str) -> dict[str, list[str]]:
    """What stands behind the question mark: by name, with all values of each, unescaped as aiohttp does."""
    found: dict[str, list[str]] = {}
    for name, value in URL.build(path="/", query_string=parameters, encoded=True).query.items():
        found.setdefault(name, []).append(value)
    return found


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
