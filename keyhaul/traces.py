"""Spans of one node to an OpenTelemetry collector: OTLP over HTTP, in a thread of their own, or none at all.

A span says what was done, for whom and how long it took; never a bit of a key, and ids of keys only where
the configuration allows it. What cannot be delivered is dropped, and the log says so: nobody waits for it.
The packages are an extra; without `[traces] endpoint` nothing here imports them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import structlog

from keyhaul import __version__, story
from keyhaul.config import TracesConfig
from keyhaul.errors import ConfigError, KeyhaulError
from keyhaul.messages.tracecontext import TraceContext
from keyhaul.story import NO_TRACER, Kind, Story, Told, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

MOST_IDS = 8  # key ids in one span
QUIET = 60.0  # seconds between two lines about spans that do not get through
PATIENCE = 2.0  # seconds that the last spans get when the node stops

log = structlog.get_logger("keyhaul.traces")


def open_tracer(settings: TracesConfig, name: str, domain: str) -> Tracer:
    """What the configuration asks for. Raises ConfigError where the packages are missing."""
    if not settings.endpoint:
        return NO_TRACER
    try:
        return OtlpTracer(settings, name, domain)
    except ImportError as missing:
        raise ConfigError(
            f"[traces] endpoint is set, but the package {missing.name} is missing",
            "install it with `pip install 'keyhaul[traces]'`, or remove [traces]",
        ) from None


class OtlpTracer:
    """See the module docstring; `close` when no span is open any more."""

    def __init__(
        self, settings: TracesConfig, name: str, domain: str, exporter: SpanExporter | None = None
    ) -> None:
        """`exporter`: where spans go instead of the collector."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        _take_over_logging()
        exporter = exporter or OTLPSpanExporter(
            settings.endpoint,
            certificate_file=str(settings.ca) if settings.ca else None,
            timeout=PATIENCE,
        )
        who = {
            "service.name": "keyhaul",
            "service.namespace": domain,
            "service.instance.id": name,
            "service.version": __version__,
        }
        self._provider: TracerProvider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.ratio)),
            resource=Resource(who),
            shutdown_on_exit=False,
            id_generator=cast(Any, _OfTheStory()),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self.tracer = self._provider.get_tracer("keyhaul", __version__)
        self._key_ids = settings.key_ids

    def span(
        self, name: str, kind: Kind = "internal", key_ids: Iterable[UUID] = (), **attributes: Told
    ) -> _Open:
        """See story.Tracer."""
        told: dict[str, Any] = {f"keyhaul.{each}": value for each, value in attributes.items()}
        if self._key_ids:
            told["keyhaul.key_ids"] = tuple(str(each) for each in islice(key_ids, MOST_IDS))
        return _Open(self.tracer, name, kind, told)

    async def close(self) -> None:
        """Send what is left, for at most `PATIENCE` seconds."""
        await asyncio.to_thread(self._provider.force_flush, int(PATIENCE * 1000))
        await asyncio.to_thread(self._provider.shutdown)


class _OfTheStory:
    """A trace begins under the id that the lines of its request have in the log."""

    def generate_trace_id(self) -> int:
        return int((story.current() or story.new()).context.trace, 16)

    def generate_span_id(self) -> int:
        return int(story.new().context.span, 16)

    def is_trace_id_random(self) -> bool:
        return True


class _Open:
    """A span while it lasts; what happens inside belongs to it."""

    __slots__ = ("_before", "_kind", "_name", "_span", "_told", "_tracer")

    def __init__(self, tracer: Any, name: str, kind: Kind, told: dict[str, Any]) -> None:
        self._tracer, self._name, self._kind, self._told = tracer, name, kind, told

    def __enter__(self) -> None:
        from opentelemetry.trace import SpanKind

        here = story.current() or story.new()
        with story.told(here):  # for the id of a trace that begins
            self._span: Span = self._tracer.start_span(
                self._name, _parent(here), SpanKind[self._kind.upper()], self._told
            )
        made = self._span.get_span_context()
        inside = TraceContext(f"{made.trace_id:032x}", f"{made.span_id:016x}", made.trace_flags.sampled)
        self._before = story.told(Story(here.request, inside, caused=True))
        self._before.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._before.__exit__()
        if kind is not None:
            # The text of an error that is not ours could hold anything.
            cause = f": {error.cause}" if isinstance(error, KeyhaulError) else ""
            self._span.set_status(Status(StatusCode.ERROR, kind.__name__ + cause))
        self._span.end()


def _parent(here: Story) -> Any:
    """The context that a new span hangs on; an empty one where it is the first of its trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not here.caused:
        return Context()
    came = here.context
    flags = TraceFlags(TraceFlags.SAMPLED if came.sampled else TraceFlags.DEFAULT)
    parent = SpanContext(int(came.trace, 16), int(came.span, 16), here.remote, flags)
    return set_span_in_context(NonRecordingSpan(parent), Context())


class _IntoTheLog(logging.Handler):
    """The packages speak to `logging`; their words belong into the node's log, though not every second."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() < self._quiet_until:
            return
        self._quiet_until = time.monotonic() + QUIET
        log.warning("traces are not delivered as they should be", cause=record.getMessage()[:500])


def _take_over_logging() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    theirs.setLevel(logging.WARNING)
    if not any(isinstance(each, _IntoTheLog) for each in theirs.handlers):
        theirs.addHandler(_IntoTheLog())
