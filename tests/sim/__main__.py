"""Run seeds outside pytest: `python -m tests.sim --seeds 2000`, or one with its story: `--seed 17`.

With `--state FILE` a run can be stopped at any time, and the same command goes on where it was; seeds that
broke a promise under another commit are run once more first. Exit code 0 if every promise held in all seeds,
1 if one was broken or the run was stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.sim.progress import Progress, load
from tests.sim.storm import run_seed
from tests.sim.tally import quiet, storms

CHUNK = 20
TOLD = 3  # stories printed in full
ROUND = 50  # chunks between two lines about the progress


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, help="only this one, told from beginning to end")
    parser.add_argument("--report", type=Path, help="write the figures to this file as JSON")
    parser.add_argument("--state", type=Path, help="keep the progress in this file, and go on from it")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = run_seed(options.seed)
        print(outcome.story(whole=True))
        print(f"\n{len(outcome.history)} events, trace {outcome.history.trace()}")
        return 0 if outcome.good else 1
    try:
        progress = load(options.state)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = range(options.first, options.first + options.seeds)
    try:
        _run(progress, wanted, options.jobs)
    except KeyboardInterrupt:
        where = f"the same command goes on from {options.state}" if options.state else "nothing was kept"
        print(f"stopped; {where}", flush=True)
    if options.report is not None:
        report = {"first": options.first, **progress.seen, "violations": len(progress.broken)}
        bad = {"bad": [bad.seed for bad in progress.broken]}
        options.report.write_text(json.dumps(report | bad, indent=2) + "\n")
    _tell(progress)
    finished = not list(progress.left(wanted, CHUNK))
    return 0 if finished and not progress.broken else 1


def _run(progress: Progress, wanted: range, jobs: int) -> None:
    """All that is left to do, saved after every chunk."""
    for seed in progress.suspects():
        stories = dict(storms([seed])[1])
        progress.again(seed, stories.get(seed))
        progress.save()
        print(f"seed {seed} once more: {'bad still' if stories else 'good now'}", flush=True)
    left, told = list(progress.left(wanted, CHUNK)), 0
    for at in range(0, len(left), ROUND):
        for seeds, seen, stories_ in _round(progress, left[at : at + ROUND], jobs):
            for _, story in stories_[: max(TOLD - told, 0)]:
                print(story, "\n", flush=True)
            told += len(stories_)
            progress.note(seeds, seen, stories_)
            progress.save()
        print(_line(progress, len(wanted)), flush=True)


def _round(
    progress: Progress, pieces: list[range], jobs: int
) -> Iterator[tuple[range, Counter[str], list[tuple[int, str]]]]:
    """Some chunks in fresh processes, as they are finished."""
    begun, before = time.monotonic(), progress.seconds
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=quiet)
    try:
        work = {pool.submit(storms, seeds): seeds for seeds in pieces}
        for done in as_completed(work):
            progress.seconds = before + time.monotonic() - begun
            yield work[done], *done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _line(progress: Progress, wanted: int) -> str:
    seeds = sum(end - first for first, end in progress.done)
    return f"{seeds} of {wanted} seeds, {len(progress.broken)} bad, {progress.seconds:.0f} s"


def _tell(progress: Progress) -> None:
    for name, value in sorted(progress.seen.items()):
        print(f"  {value:>10} {name}")
    print(f"  {len(progress.broken):>10} violations")
    for commit, seeds in progress.commits.items():
        print(f"{seeds} seeds under commit {commit}")
    for bad in progress.bad:
        print(
            f"seed {bad.seed}, commit {bad.commit}: {bad.what}", f"mended by {bad.mended}" * bool(bad.mended)
        )
    if progress.broken:
        print("promises were broken in seeds", *sorted(bad.seed for bad in progress.broken))


if __name__ == "__main__":
    sys.exit(main())
