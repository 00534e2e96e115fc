"""What every benchmark shares: machine facts, quantiles, and a JSON file that tells how to repeat it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def arguments(name: str) -> argparse.Namespace:
    """`--quick` and `--json FILE` (default bench/results/NAME.json)."""
    parser = argparse.ArgumentParser(prog=f"bench/{name}.py")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", metavar="FILE")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Enough to compare two runs, and nothing that names the machine."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "fdatasync_median_ms": fsync_ms(),
    }


def fsync_ms(rounds: int = 50) -> float:
    """Median time of a 4 KiB append with fdatasync on the disk that benchmarks use."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(rounds):
            file.write(bytes(4096))
            start = time.perf_counter()
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 3)


def quantiles(seconds: Sequence[float]) -> dict[str, Any]:
    """Milliseconds: median, 95th and 99th percentile, with the number of samples."""
    ordered = sorted(seconds)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * q))]
        for name, q in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))
    }
    return {"samples": len(ordered), **{name: round(value * 1e3, 3) for name, value in at.items()}}


def write(file: Path, name: str, figures: dict[str, Any]) -> None:
    """Save and show the figures."""
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "figures": figures,
    }
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    print(f"written to {file}")
