"""`keyhaul conformance 014|020`: probe a key manager, ours or another maker's, and print a verdict a rule."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli import access
from keyhaul.cli.output import Json, document, note, say, table
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.conformance.call import Caller
    from keyhaul.conformance.probe import Probe, Result
    from keyhaul.edge.tls import Credentials

app = typer.Typer(
    help="Probe any key manager against ETSI GS QKD 014 or 020, clause by clause.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_WHO = "[ID=]CERT[,KEY]; the key is CERT with .key if not named. With --dir: an SAE of the testbed."
Party = Annotated[str, typer.Option(help=_WHO)]
Only = Annotated[list[str] | None, typer.Option(help="Run only the probe of this name; repeat for more.")]
Patience = Annotated[float, typer.Option(help="Seconds one probe may take.")]


@app.command("014")
def keys(
    urls: Annotated[
        list[str] | None,
        typer.Argument(help="https://HOST:PORT of the master's KME, and of the slave's if another."),
    ] = None,
    master: Party = "",
    slave: Party = "",
    additional: Party = "",
    stranger: Party = "",
    ca: access.Ca = None,
    directory: access.Directory = None,
    only: Only = None,
    patience: Patience = 60.0,
    as_json: Json = False,
) -> None:
    """ETSI GS QKD 014: what applications see. Exit code 0: no rule broken, 1: some are.

    Master and slave must be different SAEs that may share keys. An additional SAE, entitled to the same, and
    a stranger, whose certificate is believed but who is named nowhere, let more rules be tried.
    """
    from keyhaul.conformance import probes014

    people = {"master": master, "slave": slave, "additional": additional, "stranger": stranger}
    if not master or not slave:
        raise ConfigError("two SAEs are needed", "give --master and --slave")
    given = {role: who for role, who in people.items() if who}
    places = _placed(given, urls or [], directory, ca)
    probes = chosen(probes014.PROBES, only)
    results = asyncio.run(_try_014(places, probes, patience, progress=not as_json))
    conclude("ETSI GS QKD 014 V1.1.1", results, as_json)


def _placed(
    given: dict[str, str], urls: Sequence[str], directory: Path | None, ca: Path | None
) -> dict[str, access.Access]:
    """Every party with its address: the first URL is the master's, the last the other ones'."""
    if directory is not None:
        return {role: access.of_sae(directory, who) for role, who in given.items()}
    if not 1 <= len(urls) <= 2 or ca is None:
        raise ConfigError("it is not clear whom to probe", "give one or two URLs and --cacert, or --dir")
    return {role: place(who, urls[0] if role == "master" else urls[-1], ca) for role, who in given.items()}


def place(who: str, url: str, ca: Path) -> access.Access:
    """Who calls, from `[ID=]CERT[,KEY]`. Raises ConfigError if a file is not there."""
    name, equals, files = who.rpartition("=")
    cert, _, key = files.partition(",")
    path = Path(cert)
    key_path = Path(key) if key else path.with_suffix(".key")
    for file in (path, key_path, ca):
        if not file.is_file():
            raise ConfigError(f"{file}: no such file", "correct the path, or name the key: CERT,KEY")
    return access.Access(name if equals else _named_in(path), url, path, key_path, ca)


def _named_in(path: Path) -> str:
    from cryptography import x509

    from keyhaul.identity import sae_id

    try:
        return sae_id(x509.load_pem_x509_certificate(path.read_bytes()))
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM form", "name the certificate first") from None


def credentials(place: access.Access) -> Credentials:
    """The PEM files of a party."""
    from keyhaul.edge.tls import Credentials

    return Credentials(place.cert, place.key, place.ca)


async def _try_014(
    places: dict[str, access.Access], probes: Sequence[Probe[Any]], patience: float, *, progress: bool
) -> list[Result]:
    from keyhaul.conformance.call import Caller
    from keyhaul.conformance.kme014 import Kme014
    from keyhaul.edge.tls import Policy, anonymous_context, client_context

    def caller(role: str) -> Caller:
        who = places[role]
        return Caller(who.name, who.url, client_context(credentials(who), Policy.COMPATIBLE))

    doors = {places[role].url: places[role].ca for role in ("master", "slave")}
    kme = Kme014(
        master=caller("master"),
        slave=caller("slave"),
        anonymous=[Caller("", url, anonymous_context(ca, Policy.COMPATIBLE)) for url, ca in doors.items()],
        additional=caller("additional") if "additional" in places else None,
        stranger=caller("stranger") if "stranger" in places else None,
    )
    return await run(probes, kme, patience, progress)


async def run(
    probes: Sequence[Probe[Any]],
    subject: Any,
    patience: float,
    progress: bool,
    tidy: Callable[[], Awaitable[None]] | None = None,
) -> list[Result]:
    """Run probes, saying on stderr how far it is."""
    from keyhaul.conformance.probe import run_all

    def told(result: Result) -> None:
        if progress:
            note(f"{result.verdict:<8} {result.name}")

    more = {"tidy": tidy} if tidy is not None else {}
    return await run_all(probes, subject, patience, told, **more)


def chosen(probes: Sequence[Probe[Any]], only: Sequence[str] | None) -> list[Probe[Any]]:
    """The probes of these names, or all. Raises ConfigError for a name that is none."""
    names = [probe.name for probe in probes]
    if unknown := [name for name in only or () if name not in names]:
        raise ConfigError(f"there is no probe {unknown[0]!r}", f"choose from {', '.join(names)}")
    return [probe for probe in probes if not only or probe.name in only]


def conclude(standard: str, results: Sequence[Result], as_json: bool) -> None:
    """The table, the sum, the exit code."""
    counts = Counter(each.verdict.value for each in results)
    if as_json:
        sums = {"passed": counts["pass"], "failed": counts["fail"], "not_run": counts["not run"]}
        document({"standard": standard, **sums, "probes": [asdict(each) for each in results]})
    else:
        rows = [(each.clause, each.title, each.expected, each.seen, each.verdict) for each in results]
        table(standard, ("clause", "rule", "expected", "seen", "verdict"), rows)
        say(f"{counts['pass']} passed, {counts['fail']} failed, {counts['not run']} not run")
    if counts["fail"]:
        raise typer.Exit(1)
