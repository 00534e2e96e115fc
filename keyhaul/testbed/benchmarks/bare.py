"""The ceilings to compare with: a handler that does nothing, behind the same TLS and uvloop.

    python -m keyhaul.testbed.benchmarks.bare CERT KEY CA READY_FILE

The file names two addresses: `url`, where aiohttp serves it as its documentation says, and `own`, where it
stands behind keyhaul's port for applications.

Its answer is as long as one key of 256 bits takes in a container of 014; for an SAE that is called `16` or
`128`, as long as that many keys take.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from keyhaul.config.write import write
from keyhaul.edge.calls import Call, Reply
from keyhaul.edge.sae import render
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Credentials, Policy, server_context
from keyhaul.identity import sae_id


def container(number: int) -> bytes:
    """Keys of 256 bits, all zero, with the ids 0, 1, 2, …"""
    keys = [{"key_ID": f"{each:036d}", "key": "A" * 43 + "="} for each in range(number)]
    return json.dumps({"keys": keys}, separators=(",", ":")).encode()


ANSWER = container(1)
ANSWERS = {
    f"/api/v1/keys/{number}/{operation}": container(number)
    for number in (2, 4, 8, 16, 32, 64, 128)
    for operation in ("enc_keys", "dec_keys")
}


async def answer(request: web.Request) -> web.Response:
    """Reads the body, if there is one, and looks at nothing."""
    await request.read()
    return web.Response(body=ANSWERS.get(request.path, ANSWER), headers={"Content-Type": "application/json"})


async def reply(call: Call) -> Reply:
    """The same for keyhaul's port."""
    await call.body()
    return Reply(200, ANSWERS.get(call.path, ANSWER))


async def serve(credentials: Credentials, ready: Path) -> None:
    """Until the process is ended."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    tls = server_context(credentials, Policy.COMPATIBLE)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    own = Port("sae", reply, render, sae_id, tls)
    await own.open([bind("127.0.0.1", 0)])
    urls = {"url": runner.addresses[0][1], "own": own.addresses[0][1]}
    write(ready, json.dumps({name: f"https://127.0.0.1:{port}" for name, port in urls.items()}))
    await asyncio.Event().wait()


if __name__ == "__main__":
    cert, key, ca, ready_file = map(Path, sys.argv[1:])
    uvloop.run(serve(Credentials(cert, key, ca), ready_file))
