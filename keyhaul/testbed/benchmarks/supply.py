"""In pad mode `otp`: how much of what the narrowest quantum link supplies reaches applications as key.

One application asks for as many keys a request as it may until the devices have no more, and goes on so;
every bit of key takes a fresh device bit on every quantum link, and what is on top of it is overhead.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from keyhaul.testbed.benchmarks.stage import Generator, Say, stage
from keyhaul.testbed.presets import PRESETS
from keyhaul.testbed.topology import Link, Node, Topology, device_links, named

BITS = 256
NUMBERS = (128, 64, 32, 16)
"""Keys a request, fewer when the supply does not reach for more."""

PAIR = Topology(
    "otp",
    "the quantum link of ITG alone",
    (Node("itg-1", "galicia", ("sae-itg-1",)), Node("itg-2", "galicia", ("sae-itg-2",))),
    (Link("itg-1", "itg-2", "qkd", "otp", ("kmstn1", "kmstn2")),),
)


def line() -> Topology:
    """The network of paper A with all of its quantum links in mode `otp`."""
    topology = named("galicia-basque")
    links = tuple(replace(link, mode="otp" if link.devices else link.mode) for link in topology.links)
    return replace(topology, links=links)


def narrowest(topology: Topology) -> str:
    """The quantum link whose devices make the least."""
    rates = {
        link.name: min(PRESETS[each].rate or 0.0 for each in ends) for link, ends in device_links(topology)
    }
    return min(rates, key=rates.__getitem__)


async def share(topology: Topology, seconds: float, say: Say) -> dict[str, Any]:
    """Bits of key delivered between the ends for `seconds`, and bits used meanwhile, by quantum link."""
    say(f"pad mode otp on {topology.title}, {seconds:.0f} s")
    async with stage(topology, settings={"delivery": {"pool": 0}}, say=say) as on, Generator() as generator:
        await on.rest(*(node.name for node in topology.nodes))
        saes = list(on.saes.values())
        task = {"kind": "sequence", "near": saes[0], "far": saes[-1], "requests": 1, "patience": 30.0}
        before, end, at = await on.link_bits(), time.monotonic() + seconds, 0
        refused = 0
        while time.monotonic() < end:
            found = await generator.ask({**task, "number": NUMBERS[at], "pause": 0.5})
            if found["status"] != [200]:
                refused += 1
                at = min(at + 1, len(NUMBERS) - 1)
        compared = await generator.ask({"kind": "held", "patience": 30.0})
        used = {name: bits - before[name] for name, bits in (await on.link_bits()).items()}
    return {
        "delivered": compared["same"] * BITS,
        "used": used,
        "narrowest": narrowest(topology),
        "refused": refused,
        "compared": compared,
    }
