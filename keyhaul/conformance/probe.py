"""A probe: one rule of a standard, what it demands, and a coroutine that finds out; and how probes are run.

A probe returns what it saw. It raises `Deviation` with what it saw if that is not what the standard
demands, and `NotApplicable` where this key manager or the options given leave nothing to try. What was
not tried never counts as passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import aiohttp

from keyhaul.errors import KeyhaulError


class Verdict(StrEnum):
    """What came out of a probe."""

    PASS = "pass"  # noqa: S105 - a verdict, no password
    FAIL = "fail"
    NOT_RUN = "not run"


class Deviation(Exception):
    """What was seen instead of what the standard demands."""


class NotApplicable(Exception):
    """Why a rule cannot be tried here."""


Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Probe(Generic[Subject]):
    """`name` is unique in its list; `clause` says where the standard has the rule."""

    name: str
    clause: str
    title: str
    expected: str
    run: Callable[[Subject], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    name: str
    clause: str
    title: str
    expected: str
    seen: str
    verdict: Verdict


Listener = Callable[[Result], None]


def _quiet(_: Result) -> None:
    """Nobody watches."""


class Catalogue(Generic[Subject]):
    """Probes in the order in which they are run; modules add theirs with `@catalogue.probe(...)`."""

    def __init__(self) -> None:
        self.probes: list[Probe[Subject]] = []

    def probe(
        self, name: str, clause: str, title: str, expected: str
    ) -> Callable[[Callable[[Subject], Awaitable[str]]], Callable[[Subject], Awaitable[str]]]:
        """Add the decorated coroutine."""

        def add(run: Callable[[Subject], Awaitable[str]]) -> Callable[[Subject], Awaitable[str]]:
            self.probes.append(Probe(name, clause, title, expected, run))
            return run

        return add


async def _nothing() -> None:
    """There is nothing to put in order."""


async def run_all(
    probes: Sequence[Probe[Subject]],
    subject: Subject,
    patience: float,
    told: Listener = _quiet,
    tidy: Callable[[], Awaitable[None]] = _nothing,
) -> list[Result]:
    """One after another, so that none disturbs the next; each takes at most `patience` seconds.

    `tidy` puts in order what a probe left behind; `told` hears every result at once.
    """
    results = []
    for probe in probes:
        verdict, seen = await _verdict(probe, subject, patience)
        await tidy()
        results.append(Result(probe.name, probe.clause, probe.title, probe.expected, seen, verdict))
        told(results[-1])
    return results


async def _verdict(probe: Probe[Subject], subject: Subject, patience: float) -> tuple[Verdict, str]:
    try:
        async with asyncio.timeout(patience):
            return Verdict.PASS, await probe.run(subject)
    except Deviation as deviation:
        return Verdict.FAIL, str(deviation)
    except NotApplicable as reason:
        return Verdict.NOT_RUN, str(reason)
    except TimeoutError as late:
        return Verdict.FAIL, str(late) or f"nothing within {patience:g} s"
    except (aiohttp.ClientError, OSError, KeyhaulError) as error:
        return Verdict.FAIL, f"no answer: {type(error).__name__} {error}"[:300]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # JSON of a shape that no probe expected; the next probe must run all the same.
        return Verdict.FAIL, f"an answer of another shape: {type(error).__name__} {error}"[:300]


def expect(condition: object, seen: str) -> None:
    """Raise Deviation unless the condition holds."""
    if not condition:
        raise Deviation(seen)
