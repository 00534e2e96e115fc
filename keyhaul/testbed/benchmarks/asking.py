"""What applications do in a benchmark: ask in a row, all at once, or for one key and its copy far away.

Kinds of task for the load generator. A task names its SAEs with the members of `Stage.saes`. Times are in
seconds, begins on the machine's monotonic clock; status 0 stands for no answer at all. The keys are kept in
memory until `held` fetches them at the far ends and compares them byte by byte.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from keyhaul.testbed.benchmarks.wire import Caller, Json

_held: list[tuple[Json, Json, dict[str, str], float]] = []

FETCH = 64  # ids in one dec_keys
AGAIN = 0.02  # seconds until a key that is still on its way is asked for again


async def sequence(task: Json) -> Json:
    """`requests` for `number` keys each, back to back on one connection (paper A, Table III).

    A refused request counts as one of them; the next follows after `pause` seconds.
    """
    record = _Record()
    async with Caller(task["near"]) as near, Caller(task["far"]) as far:
        await near.connect(1)
        for _ in range(task["requests"]):
            await record.ask(near, far.id, task["number"])
            if record.status[-1] != 200:
                await asyncio.sleep(task.get("pause", 0.0))
    _held.append((task["near"], task["far"], record.keys, time.monotonic()))
    return {**record.result(), "number": task["number"]}


async def burst(task: Json) -> Json:
    """`concurrency` requests at once, `rounds` times, `pause` seconds between one round and the next."""
    record, rounds = _Record(), []
    async with Caller(task["near"]) as near, Caller(task["far"]) as far:
        await near.connect(task["concurrency"])
        for number in range(task["rounds"]):
            if number:
                await asyncio.sleep(task["pause"])
            asks = (record.ask(near, far.id, task["number"]) for _ in range(task["concurrency"]))
            await asyncio.gather(*asks)
            rounds.append(len(record.took))
    _held.append((task["near"], task["far"], record.keys, time.monotonic()))
    return {**record.result(), "rounds": rounds}


async def held(task: Json) -> Json:
    """Compare all keys that earlier tasks of this process got; each has `patience` seconds since then."""
    total: Counter[str] = Counter(same=0, different=0, missing=0)
    while _held:
        master, slave, keys, since = _held.pop(0)
        patience = max(0.0, since + task["patience"] - time.monotonic())
        async with Caller(master) as near, Caller(slave) as far:
            total.update(await compare(near, far, keys, patience))
    return dict(total)


async def journey(task: Json) -> Json:
    """For each of `far`, `rounds` times: enc_keys, then dec_keys until the key is there."""
    enc: list[list[float]] = [[] for _ in task["far"]]
    whole: list[list[float]] = [[] for _ in task["far"]]
    wrong = 0
    async with Caller(task["near"]) as near:
        slaves = [Caller(sae) for sae in task["far"]]
        for _ in range(task["rounds"]):
            for at, slave in enumerate(slaves):
                record = _Record()
                await record.ask(near, slave.id, 1)
                compared = await compare(near, slave, record.keys, task["patience"])
                wrong += compared["different"]
                if compared["same"]:
                    enc[at].append(record.took[0])
                    whole[at].append(time.perf_counter() - record.begun[0])
        for slave in slaves:
            await slave.__aexit__()
    return {"enc": enc, "whole": whole, "different": wrong}


class _Record:
    """What became of each request, and the keys that came."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.took: list[float] = []
        self.status: list[int] = []
        self.keys: dict[str, str] = {}

    async def ask(self, near: Caller, slave: str, number: int) -> None:
        begun = time.perf_counter()
        status, body = await near.enc(slave, number)
        self.took.append(time.perf_counter() - begun)
        self.begun.append(begun)
        self.status.append(status)
        if status == 200:
            self.keys.update(keys_of(body))

    def result(self) -> Json:
        return {"begun": self.begun, "took": self.took, "status": self.status}


def keys_of(body: bytes) -> dict[str, str]:
    """Ids and base64 of a key container."""
    return {key["key_ID"]: key["key"] for key in json.loads(body)["keys"]}


async def compare(near: Caller, far: Caller, keys: Mapping[str, str], patience: float) -> dict[str, int]:
    """Fetch all keys at the far end; how many are the same there, different, or do not arrive in time."""
    give_up = time.monotonic() + patience
    left = list(keys)
    same = different = missing = 0
    while left:
        some, left = left[:FETCH], left[FETCH:]
        found = await _fetched(near, far, some, give_up)
        same += sum(found.get(key_id) == keys[key_id] for key_id in some)
        different += sum(key_id in found and found[key_id] != keys[key_id] for key_id in some)
        missing += sum(key_id not in found for key_id in some)
    return {"same": same, "different": different, "missing": missing}


async def _fetched(near: Caller, far: Caller, key_ids: list[str], give_up: float) -> dict[str, str]:
    """One call for all of them while that works; where one is late, each for itself once time is up."""
    while True:
        status, body = await far.dec(near.id, key_ids)
        if status == 200:
            return keys_of(body)
        if time.monotonic() > give_up:
            break
        await asyncio.sleep(AGAIN)
    if len(key_ids) == 1:
        return {}
    found: dict[str, str] = {}
    for key_id in key_ids:
        found |= await _fetched(near, far, [key_id], give_up)
    return found


KINDS: dict[str, Callable[[Json], Coroutine[Any, Any, Json]]] = {
    "sequence": sequence,
    "burst": burst,
    "journey": journey,
    "held": held,
}
