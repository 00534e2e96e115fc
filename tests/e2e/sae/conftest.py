"""What tests of the ports for applications share: who takes part, what was logged, and where TLS is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.northbound import WORKERS, Cast, make_cast


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("pki") / "pki")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as captured:
        yield captured


@pytest.fixture(params=[0, 1], ids=["in-process", "worker"])
def workers(request: pytest.FixtureRequest) -> Iterator[int]:
    """A test runs against a port in this process, and against one whose TLS and HTTP are in another."""
    before = WORKERS.set(request.param)
    yield request.param
    WORKERS.reset(before)
