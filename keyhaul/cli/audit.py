"""`keyhaul audit verify`: whether an audit log is whole, or which line is not as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhaul.cli.output import Json, document, say
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.audit.verify import Check

app = typer.Typer(help="The audit log: verify.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """The audit log: verify."""  # a group of one command would swallow its name without this callback


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The log; what was rotated away beside it is read first.")],
    node_cert: Annotated[
        Path | None, typer.Option(help="The node's certificate, PEM: signatures of checkpoints are checked.")
    ] = None,
    head: Annotated[
        str, typer.Option(help="A line that must be there, NUMBER:SHA256, as `audit.anchored` in the status.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Read a whole log; exit code 1 names the first line that was changed, removed, moved or cut off."""
    from dataclasses import asdict

    from keyhaul.audit import verify as audit
    from keyhaul.audit.chain import Head

    anchors = [Head.parse(head)] if head else []
    beside = file.with_name(file.name + ".head")
    if beside.exists():
        anchors.append(Head.parse(beside.read_text(errors="replace").strip()))
    report = audit.verify(audit.files_of(file), anchors, _check(node_cert) if node_cert else None)
    if as_json:
        document({**asdict(report), "signatures_checked": node_cert is not None})
        return
    say(f"whole: lines {report.first} to {report.head.n} in {len(report.files)} files")
    signatures = "their signatures are good" if node_cert else "give --node-cert to check their signatures"
    say(f"  {report.checkpoints} checkpoints; {signatures}")
    if report.first > 1:
        say(f"  lines before {report.first} are not here")
    if report.uncovered:
        say(f"  the last {report.uncovered} lines came after the last checkpoint")
    if report.missing:
        say(f"  {report.missing} lines could not be written by the node, as it says itself")


def _check(path: Path) -> Check:
    from cryptography import x509

    from keyhaul.errors import Tampered
    from keyhaul.identity import Verified, node_name

    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no certificate: {error}", "name the node's certificate") from None
    signer = Verified(node_name(certificate), certificate)

    def check(node: str, signature: bytes, message: bytes) -> None:
        if node != signer.name:
            raise Tampered
        signer.check(signature, message)

    return check
