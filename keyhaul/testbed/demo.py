"""The main job in one go: a key from every application to every other, over real parts, bits compared."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from keyhaul.edge.client import SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyhaulError
from keyhaul.notice import NOTICE
from keyhaul.testbed.interrupt import Interruptible
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Topology

PATIENCE = 30.0
"""Seconds a pair may take, retries after 503 included: the devices of paper A need some to fill up."""

_TRUST = [{"keyhaul_trust": True}]
_ABOUT = ("path", "scheme", "wire", "relays", "neighbour", "labels")


@dataclass(frozen=True, slots=True)
class Result:
    """One ordered pair. `ms`: from the request at the master until the slave has the key, in milliseconds."""

    master: str
    slave: str
    source: str
    destination: str
    agree: bool
    key_id: str = ""
    path: str = ""
    scheme: str = ""
    wire: str = ""
    relays: str = ""
    neighbour: str = ""
    labels: str = ""
    ms: float = 0.0
    problem: str = ""


async def perform(topology: Topology, directory: Path | None, *, as_json: bool, keep: bool) -> int:
    """The whole demonstration; 0 if all pairs agree, else 1.

    Nothing is left running, nor on disk unless a directory is given. A signal ends it early, with 1 unless
    all is compared already.
    """
    console = Console(stderr=as_json, highlight=False)
    results: list[Result] = []
    schemes: list[Result] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(Interruptible())
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyhaul-"))) / "testbed"
        started = time.monotonic()
        with console.status(f"starting {topology.name}") as status:
            testbed = Testbed(topology, directory, progress=lambda step: status.update(f"starting: {step}"))
            async with testbed:
                status.stop()
                up = time.monotonic() - started
                console.print(f"[bold]{topology.title}[/bold]: up in {up:.1f} s")
                async with _applications(testbed.state()) as (saes, clients):
                    results = await _exchange(saes, clients, console)
                    schemes = await _each_scheme(topology, saes, clients)
                _report(results, schemes, testbed, as_json=as_json, console=console, keep=keep)
                if keep:
                    await asyncio.Event().wait()
    return 0 if results and all(result.agree for result in (*results, *schemes)) else 1


@contextlib.asynccontextmanager
async def _applications(
    state: Mapping[str, Any],
) -> AsyncIterator[tuple[Sequence[Mapping[str, str]], Mapping[str, SaeClient]]]:
    """All applications of the network, and a client for each."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            sae["id"]: await stack.enter_async_context(
                SaeClient(sae["sae_url"], _tls(sae), patience=PATIENCE)
            )
            for sae in state["saes"]
        }
        yield state["saes"], clients


async def _exchange(
    saes: Sequence[Mapping[str, str]], clients: Mapping[str, SaeClient], console: Console
) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("keys", total=len(saes) * (len(saes) - 1))
        for master, slave in itertools.permutations(saes, 2):
            progress.update(task, description=f"{master['node']} → {slave['node']}")
            results.append(await _one(master, slave, clients))
            progress.advance(task)
    return results


async def _each_scheme(
    topology: Topology,
    saes: Sequence[Mapping[str, str]],
    clients: Mapping[str, SaeClient],
) -> list[Result]:
    """The first application and the last one, once under each scheme, as the first one asks for."""
    return [
        await _one(saes[0], saes[-1], clients, scheme)
        for scheme in ("trusted", "masked", *(["blind"] if topology.schemes() else []))
    ]


def _tls(sae: Mapping[str, str]) -> Any:
    files = Credentials(Path(sae["cert"]), Path(sae["key"]), Path(sae["ca"]))
    return client_context(files, Policy.COMPATIBLE)


async def _one(
    master: Mapping[str, str], slave: Mapping[str, str], clients: Mapping[str, SaeClient], scheme: str = ""
) -> Result:
    """enc_keys at one end, dec_keys at the other, and the comparison; `scheme` is insisted on."""
    insisted = [{"keyhaul_scheme": scheme}] if scheme else []
    who = (master["id"], slave["id"], master["node"], slave["node"])
    begun = time.perf_counter()
    try:
        (sent,) = await clients[master["id"]].get_key(slave["id"], mandatory=insisted, optional=_TRUST)
        (received,) = await clients[slave["id"]].fetch_key(master["id"], [sent.key_id], trust=True)
    except KeyhaulError as error:
        return Result(*who, agree=False, scheme=scheme, problem=str(error))
    ms = (time.perf_counter() - begun) * 1000
    with sent.bits as ours, received.bits as theirs:
        agree = len(ours) > 0 and hmac.compare_digest(ours.reveal(), theirs.reveal())
    trust = received.trust or sent.trust or {}
    about = {name: str(trust.get(name, "")) for name in _ABOUT}
    problem = "" if agree else "the two ends got different bits"
    return Result(*who, agree=agree, key_id=str(sent.key_id), ms=round(ms, 1), problem=problem, **about)


