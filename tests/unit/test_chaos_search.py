"""The search after a chaos run finds a key wherever it lies, tells whose it is, and breaks promise 8."""

from __future__ import annotations

import base64
from pathlib import Path
from uuid import UUID

import pytest

from keyhaul.testbed.chaos.report import Outcome
from keyhaul.testbed.chaos.search import search
from keyhaul.testbed.history import History
from keyhaul.testbed.invariants import Limits

BITS = bytes(range(100, 132))


@pytest.mark.parametrize(
    ("file", "what", "error"),
    [
        ("", b"", "nothing to see"),
        ("nodes/n/store/keys.db", b"..." + BITS + b"...", ""),
        ("nodes/n/audit.jsonl", BITS.hex().encode(), ""),
        ("logs/n.log", base64.b64encode(b"x" + BITS), ""),
        ("", b"", f"no such key: {base64.b64encode(BITS).decode()}"),
    ],
)
def test_a_key_is_found_wherever_it_lies(tmp_path: Path, file: str, what: bytes, error: str) -> None:
    history = History(lambda: 0.0)
    history.note("m", "got", request=1, key_id=UUID(int=1), digest=history.digest(BITS), to=("s",))
    history.note("x", "fetching", request=2, key_id=UUID(int=1))
    history.note("s", "fetching", request=3, key_id=UUID(int=1))
    if file:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(what)
    state = {"nodes": [{"name": "n", "pid": 0}]}
    hidden = not file and "such" not in error
    assert search(history, state, tmp_path, [bytes(32), BITS], [error]) == (0 if hidden else 1)
    outcome = Outcome()
    outcome.reckon(history, 0, Limits())
    assert outcome.pried == 1, "the slave is no stranger"
    assert 8 in outcome.promises
    assert (8 in {violation.number for violation in outcome.violations}) == (not hidden)
    assert outcome.held == hidden
