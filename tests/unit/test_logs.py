"""The log's level changes while the node runs and goes back by itself; lines of one request name it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
import structlog

from keyhaul import story
from keyhaul.errors import Malformed
from keyhaul.logs import LEVELS, LONGEST, Levels
from keyhaul.messages import tracecontext
from keyhaul.messages.tracecontext import TraceContext, parse, read, written


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_lets_itself_and_what_is_worse_through(level: str) -> None:
    levels = Levels(Clock())
    levels.use(level)
    written = [name for name in LEVELS if levels.writes(name.lower())]
    assert written == list(LEVELS[LEVELS.index(level) :])
    assert levels.writes("critical")


def test_debug_for_a_while_ends_by_itself() -> None:
    clock = Clock()
    levels = Levels(clock)
    levels.usually("WARNING")
    levels.use("DEBUG", 600)
    assert levels.summary() == {"level": "DEBUG", "seconds_left": 600.0, "usual": "WARNING"}
    clock.at += 599.9
    assert levels.writes("debug")
    clock.at += 0.1
    assert not levels.writes("debug")
    assert not levels.writes("info")
    assert levels.summary() == {"level": "WARNING", "seconds_left": None, "usual": "WARNING"}


def test_a_reload_meanwhile_changes_what_it_goes_back_to() -> None:
    clock = Clock()
    levels = Levels(clock)
    levels.use("DEBUG", 60)
    levels.usually("ERROR")
    assert levels.writes("debug")
    clock.at += 61
    assert not levels.writes("warning")
    levels.use("INFO")
    assert levels.summary() == {"level": "INFO", "seconds_left": None, "usual": "INFO"}


@pytest.mark.parametrize(
    ("level", "seconds"), [("LOUD", None), ("debug", None), ("INFO", 0), ("INFO", -1), ("INFO", LONGEST + 1),
                           ("INFO", float("nan"))],
)  # fmt: skip
def test_nonsense_changes_nothing(level: str, seconds: float | None) -> None:
    levels = Levels(Clock())
    with pytest.raises(Malformed):
        levels.use(level, seconds)
    assert levels.summary()["level"] == "INFO"


def test_a_line_below_the_level_goes_no_further() -> None:
    levels = Levels(Clock())
    assert levels(None, "info", {"event": "x"}) == {"event": "x"}
    with pytest.raises(structlog.DropEvent):
        levels(None, "debug", {"event": "x"})


# ------------------------------------------------------------------ stories


def lines_of(work: Any) -> list[dict[str, Any]]:
    """The lines that `work` logs, as the node writes them."""
    said: list[dict[str, Any]] = []

    def keep(_: Any, __: str, event: Any) -> str:
        said.append(json.loads(json.dumps(event)))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[story.mark, keep], cache_logger_on_first_use=False)
    try:
        asyncio.run(work())
    finally:
        structlog.configure(**before)
    return said


def test_all_lines_of_a_request_and_of_its_tasks_name_it_and_others_do_not() -> None:
    log = structlog.get_logger("test")

    async def later(name: str) -> None:
        await asyncio.sleep(0)
        log.info(name)

    async def request(name: str) -> None:
        story.begin()
        log.info(name)
        await asyncio.create_task(later(name))
        story.none()
        log.info("nobody's")

    async def both() -> None:
        await asyncio.gather(request("one"), request("two"))

    said = lines_of(both)
    by_name = {name: {(line["request"], line["trace"]) for line in said if line["event"] == name}
               for name in ("one", "two")}  # fmt: skip
    assert [len(ids) for ids in by_name.values()] == [1, 1]
    assert by_name["one"] != by_name["two"]
    nobodys = [line for line in said if line["event"] == "nobody's"]
    assert len(nobodys) == 2
    assert all("request" not in line and "trace" not in line for line in nobodys)


def test_a_story_has_one_name_wherever_it_is_first_asked_for() -> None:
    log = structlog.get_logger("test")

    async def later() -> None:
        log.info("later")

    async def work() -> None:
        story.begin()
        task = asyncio.create_task(later())
        await task
        log.info("now")
        assert story.current() is story.current()

    said = lines_of(work)
    assert [line["event"] for line in said] == ["later", "now"]
    assert said[0]["request"] == said[1]["request"]
    assert said[0]["trace"] == said[1]["trace"]


def test_a_neighbours_trace_is_gone_on_with_under_an_id_of_our_own() -> None:
    log = structlog.get_logger("test")
    came = TraceContext("ab" * 16, "cd" * 8, sampled=True)

    async def work() -> None:
        story.begin()
        log.info("before")
        story.go_on(None)
        log.info("still")
        story.go_on(came)
        log.info("after")
        assert story.context() == came

    before, still, after = lines_of(work)
    assert before == {**still, "event": "before"}
    assert after["request"] == before["request"]
    assert before["trace"] != after["trace"] == "ab" * 16


# ------------------------------------------------------------------ trace context

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context §3.2


def test_the_example_of_the_standard_is_understood_and_written_alike() -> None:
    found = parse(GOOD)
    assert found == TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", sampled=True)
    assert found is not None
    assert found.traceparent() == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "", "00", GOOD[:-1], GOOD + "0", GOOD + "-00", GOOD + "\n", " " + GOOD,
        GOOD.upper(), GOOD.replace("-", "_"),
        "ff" + GOOD[2:], "01" + GOOD[2:], "00-" + "0" * 32 + GOOD[35:], GOOD[:36] + "0" * 16 + GOOD[52:],
        GOOD.replace("a", "g"), GOOD.replace("0af", "\u0660af"), None, 7, [GOOD], {"a": GOOD}, GOOD.encode(),
    ],
)  # fmt: skip
def test_anything_else_is_no_context(text: object) -> None:
    assert parse(text) is None


@pytest.mark.parametrize("flags", ["00", "02", "fe"])
def test_only_the_lowest_flag_means_recorded(flags: str) -> None:
    found = parse(GOOD[:-2] + flags)
    assert found is not None
    assert not found.sampled


@pytest.mark.parametrize(
    "raw",
    [b"7", b'"x"', b"null", b"{}", b'["' + GOOD.encode() + b'"]', b'"' + GOOD.encode() + b' "', b'"\\ud800"'],
)
def test_an_extension_with_nonsense_counts_as_none(raw: bytes) -> None:
    assert read({tracecontext.extension_name(32473): msgspec.Raw(raw)}, 32473) is None


def test_what_is_written_is_read_under_the_same_number_only() -> None:
    context = parse(GOOD)
    extension = written(context, 4711)
    assert extension == {"E4711_traceparent": GOOD}
    assert (
        read({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in extension.items()}, 4711)
        == context
    )
    assert read(extension, 32473) is None
    assert written(None, 4711) == {}
