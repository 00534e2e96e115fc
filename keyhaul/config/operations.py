"""Reads what operators set: `[audit]`, `[monitor]` and `[log]`."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from keyhaul.config import model
from keyhaul.config.reader import Section
from keyhaul.logs import LEVELS


def read_audit(table: Section) -> model.AuditConfig:
    """The audit log, or none."""
    plain = model.AuditConfig()
    audit = model.AuditConfig(
        file=table.optional_file("file"),
        required=table.flag("required", plain.required),
        rotate_bytes=table.integer("rotate_bytes", plain.rotate_bytes, low=4096),
    )
    if audit.required and audit.file is None:
        table.report("required", "the audit log is required, but no file is named", "add file = …")
    table.done()
    return audit


def read_monitor(table: Section) -> model.MonitorConfig:
    """The monitoring port, or none. Other addresses than the loopback draw a warning."""
    listen = table.text("listen", "")
    table.done()
    if not listen:
        return model.MonitorConfig()
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname or "", parts.port
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        host, port, loopback = "", None, True
    if not host or port is None or parts.path:
        table.report("listen", f"listen = {listen!r} is no address and port", 'write "127.0.0.1:9464"')
        return model.MonitorConfig()
    if not loopback:
        cause = f"listen = {listen!r}: whoever reaches this address may read the node's metrics"
        table.report("listen", cause, "keep it on a network of your own", warning=True)
    return model.MonitorConfig(host, port)


def read_log(table: Section) -> model.LogConfig:
    """How much is written to the log."""
    log = model.LogConfig(table.choice("level", LEVELS, "INFO"))  # type: ignore[arg-type]
    table.done()
    return log
