"""How many keys to relay ahead for whom, and who comes first. Pure policy: every call is told the time.

Five questions, answered from what SAEs asked lately and how long it took to restock:

    target    how many keys a pool should hold. The key that would be the last to go is worth holding
              while the chance that it is wanted before the pool is restocked outweighs the cost of one
              that lies idle (the newsvendor's rule, on demand with the observed mean, and the observed
              variance, which is larger the more keys one request takes); a burst of demand is remembered
              and halves with time; and no pair holds more than `most`
    lot       how many keys come at once. A message costs every node on the way the same for one key as for a
              hundred, on a quantum link a device key that a slow one makes in half a second; keys
              that come sooner than needed lie idle meanwhile (the economic order quantity, a message costing
              as much as half a key that is not ready). Where restocking takes long, as over a link that is
              dry, as many more as are asked for meanwhile
    along     how many of them come in the message of a request that found too few, which is sent anyway
    pick      whose pool is restocked next: priority first, then whoever got least for its weight
              (start-time fair queueing), as far as the room on its first link goes; so a greedy pair
              delays nobody's first key, and what relays and requests need stays there
    surplus   what a pool should give up: its keys are voided at both ends, not left to grow old

Demand and restocking times are means that forget: a narrow link anywhere on the way makes restocking
slow, which asks for a larger pool, and failures make the pool wait longer and longer before it tries again,
or until keys that were made for a request arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from keyhaul.shelves import Pool, Shelves

LARGEST_BLOCK = 128
MAX_BATCH = 128  # keys relayed ahead in one message
MEMORY = 30.0  # seconds after which demand counts for 1/e
BURST = 2.0  # seconds that make one burst
RECHECK = 0.25  # seconds that a target stays as it is, unless more is asked
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a pool that could not be restocked tries again
SLOWER, FASTER = 0.5, 0.1  # how much of a longer or shorter time to restock is believed at once
EVENLY = 0.3  # the same of both, where one-time pads are taken for every key
LONGEST_LEAD = 30.0  # seconds: a pool is not made for a link that is down
REVIEW = 0.5  # seconds a restocking may have to wait for its turn
SLACK = 2.0  # times its target that a pool may hold before it gives keys up


@dataclass(frozen=True, slots=True)
class Pair:
    """What the configuration says of one master and slave.

    `weight` is its part of what a scarce link gives to pools; `least` are keys of the default size held
    whatever the demand; `priority` pools are restocked before all others.
    """

    weight: float = 1.0
    least: int = 0
    most: int | None = None
    priority: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of `[pool]`.

    `fixed`: keys for every pool that was asked for once, whatever the demand; None: by demand. `most`:
    keys a pool may hold. `idle`: seconds that a key may lie before it costs as much as it saves.
    `share`: part of a link's stock that pools may draw on; the rest is for relaying and for requests.
    """

    fixed: int | None = None
    most: int = 4096
    idle: float = 300.0
    share: float = 0.5
    pairs: Mapping[tuple[str, str], Pair] = field(default_factory=dict)


@dataclass(slots=True)
class Demand:
    """What was asked of one pool. Means decay with `MEMORY`; `burst` with `BURST`, its peak with `idle`."""

    since: float
    at: float
    keys: float = 0.0
    squares: float = 0.0
    burst: float = 0.0
    peak: float = 0.0
    requests: int = 0
    last: float = -math.inf

    def asked(self, number: int, now: float, idle: float) -> None:
        self._decay(now, idle)
        self.last = now
        self.requests += 1
        self.keys += number
        self.squares += number * number
        self.burst += number
        self.peak = max(self.peak, self.burst)

    def _decay(self, now: float, idle: float) -> None:
        passed = max(0.0, now - self.at)
        if passed:
            keep = math.exp(-passed / MEMORY)
            self.keys *= keep
            self.squares *= keep
            self.burst *= math.exp(-passed / BURST)
            self.peak *= math.exp2(-passed / idle)
            self.at = now

    def wanted(self, lead: float, idle: float, now: float, *, apiece: bool) -> tuple[int, int]:
        """Keys worth holding when restocking takes `lead` seconds, and how many should come at once.

        At least what is asked for meanwhile comes at once, for only one batch is under way at a time; unless
        keys cost the link their size each, `apiece`.
        """
        self._decay(now, idle)
        if self.requests < 2:
            return 0, 0
        # A young pair's mean counts only the time it had; a rare one's never falls below its average.
        age = max(now - self.since, 1.0)
        rate = max(self.keys / (MEMORY * -math.expm1(-age / MEMORY)), _rare(self.requests, age, idle))
        worth = rate / (rate + 1.0 / idle)
        mean = rate * lead
        spread = math.sqrt(mean * max(1.0, self.squares / self.keys if self.keys > 1e-9 else 1.0))
        level = math.ceil(mean + NormalDist().inv_cdf(min(worth, 0.9999)) * spread)
        lot = int(math.sqrt(rate * idle) + (0.0 if apiece else mean))
        return max(level + lot if worth > 0.5 else 0, int(self.peak)), lot


