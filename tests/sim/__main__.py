"""Run seeds outside pytest: `python -m tests.sim --seeds 2000`, or one with its story: `--seed 17`.

Exit code 0 if every promise held, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.sim.storm import run_seed
from tests.sim.tally import storms

CHUNK = 50
TOLD = 3  # stories printed in full


def chunks(first: int, number: int) -> Iterator[range]:
    for start in range(first, first + number, CHUNK):
        yield range(start, min(start + CHUNK, first + number))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, help="only this one, told from beginning to end")
    parser.add_argument("--report", type=Path, help="write the figures to this file as JSON")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = run_seed(options.seed)
        print(outcome.story(whole=True))
        print(f"\n{len(outcome.history)} events, trace {outcome.history.trace()}")
        return 0 if outcome.good else 1
    return _many(options.first, options.seeds, options.jobs, options.report)


def _many(first: int, number: int, jobs: int, report: Path | None) -> int:
    begun, seen, bad = time.monotonic(), Counter[str](), list[tuple[int, str]]()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=20) as pool:
        work = [pool.submit(storms, seeds) for seeds in chunks(first, number)]
        for count, done in enumerate(as_completed(work), 1):
            some, stories = done.result()
            seen += some
            for _, story in stories[: max(TOLD - len(bad), 0)]:
                print(story, "\n", flush=True)
            bad += stories
            if count % 20 == 0 or count == len(work):
                took = time.monotonic() - begun
                print(f"{seen['seeds']} of {number} seeds, {len(bad)} bad, {took:.0f} s", flush=True)
    figures = {"first": first, **dict(sorted(seen.items())), "violations": len(bad)}
    if report is not None:
        report.write_text(json.dumps(figures | {"bad": [seed for seed, _ in bad]}, indent=2) + "\n")
    for name, value in figures.items():
        print(f"  {value:>10} {name}")
    if bad:
        print("promises were broken in seeds", *sorted(seed for seed, _ in bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
