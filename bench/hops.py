"""On-demand delivery over 1 to 7 hops with instant devices: confirmed and durable at both ends.

One application, one keep-alive connection, one key a request, nothing relayed ahead. Beside it, in the
same run: the same connection's status call (no store, no network) and the disk's fdatasync.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import report

from keyhaul.edge import tls
from keyhaul.edge.client import SaeClient
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named


def context(sae: dict[str, Any]) -> Any:
    credentials = tls.Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    return tls.client_context(credentials, tls.Policy.COMPATIBLE)


async def main() -> None:
    options = report.arguments("hops")
    samples = 40 if options.quick else 200
    with tempfile.TemporaryDirectory() as directory:
        topology = named("line-8").with_devices("instant")
        async with Testbed(topology, Path(directory) / "net") as testbed:
            report.write(options.json, "hops", await measure(testbed, samples))


async def measure(testbed: Testbed, samples: int) -> dict[str, Any]:
    state = testbed.state()
    saes = {sae["node"]: sae for sae in state["saes"]}
    names = [node["name"] for node in state["nodes"]]
    first = saes[names[0]]
    figures: dict[str, Any] = {"unit": "ms from enc_keys to its answer", "hops": {}}
    async with SaeClient(first["sae_url"], context(first)) as master:
        for hops, name in enumerate(names[1:], 1):
            slave = saes[name]
            for _ in range(10):
                await master.get_key(slave["id"])
            answers = [await timed(master.get_key(slave["id"])) for _ in range(samples)]
            keys = [keys[0] for _, keys in answers]
            async with SaeClient(slave["sae_url"], context(slave)) as peer:
                for key in keys:
                    (same,) = await peer.fetch_key(first["id"], [key.key_id])
                    assert same.bits.same_as(key.bits)
            figures["hops"][hops] = report.quantiles([seconds for seconds, _ in answers])
        await asyncio.sleep(1.0)
        idle = [await timed(master.status(saes[names[-1]]["id"])) for _ in range(samples)]
        figures["status_call"] = report.quantiles([seconds for seconds, _ in idle])
        figures["steps_over_7_hops"] = await steps(state, names, [str(key.key_id) for key in keys])
    return figures


async def timed(call: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = await call
    return time.perf_counter() - start, answer


async def steps(state: dict[str, Any], names: list[str], key_ids: list[str]) -> dict[str, Any]:
    """Median ms a key spends going one hop on, and its acknowledgement one hop back, from the traces."""
    urls = {node["name"]: node["admin_url"] for node in state["nodes"]}
    tls_context = context(state["admin"])
    on: list[float] = []
    back: list[float] = []
    start: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls_context)) as session:
        for key_id in key_ids[:50]:
            stories = []
            for name in names:
                async with session.get(f"{urls[name]}/admin/v1/keys/{key_id}") as answer:
                    (row,) = (await answer.json())["rows"]
                stories.append({event["state"]: event["at"] for event in row["history"]})
            came = [story.get("minted", story.get("accepted", 0.0)) for story in stories]
            done = [story.get("deliverable", story.get("relayed", 0.0)) for story in stories]
            start.append(came[1] - came[0])
            on.extend(b - a for a, b in pairwise(came[1:]))
            back.extend(a - b for a, b in pairwise(done))
    return {
        name: round(statistics.median(values) * 1e3, 2)
        for name, values in (
            ("first_hop_on_ms", start),
            ("hop_on_ms", on),
            ("hop_back_ms", back),
        )
    }


if __name__ == "__main__":
    asyncio.run(main())
