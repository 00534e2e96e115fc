"""Relaying ahead, simulated: one narrow link with bursts of key, pairs with bursts of demand, an hour each.

Virtual time and fixed seeds: the same figures on every machine. The policy is the node's own
(`keyhaul.pools`); the network around it is a model. A key costs its size in link bits when it is sent. A
request that finds its keys ready is answered at once; another one waits for the link's bits and then for
the way, `PATH` seconds, and fails after `PATIENCE`. Relays for others draw on the same link at a steady
pace; what they cannot have at once counts as held up.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

from keyhaul.keys import Ref
from keyhaul.pools import Pools, Rules
from keyhaul.shelves import Pool
from keyhaul.testbed.benchmarks.report import Report
from keyhaul.testbed.benchmarks.stage import Say

HOUR = 3600.0
PATH = 0.07  # seconds over seven hops
AT_ONCE = 0.001  # seconds
PATIENCE = 15.0  # seconds
TTL = 900.0  # seconds
KEY = 256  # bits
FILLS = 4
POLICIES = {
    "on demand": Rules(fixed=0),
    "fixed 16": Rules(fixed=16),
    "fixed 128": Rules(fixed=128),
    "fixed 1024": Rules(fixed=1024),
    "adaptive": Rules(),
}
SUPPLIES = {"ample supply": (2_000.0, 5.0), "scarce supply": (420.0, 30.0)}
"""Keys in one burst of the link, and seconds between bursts. Demand is 12 keys/s on average."""


@dataclass(slots=True)
class Outcome:
    """What one policy did for one hour. Waits in seconds, the rest in keys, requests or messages."""

    waits: list[float] = field(default_factory=list)
    failures: int = 0
    sent: int = 0
    used: int = 0
    held_up: int = 0
    messages: int = 0

    def wait(self, share: float) -> float:
        """A quantile of the waits; a request that failed waited for ever."""
        at = int(share * (len(self.waits) + self.failures))
        return sorted(self.waits)[at] if at < len(self.waits) else float("inf")

    @property
    def wasted(self) -> float:
        """Part of the link's bits that no master got."""
        return 1.0 - self.used / self.sent if self.sent else 0.0


