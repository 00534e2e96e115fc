"""What was acknowledged survives kill -9 and a disk that cannot flush; what was refused stays away.

Both tests run a real child process on a real file. Killing a process cannot show that commits are
flushed, because the page cache survives it. The second test shows it: with fsync failing in the
kernel, not one commit may succeed, which holds only while every commit waits for its flush.
"""

from __future__ import annotations

import asyncio
import platform
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from keyhaul.keys import State
from keyhaul.ledger_samples import sample_message, sample_ref, sample_row, shown
from tests.stores import open_store

ROUNDS = 8
PER_ROUND = 100_000

LOAD = """
import asyncio, os, sys
from pathlib import Path
from keyhaul.keys import State
from keyhaul.ledger_samples import sample_message, sample_ref, sample_row
from tests.stores import open_store

def acknowledge(line):
    os.write(1, line.encode() + b"\\n")

async def client(store, numbers):
    for number in numbers:
        ref, name = sample_ref(number), str(number)
        async with store.edit(ref) as change:
            change.rows[ref] = sample_row(ref, State.DELIVERABLE)
            change.put("stock", name, name.encode())
            change.post(sample_message(number))
        acknowledge(f"made {number}")
        if number % 3 == 0:
            continue
        async with store.edit(ref) as change:
            row = change.rows[ref]
            row.state, row.secret = State.TAKEN, None
            change.spend("stock", name)
            change.claim("spent", name)
            change.drop(sample_message(number).id)
        acknowledge(f"taken {number}")

async def main(path, first, clients):
    store = await open_store(path)
    span = range(first, first + 100_000)
    await asyncio.gather(*(client(store, span[n::clients]) for n in range(clients)))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


def killed_under_load(path: Path, first: int, clients: int, kill_after: int) -> dict[int, str]:
    """Start a child that works, kill it after so many answers; the last answer for each number."""
    command = [sys.executable, "-c", LOAD, str(path), str(first), str(clients)]
    answers: dict[int, str] = {}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for count, line in enumerate(child.stdout, 1):  # after the kill, what it had still answered
            verb, number = line.split()
            answers[int(number)] = verb
            if count == kill_after:
                child.kill()
    assert child.returncode == -signal.SIGKILL
    assert len(answers) > 0
    return answers


async def verify(path: Path, answers: dict[int, str], spans: list[range]) -> Counter[str]:
    """Look at every number that was or may have been worked on; AssertionError for a broken promise."""
    store = await open_store(path)
    seen: Counter[str] = Counter()
    stock, spent = await store.items("stock"), await store.items("spent")
    queued = {message.id.int: message for message in await store.messages()}
    for number in (number for span in spans for number in span):
        ref, name = sample_ref(number), str(number)
        row = await store.get(ref)
        found = "nothing" if row is None else "taken" if row.state is State.TAKEN else "made"
        if row is not None and found == "made":
            assert shown(row) == shown(sample_row(ref, State.DELIVERABLE, version=1))
            assert stock[name] == name.encode()
            assert queued[number] == sample_message(number)
        assert (name in spent) == (found == "taken"), f"{number} is {found}, but its mark says otherwise"
        assert (name in stock) == (number in queued) == (found == "made"), f"{number} is {found} in part"
        promised = answers.get(number, "nothing")
        # More than was promised may be there: a commit whose answer the kill swallowed.
        order = ("nothing", "made", "taken")
        assert order.index(found) >= order.index(promised), f"{number} was {promised} and is {found}"
        seen["acknowledged" if found == promised != "nothing" else f"{found} unacknowledged"] += 1
    await store.close()
    return seen


@pytest.mark.e2e
def test_acknowledged_work_survives_kill_9(tmp_path: Path) -> None:
    path, chance = tmp_path / "store.db", random.Random()
    answers: dict[int, str] = {}
    spans: list[range] = []
    for number in range(ROUNDS):
        first, clients = number * PER_ROUND, (1, 8, 64, 256)[number % 4]
        found = killed_under_load(path, first, clients, chance.randrange(1, 900))
        answers |= found
        # Beyond the last answer, at most one number per client can have been begun.
        spans.append(range(first, max(found) + clients * 2))
    seen = asyncio.run(verify(path, answers, spans))
    print(f"{ROUNDS} kills, {len(answers)} keys acknowledged:", dict(seen))
    assert seen["acknowledged"] > 0


FLUSH_FAILS = """
import asyncio, ctypes, os, platform, signal, struct, sys
from pathlib import Path
from keyhaul.errors import StoreUnavailable
from keyhaul.ledger_samples import add, sample_ref, sample_row
from tests.stores import open_store

def break_fsync():
    # A seccomp filter on all threads: fsync and fdatasync return EIO, everything else is allowed.
    fsync, fdatasync = {"x86_64": (74, 75), "aarch64": (82, 83)}[platform.machine()]
    program = [(0x20, 0, 0, 0), (0x15, 1, 0, fsync), (0x15, 0, 1, fdatasync),
               (0x06, 0, 0, 0x00050000 | 5), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    if libc.syscall(seccomp, 1, 1, filter) != 0:
        print("no seccomp", flush=True)
        sys.exit(3)

async def refused(store, number):
    try:
        await add(store, sample_row(sample_ref(number)))
    except StoreUnavailable as error:
        return "could not save" in str(error)
    return False

async def main():
    store = await open_store(Path(sys.argv[1]))
    for number in range(20):
        await add(store, sample_row(sample_ref(number)))
    break_fsync()
    for start in (100, 200, 300):
        assert all(await asyncio.gather(*(refused(store, start + n) for n in range(10))))
        assert await store.get(sample_ref(start)) is None
        assert await store.get(sample_ref(19)) is not None
        assert len(await store.unfinished()) == 20
    print("refused", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.e2e
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="system call numbers not known")
def test_a_disk_that_cannot_flush_makes_no_promise(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    child = subprocess.run(
        [sys.executable, "-c", FLUSH_FAILS, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if child.returncode == 3:
        pytest.skip("this kernel or container does not allow seccomp filters")
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout == "refused\n"

    async def found() -> list[int]:
        store = await open_store(path)
        rows = await store.unfinished()
        await store.close()
        return sorted(row.ref.key_id.int for row in rows)

    assert asyncio.run(found()) == list(range(20))
