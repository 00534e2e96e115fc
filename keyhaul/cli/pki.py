"""`keyhaul pki`: what certificates there are; make, renew and rotate them, and exchange CAs with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli.output import Json, document, note, say, table
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.pki import Pki
    from keyhaul.pki.inventory import Entry
    from keyhaul.pki.rollover import Step

app = typer.Typer(
    help="Certificates: show, issue, renew, rotate-ca, switch-ca, drop-ca, trust, request, sign.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Role(StrEnum):
    """What a certificate is for."""

    NODE = "node"
    SAE_PORT = "sae-port"
    ADMIN_PORT = "admin-port"
    SAE = "sae"
    ADMIN = "admin"
    DEVICE = "device"
    DEVICE_CLIENT = "device-client"
    PLAIN = "plain"


class Authority(StrEnum):
    """What a CA signs for."""

    NODE = "node"
    SAE = "sae"
    ADMIN = "admin"
    DEVICE = "device"
    PLAIN = "plain"


Directory = Annotated[Path, typer.Option("--pki", help="The directory of the CAs.")]
Domain = Annotated[str, typer.Option(help="The domain; may be left out where there is one.")]
Hosts = Annotated[
    list[str] | None, typer.Option(help="Host names and addresses of a server; repeat for more.")
]
Days = Annotated[int | None, typer.Option(min=1, help="Days that it shall be valid.")]


@app.command()
def show(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="PEM files and directories; without any, ./pki.")
    ] = None,
    ca: Annotated[list[Path] | None, typer.Option(help="Further CAs that may have issued them.")] = None,
    within: Annotated[int, typer.Option(help="Exit with 1 if one has fewer days left.")] = 0,
    as_json: Json = False,
) -> None:
    """Say what certificates there are; exit code 1 if one is out of date, or does not fit key or CA."""
    from keyhaul.pki.inventory import look

    places = paths or [Path("pki")]
    found = look(places, ca or [], datetime.now(UTC), within)
    bad = [entry for entry in found if entry.problems]
    if as_json:
        document({"ok": not bad, "certificates": [asdict(entry) for entry in found]})
    elif len(found) == 1:
        _one(found[0])
    else:
        _all(found, places)
    raise typer.Exit(1 if bad else 0)


def _one(entry: Entry) -> None:
    say(entry.file)
    lines = {
        "kind": entry.kind,
        "speaks for": f"{entry.role} {entry.name}" if entry.role else entry.subject,
        "domain": entry.domain or "none",
        "names": ", ".join(entry.names),
        "uses": ", ".join(entry.uses),
        "key": f"{entry.algorithm}, private key: {entry.key}",
        "issuer": f"{entry.issuer} {entry.chain}".rstrip(),
        "valid": f"{entry.not_before} to {entry.not_after}, {entry.days_left} days left",
        "serial": entry.serial,
        "SHA-256": entry.fingerprint,
        "problems": ", ".join(entry.problems),
    }
    for name, value in lines.items():
        if value:
            say(f"  {name:<11} {value}")


def _all(found: Sequence[Entry], places: Sequence[Path]) -> None:
    base = places[0] if len(places) == 1 and places[0].is_dir() else Path()
    rows = [
        [
            str(Path(entry.file).relative_to(base)) if base != Path() else entry.file,
            f"{entry.role} {entry.name}" if entry.role else f"{_KINDS[entry.kind]}{entry.common}",
            entry.key,
            str(entry.days_left),
            "itself" if entry.chain == "self-signed" else entry.chain[:8],
            entry.fingerprint[:8],
            ", ".join(entry.problems),
        ]
        for entry in found
    ]
    heads = ("file", "speaks for", "key", "days", "issuer", "SHA-256", "problems")
    table(f"{len(found)} certificates", heads, rows)


_KINDS = {"end": "", "ca": "", "ca's word": "word for "}


@app.command()
def issue(
    role: Annotated[Role, typer.Argument(help="What the certificate is for.")],
    name: Annotated[str, typer.Argument(help="Node, SAE, operator or device it speaks for.")],
    directory: Directory = Path("pki"),
    domain: Domain = "",
    host: Annotated[
        list[str] | None, typer.Option(help="Host names and addresses of a server; repeat for more.")
    ] = None,
    foreign_ca: Annotated[
        list[Path] | None, typer.Option(help="For plain: CA of a foreign key manager, PEM; repeat for more.")
    ] = None,
    ml_dsa: Annotated[bool, typer.Option("--ml-dsa", help="For sae: ML-DSA-65 instead of ECDSA.")] = False,
    days: Days = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace certificate and private key if they are there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a private key and a certificate for one party."""
    from keyhaul.pki.files import alone, certificates_in
    from keyhaul.pki.rollover import fingerprint

    with alone(directory):
        pki = _open(directory, leaf=days, overwrite=overwrite)
        where, hosts = _domain(pki, domain), host or ["localhost", "127.0.0.1"]
        match role:
            case Role.NODE:
                files = pki.node(where, name, hosts)
            case Role.SAE_PORT:
                files = pki.sae_port(where, name, hosts)
            case Role.ADMIN_PORT:
                files = pki.admin_port(where, name, hosts)
            case Role.SAE:
                files = pki.sae(where, name, "ml-dsa-65" if ml_dsa else "ecdsa")
            case Role.ADMIN:
                files = pki.admin(where, name)
            case Role.DEVICE:
                files = pki.device(where, name, hosts)
            case Role.DEVICE_CLIENT:
                files = pki.device_client(where, name)
            case Role.PLAIN:
                if not foreign_ca:
                    raise ConfigError("a plain port has to believe somebody", "name --foreign-ca FILE")
                files = pki.plain(where, name, hosts, foreign_ca)
    certificate = certificates_in(files.cert, "")[0]
    answer = {
        **{side: str(path) for side, path in asdict(files).items()},
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "fingerprint": fingerprint(certificate),
    }
    if as_json:
        document(answer)
        return
    for side, value in answer.items():
        say(f"  {side:<11} {value}")


