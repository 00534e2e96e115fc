"""Hunts for a bug in whatever `keyhaul` is importable: storms until a promise breaks, then chosen tests.

Run in a process of its own, in a folder with a changed copy of the package. Exit code 3: caught, 0: not,
4: no such tests. Plugins of pytest stay away: loading them takes longer than most hunts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CAUGHT = 3
NO_TESTS = 4
PLANTING = "tests/unit/test_planting.py"


def main(seeds: int, tests: list[str]) -> int:
    import keyhaul

    assert Path(keyhaul.__file__).is_relative_to(Path.cwd()), "this is not the changed copy"
    if seeds:
        from tests.sim.storm import run_seed
        from tests.sim.tally import quiet

        quiet()
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
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        import pytest

        failed: list[str] = []

        class Watch:
            def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                if report.failed:
                    failed.append(report.nodeid)

            def pytest_collectreport(self, report: pytest.CollectReport) -> None:
                if report.failed:
                    failed.append(report.nodeid)

        # That file compares the table of bugs with the code: any change of a line in it would be caught.
        result = pytest.main(["-x", "-q", f"--ignore={PLANTING}", *tests], plugins=[Watch()])
        if result in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            return NO_TESTS
        if result != pytest.ExitCode.OK:
            print(f"\n{(failed or tests)[0]}")
            return CAUGHT
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
