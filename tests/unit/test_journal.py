"""The log's way out: whatever becomes of the lines, whoever logs goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from keyhaul.cli.journal import Journal


def test_lines_go_out_at_once_and_whole(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        journal = Journal(file.fileno())
        assert journal.write("one\n") == 4
        assert (tmp_path / "log").read_text() == "one\n"
        journal.write("sae-\udcff\n")  # what a hostile client may make us log
        journal.flush()
    assert (tmp_path / "log").read_text() == "one\nsae-\\udcff\n"


def test_a_full_disk_costs_lines_which_are_counted(tmp_path: Path) -> None:
    full, free = os.open("/dev/full", os.O_WRONLY), os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        journal = Journal(full)
        for line in ("a\n", "b\n"):
            assert journal.write(line) == 2
        assert journal.lost == 2
        os.dup2(free, full)  # room again
        journal.write("c\n")
        journal.write("d\n")
    finally:
        os.close(full)
        os.close(free)
    first, *others = (tmp_path / "log").read_text().splitlines()
    assert json.loads(first) == {"event": "log lines were lost", "level": "error", "lines": 2}
    assert others == ["c", "d"]


@pytest.mark.filterwarnings("error")
def test_a_reader_that_has_gone_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        journal = Journal(theirs)
        assert journal.write("nobody reads\n") == 13
        assert journal.lost == 1
    finally:
        os.close(theirs)
