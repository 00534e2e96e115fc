"""`keyhaul route explain`: which way keys go, why, and what speaks against the other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from keyhaul.cli import access, asking
from keyhaul.cli.output import Json, document, say

app = typer.Typer(help="Ways through the network: explain.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Ways through the network: explain."""  # a group of one command would swallow its name without this


@app.command()
def explain(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A node, or an SAE.")],
    destination: Annotated[str, typer.Argument(metavar="TO", help="A node, or an SAE.")],
    without: Annotated[
        list[str] | None, typer.Option(help="What if a node, or a link A|B, were gone? May be repeated.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label that the way must have. May be repeated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A node's TOML file: explain by it alone, no node is asked.")
    ] = None,
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    directory: access.Directory = None,
    as_json: Json = False,
) -> None:
    """Explain the way of keys: cost and labels of each hop, what lacks, the other ways and why not those.

    A node that runs also knows ways that failed lately, and the policy between two SAEs. Exit code 1 where
    there is no way.
    """
    if config is not None:
        told = _offline(config, source, destination, without or [], label or [])
    else:
        targets = asking.targets(directory, url, cert, key, ca)
        told = _asked(targets, source, destination, without or [], label or [])
    if as_json:
        document(told)
    else:
        say(told["explanation"])
    raise typer.Exit(0 if told["hops"] else 1)


def _offline(
    file: Path, source: str, destination: str, without: list[str], labels: list[str]
) -> dict[str, Any]:
    from keyhaul import config, explaining, views, wayfinding

    settings = config.load(file)
    network = views.network(settings.network)
    here, there, demanded = wayfinding.ends(network, settings.policy, source, destination, labels)
    avoid = frozenset(explaining.parted(each) for each in without)
    default = views.delivery(settings).scheme
    return explaining.explain(network, here, there, avoid=avoid, demanded=demanded, default=default)


def _asked(
    targets: list[access.Access], source: str, destination: str, without: list[str], labels: list[str]
) -> dict[str, Any]:
    """By the node at which the way begins, if it is among those that can be asked; else by the first."""
    pairs = [("from", source), ("to", destination)]
    pairs += [("without", each) for each in without] + [("label", each) for each in labels]
    path = f"route?{urlencode(pairs)}"
    first = [target for target in targets if target.name == source] or targets[:1]
    ((_, told),) = asking.ask(first, path)
    better = [target for target in targets if target.name == told["from"] != told["as_seen_by"]]
    if better:
        ((_, told),) = asking.ask(better[:1], path)
    return told
