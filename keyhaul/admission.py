"""Who may cost this node how much, and whose turn it is: token buckets, a fair queue, a bounded gate.

Pure rules; the time (seconds, any clock that never goes back) is given to every call. Nothing here grows
with what strangers send: buckets are kept for the `MOST_BUCKETS` names seen last, queues have an end.

A greedy SAE meets three of them. Buckets bound what it asks for a second. The gate bounds what of it is
worked on at once, and keeps some slots for SAEs of the priority class. The queue before the gate serves
SAEs in turns, by the cost of what they ask (start-time fair queueing, Goyal, Vin and Cheng, 1996).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from keyhaul.errors import Busy

T = TypeVar("T")
MOST_BUCKETS = 8192
BITS_A_UNIT = 4096.0
"""A request costs 1 in the fair queue, and 1 more for each so many bits of key."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of `[admission]`. Rates are per second and hold on average over `burst` seconds.

    `slots`: enc_keys calls worked on at once, `share` of them at most for one SAE, `reserved` of them for
    the SAEs in `priority` alone. `queue` and `queue_per_sae`: calls that wait for a slot, at most for
    `patience` seconds. `sae_bits` and `pair_bits`: bits of key. `peer_rows`: keys of one neighbour that
    this node still has to deliver or to see confirmed.
    """

    slots: int = 256
    share: float = 0.5
    reserved: int = 32
    priority: frozenset[str] = frozenset()
    queue: int = 4096
    queue_per_sae: int = 1024
    patience: float = 10.0
    burst: float = 5.0
    sae_requests: float = 10_000.0
    sae_bits: float = 268_435_456.0
    pair_bits: float = 268_435_456.0
    peer_messages: float = 10_000.0
    peer_keys: float = 50_000.0
    peer_rows: int = 500_000
    connections: int = 4096
    connections_per_client: int = 1024
    handshakes: int = 1024
    handshakes_per_address: int = 512


class Buckets:
    """One token bucket a name. `rate` tokens a second flow into each, up to `rate` × `burst` seconds."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._most = rate * burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, amount: float, now: float) -> float:
        """0.0 if the tokens were there and are gone; else the seconds until they will be.

        What is more than a full bucket costs a full bucket, or it could never be had.
        """
        levels, most = self._levels, self._most
        level, since = levels.get(name) or (most, now)
        if now > since:
            level += (now - since) * self._rate
        if level > most:
            level = most
        if amount > most:
            amount = most
        if level < amount:
            return (amount - level) / self._rate
        levels[name] = (level - amount, now)
        levels.move_to_end(name)
        if len(levels) > MOST_BUCKETS:
            levels.popitem(last=False)  # whoever was not seen for longest has a full one again anyway
        return 0.0

    def __len__(self) -> int:
        return len(self._levels)


class FairQueue(Generic[T]):
    """Items that wait under names; names are served in turns, in proportion to the costs of their items."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[float, int, T]]] = {}
        self._finish: dict[str, float] = {}  # virtual time at which all of a name's items are served
        self._now = 0.0  # virtual time: the start of the item served last
        self._count = self._arrivals = 0

    def __len__(self) -> int:
        return self._count

    def of(self, name: str) -> int:
        """How many items wait under a name."""
        return len(self._waiting.get(name, ()))

    def push(self, name: str, cost: float, item: T) -> None:
        """Wait at the end of the name's own line."""
        start = max(self._now, self._finish.get(name, 0.0))
        self._finish[name] = start + cost
        self._arrivals += 1
        self._waiting.setdefault(name, deque()).append((start, self._arrivals, item))
        self._count += 1

    def first(self, allowed: Callable[[str], bool] = lambda name: True) -> tuple[str, T] | None:
        """Whose turn it is among the allowed names; it goes on waiting."""
        best = min(
            ((line[0][:2], name) for name, line in self._waiting.items() if allowed(name)), default=None
        )
        return None if best is None else (best[1], self._waiting[best[1]][0][2])

    def pop(self, name: str) -> T:
        """Serve the first item of a name."""
        line = self._waiting[name]
        start, _, item = line.popleft()
        self._now = max(self._now, start)
        self._left(name)
        return item

    def remove(self, name: str, item: T) -> None:
        """An item waits no longer; unknown ones are fine."""
        line = self._waiting.get(name, deque())
        kept = deque(entry for entry in line if entry[2] is not item)
        if len(kept) < len(line):
            self._waiting[name] = kept
            self._left(name)

    def _left(self, name: str) -> None:
        self._count -= 1
        if not self._waiting[name]:
            del self._waiting[name]
        if not self._count:
            self._finish.clear()
            self._now = 0.0


@dataclass(slots=True, eq=False)
class Turn:
    """One call at the gate. `start` is called once, when a call that had to wait may go on."""

    name: str
    start: Callable[[], None]
    admitted: bool = False
    priority: bool = False  # when it was admitted


