"""`keyhaul testbed compose`: a network as containers, for podman-compose or docker compose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.output import Json, document, note, say

IMAGE = "localhost/keyhaul"


def compose(
    topology: Annotated[str, typer.Argument(help="As for `testbed up`; at most 9 nodes.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where the files go; new or empty.")],
    image: Annotated[str, typer.Option(help="The image all services run; `make image` makes it.")] = IMAGE,
    devices: Annotated[str, typer.Option(help="Device preset for all links, such as `instant`.")] = "",
    as_json: Json = False,
) -> None:
    """Write a compose file for a network: one service per node and device, networks apart as in paper B."""
    from keyhaul.testbed.compose import Containers
    from keyhaul.testbed.topology import named

    shape = named(topology)
    made = Containers(shape.with_devices(devices) if devices else shape, directory, image)
    if missing := shape.left_out():
        note(missing)
    file = made.make()
    networks = {name: str(subnet) for name, subnet in made.plan.networks().items()}
    if as_json:
        document({"file": str(file), "networks": networks, "services": [*made.plan.nodes, *made.plan.spots]})
        return
    say(f"{file}: {len(made.plan.nodes)} nodes, {len(made.plan.spots)} devices, {len(networks)} networks")
    for name, subnet in networks.items():
        say(f"  {name:<18} {subnet}")
    say(f"next: podman-compose -f {file} up -d, then keyhaul sae get … --dir {directory}")
