"""enc_keys from keys already in the store, and dec_keys, against an empty handler behind the same TLS.

Two processes serve: a node whose two applications share it (so keys lie ready in its store), and a bare
aiohttp handler with the same TLS context and loop. A third process, this one, drives both in turn over the
same number of keep-alive connections, several rounds, so that a noisy machine hits both alike.
"""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import report
import uvloop
from aiohttp import web

from keyhaul.edge import tls
from keyhaul.edge.sae import render
from keyhaul.edge.server import Port, bind
from keyhaul.identity import sae_id
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Node, Topology

CONNECTIONS = 8
BODY = {
    "keys": [{"key_ID": "3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a01", "key": base64.b64encode(bytes(32)).decode()}]
}


def empty_server(cert: str, key: str, ca: str, ready: Connection) -> None:
    """An aiohttp handler that answers a constant of the size of one key, on the listener nodes use."""

    async def serve() -> None:
        body = json.dumps(BODY).encode()

        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=body, content_type="application/json")

        application = web.Application()
        application.router.add_get("/", answer)
        context = tls.server_context(tls.Credentials(Path(cert), Path(key), Path(ca)), tls.Policy.COMPATIBLE)
        port = Port("sae", application, render, sae_id, context)
        await port.open([bind("127.0.0.1", 0)])
        ready.send(port.addresses[0][1])
        await asyncio.get_running_loop().run_in_executor(None, ready.recv)
        await port.close()

    uvloop.run(serve())


async def main() -> None:
    options = report.arguments("north")
    keys = 2_000 if options.quick else 10_000
    one = Topology("one", "one node, two applications", (Node("n1", "lab", ("sae-a", "sae-b")),), ())
    settings = {"delivery": {"pool": keys}}
    with tempfile.TemporaryDirectory() as directory:
        async with Testbed(one, Path(directory) / "net", settings=settings) as testbed:
            report.write(options.json, "north", await measure(testbed, keys))


async def measure(testbed: Testbed, keys: int) -> dict[str, Any]:
    state = testbed.state()
    a, b = state["saes"]
    listener = testbed.config("n1").listeners.sae
    here, there = multiprocessing.get_context("spawn").Pipe()
    empty = multiprocessing.get_context("spawn").Process(
        target=empty_server, args=(str(listener.cert), str(listener.key), str(listener.ca), there)
    )
    empty.start()
    port = await asyncio.to_thread(here.recv)
    async with session(a) as master, session(b) as slave:
        url = f"{a['sae_url']}/api/v1/keys"
        await (await master.get(f"{url}/sae-b/enc_keys")).read()
        await filled(state, keys)
        rounds: dict[str, list[float]] = {"empty": [], "enc_keys": [], "dec_keys": []}
        share, ids = keys // 20, []

        async def enc() -> None:
            async with master.get(f"{url}/sae-b/enc_keys") as answer:
                ids.append((await answer.read())[20:56].decode())  # {"keys":[{"key_ID":"…

        async def dec() -> None:
            async with slave.get(f"{url}/sae-a/dec_keys?key_ID={ids.pop()}") as answer:
                assert answer.status == 200, await answer.text()

        async def nothing() -> None:
            async with master.get(f"https://127.0.0.1:{port}/") as answer:
                await answer.read()

        for _ in range(5):
            rounds["empty"].append(await rate(nothing, share))
            rounds["enc_keys"].append(await rate(enc, share))
            rounds["dec_keys"].append(await rate(dec, share))
    here.send("stop")
    await asyncio.to_thread(empty.join)
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "unit": "requests/s",
        "connections": CONNECTIONS,
        "requests_a_round": share,
        "rounds": {name: [round(value) for value in values] for name, values in rounds.items()},
        "median": {name: round(value) for name, value in middle.items()},
        "enc_keys_to_empty": round(middle["enc_keys"] / middle["empty"], 3),
        "dec_keys_to_empty": round(middle["dec_keys"] / middle["empty"], 3),
    }


def session(sae: dict[str, Any]) -> aiohttp.ClientSession:
    credentials = tls.Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    context = tls.client_context(credentials, tls.Policy.COMPATIBLE)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=CONNECTIONS))


async def filled(state: dict[str, Any], keys: int) -> None:
    """Until the pool of the two applications holds every key."""
    admin = session(state["admin"])
    async with admin:
        while True:
            async with admin.get(f"{state['nodes'][0]['admin_url']}/admin/v1/status") as answer:
                pools = (await answer.json())["pools"]
            if any(pool["ready"] >= keys for pool in pools):
                return
            await asyncio.sleep(0.05)


async def rate(call: Callable[[], Awaitable[None]], number: int) -> float:
    """Requests a second over all connections."""
    left = iter(range(number))

    async def client() -> None:
        for _ in left:
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return number / (time.perf_counter() - start)


if __name__ == "__main__":
    uvloop.run(main())
