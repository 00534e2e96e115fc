"""One node, put together: the only module that names concrete classes, and the order they start in.

1. unseal the root, open the ledger          4. resume what was under way
2. read keys, numbers, descriptors           5. open the three ports
3. build links, relay, origin                6. refill, gossip, sweep; say `ready`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from keyhaul import __version__, blindkeys, config, vault, views, wayfinding
from keyhaul.activity import Activity
from keyhaul.admission import Admission
from keyhaul.audit import keeping
from keyhaul.audit.delivery import AuditedDelivery
from keyhaul.audit.log import AuditLog
from keyhaul.control import Directory
from keyhaul.dashboard.local import LocalSource, certificates
from keyhaul.dashboard.pages import Pages
from keyhaul.detours import Detours
from keyhaul.edge import admin, sae, skip, tls
from keyhaul.edge import peer as peering
from keyhaul.edge.accepting import Bounds, Crowd, Traffic
from keyhaul.edge.controls import ControlPages
from keyhaul.edge.server import Application, Port, Render, bind
from keyhaul.edge.turns import Holdings, Turns
from keyhaul.edge.worker import settings as worker_settings
from keyhaul.edge.workers import Workers
from keyhaul.entropy import MixedEntropy, configured
from keyhaul.errors import ConfigError, KeyhaulError
from keyhaul.explaining import Avoid
from keyhaul.gossip import Gossip
from keyhaul.identity import Anchors, Federation, Identity, admin_name, node_name, sae_id
from keyhaul.kernel import Kernel
from keyhaul.letters import Letters
from keyhaul.logs import levels
from keyhaul.messages.etsi020 import PATHS
from keyhaul.messages.payload import Scheme
from keyhaul.messages.skip import Systems
from keyhaul.minting import DeviceMint, Mint, OwnMint
from keyhaul.monitor.instruments import Instruments, TimedDelivery
from keyhaul.monitor.listener import Monitor
from keyhaul.monitor.standing import Standing
from keyhaul.monitor.start import open_monitor, watched_certificates
from keyhaul.neighbourhood import Neighbourhood
from keyhaul.origin import Origin
from keyhaul.outbox import Outbox
from keyhaul.pairing import Pairing
from keyhaul.receipts import Receipts
from keyhaul.relay import Relay
from keyhaul.reloading import Outcome, differences
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.paper_a import PaperA
from keyhaul.schemes.trusted import Trusted
from keyhaul.settlement import Settlement
from keyhaul.site import Site
from keyhaul.tasks import Tasks, WallClock
from keyhaul.traces import open_tracer
from keyhaul.whispers import Whispers

SWEEP_EVERY = 1.0  # seconds

log = structlog.get_logger("keyhaul.node")


_CALLERS = {"sae": sae_id, "node": node_name, "admin": admin_name, "plain": node_name, "skip": sae_id}
"""Whose certificates each port believes, and the name it takes from them."""


class Node:
    """A running node. `start` and `stop` once each; `urls` after `start`."""

    def __init__(self, settings: config.NodeConfig) -> None:
        self.config = settings
        self.urls: dict[str, str] = {}
        self._paper_a = settings.delivery.profile == "paper-a"
        self.admission = Admission(settings.admission)
        self._tasks = Tasks()
        self._clock = WallClock()
        self._started = time.time()
        self._ports: list[Port] = []
        self._reloading = asyncio.Lock()
        self.entropy = MixedEntropy()
        self._stack = contextlib.AsyncExitStack()
        self.audit: AuditLog | None = None
        self.monitor: Monitor | None = None
        self._traffic: dict[str, Traffic] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._saes: sae.SaeApplication | None = None
        self._workers: Workers | None = None
        self._events: Counter[str] = Counter()
        self._draining = False
        self._page = LocalSource(lambda: self.network, self.status, self.trace, self.route, self.audit_tail)

    # ------------------------------------------------------------------ start

    async def start(self, sockets: Mapping[str, socket.socket] | None = None) -> None:
        """Everything in the order of the module docstring. Raises ConfigError or SealError."""
        levels.usually(self.config.log.level)
        for name, listener in self.config.listeners:
            if sockets is None or name not in sockets:
                sockets = {**(sockets or {}), name: bind(listener.host, listener.port)}
        assert sockets is not None
        self.urls |= {name: views.url(self.config, name, sockets[name]) for name, _ in self.config.listeners}
        monitoring = await open_monitor(self.config.monitor)
        if monitoring is not None:
            self.monitor, self.urls["monitor"] = monitoring
            self._stack.push_async_callback(self.monitor.close)
        self.tracer = open_tracer(self.config.traces, self.config.name, self.config.domain)
        self._stack.push_async_callback(self.tracer.close)
        self.vault = await vault.open_vault(self.config.store)
        self._stack.push_async_callback(self.vault.ledger.close)
        self._sealer = await vault.open_private(self.config.store, self.config.schemes.private_keys)
        self._stack.push_async_callback(self.entropy.close)
        wanted = self.config.entropy
        self.entropy.start(configured.sources(wanted), wanted.on_failure, wanted.buffer)
        self._build()
        await self._open_audit()
        await self._load()
        for message in await self.vault.ledger.messages():
            self.outbox.send(message)
        # Stopping goes backwards: ports first, so that requests can finish; then tasks; then the ledger.
        self._stack.push_async_callback(self._tasks.stop)
        await self._serve(sockets)
        self._run()
        self._say_ready()

    async def _open_audit(self) -> None:
        ledger, sealed_by = self.vault.ledger, {"kind": self.vault.kind, "grade": self.vault.grade}
        self.audit = await keeping.open_audit(self.config.audit, self.identity, ledger)
        if self.audit is None:
            return
        self._stack.push_async_callback(keeping.end, self.audit, ledger)
        self.audit.note("unsealed", **sealed_by, incarnation=ledger.incarnation.hex())
        await keeping.tell_of_changes(self.audit, self.config, ledger)
        self._tasks.spawn(keeping.keep(self.audit, ledger), "audit")

    def _note(self, event: str, **fields: Any) -> None:
        """Count an event; and a line for the audit log, if there is one."""
        self._events[event] += 1
        if self.audit is not None:
            self.audit.note(event, **fields)

    def _build(self) -> None:
        settings, ledger = self.config, self.vault.ledger
        node = settings.listeners.node
        self.identity = Identity.load(_read(node.cert), _read(node.key))
        if self.identity.name != settings.name:
            raise ConfigError(
                f"{node.cert}: the certificate is for {self.identity.name!r}, the node is {settings.name!r}",
                "use the certificate that was made for this node",
            )
        self.federation = Federation(Anchors.of_domains(_read(node.ca)), settings.network.nodes)
        self.directory = Directory(self.federation, settings.network.nodes)
        around = self.neighbourhood = Neighbourhood(
            settings, ledger, self._clock, self.identity, self.federation
        )
        self._stack.push_async_callback(around.close)
        self.peers, self.links, call = around.peers, around.links, around.peers.call
        self._build_schemes()
        self.gossip = Gossip(
            self.links,
            lambda peer, body: call(peer, "records", body),
            self.directory,
            self.pairing,
            ledger,
            self._clock,
        )
        if self.blind_keys is not None:
            self.blind_keys.hurry = self.gossip.hurry
        self._build_relay()

    def _build_schemes(self) -> None:
        settings, ledger, wanted = self.config, self.vault.ledger, self.config.schemes
        schemes: list[Scheme] = [Trusted(), Masked(once=wanted.masked.form == "batch")]
        whispers = Whispers(self.directory, self._clock)
        blind, self.blind_keys = blindkeys.build(
            wanted.blind, ledger, self._clock, self.directory, whispers, self._tasks.aside, self._sealer
        )
        schemes = [PaperA()] if self._paper_a else [*schemes, *blind]
        self.schemes = {scheme.name: scheme for scheme in schemes}
        self.pairing = Pairing(
            self.identity,
            settings.domain,
            self.directory,
            ledger,
            self._clock,
            kem=wanted.masked.kem,
            schemes=tuple(self.schemes),
            labels=("pq",) if settings.listeners.node.tls == "pq" and not self._paper_a else (),
            others=[self.blind_keys] if self.blind_keys is not None else [],
            sealer=self._sealer,
        )
        whispers.own = self.pairing.own_key

    def _build_relay(self) -> None:
        settings = self.config
        self.network = views.network(settings.network)
        self.site = Site(
            name=settings.name,
            ledger=self.vault.ledger,
            links=self.links,
            view=self.network,
            schemes=self.schemes,
            pairing=self.pairing,
            clock=self._clock,
            settings=views.delivery(settings),
            callback=self.urls.get("plain", self.urls["node"]) + PATHS["ack"],
            foreign=views.foreign(settings),
            quota=self.admission,
            note=self._note,
            policy=settings.policy,
            tracer=self.tracer,
        )
        self.outbox = Outbox(self.peers, self._clock, self._tasks.spawn)
        self.outbox.tracer = self.tracer
        self.standing = Standing(self.links, self.neighbourhood.devices, self.outbox)
        self.settlement = Settlement(self.site, self.outbox)
        self.outbox.outcome = self.settlement
        self.outbox.seal = Letters(self.site).seal
        self.relay = Relay(self.site, self.outbox, self.settlement)
        keep = settings.delivery.ttl + settings.delivery.retention
        self.receipts = Receipts(self.identity, self.vault.ledger, self._clock, keep)
        self.relay.receipted = self.receipts.note
        self._stack.push_async_callback(self.receipts.seal)
        level = settings.delivery.pool
        rules = replace(settings.pools, fixed=0 if self._paper_a else None if level == "auto" else level)
        self.origin = Origin(self.site, self.relay, self.settlement, self._tasks.spawn, self._mint(), rules)
        self.activity = Activity(self.origin, time.monotonic)

    def _mint(self) -> Mint:
        """Profile `paper-a` hands out the local device's keys; everything else makes its own."""
        if self._paper_a and (devices := self.neighbourhood.devices()):
            return DeviceMint(next(iter(devices.values())))
        return OwnMint(self.entropy, self._clock)

    async def _load(self) -> None:
        await self.pairing.start()
        await self.gossip.start()
        await self.neighbourhood.load()
        await self.origin.start()

    async def _serve(self, sockets: Mapping[str, socket.socket]) -> None:
        kernel = Kernel(self.relay, self.settlement, self.neighbourhood.refills, self.gossip, self.outbox)
        turns = Turns(self.admission, time.monotonic)
        delivery: sae.Delivery = self.activity
        if self.audit is not None:
            delivery = AuditedDelivery(delivery, self.audit)
        if self.monitor is not None:
            delivery = TimedDelivery(delivery, self.monitor.metrics.seconds)
        saes = self._saes = sae.SaeApplication(delivery, self.config.limits, turns, self.tracer)
        operators = admin.AdminApplication(
            self.status, self.trace, self.replace_entropy, self.origin.probe
        ).application()
        ControlPages(self).add_to(operators)
        Pages(self._page).add_to(operators)
        applications: dict[str, tuple[Application, Render, Bounds]] = {
            "sae": (saes.reply, sae.render, Bounds()),
            "admin": (operators, admin.render, Bounds(grace=peering.BOUNDS.grace)),
        }
        known = (*self.config.network.saes, *self.config.network.foreign)
        systems, limits = Systems(self.config.skip.systems, known), lambda: saes.limits
        encryptors = skip.SkipApplication(delivery, systems, self.entropy.read, turns, limits)
        applications["skip"] = encryptors.reply, skip.render, Bounds()
        for name, neighbours in self._neighbour_ports(kernel, turns).items():
            applications[name] = (neighbours.application(), peering.render, peering.BOUNDS)
        # Ports of applications close first: what they still wait for comes in over the others.
        others: list[Port | Workers] = []
        served: list[Port | Workers] = []
        for group in (others, served):
            self._stack.push_async_callback(_close_all, group)
        for name, listener in self.config.listeners:
            application, render, bounds = applications[name]
            credentials = tls.Credentials(listener.cert, listener.key, listener.ca)
            context = tls.server_context(credentials, tls.Policy(listener.tls))
            self._contexts[f"{name} port"] = context
            bounds = replace(bounds, crowd=Crowd.of(self.config.admission))
            port: Port | Workers
            if name == "sae" and self.config.workers:
                told = worker_settings(credentials, tls.Policy(listener.tls), bounds)
                number = self.config.workers
                port = self._workers = Workers(number, saes, sae.render, told, bounds, note=self._note)
            else:
                port = Port(name, application, render, _CALLERS[name], context, bounds, note=self._note)
            (served if name in ("sae", "skip") else others).append(port)
            await port.open([sockets[name]])
            self._traffic[name] = port.traffic

    def _neighbour_ports(self, kernel: Kernel, turns: Turns) -> dict[str, peering.NodePort]:
        """One port for all neighbours, or one for ours and one for foreign key managers."""
        around = self.neighbourhood
        return {
            name: peering.NodePort(
                kernel,
                served,
                around.callbacks,
                drafts=around.drafts,
                federation=self.federation,
                turns=turns,
            )
            for name, served in around.kinds.items()
        }

    def _run(self) -> None:
        spawn = self._tasks.spawn
        spawn(self.gossip.run(), "gossip")
        spawn(self._sweep(), "sweep")
        spawn(Holdings(self.admission, self.vault.ledger).run(), "holdings")
        self.neighbourhood.run(self._tasks.start)
        spawn(self.standing.run(), "devices")
        if self.monitor is not None:
            self.monitor.instruments = self._instruments()
            spawn(self.monitor.instruments.watch(), "lag")

    def _instruments(self) -> Instruments:
        return Instruments(
            status=self.status,
            traffic=self._traffic,
            events=self._events,
            outbox=self.outbox,
            links=self.links,
            peers=self.peers,
            names=self.neighbourhood.names,
            ledger=self.vault.ledger,
            activity=self.activity,
            certificates=watched_certificates(self.config),
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            try:
                await self.settlement.sweep()
                await self.receipts.seal_if_due()
                await self.origin.tend()
            except KeyhaulError as error:
                log.warning("sweep failed; tried again later", cause=error.cause)

    def _say_ready(self) -> None:
        log.info("node ready", node=self.config.name, grade=self.vault.grade, urls=self.urls)
        if self.config.ready_file is not None:
            ready = {
                "name": self.config.name,
                "pid": os.getpid(),
                **{f"{name}_url": url for name, url in self.urls.items()},
            }
            _write_whole(self.config.ready_file, json.dumps(ready))

    # ------------------------------------------------------------------ reload and stop

    async def reload(self, operator: str = "") -> dict[str, list[str]]:
        """Read the configuration and all certificates again, for all that comes from now on.

        Returns what changed, what could not be loaded and stays as it was, and what needs a restart.
        Raises ConfigError, and nothing has changed, if the configuration has mistakes.
        """
        async with self._reloading:
            fresh = await asyncio.to_thread(config.load, self.config.file)
            outcome = Outcome()
            taken, outcome.restart = differences(self.config, fresh)
            self._reload_certificates(outcome)
            if {"peers", "network"} & {*taken}:
                taken = await self._reload_network(fresh, taken, outcome)
            if self._saes is not None:
                self._saes.limits = fresh.limits
            limits = fresh.limits
            self.site.settings = replace(
                self.site.settings, key_size=limits.key_size, max_key_count=limits.max_key_count
            )
            self.site.policy = fresh.policy
            self.admission.use(fresh.admission)
            levels.usually(fresh.log.level)
            self.config = replace(self.config, **{name: getattr(fresh, name) for name in taken})
            if {"policy", "network"} & {*taken}:
                await self.origin.reconsider()
            outcome.changed += [name for name in taken if name != "peers"]
            told = outcome.plain()
            self._note("changed", part="reload", operator=operator, **told)
            if self.audit is not None:
                await keeping.tell_of_changes(self.audit, self.config, self.vault.ledger)
        log.warning("reloaded", operator=operator, **told)
        return told

    def _reload_certificates(self, outcome: Outcome) -> None:
        done = tls.reload({**self._contexts, **self.neighbourhood.contexts})
        if self._workers is not None:
            self._workers.reload()
        outcome.changed += [
            f"certificate of the {each}" if each.endswith("port") else each for each in done.shows
        ]
        sealed = {f"towards {name}" for name in self.links}  # they believe whom the node port believes
        outcome.changed += [
            f"CAs that the {each} believes" if each.endswith("port") else f"CAs believed {each}"
            for each in done.believes
            if each != "node port" and each not in sealed
        ]
        outcome.kept += done.refused
        own = self.config.listeners.node
        try:
            anchors = Anchors.of_domains(_read(own.ca))
            fresh = Identity.load(_read(own.cert), _read(own.key))
            if fresh.der != self.identity.der:
                self.identity.renew(fresh)
                self.gossip.hurry()  # others must know what descriptors and statements are signed with
        except ConfigError as error:
            outcome.kept.append(f"who this node is and whom it believes: {error.cause}")
            return
        if anchors != self.federation.anchors:
            self.federation.change(anchors, self.config.network.nodes)
            outcome.changed.append("CAs of nodes that are believed")

    async def _reload_network(
        self, fresh: config.NodeConfig, taken: list[str], outcome: Outcome
    ) -> list[str]:
        """Neighbours and routes, which belong together. Returns what was taken over."""
        known, linked = set(self.neighbourhood.names), set(self.links)
        try:
            plan = await self.neighbourhood.prepare(fresh.peers)
        except ConfigError as error:
            outcome.kept.append(f"peers and network: {error.cause}")
            return [name for name in taken if name not in ("peers", "network")]
        nodes = fresh.network.nodes
        self.federation.change(self.federation.anchors, nodes)
        self.directory.change(nodes)
        over = self.neighbourhood.take_over(plan)
        self.network = self.site.view = views.network(fresh.network)
        self.site.foreign = views.foreign(fresh)
        self.relay.detours = Detours(self.site.name, self.network)
        for name in linked - self.links.keys():
            self.gossip.leave(name)
        for name in self.links.keys() - linked:
            self.gossip.join(name)
        if self.monitor is not None and self.monitor.instruments is not None:
            self.monitor.instruments.names = self.neighbourhood.names
            self.monitor.instruments.certificates = watched_certificates(fresh)
        outcome.changed += plan.words(known)
        await self.neighbourhood.let_go(plan, over)
        return taken

    async def stop(self) -> None:
        """Close the ports, let requests finish, stop the tasks, close the ledger."""
        log.info("node stops", node=self.config.name)
        self._draining = True
        await self._stack.aclose()

    # ------------------------------------------------------------------ what operators see

    async def status(self) -> dict[str, Any]:
        """For the admin port and `keyhaul status`."""
        return {
            "name": self.config.name,
            "domain": self.config.domain,
            "version": __version__,
            "uptime_seconds": round(time.time() - self._started, 3),
            "urls": dict(self.urls),
            "store": {
                "kind": self.vault.kind,
                "grade": self.vault.grade,
                "warnings": list(self.vault.warnings),
                "private_keys": self.config.schemes.private_keys,
                "file": str(self.config.store.file),
                "broken": self.vault.ledger.engine.broken,
            },
            "draining": self._draining,
            "network": self._page.mark(),
            "entropy": self.entropy.status(),
            "nodes_known": self.directory.nodes(),
            "schemes": sorted(self.schemes),
            "links": self.standing.links(),
            "silent": self.outbox.silent(),
            "skew": dict(self.peers.skew),
            "pools": self.origin.pools.summary(),
            "admission": self.admission.summary(),
            "workers": self._workers.summary() if self._workers is not None else None,
            "audit": self.audit.summary() if self.audit is not None else None,
            "log": levels.summary(),
            "outbox": self.outbox.waiting(),
            "unfinished": len(await self.vault.ledger.unfinished()),
            "activity": self.activity.summary(),
            "certificates": await certificates({name: each.cert for name, each in self.config.listeners}),
        }

    async def replace_entropy(self, table: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """Other sources until the next start, for the admin port; requests go on meanwhile."""
        log.warning("entropy sources are to be replaced", operator=operator)
        self._note("changed", part="entropy", operator=operator)
        await configured.replace(self.entropy, self.config.file, table)
        return self.entropy.status()

    async def route(
        self, source: str, destination: str, avoid: Avoid = frozenset(), labels: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Which way keys go between two nodes or applications, and why."""
        asked = source, destination, avoid, labels
        return await wayfinding.explained(self.site, self.relay.detours, self.network, *asked)

    async def audit_tail(self, most: int) -> list[dict[str, Any]]:
        """The last lines of the audit log, oldest first; none where none is kept."""
        return [] if self.audit is None else await self.audit.tail(most)

    def log_level(self) -> dict[str, Any]:
        """For the admin port: which lines are written now."""
        return levels.summary()

    def use_log_level(self, level: str, seconds: float | None, operator: str) -> dict[str, Any]:
        """Another log level, for some seconds or until the next start. Raises Malformed."""
        levels.use(level, seconds)
        log.warning("the log level is another now", now=level, seconds=seconds, operator=operator)
        self._note("changed", part="log level", operator=operator, level=level)
        return levels.summary()

    async def trace(self, key_id: UUID) -> list[Mapping[str, Any]]:
        """Every row of one key here: states, hops, times, and the seal that signs its receipt."""
        await self.receipts.seal()
        rows = await self.vault.ledger.find(key_id)
        return [await self.receipts.shown({"node": self.config.name, **row.summary()}) for row in rows]


def prepare(settings: config.NodeConfig) -> list[str]:
    """Make a new node's root secret (`init`); returns warnings to show. Raises SealError."""
    settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = vault.create_root(settings.store)
    opened.root.wipe()
    return [f"root secret kept by {opened.kind}, grade {opened.grade.value}", *opened.warnings]


async def _close_all(ports: Sequence[Port | Workers]) -> None:
    """All at once, so that they take no longer than one."""
    await asyncio.gather(*(port.close() for port in ports))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "check the path in the configuration") from None


def _write_whole(path: Path, text: str) -> None:
    """Readers see the whole file or none of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)
