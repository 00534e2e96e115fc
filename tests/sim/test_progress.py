"""A run of many storms can be stopped and gone on with, and says what it has done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.progress import Progress, commit, load

ROOT = Path(__file__).parents[2]
STORY = "seed 7: line\n\npromise 4 (x) is broken: lost\n  1.0 a b\n\nreplay: make sim SEED=7"


@given(
    st.integers(0, 40),
    st.integers(1, 200),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), max_size=5),
)
def test_what_is_left_is_everything_that_was_not_done_once_each(
    first: int, number: int, chunk: int, ran: list[tuple[int, int]]
) -> None:
    progress = Progress(None, "c")
    done: set[int] = set()
    for start, size in ran:
        progress._add(start, start + size)
        done |= set(range(start, start + size))
    assert {seed for start, end in progress.done for seed in range(start, end)} == done
    wanted = range(first, first + number)
    left = list(progress.left(wanted, chunk))
    assert all(0 < len(piece) <= chunk for piece in left)
    seeds = [seed for piece in left for seed in piece]
    assert seeds == [seed for seed in wanted if seed not in done]
    for piece in left:
        progress._add(piece.start, piece.stop)
    assert list(progress.left(wanted, chunk)) == []


def test_a_state_is_what_was_saved_and_counts_each_commit(tmp_path: Path) -> None:
    file = tmp_path / "state"
    progress = load(file)
    progress.commit = "one"
    progress.note(range(0, 50), Counter(seeds=50, got=3), [(7, STORY)])
    progress.note(range(100, 150), Counter(seeds=50, got=1), [])
    progress.seconds = 12.5
    progress.save()
    again = load(file)
    assert again.done == [(0, 50), (100, 150)]
    assert again.seen == {"seeds": 100, "got": 4}
    assert again.seconds == 12.5
    assert [(bad.seed, bad.commit, bad.what) for bad in again.bad] == [
        (7, "one", "promise 4 (x) is broken: lost")
    ]
    again.commit = "two"
    again.note(range(50, 100), Counter(seeds=50), [])
    assert again.commits == {"one": 100, "two": 50}
    assert again.done == [(0, 150)]
    assert json.loads(file.read_text())["seeds"] == 100, "the file is as it was saved last"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_bad_seed_is_tried_again_under_another_commit_only_and_stays_in_the_record() -> None:
    progress = Progress(None, "one")
    progress.note(range(0, 50), Counter(), [(7, STORY), (9, STORY)])
    assert progress.suspects() == []
    progress.commit = "two"
    assert progress.suspects() == [7, 9]
    progress.again(7, None)
    progress.again(9, STORY)
    assert progress.suspects() == []
    assert [bad.seed for bad in progress.broken] == [9]
    assert [(bad.seed, bad.commit, bad.mended) for bad in progress.bad] == [(7, "one", "two"), (9, "two", "")]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"done": [[1]]}', '{"done": 3}'])
def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "state"
    file.write_text(content)
    with pytest.raises(ValueError, match=r".+"):
        load(file)
    assert simulate("--seeds", "1", "--state", str(file)).returncode == 2
    assert file.read_text() == content


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.sim", "--jobs", "1", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_goes_on_where_it_was_and_says_what_it_did(tmp_path: Path) -> None:
    file = tmp_path / "state"
    first = simulate("--seeds", "3", "--state", str(file))
    assert first.returncode == 0, first.stderr
    assert "3 of 3 seeds, 0 bad" in first.stdout
    second = simulate("--seeds", "5", "--state", str(file))
    assert second.returncode == 0, second.stderr
    said = json.loads(file.read_text())
    assert said["done"] == [[0, 5]]
    assert said["commits"] == {commit(): 5}
    assert said["seen"]["seeds"] == 5
    assert said["seconds"] > 0
    assert simulate("--seeds", "5", "--state", str(file)).stdout.count("of 5 seeds") == 0, "nothing is left"


def test_a_state_with_a_broken_promise_fails_until_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "state"
    progress = load(file)
    progress.note(range(0, 5), Counter(seeds=5), [(3, STORY)])
    progress.save()
    same = simulate("--seeds", "5", "--state", str(file))
    assert same.returncode == 1
    assert "promises were broken in seeds 3" in same.stdout
    progress.bad[0].commit = "an earlier one"
    progress.save()
    mended = simulate("--seeds", "5", "--state", str(file))
    assert mended.returncode == 0
    assert "seed 3 once more: good now" in mended.stdout


def test_a_run_that_is_stopped_keeps_what_it_did_and_is_not_called_good(tmp_path: Path) -> None:
    file = tmp_path / "state"
    command = [sys.executable, "-m", "tests.sim", "--jobs", "1", "--seeds", "100000", "--state", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ) as running:
        while not file.exists():
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate()
    assert running.returncode == 1
    assert "the same command goes on from" in said
    assert json.loads(file.read_text())["seeds"] >= 20
