"""Opens the monitoring port of a node, before anything else can go wrong."""

from __future__ import annotations

from pathlib import Path

from keyhaul.config import MonitorConfig, NodeConfig
from keyhaul.edge.server import bind
from keyhaul.monitor.listener import Monitor
from keyhaul.monitor.metrics import Metrics


async def open_monitor(settings: MonitorConfig) -> tuple[Monitor, str] | None:
    """The monitor and its URL, or None where none is configured. Raises ConfigError."""
    if settings.port is None:
        return None
    listener = bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    monitor = Monitor(Metrics())
    await monitor.open(listener)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return monitor, f"http://{host}:{port}"


def watched_certificates(config: NodeConfig) -> dict[str, Path]:
    """Every certificate this node shows to somebody, by use."""
    files = {name: listener.cert for name, listener in config.listeners}
    files |= {f"device_{peer.name}": peer.device.cert for peer in config.peers if peer.device is not None}
    return files
