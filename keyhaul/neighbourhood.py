"""The neighbours of one node as its configuration has them now: how to reach each, its link, its device.

A reload does the work of a start, one neighbour at a time: `prepare` makes what is new and touches nothing,
`take_over` puts it in the place of what was, in one turn of the event loop, and `let_go` closes what is over.
Everybody else holds the mappings of this object and looks into them anew each time.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from keyhaul import config
from keyhaul.edge import tls
from keyhaul.edge.peer import PeerKind
from keyhaul.edge.posting import HttpPeers
from keyhaul.identity import Federation, Identity
from keyhaul.links.etsi014 import Device
from keyhaul.links.onetime import OneTimeKey, OneTimeKeys
from keyhaul.links.prefetch import DeviceKeys
from keyhaul.links.refill import Refill
from keyhaul.links.sealed import SealedLink
from keyhaul.links.supply import Supply
from keyhaul.messages.envelope import Mode, Suite
from keyhaul.messages.etsi020 import PATHS
from keyhaul.ports import Clock
from keyhaul.stores.sqlcipher import SqlcipherLedger

KEM_LOW, KEM_HIGH = 32, 96  # one-time keys of a neighbour held ready

Start = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""Starts a supervised task that can be cancelled."""


@dataclass(slots=True)
class Neighbour:
    """All that belongs to one; a foreign key manager has no link."""

    peer: config.Peer
    context: ssl.SSLContext
    link: SealedLink | None = None
    refill: Refill | None = None
    device: Device | None = None
    device_context: ssl.SSLContext | None = None
    task: asyncio.Task[None] | None = None

    def same_link(self, peer: config.Peer) -> bool:
        """Whether a configuration changes nothing but where the neighbour is reached."""
        return (peer.kind, peer.mode, peer.device) == (self.peer.kind, self.peer.mode, self.peer.device)


@dataclass(slots=True)
class Plan:
    """What `prepare` found: neighbours that come, go, or are to be reached elsewhere."""

    fresh: list[Neighbour] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    moved: list[config.Peer] = field(default_factory=list)

    def words(self, known: set[str]) -> list[str]:
        """For people; `known` are the neighbours there were."""
        came = [
            f"peer {each.peer.name} {'anew' if each.peer.name in known else 'added'}" for each in self.fresh
        ]
        return [
            *came,
            *(f"peer {name} removed" for name in self.gone),
            *(f"peer {each.name}" for each in self.moved),
        ]


