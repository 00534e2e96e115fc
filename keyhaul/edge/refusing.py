"""What becomes of a call that fails: an error its caller may see, one log line, one count, one audit line."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable

import structlog

from keyhaul.edge.accepting import Traffic
from keyhaul.errors import KeyhaulError, Unavailable

LISTED = 20
"""Requests that were cut off which one line lists."""

Note = Callable[..., None]
"""Takes an event and its fields, for the audit log."""

log = structlog.get_logger("keyhaul.edge")


class Refusals:
    """Those of one port. `role` is what its callers are in the log; `note` is told each refusal."""

    def __init__(self, role: str, traffic: Traffic, note: Note) -> None:
        self.role = role
        self._traffic = traffic
        self._note = note
        self._cut: Counter[str] = Counter()

    def tell(self, error: KeyhaulError, status: int, caller: str | None, method: str, path: str) -> None:
        """A call was answered with `status`; `path` as it was sent."""
        self.told(type(error).__name__, status, error.cause, caller, method, path)

    def told(self, reason: str, status: int, cause: str, caller: str | None, method: str, path: str) -> None:
        """The same from a process where the error was another object; `reason` is its class."""
        self._traffic.answers[status] += 1
        self._traffic.refusals[reason] += 1
        fields = {"status": status, "cause": cause, "method": method, "path": path[:256]}
        log.warning("request refused", **fields, **{self.role: caller})
        self._note("refused", role=self.role, caller=caller, **fields)

    def cut_off(self, caller: str | None, method: str, path: str) -> None:
        """A call is given up because its port closes; `path` without parameters, which may name keys."""
        self._cut[f"{caller or 'nobody yet'}: {method} {path[:256]}"] += 1

    def tell_cut_off(self) -> None:
        """One line for all of them, if there are any: their number, and the most frequent."""
        if self._cut:
            log.warning(
                "requests cut off because the port closes",
                role=self.role,
                count=self._cut.total(),
                requests=dict(self._cut.most_common(LISTED)),
            )
        self._cut.clear()

    def shown(self, bug: BaseException) -> KeyhaulError:
        """What the caller sees of an error: those that blame nobody but us tell nothing of our inside."""
        if isinstance(bug, KeyhaulError) and (bug.status < 500 or isinstance(bug, Unavailable)):
            return bug
        return self.unexpected(bug)

    def unexpected(self, bug: BaseException) -> Unavailable:
        """Frames and types go into the log; foreign messages and local variables could hold a secret."""
        steps = traceback.extract_tb(bug.__traceback__)
        frames = [f"{step.filename}:{step.lineno} {step.name}" for step in steps]
        cause = bug.cause if isinstance(bug, KeyhaulError) else ""
        log.error("request failed", role=self.role, error=type(bug).__qualname__, cause=cause, frames=frames)
        return Unavailable("the node failed on this request", "try again; the node's log tells more")
