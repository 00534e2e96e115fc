"""Measures the durable ledger: changes a second under group commit, and the cost of a key among many.

    python -m bench.store [--dir D] [--rows 200000] [--seconds 1.0]

Two questions, answered side by side. How much does group commit give as clients are added? And does
the step behind dec_keys (read a row, take it in an edit) cost the same with 200,000 keys in the store
as with 10? Both stores of the second question are asked in turn, so that a noisy machine hits both.
Figures depend on the disk and on what else runs; the ratios are what to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from uuid import UUID

from keyhaul.keys import Ref, Secret, State
from keyhaul.ledger_rules import sample_ref, sample_row
from keyhaul.stores.sqlcipher import SqlcipherLedger

CLIENTS = (1, 8, 64, 256)
SAMPLES = 400


async def open_store(path: Path) -> SqlcipherLedger:
    return await SqlcipherLedger.open(path, page_key=Secret(bytes(range(48))), field_key=Secret(bytes(32)))


async def put(store: SqlcipherLedger, ref: Ref) -> None:
    async with store.edit(ref) as change:
        change.rows[ref] = sample_row(ref, State.DELIVERABLE)


async def take(store: SqlcipherLedger, ref: Ref) -> None:
    async with store.edit(ref) as change:
        row = change.rows[ref]
        assert row is not None
        row.state, row.secret = State.TAKEN, None


async def in_parallel(refs: list[Ref], clients: int, step: Callable[[Ref], Awaitable[None]]) -> float:
    """Steps a second."""

    async def client(mine: list[Ref]) -> None:
        for ref in mine:
            await step(ref)

    start = time.perf_counter()
    await asyncio.gather(*(client(refs[number::clients]) for number in range(clients)))
    return len(refs) / (time.perf_counter() - start)


async def throughput(path: Path, seconds: float) -> None:
    store = await open_store(path)
    print(f"{'clients':>8} {'puts/s':>9} {'takes/s':>9} {'changes/commit':>15} {'puts, x 1 client':>17}")
    first = 0.0
    for number, clients in enumerate(CLIENTS):
        trial = [sample_ref(n, f"trial-{clients}") for n in range(clients * 20)]
        rate = await in_parallel(trial, clients, lambda ref: put(store, ref))
        refs = [sample_ref(n, f"run-{clients}") for n in range(max(clients, int(rate * seconds)))]
        changes, batches = store.engine.changes, store.engine.batches
        puts = await in_parallel(refs, clients, lambda ref: put(store, ref))
        takes = await in_parallel(refs, clients, lambda ref: take(store, ref))
        grouped = (store.engine.changes - changes) / (store.engine.batches - batches)
        first = puts if number == 0 else first
        print(f"{clients:>8} {puts:>9.0f} {takes:>9.0f} {grouped:>15.1f} {puts / first:>16.1f}x")
    await store.close()


async def filled(path: Path, rows: int) -> tuple[SqlcipherLedger, list[Ref]]:
    random = Random(1)
    refs = [Ref(UUID(int=random.getrandbits(128)), "derio") for _ in range(rows)]
    store = await open_store(path)
    await in_parallel(refs, 256, lambda ref: put(store, ref))
    return store, refs


async def timed(work: Awaitable[object]) -> float:
    """Microseconds."""
    start = time.perf_counter()
    await work
    return (time.perf_counter() - start) * 1e6


async def among_many(directory: Path, rows: int) -> None:
    """The same work in a store of ten rows and in one of many; every taken key is put back as a new one."""
    few = await filled(directory / "few.db", 10)
    many = await filled(directory / "many.db", rows)
    random, figures = Random(2), {"get": ([], []), "get + take": ([], []), "put": ([], [])}  # type: ignore[var-annotated]
    for _ in range(SAMPLES):
        for column, (store, refs) in enumerate((few, many)):
            place = random.randrange(len(refs))
            ref = refs[place]
            read = await timed(store.get(ref))
            figures["get"][column].append(read)
            figures["get + take"][column].append(read + await timed(take(store, ref)))
            refs[place] = Ref(UUID(int=random.getrandbits(128)), "derio")
            figures["put"][column].append(await timed(put(store, refs[place])))
            await store.forget(1e12)
    print(f"{'median, us':>12} {'10 rows':>10} {f'{rows:,} rows':>14} {'ratio':>7}")
    for name, columns in figures.items():
        left, right = (statistics.median(column) for column in columns)
        print(f"{name:>12} {left:>10.0f} {right:>14.0f} {right / left:>7.2f}")
    await few[0].close()
    await many[0].close()


async def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        await throughput(Path(name) / "clients.db", options.seconds)
        print()
        await among_many(Path(name), options.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", help="directory on the disk to measure; the temporary one by default")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="aimed at for each figure")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