class Gate:
    """At most `rules.slots` calls at once. Raises Busy instead of queueing without an end."""

    def __init__(self, rules: Rules) -> None:
        self.use(rules)
        self._held: Counter[str] = Counter()
        self._ordinary = 0  # slots used by SAEs without priority
        self._used = 0
        self._queue: FairQueue[Turn] = FairQueue()

    def use(self, rules: Rules) -> None:
        """Other bounds from the next call that enters or leaves on."""
        self._rules = rules
        self._most = max(1, int(rules.slots * rules.share))
        self._open = rules.slots - rules.reserved  # slots that every SAE may use

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def used(self) -> int:
        return self._used

    def enter(self, name: str, cost: float, start: Callable[[], None]) -> Turn:
        """A turn, admitted at once or waiting. Raises Busy if the queue or this SAE's part is full."""
        turn = Turn(name, start)
        if not self._queue.of(name) and self._may(name):
            self._admit(turn)
            return turn
        if len(self._queue) >= self._rules.queue:
            raise Busy("queue", "too many calls wait at this node", 2)
        if self._queue.of(name) >= self._rules.queue_per_sae:
            raise Busy("sae_queue", f"{self._rules.queue_per_sae} calls of this SAE wait already", 2)
        self._queue.push(name, cost, turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """A call is over, whether it was admitted or still waits; the next ones start."""
        if not turn.admitted:
            self._queue.remove(turn.name, turn)
            return
        self._used -= 1
        self._ordinary -= not turn.priority
        self._held[turn.name] -= 1
        if not self._held[turn.name]:
            del self._held[turn.name]
        while len(self._queue) and (found := self._queue.first(self._may)) is not None:
            self._admit(self._queue.pop(found[0]))
            found[1].start()

    def _may(self, name: str) -> bool:
        if self._used >= self._rules.slots:
            return False
        if name in self._rules.priority:
            return True
        return self._ordinary < self._open and self._held[name] < self._most

    def _admit(self, turn: Turn) -> None:
        turn.admitted = True
        self._used += 1
        self._held[turn.name] += 1
        turn.priority = turn.name in self._rules.priority
        self._ordinary += not turn.priority


class Admission:
    """All rules of one node. Every refusal is a Busy with the seconds to wait, and is counted by reason."""

    def __init__(self, rules: Rules) -> None:
        self.gate = Gate(rules)
        self.refused: Counter[str] = Counter()
        self.use(rules)
        self._rows: Counter[str] = Counter()  # never fewer than there are, see `recount`
        self.crowded = False
        """Whether a neighbour met its bound of rows since the last `recount`."""

    def use(self, rules: Rules) -> None:
        """Other rules from now on; buckets begin full, and calls that wait or are worked on stay."""
        self.rules = rules
        self.gate.use(rules)
        self._requests = Buckets(rules.sae_requests, rules.burst)
        self._sae_bits = Buckets(rules.sae_bits, rules.burst)
        self._pair_bits = Buckets(rules.pair_bits, rules.burst)
        self._messages = Buckets(rules.peer_messages, rules.burst)
        self._keys = Buckets(rules.peer_keys, rules.burst)

    def call(self, sae: str, now: float) -> None:
        """One call of an SAE, whatever it asks."""
        self._spend(self._requests, sae, 1.0, now, "sae_requests", "this SAE calls too often")

    def enter(
        self, sae: str, slave: str, bits: int, now: float, start: Callable[[], None] = lambda: None
    ) -> Turn:
        """A turn for an enc_keys call of so many bits; give it back with `gate.leave`."""
        self._spend(self._sae_bits, sae, bits, now, "sae_bits", "this SAE asks for too many bits a second")
        pair = f"{sae}\0{slave}"
        self._spend(
            self._pair_bits, pair, bits, now, "pair_bits", "this pair asks for too many bits a second"
        )
        try:
            return self.gate.enter(sae, 1.0 + bits / BITS_A_UNIT, start)
        except Busy as busy:
            raise self.refuse(busy) from None

    def out_of_patience(self) -> Busy:
        """The error of a turn that did not come in time."""
        text = f"no turn came within {self.rules.patience:g} s: the node is overloaded"
        return self.refuse(Busy("patience", text, 2))

    def message(self, peer: str, now: float) -> None:
        """One message of a neighbour."""
        self._spend(self._messages, peer, 1.0, now, "peer_messages", "this neighbour sends too often")

    def keys(self, peer: str, number: int, now: float) -> None:
        """A neighbour hands over, or voids unseen, so many keys: each becomes a row."""
        if self._rows[peer] + number > self.rules.peer_rows:
            self.crowded = True
            text = f"{self.rules.peer_rows} keys of this neighbour are under way or not fetched"
            raise self.refuse(Busy("peer_rows", text, 10))
        self._spend(self._keys, peer, number, now, "peer_keys", "this neighbour sends too many keys a second")
        self._rows[peer] += number

    def recount(self, rows: Counter[str], since: Counter[str]) -> None:
        """The rows there are, by neighbour, when `mark` gave `since`; what came later is added."""
        self._rows = rows + (self._rows - since)
        self.crowded = False

    def mark(self) -> Counter[str]:
        """What `recount` wants to be told of the time before the rows were counted."""
        return Counter(self._rows)

    def refuse(self, busy: Busy) -> Busy:
        """Count a refusal."""
        self.refused[busy.reason] += 1
        return busy

    def summary(self) -> dict[str, Any]:
        """For operators."""
        return {"working": self.gate.used, "waiting": self.gate.waiting, "refused": dict(self.refused)}

    def _spend(self, buckets: Buckets, name: str, amount: float, now: float, reason: str, text: str) -> None:
        seconds = buckets.take(name, amount, now)
        if seconds > 0:
            raise self.refuse(Busy(reason, text, max(1, min(60, int(seconds + 0.999)))))
