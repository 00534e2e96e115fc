"""`keyhaul sae get|fetch|status`: what an application does over ETSI GS QKD 014, by hand."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from keyhaul.cli import access
from keyhaul.cli.output import Json, document, private, say

if TYPE_CHECKING:
    from keyhaul.client import AsyncClient
    from keyhaul.messages.etsi014 import Delivered

app = typer.Typer(
    help="Ask for keys as an application: get, fetch, status.", no_args_is_help=True, rich_markup_mode=None
)

Own = Annotated[str, typer.Option("--as", help="With --dir: which SAE we are.")]
To = Annotated[Path | None, typer.Option("--to", help="Write the keys there (0600), show only their ids.")]
Bare = Annotated[bool, typer.Option("--bare", help="Only the keys in base64, one a line.")]
T = TypeVar("T")


@app.command()
def get(
    slave: Annotated[str, typer.Argument(help="SAE id of the application that shall share the key.")],
    number: Annotated[int, typer.Option(help="How many keys.")] = 1,
    size: Annotated[int | None, typer.Option(help="Bits per key.")] = None,
    additional: Annotated[list[str] | None, typer.Option(help="One more slave SAE; repeat for more.")] = None,
    own: Own = "",
    directory: access.Directory = None,
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    to: To = None,
    bare: Bare = False,
    as_json: Json = False,
) -> None:
    """Get fresh keys to share with another application (014 enc_keys)."""
    target = _target(directory, own, url, cert, key, ca)
    wished = [{"keyhaul_trust": True}]
    keys = _call(
        target,
        lambda sae: sae.get_key(
            slave, number=number, size=size, additional=additional or [], optional=wished
        ),
    )
    _hand_out(keys, to, bare)


@app.command()
def fetch(
    master: Annotated[str, typer.Argument(help="SAE id of the application that got the key.")],
    key_ids: Annotated[list[UUID], typer.Argument(help="Key ids the master told us.")],
    own: Own = "",
    directory: access.Directory = None,
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    to: To = None,
    bare: Bare = False,
    as_json: Json = False,
) -> None:
    """Fetch the same keys at the other end (014 dec_keys); a key is delivered once."""
    target = _target(directory, own, url, cert, key, ca)
    _hand_out(_call(target, lambda sae: sae.fetch_key(master, key_ids, trust=True)), to, bare)


@app.command()
def status(
    slave: Annotated[str, typer.Argument(help="SAE id of the other application.")],
    own: Own = "",
    directory: access.Directory = None,
    url: access.Url = "",
    cert: access.Cert = None,
    key: access.Key = None,
    ca: access.Ca = None,
    as_json: Json = False,
) -> None:
    """Ask what keys we could get for another application (014 status)."""
    from keyhaul.messages.etsi014 import encode_status

    target = _target(directory, own, url, cert, key, ca)
    found: dict[str, Any] = json.loads(encode_status(_call(target, lambda sae: sae.status(slave))))
    if as_json:
        document(found)
    else:
        for name, value in found.items():
            say(f"{name:<20} {value}")


def _target(
    directory: Path | None, own: str, url: str, cert: Path | None, key: Path | None, ca: Path | None
) -> access.Access:
    return access.of_sae(directory, own) if directory else access.explicit(url, cert, key, ca)


def _call(target: access.Access, ask: Callable[[AsyncClient], Awaitable[T]]) -> T:
    from keyhaul.client import AsyncClient

    async def run() -> T:
        # A person waits: the node's 503 is shown at once, with what to do next.
        client = AsyncClient(target.url, cert=target.cert, key=target.key, ca=target.ca, patience=0.0)
        async with client as sae:
            return await ask(sae)

    return asyncio.run(run())


def _hand_out(keys: Sequence[Delivered], to: Path | None, bare: bool) -> None:
    """The key container of 014 clause 6.3, the keys alone, or only their ids."""
    from keyhaul.messages.etsi014 import encode_container

    if bare:
        text = "\n".join(base64.b64encode(key.bits.reveal()).decode() for key in keys)
    else:
        container = json.loads(encode_container(keys, trust=True))
        text = json.dumps(container, indent=2, ensure_ascii=False)
    if to is None:
        say(text)
    else:
        private(to, text + "\n")
        document({"key_IDs": [{"key_ID": str(key.key_id)} for key in keys], "file": str(to.resolve())})
