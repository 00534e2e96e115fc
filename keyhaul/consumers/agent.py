"""One agent, put together: hardened before it holds a key, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import structlog

from keyhaul.client import AsyncClient
from keyhaul.config.write import write
from keyhaul.consumers.agreement import Age, Initiator, Responder, until
from keyhaul.consumers.channel import Caller, Listening
from keyhaul.consumers.port import Consumer
from keyhaul.consumers.settings import AgentConfig
from keyhaul.edge import tls
from keyhaul.hardening import harden
from keyhaul.notify import notify

GRACE = 10.0  # seconds that an agreement under way may take after SIGTERM
FRESH_CERTIFICATES = 60.0  # seconds between looks at the responder's certificate files

log = structlog.get_logger("keyhaul.agent")


async def once(config: AgentConfig) -> UUID:
    """An initiator's work for a single key: its id, when it is in use at both ends. Raises KeyhaulError."""
    async with _parts(config) as (sae, consumer):
        return await _initiator(config, sae, consumer, lambda: None).rotate()


async def serve(config: AgentConfig, ready: Callable[[str], None]) -> None:
    """Keep the program in fresh keys until SIGTERM or SIGINT. Raises ConfigError before it begins.

    `ready` is told the address of the channel, once it is open.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _parts(config) as (sae, consumer):
        age = Age(config.max_age, lock=config.lock)
        end: Initiator | Responder
        if config.role == "initiator":
            end = _initiator(config, sae, consumer, age.renewed)
        else:
            end = Responder(sae, config.peer, consumer, age.renewed)
        watching = loop.create_task(age.watch(end.lock), name="age")
        try:
            if isinstance(end, Initiator):
                _ready(config, config.url, ready)
                await _ask(config, end, stop)
            else:
                await _respond(config, end, stop, ready)
        finally:
            notify("STOPPING=1")
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _ask(config: AgentConfig, initiator: Initiator, stop: asyncio.Event) -> None:
    keeping = asyncio.ensure_future(initiator.keep(config.interval, stop))
    ending = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([keeping, ending], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([keeping], timeout=GRACE)
        if keeping.done():
            keeping.result()  # raises if a bug ended it
    finally:
        for task in (keeping, ending):
            task.cancel()
        await asyncio.gather(keeping, ending, return_exceptions=True)


async def _respond(
    config: AgentConfig, responder: Responder, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    listening = Listening(config.channel, config.peer, responder)
    _ready(config, await listening.open(config.host, config.port), ready)
    try:
        while not stop.is_set():
            await until(stop, FRESH_CERTIFICATES)
            assert listening.context is not None
            for each in tls.reload({"channel": listening.context}).refused:
                log.warning("the new certificate cannot be used; the last one stays", cause=each)
    finally:
        await listening.close()


@contextlib.asynccontextmanager
async def _parts(config: AgentConfig) -> AsyncIterator[tuple[AsyncClient, Consumer]]:
    for missing in harden():
        log.warning("not hardened", what=missing)
    consumer = config.consumer()
    own = config.own
    # Mistakes in the files are found now, not with the first key.
    await asyncio.to_thread(tls.client_context, own, tls.Policy.COMPATIBLE)
    await asyncio.to_thread(tls.client_context, config.channel, tls.Policy.PQ)
    try:
        async with AsyncClient(config.node, cert=own.cert, key=own.key, ca=own.ca) as sae:
            yield sae, consumer
    finally:
        await consumer.close()


def _initiator(
    config: AgentConfig, sae: AsyncClient, consumer: Consumer, renewed: Callable[[], None]
) -> Initiator:
    return Initiator(sae, config.peer, Caller(config.url, config.channel, config.peer), consumer, renewed)


def _ready(config: AgentConfig, url: str, ready: Callable[[str], None]) -> None:
    log.info("agent ready", role=config.role, peer=config.peer, channel=url)
    notify("READY=1", f"STATUS={config.role} of keys with {config.peer}")
    if config.ready_file is not None:
        write(config.ready_file, json.dumps({"pid": os.getpid(), "role": config.role, "channel_url": url}))
    ready(url)