@app.command()
def renew(
    certs: Annotated[list[Path] | None, typer.Argument(help="Certificate files, their keys beside.")] = None,
    directory: Directory = Path("pki"),
    all_of_them: Annotated[bool, typer.Option("--all", help="All that the CAs here issued.")] = False,
    within: Annotated[
        int | None, typer.Option(help="With --all: only those with fewer days left than that.")
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Replace the private keys that are here, too.")
    ] = False,
    days: Days = None,
    as_json: Json = False,
) -> None:
    """Replace certificates by new ones for the same parties, hosts and uses, of the CA that signs now."""
    from keyhaul.pki.files import alone
    from keyhaul.pki.renewing import renew as again
    from keyhaul.pki.rollover import fingerprint, issued_under

    if bool(certs) == all_of_them:
        raise ConfigError("it is not clear what to renew", "name certificate files, or say --all")
    with alone(directory):
        pki = _open(directory, leaf=days)
        if all_of_them:
            now = datetime.now(UTC)
            certs = [
                file
                for domain in pki.domains
                for file, each in issued_under(pki, domain)
                if within is None or (each.not_valid_after_utc - now).days < within
            ]
        done = [
            again(pki, file, new_key=new_key and not (all_of_them and not file.with_suffix(".key").exists()))
            for file in certs or []
        ]
    if as_json:
        said = [
            {
                "file": str(each.file),
                "new_key": each.new_key,
                "not_after": each.after.not_valid_after_utc.isoformat(),
                "fingerprint": fingerprint(each.after),
                "replaces": fingerprint(each.before),
            }
            for each in done
        ]
        document({"renewed": said})
        return
    for each in done:
        key = "new key" if each.new_key else "same key"
        say(f"{each.file}: valid until {each.after.not_valid_after_utc:%Y-%m-%d}, {key}")
    say(f"{len(done)} renewed" + ("; nodes read them with `keyhaul reload`, or on SIGHUP" if done else ""))


