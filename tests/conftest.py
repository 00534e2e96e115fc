"""What holds for all tests: none asserts times, property tests repeat their cases, long files go first.

`--hypothesis-profile fresh` (make properties) draws other cases in every run: what it finds is a bug, but not
one of the change at hand, so `make test` does not go by it.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("fresh", deadline=None, derandomize=False, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("keyhaul", deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE)
settings.load_profile("keyhaul")

LONGEST = (
    "sim/test_seeds.py",
    "e2e/test_pages.py",
    "e2e/test_admission.py",
    "e2e/test_package.py",
    "e2e/test_dashboard_live.py",
    "e2e/test_testbed.py",
    "e2e/test_blind_relays.py",
    "e2e/test_chaos.py",
    "conformance/test_probes020.py",
    "conformance/test_probes014.py",
    "e2e/sae/test_sae_port.py",
    "e2e/test_power_loss.py",
)
"""Files of a minute or more, the longest first: one that begins last leaves the other testers idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, name in enumerate(LONGEST) if path.endswith(f"/tests/{name}")), len(LONGEST))

    if gone := [name for name in LONGEST if not (Path(__file__).parent / name).exists()]:
        raise pytest.UsageError(f"LONGEST names files that are not there: {', '.join(gone)}")
    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What is loaded is for good, and garbage can wait: rare collections save a fifth of a storm's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
