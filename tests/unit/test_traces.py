"""Where spans go is checked; without a collector nothing is imported and nothing costs anything."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from keyhaul import story
from keyhaul.config import TracesConfig
from keyhaul.config.operations import read_log, read_traces
from keyhaul.config.reader import Mistake, Source
from keyhaul.errors import ConfigError, Tampered, Unavailable
from keyhaul.story import NO_TRACER
from keyhaul.traces import MOST_IDS, OtlpTracer, open_tracer

HERE = "http://127.0.0.1:4318/v1/traces"


def read(tmp_path: Path, text: str, reader: Any) -> tuple[Any, list[Mistake]]:
    file = tmp_path / "node.toml"
    file.write_text(text)
    found: list[Mistake] = []
    section = Source(file, found).read()
    assert section is not None
    return reader(section), found


@pytest.mark.parametrize(
    ("text", "errors", "warnings"),
    [
        ("", 0, 0),
        (f'endpoint = "{HERE}"', 0, 0),
        ('endpoint = "http://[::1]:4318/v1/traces"', 0, 0),
        ('endpoint = "http://localhost:4318/v1/traces"', 0, 0),
        ('endpoint = "https://collector.example/v1/traces"', 0, 0),
        ('endpoint = "http://collector.example:4318/v1/traces"', 0, 1),
        ('endpoint = "http://10.0.0.1:4318/v1/traces"', 0, 1),
        ('endpoint = "127.0.0.1:4318"', 1, 0),
        ('endpoint = "ftp://127.0.0.1/"', 1, 0),
        ('endpoint = "http://"', 1, 0),
        ('endpoint = "http://127.0.0.1:0/"', 1, 0),
        ('endpoint = "http://127.0.0.1:99999/"', 1, 0),
        ('endpoint = "https://user:word@collector.example/"', 1, 0),
        (f'endpoint = "{HERE}"\nratio = 1.5', 1, 0),
        (f'endpoint = "{HERE}"\nkey_ids = 1', 1, 0),
        (f'endpoint = "{HERE}"\nkeyids = true', 1, 0),
    ],
)
def test_the_collector_is_checked(tmp_path: Path, text: str, errors: int, warnings: int) -> None:
    _, found = read(tmp_path, text, read_traces)
    assert [sum(not each.warning for each in found), sum(each.warning for each in found)] == [
        errors,
        warnings,
    ]


def test_all_settings_are_read(tmp_path: Path) -> None:
    traces, found = read(
        tmp_path, f'endpoint = "{HERE}"\nratio = 0.25\nkey_ids = true\nca = "ca.pem"', read_traces
    )
    assert traces == TracesConfig(HERE, 0.25, True, tmp_path / "ca.pem")
    assert found == []


@pytest.mark.parametrize(("text", "level", "mistakes"), [("", "INFO", 0), ('level = "DEBUG"', "DEBUG", 0),
                                                         ('level = "LOUD"', "INFO", 1)])  # fmt: skip
def test_the_level_of_the_log_is_checked(tmp_path: Path, text: str, level: str, mistakes: int) -> None:
    log, found = read(tmp_path, text, read_log)
    assert len(found) == mistakes
    if not mistakes:
        assert log.level == level


def test_nothing_is_imported_or_recorded_where_nobody_collects() -> None:
    assert open_tracer(TracesConfig(), "vigo", "galicia") is NO_TRACER
    code = "import sys, keyhaul.node; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with NO_TRACER.span("relay") as nothing:
        assert nothing is None
        assert story.current() is None


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError) as raised:
        open_tracer(TracesConfig(HERE), "vigo", "galicia")
    assert "keyhaul[traces]" in raised.value.remedy


# ------------------------------------------------------------------ what is recorded


class Recorded:
    """A tracer whose spans stay here."""

    def __init__(self, *, key_ids: bool = False) -> None:
        self.kept = InMemorySpanExporter()
        self.tracer = OtlpTracer(TracesConfig(HERE, key_ids=key_ids), "vigo", "galicia", self.kept)

    def spans(self) -> tuple[Any, ...]:
        asyncio.run(self.tracer.close())
        return self.kept.get_finished_spans()


def test_steps_hang_on_each_other_and_on_what_a_neighbour_said() -> None:
    recorded = Recorded()
    tracer = recorded.tracer
    came = story.TraceContext("ab" * 16, "cd" * 8, sampled=True)
    with story.told(story.new()):
        mine = story.current()
        assert mine is not None
        with tracer.span("outer", "server"), tracer.span("inner"):
            inside = story.current()
            assert inside is not None
            assert (inside.request, inside.context.trace) == (mine.request, mine.context.trace)
        assert story.current() == mine
        story.go_on(came)
        with tracer.span("hop", "consumer"):
            pass
    inner, outer, hop = recorded.spans()
    assert outer.parent is None
    assert f"{outer.context.trace_id:032x}" == mine.context.trace  # as the log has it
    assert inner.parent.span_id == outer.context.span_id
    assert not inner.parent.is_remote
    assert (f"{hop.parent.trace_id:032x}", f"{hop.parent.span_id:016x}") == (came.trace, came.span)
    assert hop.parent.is_remote


def test_what_a_neighbour_does_not_record_is_not_recorded_here() -> None:
    recorded = Recorded()
    tracer = recorded.tracer
    with story.told(story.new()):
        story.go_on(story.TraceContext("ab" * 16, "cd" * 8, sampled=False))
        with tracer.span("hop"):
            context = story.context()
            assert context is not None
            assert (context.trace, context.sampled) == ("ab" * 16, False)
    assert recorded.spans() == ()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("the far end is silent", "ask again"), "Unavailable: the far end is silent"),
        (Tampered(), "Tampered: authentication failed"),
        (ValueError("0123456789abcdef"), "ValueError"),
    ],
)
def test_a_step_that_failed_says_so_and_repeats_no_foreign_words(error: Exception, told: str) -> None:
    recorded = Recorded()
    tracer = recorded.tracer
    with pytest.raises(type(error)), tracer.span("hop"):
        raise error
    (span,) = recorded.spans()
    assert (span.status.is_ok, span.status.description) == (False, told)
    assert span.events == ()
    assert story.current() is None


@pytest.mark.parametrize(("allowed", "expected"), [(False, None), (True, MOST_IDS)])
def test_ids_of_keys_are_told_only_where_allowed_and_only_a_few(allowed: bool, expected: int | None) -> None:
    recorded = Recorded(key_ids=allowed)
    tracer = recorded.tracer
    with tracer.span("hop", "consumer", (UUID(int=n) for n in range(100)), keys=100):
        pass
    (span,) = recorded.spans()
    assert span.attributes["keyhaul.keys"] == 100
    ids = span.attributes.get("keyhaul.key_ids")
    assert (None if ids is None else len(ids)) == expected