@app.command()
def request(
    role: Annotated[Role, typer.Argument(help="What the certificate is for.")],
    name: Annotated[str, typer.Argument(help="Node, SAE, operator or device it shall speak for.")],
    into: Annotated[Path, typer.Option(help="Where NAME.key and NAME.csr go.")] = Path(),
    host: Hosts = None,
    ml_dsa: Annotated[bool, typer.Option("--ml-dsa", help="For sae: ML-DSA-65 instead of ECDSA.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace both if they are there.")] = False,
    as_json: Json = False,
) -> None:
    """Make a private key that stays here, and a request for its certificate, for `keyhaul pki sign`."""
    from keyhaul.pki import requests

    wanted = requests.named(role, name, host or (), ml_dsa=ml_dsa)
    done = requests.ask(wanted, into, overwrite=overwrite)
    _listed(
        {"request": str(done.request), "key": str(done.key), "public_key": done.digest},
        as_json,
        "have the CA's operator sign it with `keyhaul pki sign`, and tell public_key by another way",
    )


@app.command()
def sign(
    csr: Annotated[Path, typer.Argument(help="The request, PEM.")],
    role: Annotated[Role, typer.Argument(help="What the certificate is for.")],
    name: Annotated[str, typer.Argument(help="Node, SAE, operator or device it speaks for.")],
    directory: Directory = Path("pki"),
    domain: Domain = "",
    host: Hosts = None,
    public_key: Annotated[
        str, typer.Option(help="SHA-256 of the public key, as its holder told you; no other is signed.")
    ] = "",
    days: Days = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the certificate.")] = False,
    as_json: Json = False,
) -> None:
    """Issue a certificate to a request; exit code 1 if it asks for anything but what you name here."""
    from keyhaul.pki import requests
    from keyhaul.pki.files import alone
    from keyhaul.pki.rollover import fingerprint

    with alone(directory):
        pki = _open(directory, leaf=days, overwrite=overwrite)
        wanted = requests.named(role, name, host or ())
        done = requests.sign(pki, _domain(pki, domain), role, wanted, csr, public_key)
    said = {
        "speaks_for": f"{role} {name}",
        "hosts": ", ".join(host or ()),
        "public_key": done.digest,
        "not_after": done.certificate.not_valid_after_utc.isoformat(),
        "fingerprint": fingerprint(done.certificate),
        "cert": str(done.file),
        "ca": str(done.ca),
    }
    _listed(said, as_json, "bring cert and ca to the holder of the key")


@app.command("rotate-ca")
def rotate_ca(
    role: Annotated[Authority, typer.Argument(help="Whose CA.")],
    directory: Directory = Path("pki"),
    domain: Domain = "",
    days: Days = None,
    as_json: Json = False,
) -> None:
    """Step 1 of 3: make the next CA: same name, new key. Both are believed, the old one signs."""
    from keyhaul.pki.files import alone
    from keyhaul.pki.rollover import begin

    with alone(directory):
        pki = _open(directory, ca=days)
        step = begin(pki, _domain(pki, domain), role)
    _said(
        step,
        "next CA",
        "give these to all who believe this CA, reload them, then `keyhaul pki switch-ca`",
        as_json,
    )


@app.command("switch-ca")
def switch_ca(
    role: Annotated[Authority, typer.Argument(help="Whose CA.")],
    directory: Directory = Path("pki"),
    domain: Domain = "",
    as_json: Json = False,
) -> None:
    """Step 2 of 3: sign with the next CA from now on. Both go on being believed."""
    from keyhaul.pki.files import alone
    from keyhaul.pki.rollover import switch

    with alone(directory):
        pki = _open(directory)
        step = switch(pki, _domain(pki, domain), role)
    _said(
        step,
        "old CA",
        "renew what it signed with `keyhaul pki renew --all`, reload, then `keyhaul pki drop-ca`",
        as_json,
    )


