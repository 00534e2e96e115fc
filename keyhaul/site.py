"""This node as the relay sees it: its name, its neighbours, its ledger, and the settings of its keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from keyhaul.errors import NoRoute, NoSuchTarget, PeerUnreachable, Refused
from keyhaul.keys import Row
from keyhaul.messages.etsi020 import Dialect
from keyhaul.messages.payload import Scheme
from keyhaul.pairing import Pairing
from keyhaul.policy import NO_POLICY, PathPolicy
from keyhaul.ports import Clock, Ledger, Link
from keyhaul.rounds import Payer, behind
from keyhaul.story import NO_TRACER, Tracer


@dataclass(frozen=True, slots=True)
class Settings:
    """How this node treats keys. Times in seconds.

    `release`: `relayed` hands a key to the master once every target's node holds it durably;
    `immediate` (paper A) as soon as it is on its way. `scheme`: what is used where a request names
    none; `auto` is `masked` where a relay lies between and `trusted` between neighbours. `pool`: keys
    kept ready per pair of SAEs that has asked once. `pen`: the private enterprise number that 020
    extension names carry. `void_delivered`: send paper B's void back along the path once a key was fetched.
    """

    release: str = "relayed"
    scheme: str = "auto"
    request_timeout: float = 15.0
    ttl: float = 86_400.0
    retention: float = 86_400.0
    pool: int = 0
    key_size: int = 256  # bits, the default of a request
    pen: int = 32473
    max_key_count: int = 100_000
    void_delivered: bool = False


@dataclass(frozen=True, slots=True)
class ForeignPeer:
    """A key manager of another maker, spoken to in plain 020. `callback`: where it expects our acks."""

    name: str
    saes: frozenset[str]
    dialect: Dialect = Dialect.V1_1_1


Obstacles = frozenset[str | tuple[str, str]]
"""Nodes and links that a way must not lead over."""


class Way(Protocol):
    """A way through the network."""

    @property
    def hops(self) -> tuple[str, ...]: ...


class View(Protocol):
    """What routing knows (see keyhaul.routing)."""

    def home(self, sae_id: str) -> str:
        """The node that serves an SAE. Raises NoSuchTarget."""

    def foreign(self, sae_id: str) -> bool:
        """Whether an SAE sits behind a key manager of another maker."""

    def saes(self, node: str) -> list[str]:
        """The SAEs that a node serves, or is the gateway to."""

    def hops(self, source: str, destination: str, avoid: Obstacles = frozenset()) -> tuple[str, ...]:
        """The nodes from source to destination. Raises NoRoute."""

    def detour(
        self,
        source: str,
        destination: str,
        failed: Iterable[tuple[str, ...]],
        avoid: Obstacles = frozenset(),
    ) -> Way:
        """Another way than those that failed. Raises NoRoute."""

    def lacking(self, labels: frozenset[str]) -> Obstacles:
        """The links that cannot keep one of these labels, whatever their nodes say."""

    def picture(self, hops: tuple[str, ...]) -> str:
        """The path as people read it: `a=b-c`."""

    def labels(self, hops: tuple[str, ...]) -> list[frozenset[str]]:
        """What each link on the way promises against wiretappers."""


class Quota(Protocol):
    """What neighbours may cost this node (see keyhaul.admission)."""

    def keys(self, peer: str, number: int, now: float) -> None:
        """A neighbour is about to fill so many rows. Raises Unavailable; then nothing may be kept."""


class Note(Protocol):
    """Takes a line for the audit log."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def _unnoted(event: str, **fields: Any) -> None:
    """Nobody keeps a log."""


class _NoQuota:
    def keys(self, peer: str, number: int, now: float) -> None:
        """As many as it likes."""


@dataclass(slots=True)
class Site:
    """Everything a step of the relay may use. Nothing in it is global."""

    name: str
    ledger: Ledger
    links: Mapping[str, Link]
    view: View
    schemes: Mapping[str, Scheme]
    pairing: Pairing
    clock: Clock
    settings: Settings
    callback: str = ""
    foreign: Mapping[str, ForeignPeer] = field(default_factory=dict)
    quota: Quota = field(default_factory=_NoQuota)
    note: Note = _unnoted
    policy: PathPolicy = NO_POLICY
    tracer: Tracer = NO_TRACER

    def link(self, peer: str) -> Link:
        """The link to a neighbour. Raises PeerUnreachable if there is none."""
        link = self.links.get(peer)
        if link is None:
            raise PeerUnreachable(f"{peer!r} is not a neighbour of {self.name!r}", "check the link list")
        return link

    def beyond(self, sae_id: str) -> str | None:
        """The foreign key manager behind which an SAE sits, if it is one of this node's."""
        for peer in self.foreign.values():
            if sae_id in peer.saes:
                return peer.name
        return None

    def legs(self, targets: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """Targets by where their keys must go: a node, this node, or a foreign key manager behind it."""
        legs: dict[str, tuple[str, ...]] = {}
        for target in targets:
            leg = self.beyond(target) or self.view.home(target)
            legs[leg] = (*legs.get(leg, ()), target)
        return legs

    def targets_at(self, row: Row, leg: str) -> tuple[str, ...]:
        """Those of a row's targets that one of its legs serves."""
        return row.targets if row.ref.leg == leg else self.legs(row.targets).get(leg, ())

    def payer(self, peer: str, route: tuple[str, ...], initiator: str) -> Payer:
        """Whose turn keys of a neighbour take. A node speaks for its own applications only."""
        try:
            known = self.view.home(initiator) == route[0]
        except NoSuchTarget:
            known = False
        return behind(peer, route[0], initiator if known else "")

    def came(self, route: tuple[str, ...], peer: str) -> None:
        """Keys came from a neighbour: it has to be the node before this one on their route. Raises Refused.

        So honest nodes see to it that the beginning of a route is where the keys began.
        """
        at = route.index(self.name) if self.name in route else 0
        if not at or route[at - 1] != peer:
            raise Refused("the route does not lead over its sender", invalid_routing="previous hop")

    def next_hop(self, route: tuple[str, ...]) -> str:
        """The neighbour after this node on a route. Raises NoRoute if the route is not ours."""
        at = route.index(self.name) if self.name in route else len(route)
        if at + 1 >= len(route) or route[at + 1] not in self.links:
            raise NoRoute(f"the route {'>'.join(route)} does not go on from {self.name}")
        return route[at + 1]
