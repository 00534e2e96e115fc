"""Keys across the four links of testbed `tecnalia` under every profile, from request to both ends' stores.

Devices without delay, nothing relayed ahead: every key is sent when it is asked for, and `enc_keys` answers
when the far node has it on disk. Each key is fetched at the far end and compared.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from keyhaul.config.schemes import missing_libraries
from keyhaul.edge.client import SaeClient
from keyhaul.edge.peer import BOUNDS
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyhaulError
from keyhaul.testbed.benchmarks.paper_b_results import Run
from keyhaul.testbed.benchmarks.paper_b_ways import (
    DENSE_,
    EPOCH,
    FRESH,
    LEAN,
    MASKED,
    PAPER,
    ROUTE,
    XOR,
    Case,
)
from keyhaul.testbed.benchmarks.stage import Say, stage
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.processes import Process
from keyhaul.testbed.topology import named

SCHEMES = {
    XOR: "trusted",
    PAPER: "blind-paper",
    LEAN: "blind-lean",
    DENSE_: "blind",
    FRESH: "blind-fresh",
    MASKED: "masked-batch",
    EPOCH: "masked",
}
SIZE = 256  # bits
PAUSE = 0.05  # seconds between requests, in which acknowledgements and erasures end


class PublishedTestbed(Testbed):
    """A testbed whose nodes take part in every profile (see `paper_b_nodes`)."""

    def _make_process(self, name: str, command: list[str]) -> Process:
        swapped = ["keyhaul.cli.published" if word == "keyhaul.cli" else word for word in command]
        return super()._make_process(name, swapped)


async def measure(run: Run, journeys: Mapping[int, int], say: Say) -> None:
    """`journeys`: how often, by keys a request. What a profile cannot deliver is noted with the reason."""
    topology = named("tecnalia").with_devices("instant")
    blind = {} if missing_libraries() else {"enabled": True, "rerandomise": True}
    settings = {"delivery": {"pool": 0}, "schemes": {"blind": blind}}
    async with stage(topology, settings=settings, say=say, kind=PublishedTestbed) as on:
        await on.rest(*ROUTE)
        near, far = (
            next(sae for name, sae in on.saes.items() if name.endswith(end)) for end in (ROUTE[0], ROUTE[-1])
        )
        async with SaeClient(near["url"], _tls(near)) as master, SaeClient(far["url"], _tls(far)) as slave:
            for number, rounds in journeys.items():
                say(f"keys across four links, {number} a request")
                _leave_out_what_no_port_takes(run, number)
                for turn in range(rounds + 1):
                    for profile in SCHEMES:
                        if (profile, number) not in run.refused:
                            await _one(
                                run, profile, number, (master, near["id"]), (slave, far["id"]), turn > 0
                            )


def _leave_out_what_no_port_takes(run: Run, number: int) -> None:
    for profile in SCHEMES:
        found = run.found.get((profile, Case(number, SIZE)))
        # Not even in base64, as the message carries it, and already too much.
        if found is not None and min(found.payload) > BOUNDS.body:
            size = f"{min(found.payload):,} bytes"
            run.refused[profile, number] = (
                f"a payload of {size}, a node's port takes messages of {BOUNDS.body:,}"
            )


async def _one(
    run: Run,
    profile: str,
    number: int,
    near: tuple[SaeClient, str],
    far: tuple[SaeClient, str],
    counts: bool,
) -> None:
    """One request and its keys at the far end. Raises RuntimeError if these differ."""
    wanted = [{"keyhaul_scheme": SCHEMES[profile]}]
    begun = time.perf_counter()
    try:
        sent = await near[0].get_key(far[1], number, SIZE, mandatory=wanted)
    except KeyhaulError as refusal:
        run.refused[profile, number] = refusal.cause
        return
    took = time.perf_counter() - begun
    received = await far[0].fetch_key(near[1], [key.key_id for key in sent])
    if not all(a.bits.same_as(b.bits) for a, b in zip(sent, received, strict=True)):
        raise RuntimeError(f"{profile}: the two ends of a key differ")
    if counts:
        run.journeys.setdefault((profile, number), []).append(took)
    await asyncio.sleep(PAUSE)


def _tls(sae: Mapping[str, str]) -> ssl.SSLContext:
    files = Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    return client_context(files, Policy.COMPATIBLE)