@app.command("drop-ca")
def drop_ca(
    role: Annotated[Authority, typer.Argument(help="Whose CA.")],
    directory: Directory = Path("pki"),
    domain: Domain = "",
    next_one: Annotated[
        bool, typer.Option("--next", help="Give the rotation up: drop the next CA, which does not sign yet.")
    ] = False,
    even_if_used: Annotated[
        bool, typer.Option("--even-if-used", help="Although certificates here are of the CA that goes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Step 3 of 3: believe only the CA that signs, and erase the private key of the other one."""
    from keyhaul.pki.files import alone
    from keyhaul.pki.rollover import drop

    with alone(directory):
        pki = _open(directory)
        step = drop(pki, _domain(pki, domain), role, next_one=next_one, even_if_used=even_if_used)
    _said(step, "dropped", "give these to all who believed both, and reload them", as_json)


@app.command()
def trust(
    file: Annotated[Path, typer.Argument(help="What the other domain sent: its ca/node.pem.")],
    into: Annotated[
        Path, typer.Option(help="The CAs that our node ports believe, `ca` in [listeners.node].")
    ] = Path("pki/node-anchors.pem"),
    domain: Annotated[str, typer.Option(help="Whose CAs to take, if the file has several domains'.")] = "",
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="SHA-256 of a CA that may come in; repeat for more.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Even if the known CA does not vouch for the new one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Believe the node CAs of another domain: a new domain, both CAs of a rotation, or only the new one."""
    from keyhaul.pki import rollover
    from keyhaul.pki.files import alone

    with alone(into.absolute().parent):
        done = rollover.trust(into, file, domain or None, replace=replace, fingerprints=fingerprint or [])
    added, removed = ([rollover.fingerprint(each) for each in side] for side in (done.added, done.removed))
    if as_json:
        document({"domain": done.domain, "added": added, "removed": removed, "file": str(into)})
        return
    for word, fingerprints in (("believed", added), ("not believed any more", removed)):
        for each in fingerprints:
            say(f"{done.domain}: {word}: {each}")
    if not added and not removed:
        say(f"{done.domain}: nothing is different")
    elif added and not fingerprint:
        note("compare the fingerprint with the operators of that domain before you reload")


def _listed(said: dict[str, str], as_json: bool, following: str) -> None:
    if as_json:
        document(said)
        return
    for side, value in said.items():
        if value:
            say(f"  {side:<11} {value}")
    say(f"next: {following}")


def _open(directory: Path, *, leaf: int | None = None, ca: int | None = None, overwrite: bool = False) -> Pki:
    from keyhaul.pki import Lifetimes, Pki

    usual = Lifetimes()
    return Pki.open(
        directory.resolve(), lifetimes=Lifetimes(leaf or usual.leaf, ca or usual.ca), overwrite=overwrite
    )


def _domain(pki: Pki, named: str) -> str:
    if not named and len(pki.domains) > 1:
        raise ConfigError(f"there are the domains {', '.join(pki.domains)}", "say which with --domain")
    return named or pki.domains[0]


def _said(step: Step, other: str, following: str, as_json: bool) -> None:
    from keyhaul.pki.rollover import fingerprint

    signs, goes = fingerprint(step.signs), fingerprint(step.other)
    files = [str(file) for file in step.files]
    if as_json:
        answer: dict[str, Any] = {"signs": signs, "other": goes, "files": files}
        document(answer)
        return
    say(f"{step.signs.subject.rfc4514_string()}")
    say(f"  {'signs':<8} SHA-256 {signs}")
    say(f"  {other:<8} SHA-256 {goes}")
    for file in files:
        say(f"  {'written':<8} {file}")
    say(f"next: {following}")
