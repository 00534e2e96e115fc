"""Reads what operators set: `[audit]`, `[monitor]`, `[log]` and `[traces]`."""

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


def read_traces(table: Section) -> model.TracesConfig:
    """Where spans go, or nowhere. Plain HTTP to another machine draws a warning."""
    traces = model.TracesConfig(
        endpoint=table.text("endpoint", ""),
        ratio=table.number("ratio", 1.0, low=0.0, high=1.0),
        key_ids=table.flag("key_ids", False),
        ca=table.optional_file("ca"),
    )
    table.done()
    if traces.endpoint:
        _check_endpoint(table, traces.endpoint)
    return traces


def _check_endpoint(table: Section, endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.username or parts.fragment:
        cause = f"endpoint = {endpoint!r} is no address of a collector"
        table.report("endpoint", cause, 'write "http://127.0.0.1:4318/v1/traces"')
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if parts.scheme == "http" and not loopback:
        cause = f"endpoint = {endpoint!r}: whoever is on the way can read who exchanges keys with whom"
        table.report("endpoint", cause, "use https, or a collector on this machine", warning=True)
