"""Figures with unit, spread and sample count, their machine, and the command that repeats them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keyhaul import __version__
from keyhaul.config.write import write
from keyhaul.testbed.report.page import Block, Goal, Goals, Heading, Page, Table

FSYNC_BYTES = 12_288
"""About what a commit of one key appends to the write-ahead log."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value: the median of `samples`, with the 5th and 95th percentile beside it.

    `bound` is what the figure has to reach, as words; `met` None where nothing was asked for.
    """

    name: str
    value: float
    unit: str
    samples: int
    low: float | None = None
    high: float | None = None
    bound: str = ""
    met: bool | None = None
    note: str = ""


@dataclass(slots=True)
class Report:
    """All figures of one run. `started` is in Unix seconds; `load` the run queue of the machine then."""

    name: str
    command: str
    figures: list[Figure] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    title: str = ""
    lead: str = ""
    blocks: list[Block] = field(default_factory=list)  # pictures and tables of the page
    data: dict[str, Any] = field(default_factory=dict)  # what the pictures were drawn from
    journal: Path | None = None  # where a run that can go on writes what it has

    def add(self, name: str, values: Sequence[float], unit: str, **more: Any) -> Figure:
        """Add the median of `values`; `most` or `least` among the keywords make a bound of it."""
        ordered = sorted(values)
        value = statistics.median(ordered)
        most, least = more.pop("most", None), more.pop("least", None)
        if most is not None:
            more |= {"bound": f"at most {most:g}", "met": value <= most}
        if least is not None:
            more |= {"bound": f"at least {least:g}", "met": value >= least}
        figure = Figure(
            name, value, unit, len(ordered), percentile(ordered, 5), percentile(ordered, 95), **more
        )
        self.figures.append(figure)
        return figure

    def document(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "benchmark": self.name,
            "command": self.command,
            "keyhaul": __version__,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "machine": machine() | {"load before": self.load, "load after": os.getloadavg()[0]},
            "figures": [asdict(figure) for figure in self.figures],
            **({"data": self.data} if self.data else {}),
        }

    def page(self) -> Page:
        """What `--html` writes: goals, the benchmark's own tables and pictures, all figures."""
        facts = {**machine(), "load before": round(self.load, 1), "load after": round(os.getloadavg()[0], 1)}
        facts |= {"keyhaul": __version__, "started": time.strftime("%F %T UTC", time.gmtime(self.started))}
        facts["seconds"] = round(time.time() - self.started)
        page = Page(self.title or f"keyhaul bench {self.name}", self.command, self.lead, facts)
        goals = [
            Goal(f"{figure.name}: {figure.bound}", f"{_short(figure.value)} {figure.unit}", figure.met)
            for figure in self.figures
            if figure.bound
        ]
        if goals:
            page.add(Goals(goals))
        page.add(*self.blocks, Heading("All figures"))
        page.add(Table("Medians, with the 5th and 95th percentile of the samples", HEADS, self.rows()))
        return page

    def save(self, file: Path) -> None:
        """Write the document, whole or not at all."""
        write(file, json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n", 0o644)

    def rows(self) -> list[list[str]]:
        """For a table: figure, value, 5 to 95 %, samples, bound."""
        return [
            [
                figure.name,
                f"{_short(figure.value)} {figure.unit}".strip(),
                "" if figure.low is None else f"{_short(figure.low)} – {_short(figure.high or 0.0)}",
                str(figure.samples),
                f"{figure.bound} {'✓' if figure.met else '✗'}" if figure.bound else figure.note,
            ]
            for figure in self.figures
        ]


HEADS = ("figure", "median", "5 % – 95 %", "samples", "bound")


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of sorted values."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def machine() -> dict[str, Any]:
    """What the figures depend on besides the program."""
    from OpenSSL import SSL
    from sqlcipher3 import dbapi2 as sqlcipher

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "openssl": SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode().split(" ")[1],
        "sqlite": sqlcipher.sqlite_version,
    }


def flush_seconds(directory: Path, file: str = "flush.probe") -> float:
    """How long one flush of `FSYNC_BYTES` fresh bytes to the disk of `directory` takes now, in seconds."""
    probe = os.open(directory / file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(probe, os.urandom(FSYNC_BYTES), 0)
        begun = time.perf_counter()
        os.fsync(probe)
        return time.perf_counter() - begun
    finally:
        os.close(probe)


def processor_seconds(pid: int) -> float:
    """Processor time a process and its threads have used, user and system, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waiting_seconds(pid: int) -> float:
    """Seconds in which the first thread of a process, its event loop, had work and got no processor."""
    with contextlib.suppress(FileNotFoundError):  # a kernel that does not count
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
