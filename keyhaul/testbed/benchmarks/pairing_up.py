"""A closed loop of applications in pairs: enc_keys at one, dec_keys at the other, bits compared, and again.

The kinds of task behind `bench load` and `bench scale`. `pairs` runs against a node, or against the bare
handler (`bare`), whose answers pass the same checks, so that both cost this process the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from keyhaul.testbed.benchmarks.asking import AGAIN, keys_of
from keyhaul.testbed.benchmarks.wire import Caller, Json

LATE = 5.0
"""Seconds a key may be late at the far end; it should not be late at all: the near end waited for it."""


class _Loop:
    """What one slice found. Latencies in seconds."""

    def __init__(self, task: Json) -> None:
        self.number: int = task["number"]
        self.scheme: str | None = task.get("scheme")
        self.slave: str = task["slave"]
        self.master: str = task["master"]
        self.enc: list[float] = []
        self.dec: list[float] = []
        self.refused: Counter[str] = Counter()
        self.keys = self.different = self.late = 0

    async def one(self, near: Caller, far: Caller) -> None:
        """One request and its fetch."""
        begun = time.perf_counter()
        status, body = await near.enc(self.slave or far.id, self.number, scheme=self.scheme)
        got = time.perf_counter()
        if status != 200:
            self.refused[str(status)] += 1
            await asyncio.sleep(AGAIN)
            return
        sent = keys_of(body)
        received = await self._fetched(far, self.master or near.id, list(sent), got + LATE)
        self.enc.append(got - begun)
        self.dec.append(time.perf_counter() - got)
        self.keys += len(sent)
        self.different += sum(received.get(key_id) != key for key_id, key in sent.items())

    async def _fetched(self, far: Caller, master: str, key_ids: list[str], give_up: float) -> dict[str, str]:
        while True:
            status, body = await far.dec(master, key_ids)
            if status == 200:
                return keys_of(body)
            if time.perf_counter() > give_up:
                self.refused[f"dec_keys {status}"] += 1
                return {}
            self.late += 1
            await asyncio.sleep(AGAIN)

    def result(self, seconds: float, share: float) -> Json:
        """For the one who asked."""
        return {
            "seconds": seconds,
            "enc": self.enc,
            "dec": self.dec,
            "keys": self.keys,
            "different": self.different,
            "late": self.late,
            "refused": dict(self.refused),
            "generator": share,
        }


async def pairs(task: Json) -> Json:
    """`concurrency` loops between `near` and `far` for `seconds`, and until their last fetch is done."""
    loop = _Loop(task)
    async with Caller(task["near"]) as near, Caller(task["far"]) as far:
        await near.connect(task["concurrency"])
        await far.connect(task["concurrency"])
        return await _all(loop, [(near, far)] * task["concurrency"], task["seconds"])


async def crowd(task: Json) -> Json:
    """One loop for each of `pairs` of SAEs, all at once, for `seconds`; what they found in one."""
    async with contextlib.AsyncExitStack() as stack:
        ends = []
        for pair in task["pairs"]:
            near, far = [await stack.enter_async_context(Caller(sae)) for sae in pair]
            await near.connect(1)
            await far.connect(1)
            ends.append((near, far))
        return await _all(_Loop({**task, "slave": "", "master": ""}), ends, task["seconds"])


async def _all(loop: _Loop, ends: list[tuple[Caller, Caller]], seconds: float) -> Json:
    begun, used = time.perf_counter(), time.process_time()

    async def one(near: Caller, far: Caller) -> None:
        while time.perf_counter() < begun + seconds:
            await loop.one(near, far)

    await asyncio.gather(*(one(near, far) for near, far in ends))
    took = time.perf_counter() - begun
    return loop.result(took, (time.process_time() - used) / took)


KINDS: dict[str, Callable[[Json], Coroutine[Any, Any, Json]]] = {"pairs": pairs, "crowd": crowd}
