"""The twelve promises of keyhaul as checkers over a history, each violation told with its story.

Every harness (simulation in virtual time, real processes under faults, a test with two curl calls) writes
the same `keyhaul.testbed.history`, as far as it can see, and calls `check`. A promise about which a history
says nothing holds in it; `seen` tells which promises a history speaks about, so that nobody counts
silence as proof.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from keyhaul.testbed.history import Event, tell

NOT_FOUND = frozenset({400, 404})
"""How a node says that it has no such key; 503 and 401 say something else."""

BLIND = frozenset({"memory", "wire"})
"""Places where a key of the scheme `trusted` may be seen on a relay, and of the others may not."""


@dataclass(frozen=True)
class Limits:
    """What a run promised. Seconds.

    `ttl`: how long a key may be fetched; `skew`: how far the clocks of a run are apart at most;
    `recovery`: after `healed`, how long until every request has to succeed. `trusted`: whether relays may
    see keys in memory (scheme `trusted`).
    """

    ttl: float = 86_400.0
    skew: float = 0.0
    recovery: float = 60.0
    trusted: bool = False


@dataclass(frozen=True)
class Violation:
    """A broken promise: its number and name, what is wrong, and the keys or requests it is about."""

    number: int
    promise: str
    what: str
    about: tuple[str, ...]

    def story(self, events: Iterable[Event]) -> str:
        """What is wrong, and everything in the history that concerns it."""
        return f"promise {self.number} ({self.promise}) is broken: {self.what}\n{tell(events, self.about)}"


@dataclass
class _Key:
    """All that a history says about one key id."""

    got: list[Event] = field(default_factory=list)
    fetched: list[Event] = field(default_factory=list)
    fetching: list[Event] = field(default_factory=list)
    minted: list[Event] = field(default_factory=list)
    stored: list[Event] = field(default_factory=list)
    ended: list[Event] = field(default_factory=list)  # voided for somebody, expired at a node


@dataclass
class _View:
    """A history, indexed once for all checkers."""

    events: Sequence[Event]
    limits: Limits
    keys: dict[str, _Key] = field(default_factory=lambda: defaultdict(_Key))
    begun: dict[int, float] = field(default_factory=dict)  # when each request left
    outcome: dict[int, Event] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)  # SAE -> node
    restored: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # node -> when

    def __post_init__(self) -> None:
        for event in self.events:
            if event.verb == "home":
                self.homes.update((sae, event.who) for sae in event.to)
            elif event.verb == "restored":
                self.restored[event.who].append(event.at)
            elif event.verb in ("got", "fetched", "fetching", "minted", "stored"):
                getattr(self.keys[event.key_id], event.verb).append(event)
            elif event.verb in ("voided", "expired"):
                self.keys[event.key_id].ended.append(event)
            if event.verb in ("asked", "fetching"):
                self.begun.setdefault(event.request, event.at)
            if event.request and event.verb in ("got", "fetched", "refused", "cut"):
                self.outcome[event.request] = event

    def home(self, sae: str) -> str:
        return self.homes.get(sae, sae)


Found = Iterator[tuple[str, tuple[str, ...]]]
Checker = Callable[[_View], Found]


def same_bits(view: _View) -> Found:
    """Whoever receives a key receives the same bits as everybody else."""
    for key_id, key in view.keys.items():
        digests = {event.digest for event in (*key.got, *key.fetched)}
        if len(digests) > 1:
            yield f"key {key_id} was delivered with {len(digests)} different values", (key_id,)


def at_most_once(view: _View) -> Found:
    """A key is delivered at most once to each SAE: once to its master, once to each slave."""
    for key_id, key in view.keys.items():
        for deliveries in (key.got, key.fetched):
            receivers = [event.who for event in deliveries]
            for sae in sorted(set(receivers)):
                if receivers.count(sae) > 1:
                    yield f"{sae} received key {key_id} {receivers.count(sae)} times", (key_id,)


def no_id_again(view: _View) -> Found:
    """No key id names two keys, also after a node came back from an old backup."""
    for key_id, key in view.keys.items():
        owners = {(event.who, event.to) for event in key.got}
        if len(owners) > 1 or len({event.request for event in key.got}) > 1:
            yield f"key id {key_id} was given to two requests", (key_id,)
        if len(key.minted) > 1:
            yield f"key id {key_id} was minted {len(key.minted)} times", (key_id,)


def fetchable(view: _View) -> Found:
    """What a master received, every named slave can fetch until it expires, is void, or was fetched.

    A backup is older than what happened since: a slave's node that is restored has none of the keys it held,
    and within the bound for recovery masters hear of that.
    """
    for key_id, key in view.keys.items():
        for got in key.got[:1]:
            dead = min((event.at for event in key.ended), default=float("inf"))
            dead = min(dead, got.at + view.limits.ttl - view.limits.skew)
            for slave in got.to:
                home = view.home(slave)
                held = min([got.at, *(event.at for event in key.stored if event.who == home)])
                late = max(held, got.at - view.limits.recovery)
                gone = min((at for at in view.restored[home] if at >= late), default=dead)
                yield from _lost(view, key_id, key, got, slave, min(dead, gone))


def _lost(view: _View, key_id: str, key: _Key, got: Event, slave: str, dead: float) -> Found:
    """An attempt answered with "not found" shows a lost key, unless an earlier one used or burned it."""
    for attempt in key.fetching:
        if attempt.who != slave:
            continue
        end = view.outcome.get(attempt.request)
        if end is None or end.verb in ("fetched", "cut") or end.at >= dead:
            return
        if end.status in NOT_FOUND and attempt.at >= got.at:
            about = (key_id, f"#{attempt.request}", f"#{got.request}")
            yield f"{got.who} holds key {key_id}, but {slave} was told that there is none", about
            return


def nothing_dead_served(view: _View) -> Found:
    """A voided or expired key is not delivered any more."""
    limits = view.limits
    for key_id, key in view.keys.items():
        for event in (*key.got, *key.fetched):
            for end in key.ended:
                here = end.verb == "voided" or end.who == view.home(event.who)
                # A request may overtake a void or the end of a key's time, but not begin after it.
                if here and end.at < view.begun.get(event.request, event.at):
                    yield f"{event.who} received key {key_id} after it had {end.verb}", (key_id,)
                    break
            for got in key.got[:1]:
                if event.at > got.at + limits.ttl + limits.skew:
                    yield f"{event.who} received key {key_id} when its time was over", (key_id,)


def blind_relays(view: _View) -> Found:
    """No relay sees a key in the clear; with scheme `trusted` none has it anywhere but in memory."""
    ends: dict[str, set[str]] = defaultdict(set)
    owner: dict[str, str] = {}
    for key_id, key in view.keys.items():
        for event in (*key.got, *key.fetched):
            ends[event.digest] |= {view.home(sae) for sae in (event.who, *event.to)}
            owner[event.digest] = key_id
    for event in view.events:
        if event.verb != "held" or event.digest not in ends or event.who in ends[event.digest]:
            continue
        if not (view.limits.trusted and event.text in BLIND):
            key_id = owner[event.digest]
            yield f"{event.who}, a relay, had key {key_id} in the clear in {event.text}", (key_id,)


def pads_once(view: _View) -> Found:
    """No device key and no one-time key serves two messages."""
    served: dict[tuple[str, str], set[str]] = defaultdict(set)
    for event in view.events:
        if event.verb == "used":
            served[event.text, event.name] |= set(event.to)
    for (link, name), messages in served.items():
        if len(messages) > 1:
            yield f"{name} of link {link} was used for {len(messages)} messages", (name,)


def nothing_in_the_clear(view: _View) -> Found:
    """No delivered key is found in a file, log, trace, metric, error, argv, environment or core dump."""
    owner = {e.digest: key_id for key_id, key in view.keys.items() for e in (*key.got, *key.fetched)}
    for event in view.events:
        if event.verb == "held" and event.text not in BLIND and event.digest in owner:
            key_id = owner[event.digest]
            yield f"key {key_id} lies in the clear in {event.text} of {event.who}", (key_id,)


def only_the_named(view: _View) -> Found:
    """An SAE gets only keys that it asked for as master or is named on."""
    asked = {event.request: event.who for event in view.events if event.verb == "asked"}
    for key_id, key in view.keys.items():
        named = {sae for event in key.got for sae in event.to}
        for event in key.fetched:
            if key.got and event.who not in named:
                yield f"{event.who} fetched key {key_id}, which is for {', '.join(sorted(named))}", (key_id,)
        for event in key.got:
            if asked.get(event.request, event.who) != event.who:
                yield f"{event.who} got key {key_id} of a request that was not its own", (key_id,)


def accounts_add_up(view: _View) -> Found:
    """At both ends of a device pair every key is accounted for: what came in is what went out or is left."""
    latest: dict[str, dict[str, float]] = defaultdict(dict)
    for event in view.events:
        if event.verb == "account":
            latest[event.who][event.name] = event.value
    for who, counters in latest.items():
        came = sum(value for name, value in counters.items() if name.startswith("in"))
        went = sum(value for name, value in counters.items() if name.startswith("out"))
        if came != went:
            yield f"{who}: {came:g} came in, {went:g} are accounted for", (who,)


def bounded(view: _View) -> Found:
    """Nothing that a node keeps grows without limit."""
    for event in view.events:
        if event.verb == "size" and event.value > event.limit:
            yield (
                f"{event.who} keeps {event.value:g} {event.name}; {event.limit:g} are allowed",
                (event.name,),
            )


def recovers(view: _View) -> Found:
    """When faults are healed, requests succeed within a bound; an event may allow `value` seconds more."""
    healed: float | None = None
    for event in view.events:
        if event.verb in ("fault", "healed"):
            healed = event.at + event.value if event.verb == "healed" else None
        elif event.verb == "asked" and healed is not None and event.at >= healed + view.limits.recovery:
            end = view.outcome.get(event.request)
            if end is None or end.verb != "got":
                how = "no answer" if end is None or end.verb == "cut" else f"{end.status} {end.text}"
                late = event.at - healed
                what = f"{late:.0f} s after all was healed, {event.who} asked for keys and got: {how}"
                yield what, (f"#{event.request}",)


PROMISES: dict[int, tuple[str, Checker, frozenset[str]]] = {
    1: ("same bits", same_bits, frozenset({"fetched"})),
    2: ("delivered at most once", at_most_once, frozenset({"fetched"})),
    3: ("no key id again", no_id_again, frozenset({"got"})),
    4: ("what a master has can be fetched", fetchable, frozenset({"got", "fetching"})),
    5: ("nothing void or expired is served", nothing_dead_served, frozenset({"fetched"})),
    6: ("relays are blind", blind_relays, frozenset({"held"})),
    7: ("link keys serve once", pads_once, frozenset({"used"})),
    8: ("nothing in the clear", nothing_in_the_clear, frozenset({"held"})),
    9: ("only the named", only_the_named, frozenset({"fetched"})),
    10: ("accounts add up", accounts_add_up, frozenset({"account"})),
    11: ("state is bounded", bounded, frozenset({"size"})),
    12: ("recovery", recovers, frozenset({"healed", "asked"})),
}
"""By number: name, checker, and the verbs without which a history says nothing about it."""


def check(events: Iterable[Event], limits: Limits | None = None) -> list[Violation]:
    """All promises that a history shows broken, in their order."""
    view = _View(list(events), limits or Limits())
    return [
        Violation(number, name, what, about)
        for number, (name, checker, _) in PROMISES.items()
        for what, about in checker(view)
    ]


def seen(events: Iterable[Event]) -> list[int]:
    """The numbers of the promises that a history speaks about at all."""
    verbs = {event.verb for event in events}
    return [number for number, (_, _, needed) in PROMISES.items() if needed <= verbs]
