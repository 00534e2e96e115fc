"""`keyhaul status` and `keyhaul key trace`, over a node's admin port; and `serve` as help shows it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from keyhaul.cli import access, asking
from keyhaul.cli.output import Json, document, say, table
from keyhaul.cli.signed import signed
from keyhaul.errors import Refused
from keyhaul.messages.receipts import judge

keys = typer.Typer(help="Single keys: trace.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the top-level commands to the tree."""
    app.command()(serve)
    app.command()(status)


def serve(config: Annotated[Path, typer.Option(help="The node's TOML file.")], as_json: Json = False) -> None:
    """Run one node until SIGTERM or Ctrl-C; the log goes to stderr in JSON lines."""
    from keyhaul.cli import serve as node

    raise typer.Exit(node.run(config))


def status(
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    directory: access.Directory = None,
    as_json: Json = False,
) -> None:
    """Show what a node is doing: its store's grade, links, queues."""
    found = asking.ask(asking.targets(directory, url, cert, key, ca), "status")
    if as_json:
        document([answer for _, answer in found] if directory else found[0][1])
        return
    for _, answer in found:
        _show(answer)


@keys.callback()
def _group() -> None:
    """Single keys: trace."""  # a group of one command would swallow its name without this callback


@keys.command()
def trace(
    key_id: Annotated[UUID, typer.Argument(help="The key's id.")],
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    directory: access.Directory = None,
    node_ca: Annotated[Path | None, typer.Option(help="Trust anchors of nodes: check who signed.")] = None,
    as_json: Json = False,
) -> None:
    """Tell the story of one key: states, hops and times on every node asked; never its bits.

    Names the first hop whose receipts do not fit, if it asks all nodes on the way.
    """
    answers = asking.ask(asking.targets(directory, url, cert, key, ca), f"keys/{key_id}")
    rows = [row for _, answer in answers for row in answer["rows"]]
    rows.sort(key=lambda row: row["history"][0]["at"] if row["history"] else row["created"])
    signed(rows, access.node_anchors(directory) if directory else node_ca)
    findings = judge(rows, [name for name, _ in answers] + [row["node"] for row in rows])
    if as_json:
        told = [{"suspects": each.suspects, "reason": each.reason} for each in findings]
        document({"key_ID": str(key_id), "rows": rows, "findings": told})
    elif rows:
        _show_trace(key_id, rows)
        for finding in findings:
            blame = f"suspect: {' or '.join(finding.suspects)}. " if finding.suspects else ""
            say(f"  {blame}{finding.reason}")
    if not rows:
        asked = ", ".join(name for name, _ in answers)
        raise Refused(
            f"no node asked knows key {key_id} ({asked})", "ask the nodes on its path, or check the id"
        )


def _show(answer: dict[str, Any]) -> None:
    store = answer.get("store", {})
    uptime = f"up {answer['uptime_seconds']:.0f} s"
    say(f"{answer['name']} in {answer['domain']}, release {answer['version']}, {uptime}")
    say(f"  root secret: {store.get('kind')}, grade {store.get('grade')}")
    for warning in store.get("warnings", []):
        say(f"  warning: {warning}")
    _show_entropy(answer.get("entropy", {}))
    rows = [
        (
            link["peer"],
            link["kind"],
            link["mode"],
            "unlimited" if link["level_bits"] is None else str(link["level_bits"]),
        )
        for link in answer.get("links", [])
    ]
    table("", ("link to", "kind", "pads", "bits ready"), rows)
    waiting = ", ".join(f"{number} for {peer}" for peer, number in answer.get("outbox", {}).items() if number)
    say(f"  keys on their way: {answer.get('unfinished')}, messages waiting: {waiting or 'none'}")
    for pool in answer.get("pools", []):
        pair = f"{pool['master']} and {', '.join(pool['targets'])}"
        say(f"  ready: {pool['ready']} keys of {pool['size']} bits for {pair}")


def _show_entropy(entropy: dict[str, Any]) -> None:
    """One line, and one more for each source that is not good."""
    sources = entropy.get("sources", [])
    named = ", ".join(f"{source['name']} {source['state']}" for source in sources)
    say(f"  entropy: {entropy.get('state')}, {entropy.get('on_failure')}; sources: {named or 'none'}")
    for source in sources:
        if source["state"] in ("unreachable", "failed"):
            say(f"  warning: entropy source {source['name']}: {source['last_cause']}")


def _show_trace(key_id: UUID, rows: Sequence[dict[str, Any]]) -> None:
    start = min(row["created"] for row in rows)
    first = rows[0]
    say(f"key {key_id}: {first['size']} bits of {first['initiator']} for {', '.join(first['targets'])}")
    say(f"asked for at {datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M:%S} UTC")
    table(
        "",
        ("node", "from", "to", "state", "receipt", "history, ms after the request"),
        [
            (
                row["node"],
                row["upstream"] or "-",
                ", ".join(sorted({*row["peers"].values()})) or "-",
                row["state"],
                row["receipt"],
                "  ".join(f"{step['state']} {(step['at'] - start) * 1000:.0f}" for step in row["history"]),
            )
            for row in rows
        ],
    )
