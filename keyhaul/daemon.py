"""Runs one node as a daemon: hardened before it holds a secret, watched, reloaded, stopped in order."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Mapping

import structlog

from keyhaul import config
from keyhaul.edge.server import bind
from keyhaul.errors import ConfigError, KeyhaulError
from keyhaul.hardening import drop_privileges, harden
from keyhaul.node import Node
from keyhaul.notify import feed_watchdog, notify, reloading

log = structlog.get_logger("keyhaul.node")


async def serve(
    settings: config.NodeConfig,
    *,
    sockets: Mapping[str, socket.socket] | None = None,
    make: Callable[[config.NodeConfig], Node] = Node,
) -> None:
    """Run a node until SIGTERM, SIGINT or cancellation; then finish requests, and stop it in order.

    Ports are bound first, so that root is needed for nothing else. Raises ConfigError or SealError.
    """
    for missing in harden():
        log.warning("not hardened", what=missing)
    sockets = dict(sockets or {})
    for name, listener in settings.listeners:
        if name not in sockets:
            sockets[name] = bind(listener.host, listener.port)
    if settings.user:
        drop_privileges(settings.user)
    node = make(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reloads: set[asyncio.Task[None]] = set()
    loop.add_signal_handler(signal.SIGHUP, lambda: reloads.add(loop.create_task(reload(node))))
    watchdog = loop.create_task(feed_watchdog(), name="watchdog")
    try:
        await node.start(sockets)
        gc.freeze()  # what start-up made stays: collections need not walk it again and again
        gc.set_threshold(20_000, 20, 20)
        sys.setswitchinterval(0.0005)  # the store's thread must not wait 5 ms to say that it is done
        notify("READY=1", f"STATUS={settings.name} serves")
        await stop.wait()
    finally:
        notify("STOPPING=1", f"STATUS={settings.name} finishes its requests")
        await node.stop()
        watchdog.cancel()


async def reload(node: Node) -> None:
    """SIGHUP: configuration and certificates anew; what does not load stays as it was, says the log."""
    reloading()
    try:
        await node.reload()
    except ConfigError as error:
        log.error("not reloaded: the configuration has mistakes", cause=error.cause)
    except KeyhaulError as error:
        log.error("not all was reloaded", cause=error.cause)
    notify("READY=1")
