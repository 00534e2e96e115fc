"""Hunts for a bug in whatever `keyhaul` is importable: storms until a promise breaks, then chosen tests.

Run in a process of its own, in a folder with a changed copy of the package. Exit code 3: caught, 0: not.
"""

from __future__ import annotations

import sys
from pathlib import Path

CAUGHT = 3


def main(seeds: int, tests: list[str]) -> int:
    import keyhaul

    assert Path(keyhaul.__file__).is_relative_to(Path.cwd()), "this is not the changed copy"
    from tests.sim.storm import run_seed

    for seed in range(seeds):
        outcome = run_seed(seed)
        if not outcome.good:
            found = [each.what for each in outcome.violations] + outcome.broken
            numbers = [str(each.number) for each in outcome.violations[:1]]
            where = f"storm {seed}" + "".join(f", promise {number}" for number in numbers)
            print(f"{where}: {found[0]}", flush=True)
            print(outcome.story(), file=sys.stderr)
            return CAUGHT
    if tests:
        import pytest

        if pytest.main(["-x", "-q", "-p", "no:xdist", *tests]) not in (0, 5):
            print(f"\n{' '.join(tests)}")
            return CAUGHT
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
