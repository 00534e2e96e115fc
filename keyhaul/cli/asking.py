"""How commands ask nodes: over their admin ports, several at once, each failure named."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keyhaul.cli import access
from keyhaul.cli.output import note
from keyhaul.errors import KeyhaulError, Malformed, PeerUnreachable

_PATIENCE = 10.0  # seconds a node has to answer


def targets(
    directory: Path | None, url: str, cert: Path | None, key: Path | None, ca: Path | None
) -> list[access.Access]:
    """The admin ports that the options name: those of a testbed, or the one of a node. Raises ConfigError."""
    return access.of_operator(directory) if directory else [access.explicit(url, cert, key, ca)]


def ask(
    asked: Sequence[access.Access], path: str, method: str = "GET", body: Mapping[str, Any] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """What each node says. One that does not answer is named on stderr; none at all is an error."""
    results = asyncio.run(_ask_all(asked, path, method, body))
    found = []
    for target, result in zip(asked, results, strict=True):
        if isinstance(result, KeyhaulError):
            if len(asked) == 1:
                raise result
            note(f"keyhaul: {target.name}: {result}")
        else:
            found.append((target.name, result))
    if not found:
        raise PeerUnreachable("no node answered", "see whether the testbed runs")
    return found


async def _ask_all(
    asked: Sequence[access.Access], path: str, method: str, body: Mapping[str, Any] | None
) -> list[dict[str, Any] | KeyhaulError]:
    return await asyncio.gather(*(ask_one(target, path, method, body) for target in asked))


async def ask_one(
    target: access.Access, path: str, method: str = "GET", body: Mapping[str, Any] | None = None
) -> dict[str, Any] | KeyhaulError:
    """One call of an admin port; what went wrong comes back as a value, so that others are still asked."""
    import aiohttp

    from keyhaul.edge.tls import Credentials, Policy, client_context

    url = f"{target.url.rstrip('/')}/admin/v1/{path}"
    try:
        tls = client_context(Credentials(target.cert, target.key, target.ca), Policy.COMPATIBLE)
        patience = aiohttp.ClientTimeout(total=_PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=patience) as session,
            session.request(method, url, ssl=tls, json=body, allow_redirects=False) as answer,
        ):
            found = await answer.json(content_type=None)
    except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError, ValueError) as error:
        return PeerUnreachable(
            f"{url}: {error or type(error).__name__}", "check the address and the certificates"
        )
    except KeyhaulError as error:
        return error
    if answer.status == 200 and isinstance(found, dict):
        return found
    said = found if isinstance(found, dict) else {}
    cause = f"the node answered {answer.status}: {said.get('message', 'no reason given')}"
    return Malformed(cause, str(said.get("next", "")))
