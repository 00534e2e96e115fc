"""The application's port under load, beside a handler that does nothing behind the same TLS: aiohttp's, and
one behind keyhaul's own port.

* enc_keys and dec_keys for keys that are in the store already, two SAEs at one node and a pair across a link;
  the pool is filled first and then no longer refilled, so that serving alone is measured, and once more with
  the pool being refilled all the time. A slice ends when its share of the stored keys is used, and a pool
  that ran dry all the same ends the run: on demand is another benchmark (`hops`);
* enc_keys for 128 keys a request, the same way, two SAEs at one node;
* dec_keys one at a time, at a node with 10 stored keys and at one with many.
"""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import dataclass
from typing import Any

from keyhaul.errors import Unavailable
from keyhaul.pools import LARGEST_BLOCK, MAX_BATCH
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.stage import Say, Stage, load, stage
from keyhaul.testbed.topology import Link, Node, Topology

CONNECTIONS = 8
MANY = 128  # keys in a request
SPARE = 8 * LARGEST_BLOCK + 8 * MAX_BATCH  # keys; a pool rests below what it may hold
NEAR, ALSO, FAR = "sae-near", "sae-also", "sae-far"
_LIMITS = {"max_key_per_request": 128, "max_key_count": 1_000_000}

TOPOLOGY = Topology(
    "bench",
    "two nodes, one link",
    (Node("near", "lab", (NEAR, ALSO)), Node("far", "lab", (FAR, "sae-far-also"))),
    (Link("near", "far", "qkd", devices=("instant", "instant")),),
)


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    rounds, seconds, each = (3, 0.6, 2_000) if quick else (8, 0.6, 4_000)
    stored = rounds * each + SPARE
    settings = {"delivery": {"pool": stored}, "limits": _LIMITS}
    async with stage(TOPOLOGY, settings=settings, say=say) as on:
        for slave, what in ((ALSO, "both SAEs at one node"), (FAR, "across one link")):
            say(f"pool, {what}")
            await load(_turns([_target(on, NEAR, [_enc(slave)])], 1))
            await on.rest("near", "far")
        await _served(report, on, _Slices(rounds, seconds, each), say)
    await _in_batches(report, _Slices(3, 0.6, 60) if quick else _Slices(7, 0.6, 120), say)
    async with stage(TOPOLOGY, settings={"limits": _LIMITS}, say=say) as on:
        await _among_many(report, on, 20_000 if quick else 200_000, 100 if quick else 400, say)


@dataclass(frozen=True, slots=True)
class _Slices:
    """`rounds` of at most `seconds` and `requests` for each side; the first is a warm-up."""

    rounds: int
    seconds: float
    requests: int


async def _served(report: Report, on: Stage, slices: _Slices, say: Say) -> None:
    for refilled in (False, True):
        if not refilled:
            await _without_refill(on)
        else:
            await _with_refill(on)
        for slave, what in ((ALSO, "both SAEs at one node"), (FAR, "across one link")):
            how = f"{what}, refilled meanwhile" if refilled else what
            say(f"enc_keys, {how}")
            near = _target(on, NEAR, [_enc(slave)], endless=True, keep=not refilled)
            found = await _flood(on, near, slices)
            if not refilled:
                await _check_stock(on, slave)
            least = 0.6 if not refilled else None
            _rates(report, f"enc_keys, {how}", found, least)
            if refilled:
                continue
            say(f"dec_keys, {how}")
            asks = [_dec(NEAR, key_id) for key_id in found["targets"][0]["key_ids"]]
            found = await _flood(on, _target(on, slave, asks), slices)
            _rates(report, f"dec_keys, {how}", found, None)


async def _in_batches(report: Report, slices: _Slices, say: Say) -> None:
    stored = slices.rounds * slices.requests * MANY + SPARE
    settings = {"delivery": {"pool": stored}, "limits": _LIMITS}
    async with stage(TOPOLOGY, settings=settings, say=say) as on:
        say(f"pool of {stored} keys")
        await load(_turns([_target(on, NEAR, [_enc(ALSO)])], 1))
        await on.rest("near", "far")
        await _without_refill(on)
        what = f"enc_keys, {MANY} keys a request"
        say(what)
        found = await _flood(on, _target(on, NEAR, [_enc(ALSO, MANY)], endless=True), slices)
        await _check_stock(on, ALSO)
    _rates(report, what, found, None)
    keys = [MANY * each["rate"] for each in found["targets"][0]["slices"][1:]]
    report.add("  keys", keys, "/s", least=60_000)


async def _without_refill(on: Stage) -> None:
    """Restart the node with a pool of 0: what is in the store is served, nothing is added."""
    await _set_pool(on, 0)


async def _with_refill(on: Stage) -> None:
    await _set_pool(on, 2_000)
    for slave in (ALSO, FAR):
        await load(_turns([_target(on, NEAR, [_enc(slave)])], 1))
    await on.rest("near", "far")


