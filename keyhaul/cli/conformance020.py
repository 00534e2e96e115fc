"""`keyhaul conformance 020`: be a neighbouring KME, or two of them, and see whether the rules are kept."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli import access, conformance
from keyhaul.cli.conformance import chosen, conclude, credentials, place, run
from keyhaul.cli.output import Json
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.conformance.call import Caller
    from keyhaul.conformance.kme020 import Neighbour
    from keyhaul.conformance.probe import Probe, Result

app = conformance.app  # both commands, once this module has added its own

Listen = Annotated[str, typer.Option(help="HOST:PORT to listen on for what the KME sends.")]
Origin = Annotated[
    str, typer.Option(help="https://HOST:PORT under which the KME reaches that; else as it is.")
]
SaeId = Annotated[str, typer.Option(help="SAE id as the two KMEs know it.")]
Files = Annotated[str, typer.Option(help="CERT[,KEY]; the key is CERT with .key if not named.")]


@app.command("020")
def peers(
    url: Annotated[str, typer.Argument(help="https://HOST:PORT of the KME's port for other KMEs.")],
    kme: Files = "",
    ca: access.Ca = None,
    listen: Listen = "",
    origin: Origin = "",
    initiator: SaeId = "",
    target: SaeId = "",
    sae: Files = "",
    sae_url: Annotated[str, typer.Option(help="https://HOST:PORT of the KME's 014 port.")] = "",
    sae_ca: Annotated[Path | None, typer.Option(help="The CA of that port, PEM.")] = None,
    second: Files = "",
    second_listen: Listen = "",
    second_origin: Origin = "",
    second_sae: SaeId = "",
    stranger: Files = "",
    only: conformance.Only = None,
    wait: Annotated[
        float, typer.Option(help="Seconds an acknowledgement, a retry or a void may take.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """ETSI GS QKD 020: what other KMEs see. Exit code 0: no rule broken, 1: some are.

    The KME must be configured with us as a neighbour: our certificate (--kme), the address we listen at, and
    the SAE that is behind us (--initiator). --target is an SAE of its own side; with that SAE's certificate
    (--sae, --sae-url) delivery is tried too. A second neighbour (--second) shows what is passed on.
    """
    from keyhaul.conformance import probes020

    if not (kme and ca and listen and initiator and target):
        raise ConfigError(
            "it is not clear who we are", "give --kme, --cacert, --listen, --initiator and --target"
        )
    if bool(sae) != bool(sae_url) or bool(second) != bool(second_listen and second_sae):
        raise ConfigError(
            "a party is half described",
            "give --sae with --sae-url; --second with --second-listen, --second-sae",
        )
    probes = chosen(probes020.PROBES, only)
    us = [(kme, listen, origin, initiator)]
    us += [(second, second_listen, second_origin, second_sae)] if second else []
    people = [place(f"={files}", url, ca) if files else None for files in (kme, stranger)]
    application = place(f"{target}={sae}", sae_url, sae_ca or ca) if sae else None
    results = asyncio.run(_try(url, ca, us, people[1], application, target, probes, wait, not as_json))
    conclude("ETSI GS QKD 020 V1.1.1", results, as_json)


async def _try(
    url: str,
    ca: Path,
    us: Sequence[tuple[str, str, str, str]],
    stranger: access.Access | None,
    application: access.Access | None,
    target: str,
    probes: Sequence[Probe[Any]],
    wait: float,
    progress: bool,
) -> list[Result]:
    from keyhaul.conformance.call import Caller
    from keyhaul.conformance.kme020 import Kme020
    from keyhaul.edge.tls import Policy, anonymous_context

    neighbours: list[Neighbour] = []
    try:
        for files, listen, origin, sae in us:
            neighbours.append(await _open(place(f"={files}", url, ca), listen, origin, sae))
        subject = Kme020(
            first=neighbours[0],
            target=target,
            anonymous=Caller("", url, anonymous_context(ca, Policy.COMPATIBLE)),
            wait=wait,
            sae=_caller(application),
            second=neighbours[1] if len(neighbours) > 1 else None,
            stranger=_caller(stranger),
            old_tls=_old(place(f"={us[0][0]}", url, ca)),
        )
        subject.start()
        return await run(probes, subject, 8 * wait, progress, subject.tidy)
    finally:
        for neighbour in neighbours:
            await neighbour.desk.close()


async def _open(who: access.Access, listen: str, origin: str, sae: str) -> Neighbour:
    from keyhaul.conformance.desk import Desk
    from keyhaul.conformance.kme020 import Neighbour
    from keyhaul.edge.tls import Policy, server_context

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{listen!r} is no address to listen on", "give HOST:PORT")
    desk = Desk(origin.rstrip("/") or f"https://{listen}")
    try:
        await desk.open(host.strip("[]"), int(port), server_context(credentials(who), Policy.COMPATIBLE))
    except OSError as error:
        raise ConfigError(f"cannot listen on {listen}: {error.strerror}", "choose another address") from None
    caller = _caller(who)
    assert caller is not None
    return Neighbour(caller, desk, sae)


def _caller(who: access.Access | None) -> Caller | None:
    from keyhaul.conformance.call import Caller
    from keyhaul.edge.tls import Policy, client_context

    if who is None:
        return None
    return Caller(who.name, who.url, client_context(credentials(who), Policy.COMPATIBLE))


def _old(who: access.Access) -> Caller | None:
    """Us with TLS 1.2 and nothing newer; None where Python's own TLS cannot show our certificate."""
    from keyhaul.conformance.call import Caller

    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=who.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(who.cert, who.key)
    except ssl.SSLError:
        return None
    return Caller(who.name, who.url, context)
