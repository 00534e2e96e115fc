"""The durable ledger alone: changes a second under group commit, and one key among few and among many.

Figures depend on the disk, so flushes are measured in between; the ratios are what to look at. Both stores of
the second question are asked in turn, so that a noisy machine hits both.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from uuid import UUID

from keyhaul.keys import Ref, Secret, State
from keyhaul.ledger_samples import sample_ref, sample_row
from keyhaul.stores.sqlcipher import SqlcipherLedger
from keyhaul.testbed.benchmarks.report import Report, flush_seconds
from keyhaul.testbed.benchmarks.stage import Say

CLIENTS = (1, 8, 64, 256)
FEW = 10


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    with tempfile.TemporaryDirectory(prefix="keyhaul-bench-") as folder:
        directory = Path(folder)
        report.add("flush of 12 KiB to disk", [1e6 * flush_seconds(directory) for _ in range(200)], "us")
        for clients in CLIENTS:
            say(f"{clients} clients")
            await _throughput(report, directory / f"{clients}.db", clients, 2 if quick else 5)
        many = 20_000 if quick else 200_000
        say(f"{many} keys")
        await _among_many(report, directory, many, 100 if quick else 400)


async def _throughput(report: Report, path: Path, clients: int, rounds: int) -> None:
    ledger = await _open(path)
    number = max(200, clients * 20)
    puts, takes = [], []
    for turn in range(rounds):
        refs = [sample_ref(at, f"round-{turn}") for at in range(number)]
        puts.append(await _rate(refs, clients, lambda ref: _put(ledger, ref)))
        takes.append(await _rate(refs, clients, lambda ref: _take(ledger, ref)))
    grouped = ledger.engine.changes / ledger.engine.batches
    await ledger.close()
    note = f"{number} changes a sample, {grouped:.1f} a commit"
    report.add(f"puts, {clients} at once", puts, "/s", note=note)
    report.add(f"takes, {clients} at once", takes, "/s", note=note)


async def _among_many(report: Report, directory: Path, many: int, rounds: int) -> None:
    """Read a row and take it, as dec_keys does; every taken key is put back as a new one."""
    random, stores = Random(2), []  # noqa: S311 - which keys are asked for, not keys
    for size in (FEW, many):
        refs = [Ref(UUID(int=random.getrandbits(128)), "derio") for _ in range(size)]
        ledger = await _open(directory / f"of-{size}.db")
        await _rate(refs, 256, lambda ref, into=ledger: _put(into, ref))  # type: ignore[misc]
        stores.append((ledger, refs, [0.0] * 0))
    for _ in range(rounds):
        for ledger, refs, seconds in stores:
            at = random.randrange(len(refs))
            begun = time.perf_counter()
            await _take(ledger, refs[at])
            seconds.append(time.perf_counter() - begun)
            refs[at] = Ref(UUID(int=random.getrandbits(128)), "derio")
            await _put(ledger, refs[at])
    for ledger, refs, seconds in stores:
        await ledger.close()
        report.add(f"take one of {len(refs)} keys", [1e6 * each for each in seconds], "us")
    few, among = (statistics.median(seconds) for _, _, seconds in stores)
    report.add("  ratio of the medians", [among / few], "x", most=1.3)


async def _open(path: Path) -> SqlcipherLedger:
    return await SqlcipherLedger.open(path, page_key=Secret(bytes(range(48))), field_key=Secret(bytes(32)))


async def _put(ledger: SqlcipherLedger, ref: Ref) -> None:
    async with ledger.edit(ref) as change:
        change.rows[ref] = sample_row(ref, State.DELIVERABLE)


async def _take(ledger: SqlcipherLedger, ref: Ref) -> None:
    async with ledger.edit(ref) as change:
        row = change.rows[ref]
        assert row is not None
        row.state, row.secret = State.TAKEN, None


async def _rate(refs: list[Ref], clients: int, step: Callable[[Ref], Awaitable[None]]) -> float:
    """Steps a second."""

    async def client(mine: list[Ref]) -> None:
        for ref in mine:
            await step(ref)

    begun = time.perf_counter()
    await asyncio.gather(*(client(refs[number::clients]) for number in range(clients)))
    return len(refs) / (time.perf_counter() - begun)