async def _set_pool(on: Stage, level: int) -> None:
    file = on.testbed.layout.node_file("near")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(f"pool = {level}\n" if line.startswith("pool = ") else line for line in lines))
    await on.testbed.restart("near")
    await on.rest("near", "far")


async def _check_stock(on: Stage, slave: str) -> None:
    """Raises Unavailable if a request found no key in the pool since the node was started."""
    pools = [pool for pool in await on.pools("near") if pool["targets"] == [slave]]
    dry = sum(pool["misses"] for pool in pools)
    if dry or not pools:
        raise Unavailable(
            f"the pool for {slave} ran dry {dry} times, so on-demand delivery was measured", "store more keys"
        )


async def _flood(on: Stage, target: dict[str, Any], slices: _Slices) -> dict[str, Any]:
    bare = {**target, "url": on.bare_url, "pid": on.bare.pid, "endless": True, "keep": False}
    own = {**bare, "url": on.own_url}
    task = {"kind": "flood", "connections": CONNECTIONS, "rounds": slices.rounds, "seconds": slices.seconds}
    return await load({**task, "most": slices.requests, "targets": [target, bare, own]})


def _rates(report: Report, what: str, found: dict[str, Any], least: float | None) -> None:
    """Rates, their ratio slice by slice, and the processor time a request costs the server."""
    ours, bare, own = (target["slices"][1:] for target in found["targets"])
    pairs = list(zip(ours, bare, own, strict=False))
    requests = sum(each["requests"] for each in ours)
    note = f"{requests} requests, {CONNECTIONS} connections"
    if not pairs:
        raise Unavailable(f"{what}: no slice was answered", "see the node's log")
    report.add(what, [each["rate"] for each in ours], "/s", note=note)
    report.add("  empty handler beside it", [each["rate"] for each in bare], "/s")
    report.add("  ratio", [a["rate"] / b["rate"] for a, b, _ in pairs], "x", least=least)
    report.add("  empty function behind the same port", [each["rate"] for each in own], "/s")
    report.add("  ratio to that", [a["rate"] / c["rate"] for a, _, c in pairs], "x")
    report.add("  median latency", [1000 * each["p50"] for each in ours], "ms")
    report.add("  processor time a request, node", [1e6 * each["server"] for each in ours], "us")
    report.add("  processor time a request, empty", [1e6 * each["server"] for each in bare], "us")
    report.add("  load generator's share of a core", [each["client_share"] for each in bare], "")


async def _among_many(report: Report, on: Stage, many: int, rounds: int, say: Say) -> None:
    """dec_keys at a node with 10 keys and at one with `many`, in turns; ids drawn at random."""
    say(f"{many} stored keys")
    fill = -(-many // 128)
    stored = await load(_turns([_target(on, NEAR, [_enc(ALSO, 128)] * fill, keep=True)], fill))
    held = stored["targets"][0]["key_ids"]
    picked = random.Random(1).sample(held, rounds)  # noqa: S311 - which keys are asked for, not keys
    few = await load(_turns([_target(on, FAR, [_enc("sae-far-also", 10)] * (rounds // 10), keep=True)], 1))
    ids = few["targets"][0]["key_ids"]
    seconds: list[list[float]] = [[], []]
    while len(seconds[0]) < rounds:
        say(f"dec_keys among {len(held)} and among 10: {len(seconds[0])} of {rounds}")
        at = len(seconds[0])
        here = _target(on, "sae-far-also", [_dec(FAR, key_id) for key_id in ids])
        there = _target(on, ALSO, [_dec(NEAR, key_id) for key_id in picked[at : at + 10]])
        refill = _target(on, FAR, [_enc("sae-far-also", 10)], keep=True)
        found = await load(_turns([here, there], 10))
        for side, target in zip(seconds, found["targets"], strict=True):
            side.extend(target["seconds"])
        ids = (await load(_turns([refill], 1)))["targets"][0]["key_ids"]
    report.add("dec_keys among 10 stored keys", [1000 * each for each in seconds[0]], "ms")
    report.add(f"dec_keys among {len(held)} stored keys", [1000 * each for each in seconds[1]], "ms")
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[0])
    report.add("  ratio of the medians", [ratio], "x", most=1.3)


def _turns(targets: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    return {"kind": "turns", "rounds": rounds, "targets": targets}


def _target(
    on: Stage, sae: str, requests: list[dict[str, str]], *, endless: bool = False, keep: bool = False
) -> dict[str, Any]:
    node = "near" if sae in (NEAR, ALSO) else "far"
    pid = on.testbed.pid(node)
    return {**on.saes[sae], "pid": pid, "requests": requests, "endless": endless, "keep": keep}


def _enc(slave: str, number: int = 1) -> dict[str, str]:
    return {
        "method": "POST",
        "path": f"/api/v1/keys/{slave}/enc_keys",
        "body": json.dumps({"number": number, "size": 256}),
    }


def _dec(master: str, key_id: str) -> dict[str, str]:
    return {
        "method": "POST",
        "path": f"/api/v1/keys/{master}/dec_keys",
        "body": json.dumps({"key_IDs": [{"key_ID": key_id}]}),
    }
