"""The SAE's side of a node: ask for keys, wait until the far end holds them, fetch keys by id.

A request is served from keys relayed ahead for its SAEs where there are enough, else keys are minted
and sent. A key is handed out in the commit that marks it as handed out, so a crash can lose an answer
but never give one key to two callers. What was confirmed without a waiting caller (its request was cut
off by a crash) stays ready for the next request of the same SAEs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import structlog

from keyhaul import lifecycle, story
from keyhaul.errors import (
    ExtensionRefused,
    KeyhaulError,
    KeyNotFound,
    NoSuchTarget,
    Unauthorized,
    Unavailable,
)
from keyhaul.keys import MASTER, Ref, Row, Secret, State
from keyhaul.losses import Losses
from keyhaul.messages.etsi014 import LABELS, SCHEME, Delivered, Order, Standing
from keyhaul.minting import MATES, Mint
from keyhaul.pools import MAX_BATCH, Pools, Rules
from keyhaul.ports import Spawn
from keyhaul.promise import Ask, choose_scheme
from keyhaul.relay import Batch, Relay
from keyhaul.settlement import Settlement
from keyhaul.shelves import Pool
from keyhaul.site import Site
from keyhaul.stock import Stock
from keyhaul.waiting import Load, Wait, Waits

log = structlog.get_logger("keyhaul.origin")

FILLS = 4  # batches relayed ahead at a time
SHORTEST_TURN = 0.5  # seconds that another attempt is worth
PATIENCE = 2.0  # times the slowest confirmation of late that an attempt waits at least
FADING = 0.8  # of that is left with the next confirmation
_WISHES = frozenset({SCHEME, LABELS})
PROBE_LIFE = 60.0  # seconds until a test key expires
MESSAGE_COST = 1024  # bits of device key that a message with one-time pads costs beside its keys, at most


class Origin:
    """Serves the SAEs of one node (the `Delivery` that the 014 port calls)."""

    def __init__(
        self,
        site: Site,
        relay: Relay,
        settlement: Settlement,
        spawn: Spawn,
        mint: Mint,
        rules: Rules | None = None,
    ) -> None:
        self._site = site
        self._mint = mint
        self._relay = relay
        self._settlement = settlement
        self._spawn = spawn
        self._waits = Waits()
        self._loads: dict[Pool, Load] = {}
        self.pools = Pools(rules or Rules(fixed=site.settings.pool))
        self._slowest = 0.0  # seconds that a confirmation took lately
        self._filling = 0
        self._fullest: dict[str, int] = {}  # bits a neighbour's link held at most
        self._stock = Stock(site, self.pools, spawn)
        self._losses = Losses(site, settlement, spawn)
        settlement.claimed = self._waits.claimed
        settlement.concluded = self._concluded
        settlement.doubted = self._waits.doubted
        settlement.lost = self._losses.concern
        site.pairing.restored = self._restored

    async def start(self) -> None:
        """Keys confirmed in earlier runs and never handed out are ready, unless the far end lost them."""
        rows = sorted(await self._site.ledger.deliverable(), key=lambda row: row.ref)
        await self._losses.start()
        self._offer(rows)
        for (master, slave), pair in self.pools.rules.pairs.items():
            if pair.least and self._site.view.home(master) == self._site.name:
                pool = Pool(master, frozenset({slave}), self._site.settings.key_size)
                self.pools.reserve(pool, self._site.clock.now())

    # ------------------------------------------------------------------ enc_keys

    async def request(self, order: Order) -> list[Delivered]:
        """Keys for a master and its slaves (014 enc_keys), confirmed at every target's node.

        Raises NoSuchTarget, NoRoute, InsufficientKey, ExtensionRefused or Unavailable; then no key of
        the request is ever delivered to anyone.
        """
        end = self._site.clock.now() + self._site.settings.request_timeout
        self._check_master(order.master)
        number, size = order.number, order.size
        story.tell(log, "keys asked for", master=order.master, slaves=order.targets, number=number, size=size)
        plain = not order.options or order.options.keys().isdisjoint(_WISHES)
        if plain and (ready := await self._stock.take(_pool(order), number)):
            self._note(order, hit=True)
            story.tell(log, "keys given that were ready", keys=number, key_id=ready[0].key_id)
            return ready
        try:
            if plain and (ready := await self._coming(order, end)):
                story.tell(log, "keys given that were on their way", keys=number, key_id=ready[0].key_id)
                return ready
            batch = await self._made(order, end, _pool(order) if plain else None)
        finally:
            if plain:
                self._note(order, hit=False)
        if plain:
            self.pools.reached(_pool(order), self._site.clock.now())
        keys = batch.keys[:number]
        story.tell(log, "keys given", keys=number, key_id=keys[0][0])
        return [Delivered(key_id, key, batch.trust) for key_id, key in keys]

    async def _coming(self, order: Order, end: float) -> list[Delivered]:
        """Keys that are on their way to the pool already, if they are enough: other ones would come later.

        Where there is another way half of the time is left for it.
        """
        pool, clock = _pool(order), self._site.clock
        if pool not in self._loads:
            return []
        until = self._turn(order, end)
        while (load := self._loads.get(pool)) and self._stock.count(pool) + load.number >= order.number:
            if (left := until - clock.now()) <= 0:
                break
            await asyncio.wait((load.landed,), timeout=left)
            if ready := await self._stock.take(pool, order.number):
                return ready
        if end - clock.now() > SHORTEST_TURN:
            return []
        within = f"{self._site.settings.request_timeout:g} s"
        raise Unavailable(
            f"the far end did not confirm keys that are on their way within {within}", "ask again"
        )

    async def _made(self, order: Order, end: float, pool: Pool | None) -> Batch:
        """Keys that are made for this request, and behind them some for its pool."""
        if self._site.settings.release == "immediate" or self._local(order):
            batch = await self._batch(order, waiting=False)
            await self._relay.dispatch(batch)
            return batch
        return await self._confirmed_batch(order, end, pool)

    def _check_master(self, master: str) -> None:
        """Far nodes believe a master only from its own node; so does this one, and says so at once."""
        try:
            home = self._site.view.home(master)
        except NoSuchTarget:
            home = "no node of the configuration"
        if home != self._site.name:
            raise Unauthorized(
                f"this SAE is served by {home}", "ask there, or change the network's SAE table"
            )

    async def _batch(
        self, order: Order, *, waiting: bool, deadline: float | None = None, herd: int = MATES
    ) -> Batch:
        """Fresh keys; `waiting` keeps them for the master until they are handed out."""
        now = self._site.clock.now()
        settings = self._site.settings
        return Batch(
            keys=await self._mint.keys(order.number, order.size, herd),
            initiator=order.master,
            targets=order.targets,
            size=order.size,
            created=now,
            deadline=deadline or now + settings.request_timeout,
            expires=now + settings.ttl,
            waiting=frozenset({MASTER} if waiting else ()),
            ask=_asked(order),
        )

    def _local(self, order: Order) -> bool:
        return all(leg == self._site.name for leg in self._site.legs(order.targets))

    async def _confirmed_batch(self, order: Order, end: float, pool: Pool | None) -> Batch:
        """Keys that every target's node holds: over one way after another, while there is one and time.

        Each attempt has keys and pads of its own and is void before the next one starts. Where there is no
        other way and a node could not open the message, the same one is tried once more: the devices of its
        link disagreed, and what they gave has been thrown away since. A destination that refuses gets no
        second try, and `blind` none on the word of a relay, for one that probes would profit.
        """
        problem: Unavailable | None = None
        once_more = True
        while True:
            batch = await self._batch(order, waiting=True, deadline=self._turn(order, end))
            try:
                await self._attempt(batch, pool)
            except ExtensionRefused:
                # Only the way that failed could have kept what was demanded.
                if problem is None:
                    raise
                raise problem from None
            except Unavailable as error:
                problem = error
                around = self._go_around(batch, end)
                if not around and not (once_more and batch.doubted and self._time_left(end)):
                    raise
                once_more = False
                what = "keys go another way" if around else "keys go the same way once more"
                log.info(what, master=order.master, cause=error.cause, key_id=str(batch.keys[0][0]))
            else:
                return batch

    async def _attempt(self, batch: Batch, pool: Pool | None) -> None:
        """Send what was asked for and, at the cost of the same device key, what its pool lacks."""
        number = len(batch.keys)
        more = 0 if pool is None else self.pools.along(pool, number, self._room_behind, batch.created)
        if pool is None or not more:
            await self._dispatch_and_wait(batch, number)
            return
        load = Load(more)
        with self._loading(pool, load):
            batch.keys += await self._mint.keys(more, batch.size, self.pools.block(pool))
            load.arrived = await self._dispatch_and_wait(batch, number)

    def _turn(self, order: Order, end: float) -> float:
        """When this attempt gives up: half of the time left if there is another way, else all of it.

        All of it as well where half is hardly what confirmations take at present: a network that is busy is
        not served faster by sending the same again on another way.
        """
        now = self._site.clock.now()
        if (end - now) / 2 < PATIENCE * self._slowest:
            return end
        others = [
            self._relay.detours.other(self._relay.detours.way(leg, now), now)
            for leg in self._site.legs(order.targets)
            if leg != self._site.name and leg not in self._site.foreign
        ]
        return now + (end - now) / 2 if any(others) else end

    def _go_around(self, batch: Batch, end: float) -> bool:
        """Note which ways failed; whether each has another one, and there is time for it."""
        now = self._site.clock.now()
        failed = batch.failed or list(batch.ways.values())[-1:]
        others = [self._relay.detours.other(hops, now) for hops in failed]
        for hops in failed:
            self._relay.detours.failed(hops, now)
        return bool(others) and all(others) and self._time_left(end)

    def _time_left(self, end: float) -> bool:
        return end - self._site.clock.now() > max(SHORTEST_TURN, self._slowest)

    async def _dispatch_and_wait(self, batch: Batch, number: int) -> bool:
        """The first `number` keys are for a master; whether what is behind them reached its pool."""
        refs = [Ref(key_id, self._site.name) for key_id, _ in batch.keys]
        with self._waits.expecting(refs, number) as wait:
            await self._confirmed(batch, wait)
            if not wait.good:
                # Still expecting: keys confirmed while they are given up must not reach a pool as well.
                await self._give_up(batch, wait)
        self._slowest = max(self._site.clock.now() - batch.created, FADING * self._slowest)
        return wait.good

    async def _confirmed(self, batch: Batch, wait: Wait) -> None:
        """Send a batch and wait until every key of it is confirmed, one failed, or time is up."""
        await self._relay.dispatch(batch)
        patience = max(batch.deadline - self._site.clock.now(), 0.0)
        await asyncio.wait((wait.done,), timeout=patience)

    async def _give_up(self, batch: Batch, wait: Wait) -> None:
        """Time is up, or a node refused: void what is under way. An ack may still have been faster."""
        rows = await self._settlement.abandon(wait.claimed | wait.open)
        claimed = [row for row in rows if row.ref in wait.claimed]
        if len(claimed) == len(wait.claimed) and all(row.state is State.TAKEN for row in claimed):
            return
        batch.failed = _failed_ways(batch, rows)
        for leg in self._site.legs(batch.targets):
            self._site.pairing.forget(leg)
        batch.doubted = wait.doubted
        if wait.failed:
            raise Unavailable("the keys could not be delivered to every target", "ask again")
        first = {hop for way in batch.ways.values() for hop in way[:2]}
        troubles = [trouble for hop in sorted(first) if (trouble := self._settlement.trouble(hop))]
        raise Unavailable(
            ": ".join(
                [
                    f"the far end did not confirm the keys within {batch.deadline - batch.created:g} s",
                    *troubles,
                ]
            ),
            "ask again; the keys of this request were voided",
        )

    async def probe(self, node: str) -> dict[str, Any]:
        """A test key to an SAE of another node, whose bits nobody gets and which soon expires there.

        Returns `milliseconds` until that node confirmed it, and its `trust`. Raises NoSuchTarget where one of
        the two nodes serves no SAE, else as `request` does.
        """
        ours, theirs = self._site.view.saes(self._site.name), self._site.view.saes(node)
        if not ours or not theirs:
            lacking = node if ours else self._site.name
            raise NoSuchTarget(
                f"{lacking} serves no SAE that a test key could be for", "name one in [network]"
            )
        started = self._site.clock.now()
        order = Order(ours[0], (theirs[0],), 1, self._site.settings.key_size)
        batch = await self._batch(order, waiting=True)
        batch.expires = started + PROBE_LIFE
        if self._local(order):
            await self._relay.dispatch(batch)
        else:
            await self._dispatch_and_wait(batch, 1)
        for _, key in batch.keys:
            key.wipe()
        took = self._site.clock.now() - started
        return {"node": node, "milliseconds": round(took * 1000, 1), "trust": batch.trust}

    # ------------------------------------------------------------------ what the settlement tells

    def _concluded(self, rows: Sequence[Row]) -> None:
        self._offer(row for row in rows if not self._waits.claimed(row.ref))
        for row in rows:
            if row.upstream is None:
                self._learn(row)
            if row.state is not State.DELIVERABLE:
                self.pools.remove(row)
            self._waits.conclude(row)

    def _offer(self, rows: Iterable[Row]) -> None:
        """Keys into their pools, unless a request without wishes would get better ones today.

        A key may have been made for a request that asked for less, or before the configuration changed.
        """
        usual: dict[tuple[tuple[str, ...], frozenset[str]], str] = {}  # rows that come together have few
        for row in rows:
            needed = self._site.policy.demanded(row.initiator, row.targets)
            fits = row.scheme == "local" or needed <= frozenset(row.trust.get("labels", "").split())
            fits = fits and not self._losses.concern(row)
            if row.scheme in self._site.schemes:
                kind = (row.path, needed)
                if kind not in usual:
                    usual[kind] = self._usual(*kind)
                fits = fits and row.scheme == usual[kind]
            if fits:
                self.pools.offer(row)

    def _usual(self, path: tuple[str, ...], needed: frozenset[str]) -> str:
        try:
            return choose_scheme(self._site, path, Ask(policy=needed)).name
        except KeyhaulError:
            return ""

    def _learn(self, row: Row) -> None:
        """Whether the destinations hold the pair secrets their keys were authenticated with."""
        for leg in row.legs:
            if row.state is State.FAILED:
                self._site.pairing.forget(leg)
            elif row.state in (State.DELIVERABLE, State.TAKEN, State.RELAYED):
                self._site.pairing.confirmed(leg, row.ref.key_id)

    # ------------------------------------------------------------------ keys relayed ahead

    def _note(self, order: Order, *, hit: bool) -> None:
        """Tell the pools what was asked; restock where it is worth while."""
        pool, now = _pool(order), self._site.clock.now()
        self.pools.asked(pool, order.number, hit, now)
        if self.pools.low(pool, now):
            self._restock()

    def _restock(self) -> None:
        """Begin what the policy picks, as long as it may begin more."""
        while self._filling < FILLS:
            picked = self.pools.pick(self._site.clock.now(), self._room)
            if picked is None:
                return
            self._filling += 1
            pool, number = picked
            self._loads[pool] = load = Load(number)
            self._spawn(self._fill(pool, load), "fill pool")

    def _room(self, pool: Pool) -> int:
        """Keys that pools may send over the first links now; the rest of their stock is for others."""
        room = MAX_BATCH
        try:
            for leg in self._site.legs(tuple(pool.targets)):
                if leg != self._site.name and leg not in self._site.foreign:
                    room = min(room, self._spare(self._site.view.hops(self._site.name, leg)[1], pool.size))
        except (Unavailable, NoSuchTarget):
            return 0
        return room

    def _spare(self, peer: str, size: int) -> int:
        link = self._site.link(peer)
        level = link.level()
        if level is None:
            return MAX_BATCH
        self._fullest[peer] = max(self._fullest.get(peer, 0), level)
        spare = level - self._reserved(peer)
        if spare <= 0:
            return 0
        return max(0, spare - MESSAGE_COST) // size if "its-wire" in link.labels else MAX_BATCH

    def _reserved(self, peer: str) -> int:
        """Bits of a link's stock that are for requests and relaying, not for pools of a size by demand."""
        part = 0.0 if self.pools.rules.fixed is not None else 1.0 - self.pools.rules.share
        return int(part * self._fullest.get(peer, 0))

    def _room_behind(self, pool: Pool) -> int:
        return min([MAX_BATCH, *(self._spare(peer, pool.size) for peer in self._pad_peers(pool))])

    def _pad_peers(self, pool: Pool) -> list[str]:
        """Neighbours on the way whose link takes one-time pads for every key."""
        with contextlib.suppress(Unavailable, NoSuchTarget):
            firsts = [
                self._site.view.hops(self._site.name, leg)[1]
                for leg in self._site.legs(tuple(pool.targets))
                if leg != self._site.name and leg not in self._site.foreign
            ]
            return [peer for peer in firsts if "its-wire" in self._site.link(peer).labels]
        return []

    @contextmanager
    def _loading(self, pool: Pool, load: Load) -> Iterator[None]:
        """Keys for a pool are under way: requests for them wait, and the policy is told how it ended."""
        self._loads[pool] = load
        begun = self._site.clock.now()
        try:
            yield
        finally:
            del self._loads[pool]
            load.landed.set_result(None)
            now = self._site.clock.now()
            if load.arrived:
                apiece = bool(self._pad_peers(pool))
                self.pools.filled(pool, load.number, now - begun, now, apiece=apiece)
            else:
                self.pools.failed(pool, now)

    async def _fill(self, pool: Pool, load: Load) -> None:
        """Relay one batch of keys ahead of demand; then the next one is picked. A story of its own."""
        story.begin()
        try:
            with (
                self._site.tracer.span("restock", master=pool.master, keys=load.number),
                self._loading(pool, load),
            ):
                load.arrived = await self._relay_ahead(pool, load.number)
        except KeyhaulError as error:
            log.info("pool not filled", master=pool.master, cause=error.cause)
        finally:
            self._filling -= 1
        self._restock()

    async def _relay_ahead(self, pool: Pool, number: int) -> bool:
        """Whether every key of the batch is held at the far end."""
        order = Order(pool.master, tuple(sorted(pool.targets)), number, pool.size)
        batch = await self._batch(order, waiting=True, herd=self.pools.block(pool))
        batch.leave = {peer: self._reserved(peer) for peer in self._fullest}
        refs = [Ref(key_id, self._site.name) for key_id, _ in batch.keys]
        if self._local(order):
            await self._relay.dispatch(batch)
            self.pools.add(pool, refs)
            return True
        with self._waits.expecting(refs) as wait:
            await self._confirmed(batch, wait)
        if wait.good:
            return True
        rows = await self._settlement.abandon(wait.open)
        batch.failed = _failed_ways(batch, [*wait.failed, *rows])
        self._go_around(batch, batch.deadline)
        return False

    async def reconsider(self) -> None:
        """The policy or the network is another: what lies ready must be what a request would get today."""
        taken = {ref for pool in list(self.pools) for ref in self.pools.empty(pool)}
        if taken:
            rows = [row for row in await self._site.ledger.deliverable() if row.ref in taken]
            self._offer(sorted((row for row in rows if self._still_there(row)), key=lambda row: row.ref))
        self._stock.let_go()

    def _restored(self, node: str) -> None:
        """A node has none of what was sent to it so far: nobody gets that, and it is voided."""
        for pool in dict.fromkeys((*self.pools, *self._stock)):
            with contextlib.suppress(NoSuchTarget):
                if node in self._site.legs(tuple(pool.targets)):
                    self.pools.empty(pool)
                    self._stock.lose(pool)
        self._losses.add(node)

    def _still_there(self, row: Row) -> bool:
        """Whether the applications of a key are where it was sent."""
        try:
            legs = self._site.legs(row.targets)
        except NoSuchTarget:
            return False
        return legs.keys() - {self._site.name} == row.legs.keys()

    async def tend(self) -> None:
        """Void keys that lie idle, at both ends; restock pools that had to wait. Called every second."""
        for pool, extra in self.pools.surplus(self._site.clock.now()):
            while extra > 0 and (refs := self.pools.pop(pool, extra)):
                extra -= len(refs)
                await self._settlement.abandon(refs)
                self.pools.gave_up(pool, len(refs))
        self._restock()

    # ------------------------------------------------------------------ dec_keys and status

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        """Keys by id for an SAE that was named (014 dec_keys): all of them, or none is touched.

        Raises Unauthorized if the caller was not named for one of them, KeyNotFound if one is unknown,
        delivered, voided or expired.
        """
        refs = [Ref(key_id, self._site.name) for key_id in key_ids]
        async with self._site.ledger.edit(*refs) as change:
            rows = [change.rows[ref] for ref in refs]
            if any(row is not None and caller not in row.targets for row in rows):
                raise Unauthorized("the caller was not named in the request for one of these keys")
            held = [self._fetchable(row, caller, master) for row in rows]
            keys = [self._give(row, caller) for row in held]
            voids = self._settlement.deactivate(held, change)
        self._settlement.send(voids)
        story.tell(log, "keys fetched", slave=caller, keys=len(keys), key_id=key_ids[0] if keys else "")
        return keys

    def _give(self, row: Row, sae: str) -> Delivered:
        """Hand a key to one SAE under the row's lock: copy the bits, then note it is gone."""
        assert row.secret is not None
        bits = Secret(row.secret.reveal())
        lifecycle.given(row, sae, self._site.clock.now())
        return Delivered(row.ref.key_id, bits, dict(row.trust))

    def _fetchable(self, row: Row | None, caller: str, master: str) -> Row:
        held = (
            row is not None
            and row.state is State.DELIVERABLE
            and row.initiator == master
            and caller in row.waiting
            and row.expires > self._site.clock.now()
        )
        if row is None or not held:
            raise KeyNotFound("one or more keys specified are not found on KME")
        return row

    async def status(self, master: str, slave: str) -> Standing:
        """What a master could get for a slave right now (014 status). Raises NoSuchTarget."""
        home = self._site.beyond(slave) or self._site.view.home(slave)
        settings = self._site.settings
        pool = Pool(master, frozenset({slave}), settings.key_size)
        count = min(self._stock.count(pool) + self._supply(home), settings.max_key_count)
        return Standing(self._site.name, home, count, settings.max_key_count)

    def _supply(self, home: str) -> int:
        """Keys that the first link could carry now; what lies further on is not known here."""
        try:
            hops = self._site.view.hops(self._site.name, home)
        except Unavailable:
            return 0
        if len(hops) < 2:
            return self._site.settings.max_key_count
        level = self._site.link(hops[1]).level()
        most = self._site.settings.max_key_count
        return most if level is None else min(most, level // self._site.settings.key_size)


def _asked(order: Order) -> Ask:
    """The extensions of a request about schemes and labels."""
    labels = frozenset(order.options.get(LABELS, ()))
    insisted = LABELS in order.mandatory
    return Ask(
        scheme=order.options.get(SCHEME),
        insisted=SCHEME in order.mandatory,
        labels=labels if insisted else frozenset(),
        wished=frozenset() if insisted else labels,
    )


def _failed_ways(batch: Batch, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The ways on which keys failed; where none says so, those that stayed silent."""
    legs = [leg for row in rows for leg, state in row.legs.items() if state is State.FAILED]
    silent = [leg for row in rows for leg, state in row.legs.items() if state is not State.RELAYED]
    return [batch.ways[leg] for leg in dict.fromkeys(legs or silent) if leg in batch.ways]


def _pool(order: Order) -> Pool:
    return _pool_of(order.master, order.targets, order.size)


@functools.lru_cache(1024)
def _pool_of(master: str, targets: tuple[str, ...], size: int) -> Pool:
    """The same object for the same SAEs, so that looking it up compares nothing."""
    return Pool(master, frozenset(targets), size)