def _rare(requests: int, age: float, idle: float) -> float:
    """The mean over a whole life, while that life is short enough to tell anything of the next key."""
    return requests / age if age < 10 * idle else 0.0


@dataclass(slots=True)
class _State:
    """What the policy knows of one pool beside its keys."""

    demand: Demand
    target: int = 0
    lot: int = 0  # keys missing from which on it is worth restocking
    checked: float = -math.inf
    lead: float = 1.0
    finish: float = 0.0
    restocking: bool = False  # until it is full
    apiece: bool = False  # every key costs the first link its size
    low_since: float | None = None  # until a batch arrives
    filling: bool = False  # a batch is under way
    pause: float = 0.0
    try_at: float = -math.inf
    hits: int = 0
    misses: int = 0
    stocked: int = 0
    given_up: int = 0


class Pools(Shelves):
    """The keys that lie ready and the policy over them; see the module docstring."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules
        self._states: dict[Pool, _State] = {}
        self._turn = 0.0  # virtual time of fair queueing

    def reserve(self, pool: Pool, now: float) -> None:
        """A pool that the configuration names is kept from the start on."""
        self._state(pool, now)

    # -- what happens ----------------------------------------------------------------------------

    def asked(self, pool: Pool, number: int, hit: bool, now: float) -> None:
        """A request for keys of this pool, and whether the pool could serve it."""
        state = self._state(pool, now)
        state.demand.asked(number, now, self.rules.idle)
        if hit:
            state.hits += 1
        else:
            state.misses += 1
            state.checked = -math.inf

    def filled(self, pool: Pool, number: int, seconds: float, now: float, *, apiece: bool = False) -> None:
        """A batch that was named by `pick` or `along` is confirmed at the far end, after so many seconds.

        `apiece`: the first link gives one-time pads for every key, so a message more costs little, and
        keys that wait for room there would only be more keys.
        """
        state = self._state(pool, now)
        state.filling, state.pause = False, 0.0
        state.stocked += number
        state.apiece = apiece
        if state.low_since is not None and not apiece:
            seconds = max(seconds, now - state.low_since)
        state.low_since = None
        longer = min(seconds, LONGEST_LEAD) - state.lead
        state.lead += (EVENLY if apiece else SLOWER if longer > 0 else FASTER) * longer

    def failed(self, pool: Pool, now: float) -> None:
        """A batch that was named by `pick` or `along` could not be delivered."""
        state = self._state(pool, now)
        state.filling = False
        state.pause = min(max(2 * state.pause, FIRST_PAUSE), LONGEST_PAUSE)
        state.try_at = now + state.pause

    def reached(self, pool: Pool, now: float) -> None:
        """Keys for the same SAEs arrived just now: a pool that waits because its own did not tries again."""
        if (state := self._states.get(pool)) is not None and state.pause:
            state.pause, state.try_at = 0.0, min(state.try_at, now + FIRST_PAUSE)

    # -- what to do ------------------------------------------------------------------------------

    def target(self, pool: Pool, now: float) -> int:
        """How many keys this pool should hold."""
        state = self._states.get(pool)
        if state is None:
            return 0
        if now - state.checked >= RECHECK:
            state.checked, state.target = now, self._target(pool, state, now)
        return state.target

    def _target(self, pool: Pool, state: _State, now: float) -> int:
        rules, pair = self.rules, self._pair(pool)
        most = rules.most if pair.most is None else pair.most
        if rules.fixed is not None:
            wanted, lot, most = rules.fixed, 0, rules.fixed
        else:
            lead = state.lead + REVIEW
            wanted, lot = state.demand.wanted(lead, rules.idle, now, apiece=state.apiece)
        target = max(min(wanted, most), pair.least)
        state.lot = min(max(lot, target // 4), MAX_BATCH, target // 2)
        return target

    def block(self, pool: Pool) -> int:
        """How many keys should stand together: a quarter of a pool, because a crash may burn two blocks."""
        state = self._states.get(pool)
        level = self.rules.fixed or (state.target if state is not None else 0)
        return max(1, min(LARGEST_BLOCK, level // 4))

    def low(self, pool: Pool, now: float) -> bool:
        """Whether it is worth restocking: keys travel in batches, so not for every one that left."""
        state = self._states.get(pool)
        if state is None or state.filling or now < state.try_at:
            return False
        return self.count(pool) < self.target(pool, now) - state.lot

    def pick(self, now: float, room: Callable[[Pool], int]) -> tuple[Pool, int] | None:
        """The pool whose turn it is and how many keys for it; it must be told what became of them.

        `room`: how many keys the first link of a pool may carry for pools now.
        """
        best: tuple[bool, float, Pool] | None = None
        for pool, state in self._states.items():
            if not self._lacks(pool, state, now) or room(pool) < 1:
                continue
            order = (not self._pair(pool).priority, max(state.finish, self._turn), pool)
            if best is None or order[:2] < best[:2]:
                best = order
        if best is None:
            return None
        _, start, pool = best
        number = min(self.target(pool, now) - self.count(pool), MAX_BATCH, room(pool))
        state = self._states[pool]
        state.filling, state.finish = True, start + number / self._pair(pool).weight
        self._turn = start
        return pool, number

    def along(self, pool: Pool, number: int, room: Callable[[Pool], int], now: float) -> int:
        """How many keys come behind the `number` of a request that the pool could not serve: what it lacks.

        The message is sent anyway, so it makes no difference whether it is the pool's turn. As after `pick`,
        the pool must be told what became of them. `room`: how many the first link may carry, as for `pick`.
        """
        state = self._states.get(pool)
        if state is None or state.filling:
            return 0
        more = min(self.target(pool, now) - self.count(pool), MAX_BATCH - number)
        if more < 1 or (more := min(more, room(pool))) < 1:
            return 0
        state.filling = True
        state.low_since = now if state.low_since is None else state.low_since
        state.finish = max(state.finish, self._turn) + more / self._pair(pool).weight
        return more

    def _lacks(self, pool: Pool, state: _State, now: float) -> bool:
        """Restocking begins when a pool is low and goes on until it is full, but for what left meanwhile."""
        if state.filling or now < state.try_at:
            return False
        full = self.target(pool, now) - self.count(pool) <= state.lot // 2
        state.restocking = not full and (state.restocking or self.low(pool, now))
        if state.restocking and state.low_since is None:
            state.low_since = now
        return state.restocking

    def surplus(self, now: float) -> list[tuple[Pool, int]]:
        """Pools that hold more than is worth while, and by how many keys; those forgotten are let go of."""
        found = []
        for pool in list(self._states):
            state, count = self._states[pool], self.count(pool)
            known = self.rules.fixed is None and now - state.demand.since > self.rules.idle
            if known and count > SLACK * self.target(pool, now):
                found.append((pool, count - self.target(pool, now)))
            forgotten = now - state.demand.last > 10 * self.rules.idle and not self._pair(pool).least
            if forgotten and not count and not state.filling:
                del self._states[pool]
        return found

    def gave_up(self, pool: Pool, number: int) -> None:
        """Keys that `surplus` named were voided."""
        self._states[pool].given_up += number

    # -- what operators see ----------------------------------------------------------------------

    def summary(self) -> list[dict[str, Any]]:
        """Every pool that is known, for operators; sizes in bits, counts in keys or requests."""
        return [
            {
                "master": pool.master,
                "targets": sorted(pool.targets),
                "size": pool.size,
                "ready": self.count(pool),
                **self._counts(pool),
            }
            for pool in {**dict.fromkeys(self), **dict.fromkeys(self._states)}
        ]

    def _counts(self, pool: Pool) -> dict[str, Any]:
        state = self._states.get(pool)
        if state is None:
            return {"target": 0, "hits": 0, "misses": 0, "stocked": 0, "given_up": 0}
        return {
            "target": state.target,
            "hits": state.hits,
            "misses": state.misses,
            "stocked": state.stocked,
            "given_up": state.given_up,
        }

    def _pair(self, pool: Pool) -> Pair:
        if len(pool.targets) != 1 or not self.rules.pairs:
            return _PLAIN
        (slave,) = pool.targets
        return self.rules.pairs.get((pool.master, slave), _PLAIN)

    def _state(self, pool: Pool, now: float) -> _State:
        state = self._states.get(pool)
        if state is None:
            state = self._states[pool] = _State(Demand(now, now))
        return state


_PLAIN = Pair()
