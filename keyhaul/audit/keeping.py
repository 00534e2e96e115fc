"""The audit log of a running node: opened against what the store remembers, anchored there as it grows."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from keyhaul.audit.chain import Head, Signer
from keyhaul.audit.log import AuditLog
from keyhaul.config import AuditConfig, NodeConfig
from keyhaul.errors import KeyhaulError
from keyhaul.ports import Ledger

SPACE, HEAD = "audit", "head"
CHECKPOINT_EVERY = 30.0  # seconds

log = structlog.get_logger("keyhaul.audit")


async def open_audit(settings: AuditConfig, signer: Signer, ledger: Ledger) -> AuditLog | None:
    """The node's log, or None where none is configured. Raises SealError if it is not as it was left."""
    if settings.file is None:
        return None
    found = AuditLog(settings.file, signer, required=settings.required, rotate_bytes=settings.rotate_bytes)
    stored = await ledger.item(SPACE, HEAD)
    await found.open(Head.parse(stored.decode()) if stored is not None else None)
    return found


async def tell_of_changes(audit: AuditLog, config: NodeConfig, ledger: Ledger) -> None:
    """A line for each part of the configuration that is not what it was when the node last looked."""
    restored = await ledger.item("restored", "backup")
    if restored is not None:
        audit.note("restored", **msgspec.json.decode(restored))
        async with ledger.edit() as change:
            change.erase("restored", "backup")
    parts: Mapping[str, Any] = {
        "peers": config.peers,
        "network": config.network,
        "policy": (config.limits, config.delivery, config.prefetch, config.admission),
        "entropy": config.entropy,
    }
    for name, value in parts.items():
        text = msgspec.json.encode(value, enc_hook=str, order="deterministic")
        digest = hashlib.sha256(text).hexdigest()
        stored = await ledger.item(SPACE, name)
        if stored == digest.encode():
            continue
        known = {"peers": [peer.name for peer in config.peers]} if name == "peers" else {}
        audit.note("configured" if stored is None else "changed", part=name, sha256=digest, **known)
        async with ledger.edit() as change:
            change.put(SPACE, name, digest.encode())


async def anchor(audit: AuditLog, ledger: Ledger) -> None:
    """Sign how far the log came, and remember it in the store."""
    try:
        head = await audit.checkpoint()
        if head is not None:
            async with ledger.edit() as change:
                change.put(SPACE, HEAD, head.text().encode())
    except KeyhaulError as error:
        log.warning("the audit log is not anchored; tried again later", cause=error.cause)


async def keep(audit: AuditLog, ledger: Ledger) -> None:
    """Anchor the log now and then, until cancelled; a log that cannot be written is tried again so, too."""
    while True:
        await anchor(audit, ledger)
        await asyncio.sleep(CHECKPOINT_EVERY)


async def end(audit: AuditLog, ledger: Ledger) -> None:
    """The last line, its anchor, and the file closed."""
    audit.note("sealed")
    await anchor(audit, ledger)
    await audit.close()