class Neighbourhood:
    """See the module docstring. `peers` sends to all of them."""

    def __init__(
        self,
        settings: config.NodeConfig,
        ledger: SqlcipherLedger,
        clock: Clock,
        identity: Identity,
        federation: Federation,
    ) -> None:
        self._settings = settings  # its name, ports, prefetch and profile, which a reload leaves alone
        self._ledger = ledger
        self._clock = clock
        self._identity = identity
        self._federation = federation
        self._paper_a = settings.delivery.profile == "paper-a"
        self._all: dict[str, Neighbour] = {}
        self._addresses: dict[str, tuple[str, ssl.SSLContext]] = {}
        self._start: Start | None = None
        self.peers = HttpPeers(self._addresses, federation=federation)
        self.links: dict[str, SealedLink] = {}
        self.refills: dict[str, Refill] = {}
        self.kinds: dict[str, dict[str, PeerKind]] = {"node": {}}
        if settings.listeners.plain is not None:
            self.kinds["plain"] = {}
        self.callbacks: dict[str, str] = {}
        self.drafts: set[str] = set()
        for peer in settings.peers:
            self._put(self._make(peer))

    @property
    def names(self) -> list[str]:
        """All neighbours, in the order of the configuration."""
        return list(self._all)

    @property
    def contexts(self) -> dict[str, ssl.SSLContext]:
        """TLS contexts towards neighbours and devices, by what they are for."""
        found = {f"towards {name}": each.context for name, each in self._all.items()}
        devices = {name: each.device_context for name, each in self._all.items()}
        return found | {f"towards the device of {name}": each for name, each in devices.items() if each}

    def devices(self) -> dict[str, Device]:
        """The devices of all links, by neighbour."""
        return {name: each.device for name, each in self._all.items() if each.device is not None}

    async def load(self) -> None:
        """Read what earlier runs left of each link."""
        for link in self.links.values():
            await link.start()

    def run(self, start: Start) -> None:
        """Keep the supplies of all links full from now on, of those to come as well."""
        self._start = start
        for each in self._all.values():
            self._begin(each)

    async def close(self) -> None:
        """Close all connections."""
        for device in self.devices().values():
            await device.close()
        await self.peers.close()

    # ------------------------------------------------------------------ reload

    async def prepare(self, wanted: Sequence[config.Peer]) -> Plan:
        """What a new list of neighbours takes. Raises ConfigError; in any case nothing has changed yet."""
        names = {peer.name for peer in wanted}
        plan = Plan(gone=[name for name in self._all if name not in names])
        for peer in wanted:
            held = self._all.get(peer.name)
            if held is not None and held.peer == peer:
                continue
            if held is not None and held.same_link(peer):
                plan.moved.append(peer)
                continue
            plan.fresh.append(fresh := self._make(peer))
            if fresh.link is not None:
                await fresh.link.start()
        return plan

    def take_over(self, plan: Plan) -> list[Neighbour]:
        """Make a plan true. Returns what is over, for `let_go`."""
        over = [self._remove(name) for name in plan.gone]
        for fresh in plan.fresh:
            if fresh.peer.name in self._all:
                old = self._remove(fresh.peer.name)
                if fresh.link is not None and old.link is not None:
                    fresh.link.succeed(old.link)
                over.append(old)
            self._put(fresh)
            self._begin(fresh)
        for peer in plan.moved:
            held = self._all[peer.name]
            held.peer = peer
            self._put(held)
        return over

    async def let_go(self, plan: Plan, over: Sequence[Neighbour]) -> None:
        """End the tasks and connections of what is not there any more."""
        for each in over:
            if each.task is not None:
                each.task.cancel()
                await asyncio.gather(each.task, return_exceptions=True)
            if each.device is not None:
                await each.device.close()
        for name in (*plan.gone, *(peer.name for peer in plan.moved), *(each.peer.name for each in over)):
            await self.peers.hang_up(name)

    def _put(self, neighbour: Neighbour) -> None:
        peer = neighbour.peer
        self._all[peer.name] = neighbour
        self._addresses[peer.name] = peer.url, neighbour.context
        plain = peer.kind == "plain"
        port = "plain" if plain and "plain" in self.kinds else "node"
        self.kinds[port][peer.name] = PeerKind.PLAIN if plain else PeerKind.SEALED
        self.drafts.discard(peer.name)
        if plain:
            self.callbacks[peer.name] = (peer.callback or peer.url).rstrip("/") + PATHS["ack"]
            if peer.dialect == "draft-0.4":
                self.drafts.add(peer.name)
        if neighbour.link is not None and neighbour.refill is not None:
            self.links[peer.name], self.refills[peer.name] = neighbour.link, neighbour.refill

    def _remove(self, name: str) -> Neighbour:
        for kinds in self.kinds.values():
            kinds.pop(name, None)
        self.drafts.discard(name)
        for mapping in (self._addresses, self.callbacks, self.links, self.refills):
            mapping.pop(name, None)
        return self._all.pop(name)

    def _begin(self, neighbour: Neighbour) -> None:
        if self._start is not None and neighbour.refill is not None:
            neighbour.task = self._start(neighbour.refill.run(), f"refill {neighbour.peer.name}")

    # ------------------------------------------------------------------ making one

    def _make(self, peer: config.Peer) -> Neighbour:
        made = Neighbour(peer, self._client_context(peer))
        if peer.kind == "plain":
            return made
        keys = self._device_keys(made, peer.device) if peer.device is not None else None
        own_keys = OneTimeKeys(peer.name, self._ledger, self._clock)
        peer_keys: Supply[OneTimeKey] = Supply(
            # Paper A exchanges a key for every message when it is sent, so it keeps none ready.
            f"one-time keys of {peer.name}",
            *((0, 0) if self._paper_a else (KEM_LOW, KEM_HIGH)),
        )
        made.link = SealedLink(
            me=self._settings.name,
            peer=peer.name,
            mode=Mode.EXPANDED if self._paper_a else Mode(peer.mode),
            epoch=self._ledger.incarnation[:8],
            ledger=self._ledger,
            clock=self._clock,
            peer_keys=peer_keys,
            own_keys=own_keys,
            device=keys,
            suite=Suite.PAPER_A if self._paper_a else Suite.HKDF_SHA384,
        )
        made.refill = Refill(
            peer=peer.name,
            call=self._refill,
            signer=self._identity,
            anchors=self._federation,
            clock=self._clock,
            peer_keys=peer_keys,
            own_keys=own_keys,
            device=keys,
            epoch=self._ledger.incarnation[:8],
            heard=made.link.heard,
        )
        return made

    async def _refill(self, peer: str, body: bytes) -> bytes:
        return await self.peers.call(peer, "refill", body)

    def _client_context(self, peer: config.Peer) -> ssl.SSLContext:
        ports = self._settings.listeners
        own, policy = ports.node, tls.Policy(ports.node.tls)
        if peer.kind == "plain":
            # A foreign key manager may know no post-quantum group; nodes of ours always do.
            own, policy = ports.plain or own, tls.Policy.COMPATIBLE
        return tls.client_context(tls.Credentials(own.cert, own.key, own.ca), policy)

    def _device_keys(self, made: Neighbour, end: config.DeviceEnd) -> DeviceKeys:
        credentials = tls.Credentials(end.cert, end.key, end.ca)
        limits = {"key_size": end.key_size}
        if end.max_key_per_request:
            limits["max_key_per_request"] = end.max_key_per_request
        made.device_context = context = tls.client_context(credentials, tls.Policy(end.tls))
        made.device = Device(end.url, context, peer_sae=end.peer_sae, limits=limits, method=end.method)
        return DeviceKeys(
            peer=made.peer.name,
            owner=end.own_sae,
            device=made.device,
            ledger=self._ledger,
            clock=self._clock,
            key_size=end.key_size,
            low=self._settings.prefetch.low,
            high=self._settings.prefetch.high,
            ahead=not self._paper_a,
        )
