"""Power loss: after it a disk holds what was flushed and nothing else, and that must be every promise.

kill -9 alone cannot show this, because the page cache survives a process. A shim below the store
(`powerloss.c`) keeps each file as of its last flush; after the kill the store is opened from there. The same
shim must show losses when the store asks SQLite for less than a flush a commit, or it would prove nothing.

KEYHAUL_POWER_LOSSES sets how often the power fails; `make powerloss` does it a hundred times.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keyhaul.keys import State
from keyhaul.ledger_samples import sample_ref
from tests.e2e.test_store_crash import LOAD
from tests.stores import open_store

LOSSES = int(os.environ.get("KEYHAUL_POWER_LOSSES", "4"))
SHIM = Path(__file__).with_name("powerloss.c")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the power-loss shim needs a C compiler (gcc)"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the power-loss shim needs Linux"),
]

NORMAL = LOAD.replace(
    "    span = range",
    "    store.engine._writer.execute('PRAGMA synchronous = NORMAL')\n    span = range",
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "powerloss.so"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass
class Disk:
    """A store on a disk that loses its power now and then."""

    folder: Path
    shim: Path
    answers: dict[int, str] = field(default_factory=dict)
    losses: int = 0

    @property
    def store(self) -> Path:
        return self.folder / "live" / "store.db"

    @property
    def flushed(self) -> Path:
        return self.folder / "flushed"

    def work_until_the_power_fails(self, script: str, first: int, clients: int, after: int) -> None:
        """The store works, answers so often, and all that was not flushed is gone."""
        for folder in (self.store.parent, self.flushed):
            folder.mkdir(exist_ok=True)
        if self.losses:
            shutil.rmtree(self.store.parent)
            shutil.copytree(self.flushed, self.store.parent)
        environment = {**os.environ, "LD_PRELOAD": str(self.shim), "KEYHAUL_SHADOW": str(self.flushed)}
        command = [sys.executable, "-c", script, str(self.store), str(first), str(clients)]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for count, line in enumerate(child.stdout, 1):
                verb, number = line.split()
                self.answers[int(number)] = verb
                if count == after:
                    child.kill()
        assert child.returncode == -signal.SIGKILL
        for unfinished in self.flushed.glob("*.[0-9]*"):
            unfinished.unlink()  # the copy in which the power failed
        self.losses += 1

    async def promises(self) -> Counter[str]:
        """What is there of what was acknowledged: kept, lost, or back after it was delivered."""
        left = self.folder / "left"
        shutil.copytree(self.flushed, left)
        store = await open_store(left / "store.db")
        seen: Counter[str] = Counter()
        for number, promised in self.answers.items():
            row = await store.get(sample_ref(number))
            found = "nothing" if row is None else "taken" if row.state is State.TAKEN else "made"
            if found == "made" and promised == "taken":
                seen["delivered and back"] += 1
            elif found == "nothing":
                seen["lost"] += 1
            else:
                seen["kept"] += 1
        await store.close()
        return seen


def test_no_acknowledged_operation_is_lost_and_no_delivered_key_is_back(tmp_path: Path, shim: Path) -> None:
    disk, chance = Disk(tmp_path, shim), random.Random()
    for number in range(LOSSES):
        clients = (1, 8, 64, 256)[number % 4]
        disk.work_until_the_power_fails(LOAD, number * 100_000, clients, chance.randrange(50, 900))
    seen = asyncio.run(disk.promises())
    print(f"{LOSSES} power losses, {len(disk.answers)} keys acknowledged:", dict(seen))
    assert seen["kept"] > 0
    assert seen["lost"] == 0
    assert seen["delivered and back"] == 0


def test_the_shim_shows_losses_where_commits_are_not_flushed(tmp_path: Path, shim: Path) -> None:
    assert NORMAL != LOAD
    disk = Disk(tmp_path, shim)
    disk.work_until_the_power_fails(NORMAL, 0, 64, 3000)
    seen = asyncio.run(disk.promises())
    print(f"without a flush for every commit, of {len(disk.answers)} keys acknowledged:", dict(seen))
    assert seen["lost"] + seen["delivered and back"] > 0
