"""Which request the work of the moment belongs to: one id in all its log lines, one trace on all nodes.

A story begins where a request comes in, or where a node sets about something by itself. Tasks begun inside
belong to it. Its trace context travels with keys and acknowledgements, so lines of other nodes name the same
trace.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

from keyhaul.logs import levels
from keyhaul.messages.tracecontext import TraceContext


class Story(NamedTuple):
    """`request` names the work at this node, `context` the trace across nodes and the step in it.

    `caused`: that step is a span, on which the next one may hang; `remote`: a neighbour's.
    """

    request: str
    context: TraceContext
    caused: bool = False
    remote: bool = False


_draw = random.Random().getrandbits  # noqa: S311  names, which have to differ and may be guessed


class _Begun:
    """A story that has no name yet: most requests are never asked for theirs, and drawing it costs."""

    __slots__ = ("_story",)

    def __init__(self) -> None:
        self._story: Story | None = None

    def named(self) -> Story:
        if self._story is None:
            self._story = new()
        return self._story


_current: ContextVar[Story | _Begun | None] = ContextVar("story", default=None)


def new() -> Story:
    """A story nobody has told yet, recorded by no one unless a tracer takes it up."""
    drawn = f"{_draw(256):064x}"
    return Story(drawn[48:], TraceContext(drawn[:32], drawn[32:48], sampled=False))


def current() -> Story | None:
    """The story of the moment."""
    story = _current.get()
    return story.named() if isinstance(story, _Begun) else story


def context() -> TraceContext | None:
    """What a message of the moment should carry."""
    story = current()
    return None if story is None else story.context


def begin() -> None:
    """A new story for the rest of this task, until another begins."""
    _current.set(_Begun())


def none() -> None:
    """The rest of this task belongs to no story."""
    _current.set(None)


def go_on(context: TraceContext | None) -> None:
    """The rest of this task goes on with a neighbour's trace, under its own id; None changes nothing."""
    if context is not None:
        _current.set(Story((current() or new()).request, context, caused=True, remote=True))


class told:  # noqa: N801  used like a function; a generator would cost three times as much
    """`with told(story):` everything inside belongs to `story`; None: to none."""

    __slots__ = ("_before", "_story")

    def __init__(self, story: Story | None) -> None:
        self._story = story

    def __enter__(self) -> None:
        self._before = _current.set(self._story)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._before)


Kind = Literal["internal", "server", "client", "producer", "consumer"]
"""What OpenTelemetry calls the side of a conversation that a span is on."""

Told = str | int | tuple[str, ...]


class Tracer(Protocol):
    """Records how long steps take, and of which they are part, for whoever looks at traces."""

    def span(
        self, name: str, kind: Kind = "internal", key_ids: Iterable[UUID] = (), **attributes: Told
    ) -> AbstractContextManager[None]:
        """One step, from entering to leaving. Nothing given here may be secret; ids may be left out."""

    async def close(self) -> None:
        """Hand over what is left."""


class _NoTracer:
    """Nobody looks."""

    def span(
        self, name: str, kind: Kind = "internal", key_ids: Iterable[UUID] = (), **attributes: Told
    ) -> AbstractContextManager[None]:
        return _NOTHING

    async def close(self) -> None:
        """There is nothing."""


_NOTHING = nullcontext()
NO_TRACER: Tracer = _NoTracer()


def tell(log: Any, event: str, **fields: Any) -> None:
    """A line of the story for whoever wants to read all of it (level DEBUG)."""
    if levels.writes("debug"):
        log.debug(event, **{name: str(of) if isinstance(of, UUID) else of for name, of in fields.items()})


def mark(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: each line names its request and its trace."""
    story = current()
    if story is not None:
        event["request"], event["trace"] = story.request, story.context.trace
    return event