class World:
    """One origin, its link and its applications."""

    def __init__(self, rules: Rules, supply: tuple[float, float], seed: int, end: float = HOUR) -> None:
        self.now = 0.0
        self._end = end
        self.pools = Pools(rules)
        self.outcome = Outcome()
        self._random = random.Random(seed)  # noqa: S311 - a repeatable load
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._names = count(1)
        self._burst, self._every = supply
        self._stock = self._fullest = self._burst
        self._waiting: deque[tuple[Pool, int, float]] = deque()
        self._filling = 0
        self._expiries: defaultdict[Pool, deque[tuple[float, int]]] = defaultdict(deque)

    def run(self) -> Outcome:
        """From 0 to the end; what lies in the pools at its end is wasted."""
        self._each(self._every, self._supply)
        self._each(1.0, self._tend)
        self._each(0.25, self._forward)
        for pool, requests in demand(self._random, self._end):
            for at, number in requests:
                self._at(at, lambda pool=pool, number=number: self._ask(pool, number))  # type: ignore[misc]
        while self._events and self._events[0][0] <= self._end:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.outcome.failures += len(self._waiting)
        return self.outcome

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _each(self, pause: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self._at(self.now + pause, again)

        self._at(pause, again)

    # -- the link --------------------------------------------------------------------------------

    def _supply(self) -> None:
        # A device stores no more than four bursts.
        self._stock = min(self._stock + self._burst, 4 * self._burst)
        self._serve()
        self._restock()

    def _forward(self) -> None:
        """One key for somebody else."""
        if self._stock >= 1 and not self._waiting:
            self._stock -= 1
        else:
            self.outcome.held_up += 1

    def _send(self, number: int) -> None:
        self._stock -= number
        self.outcome.sent += number
        self.outcome.messages += 1

    # -- requests --------------------------------------------------------------------------------

    def _ask(self, pool: Pool, number: int) -> None:
        hit = self.pools.count(pool) >= number
        self.pools.asked(pool, number, hit, self.now)
        if hit:
            self._take(pool, number)
            self.outcome.used += number
            self.outcome.waits.append(AT_ONCE)
        else:
            self._waiting.append((pool, number, self.now))
            self._serve()
        self._restock()

    def _take(self, pool: Pool, number: int) -> None:
        taken: list[Ref] = []
        while len(taken) < number:
            taken += self.pools.pop(pool)
        self.pools.add(pool, taken[number:])

    def _serve(self) -> None:
        """Requests in their order, as far as the link's bits go."""
        while self._waiting:
            _, number, since = self._waiting[0]
            if self.now - since > PATIENCE:
                self.outcome.failures += 1
            elif self._stock >= number:
                self._send(number)
                self.outcome.used += number
                self.outcome.waits.append(self.now - since + PATH)
            else:
                return
            self._waiting.popleft()

    # -- relaying ahead --------------------------------------------------------------------------

    def _room(self, pool: Pool) -> int:
        """As `Origin` has it: fixed pools take what there is, the policy leaves others their share."""
        rules = self.pools.rules
        self._fullest = max(self._fullest, self._stock)
        kept = 0.0 if rules.fixed is not None else (1 - rules.share) * self._fullest
        return max(0, int(self._stock - kept))

    def _restock(self) -> None:
        while self._filling < FILLS and not self._waiting:
            picked = self.pools.pick(self.now, self._room)
            if picked is None:
                return
            pool, number = picked
            self._filling += 1
            self._send(number)
            begun = self.now
            self._at(begun + PATH, lambda p=pool, n=number, b=begun: self._filled(p, n, b))  # type: ignore[misc]

    def _filled(self, pool: Pool, number: int, begun: float) -> None:
        self._filling -= 1
        self.pools.filled(pool, number, self.now - begun, self.now, apiece=True)
        block = self.pools.block(pool)
        for first in range(0, number, block):
            name = next(self._names) << 8
            size = min(block, number - first)
            self.pools.add(pool, [Ref(UUID(int=name + at), "origin") for at in range(size)])
            self._at(self.now + TTL, lambda p=pool, n=name: self._expire(p, n))  # type: ignore[misc]
        self._restock()

    def _expire(self, pool: Pool, name: int) -> None:
        """Keys go oldest first, so what is left of a block lies in front when its time comes."""
        block = self.pools.pop(pool)
        if block and block[0].key_id.int >> 8 != name >> 8:
            rest = []
            while more := self.pools.pop(pool):
                rest += more
            self.pools.add(pool, block + rest)

    def _tend(self) -> None:
        for pool, extra in self.pools.surplus(self.now):
            while extra > 0 and (refs := self.pools.pop(pool, extra)):
                extra -= len(refs)
                self.pools.gave_up(pool, len(refs))
        self._serve()
        self._restock()


def demand(draw: random.Random, end: float) -> Iterator[tuple[Pool, list[tuple[float, int]]]]:
    """Twenty pairs: times until `end` and numbers of keys. Each kind has a pace of its own."""

    def steady(rate: float, number: int, start: float = 0.0, stop: float = end) -> list[tuple[float, int]]:
        at, found = start + draw.expovariate(rate), []
        while at < stop:
            found.append((at, number))
            at += draw.expovariate(rate)
        return found

    def bursts(every: float, size: int) -> list[tuple[float, int]]:
        return [(at + draw.uniform(0.0, 1.0), 1) for at, _ in steady(1 / every, 1) for _ in range(size)]

    kinds: dict[str, list[tuple[float, int]]] = {
        "steady": steady(4.0, 1),
        "large": steady(0.05, 32),
        "early": steady(2.0, 1, stop=end / 2),
        "late": steady(2.0, 1, start=end / 2),
        "bursts": bursts(60.0, 100),
        "rare bursts": bursts(400.0, 200),
    }
    kinds |= {f"slow {number}": steady(1 / 60.0, 1) for number in range(8)}
    kinds |= {f"once in a while {number}": steady(1 / 1200.0, 1) for number in range(6)}
    for name, requests in kinds.items():
        yield Pool(name, frozenset({"slave"}), KEY), requests


async def run(report: Report, *, quick: bool, say: Say) -> None:
    """Fill the report."""
    seeds = range(1, 2) if quick else range(1, 6)
    for supply, (burst, every) in SUPPLIES.items():
        for name, rules in POLICIES.items():
            say(f"{supply}, {name}")
            found = [World(rules, (burst, every), seed).run() for seed in seeds]
            what = f"{supply}, {name}"
            note = f"{len(found[0].waits) + found[0].failures} requests an hour"
            report.add(f"{what}: p50", [1000 * each.wait(0.5) for each in found], "ms", note=note)
            report.add("  p99", [min(1000 * each.wait(0.99), 1000 * PATIENCE) for each in found], "ms")
            report.add("  failures", [float(each.failures) for each in found], "")
            report.add("  link bits wasted", [100 * each.wasted for each in found], "%")
            report.add("  messages", [float(each.messages) for each in found], "")
            report.add("  relays held up", [float(each.held_up) for each in found], "keys")
