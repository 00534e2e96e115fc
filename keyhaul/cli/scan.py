"""`keyhaul testbed scan`: sends keys over a running testbed and looks for them in every node on the way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli import access
from keyhaul.cli.output import Json, document, say, table
from keyhaul.errors import Refused

if TYPE_CHECKING:
    from keyhaul.testbed.scan import Finding


def scan(
    master: Annotated[str, typer.Argument(help="The SAE that asks for keys.")],
    slave: Annotated[str, typer.Argument(help="The SAE that fetches them.")],
    directory: Annotated[Path, typer.Option("--dir", help="The directory of a running testbed.")],
    scheme: Annotated[str, typer.Option(help="trusted, masked, or what else its nodes know.")] = "masked",
    number: Annotated[int, typer.Option(min=1, max=128, help="Keys to send.")] = 32,
    as_json: Json = False,
) -> None:
    """Send keys, then look for them in memory, store and log of all nodes; needs root.

    Exit code 1 if a relay has one. Relays started with `--cheat NODE=listen` keep all they ever see: in those
    the keys of scheme `trusted` are found, which shows that the scan works.
    """
    asked, ends, findings = asyncio.run(_scan(master, slave, directory, scheme, number))
    relays = [finding for finding in findings if finding.node not in ends]
    if as_json:
        nodes = [
            {"node": each.node, "relay": each.node not in ends, "keys": len(each.keys), "places": each.places}
            for each in findings
        ]
        document({"scheme": scheme, "keys": asked, "nodes": nodes})
    else:
        rows = [
            (each.node, "relay" if each in relays else "end", str(len(each.keys)), "; ".join(each.places))
            for each in findings
        ]
        table(f"{asked} keys, scheme {scheme}", ("node", "is", "keys found", "where"), rows)
        say("no relay has a bit of them" if not any(each.keys for each in relays) else "relays have keys")
    if found := [each.node for each in relays if each.keys]:
        raise Refused(f"keys were found in {', '.join(found)}", "use scheme masked")


async def _scan(
    master: str, slave: str, directory: Path, scheme: str, number: int
) -> tuple[int, set[str], list[Finding]]:
    from keyhaul.edge.client import SaeClient
    from keyhaul.edge.tls import Credentials, Policy, client_context
    from keyhaul.testbed import scan as scanning

    at, to = access.of_sae(directory, master), access.of_sae(directory, slave)
    async with (
        SaeClient(at.url, client_context(Credentials(at.cert, at.key, at.ca), Policy.COMPATIBLE)) as one,
        SaeClient(to.url, client_context(Credentials(to.cert, to.key, to.ca), Policy.COMPATIBLE)) as other,
    ):
        keys = await one.get_key(slave, number, mandatory=[{"keyhaul_scheme": scheme}])
        await other.fetch_key(master, [key.key_id for key in keys])
    state: dict[str, Any] = json.loads((directory / "testbed.json").read_text())
    homes = {sae["id"]: sae["node"] for sae in state["saes"]}
    bits = [key.bits.reveal() for key in keys]
    findings = await asyncio.to_thread(scanning.testbed, state, directory, bits)
    return number, {homes[master], homes[slave]}, findings