def _report(
    results: Sequence[Result],
    schemes: Sequence[Result],
    testbed: Testbed,
    *,
    as_json: bool,
    console: Console,
    keep: bool,
) -> None:
    agreed = [result for result in results if result.agree]
    if as_json:
        summary = {"topology": testbed.topology.name, "pairs": len(results), "agree": len(agreed)}
        sys.stdout.write(
            json.dumps(
                {
                    **summary,
                    "results": [asdict(each) for each in results],
                    "schemes": [asdict(each) for each in schemes],
                    "left_out": testbed.topology.left_out(),
                },
                indent=2,
            )
            + "\n"
        )
        sys.stdout.flush()
        return
    names = [node.name for node in testbed.topology.nodes]
    shorten = _shortener(names)
    console.print(_table(results, shorten))
    console.print(
        "nodes: " + ", ".join(f"{number} {name}" for number, name in enumerate(names, 1)), soft_wrap=True
    )
    console.print("links: = quantum (ETSI 014 devices, with ML-KEM on top), - post-quantum (ML-KEM)")
    console.print(
        "at relays: blind, no relay can read the key (computational); readable, each holds it for a moment",
        soft_wrap=True,
    )
    for result in (*results, *schemes):
        if not result.agree:
            console.print(f"[red]{result.master} → {result.slave}: {result.problem}[/red]", markup=True)
    color = "green" if len(agreed) == len(results) else "red"
    times = sorted(result.ms for result in agreed) or [0.0]
    console.print(
        f"[bold {color}]{len(agreed)} of {len(results)} pairs have the same bits at both ends[/], "
        f"{statistics.median(times):.0f} ms in the middle, {times[-1]:.0f} ms at most",
        soft_wrap=True,
    )
    _report_schemes(schemes, testbed.topology, console)
    console.print(_by_hand(testbed, keep), markup=False, soft_wrap=True)


def _report_schemes(schemes: Sequence[Result], topology: Topology, console: Console) -> None:
    """The trust statements of one pair under every scheme, side by side."""
    first = schemes[0]
    console.print(
        f"\nThe same pair, {first.source} → {first.destination}, under each scheme "
        "(014 extension keyhaul_scheme), and the trust statement it gets:"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in ("scheme", "bits", "on the wire", "relays can", "last relay can", "labels"):
        table.add_column(head)
    table.add_column("ms", justify="right", no_wrap=True)
    for each in schemes:
        bits = "[green]same[/green]" if each.agree else "[red]failed[/red]"
        relays, last = (_CAN.get(word, word) for word in (each.relays, each.neighbour))
        table.add_row(each.scheme, bits, each.wire, relays, last, each.labels, f"{each.ms:.0f}")
    console.print(table)
    if topology.schemes():
        console.print(f"[dim]{NOTICE}[/dim]", soft_wrap=True)
    elif left_out := topology.left_out():
        console.print(f"[yellow]{left_out}[/yellow]", soft_wrap=True)


_CAN = {"computational": "not read it", "none": "read it"}
"""What the trust statement says about relays, as what they can do to the key."""

_AT_RELAYS = {"computational": "blind", "none": "readable"}
"""The trust statement's word for what relays can do, in a word that fits."""


def _table(results: Sequence[Result], shorten: Callable[[str], str]) -> Table:
    """Fits 80 columns, which is also what rich assumes where there is no terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in ("pair", "path", "scheme"):
        table.add_column(head, no_wrap=True)
    for head in ("on the wire", "at relays"):
        table.add_column(head)
    table.add_column("ms", justify="right", no_wrap=True)
    for result in results:
        pair = f"{result.source} → {result.destination}"
        if result.agree:
            table.add_row(
                pair,
                shorten(result.path),
                result.scheme,
                result.wire,
                _AT_RELAYS.get(result.relays, result.relays),
                f"{result.ms:.0f}",
            )
        else:
            table.add_row(pair, "", "", "", "[red]failed[/red]", "")
    return table


def _shortener(names: Sequence[str]) -> Callable[[str], str]:
    """Paths in numbers, `1=2-3`: with names they are wider than a terminal. Long names go first."""
    numbers = {name: str(number) for number, name in enumerate(names, 1)}

    def shorten(path: str) -> str:
        for name in sorted(numbers, key=len, reverse=True):
            path = path.replace(name, f"\0{numbers[name]}\0")
        return path.replace("\0", "")

    return shorten


def _by_hand(testbed: Testbed, keep: bool) -> str:
    """How to ask for a key without this program's help."""
    first, last = testbed.topology.nodes[0], testbed.topology.nodes[-1]
    master, slave = first.saes[0], last.saes[0]
    directory = str(testbed.directory) if keep else "D"
    start = "" if keep else f"  keyhaul testbed up {testbed.topology.name} --dir D &\n"
    end = "\nCtrl-C ends the network." if keep else "\n  keyhaul testbed down --dir D"
    files = f"{directory}/pki/{first.domain}"
    select = f'.saes[] | select(.id == "{master}") | .sae_url'
    return (
        "\nA key by hand:\n"
        f"{start}"
        f"  keyhaul sae get {slave} --dir {directory} --as {master}\n"
        f"  keyhaul sae fetch {master} KEY_ID --dir {directory} --as {slave}\n"
        "or with curl:\n"
        f"  URL=$(jq -r '{select}' {directory}/testbed.json)\n"
        f"  curl --cert {files}/sae/{master}.pem --key {files}/sae/{master}.key \\\n"
        f'       --cacert {files}/ca/sae.pem "$URL/api/v1/keys/{slave}/enc_keys?number=1&size=256"'
        f"{end}"
    )
