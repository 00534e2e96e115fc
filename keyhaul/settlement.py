"""What became of keys: acknowledgements, voids and deadlines, carried back hop by hop.

    acknowledge   a neighbour tells what became of keys: settle the rows, tell who is upstream
    void          whoever gave or got keys takes them back: cancel what was not delivered
    lapse         a deadline passed without an answer: give up, and tell both sides
    settled, refused, lapsed   what the outbox learned about a message

A status is believed only from the neighbour that the row was sent to. That a key arrived, the origin
believes only with the destination's own proof: a relay that acknowledges what it dropped is found out.
Statuses a row has no use for any more change nothing. A void of an unknown key leaves a tombstone, so that
the key cannot come after it.
"""

from __future__ import annotations

import hmac
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog

from keyhaul import lifecycle, story
from keyhaul.errors import KeyNotFound, Tampered
from keyhaul.keys import MASTER, Event, Message, Ref, Row, State
from keyhaul.letters import Letters
from keyhaul.messages import confirming, etsi020, tracecontext
from keyhaul.messages.confirming import Saes
from keyhaul.messages.etsi020 import Ack, AckStatus, Void
from keyhaul.outbox import Outbox
from keyhaul.ports import Answer, Change, Opened
from keyhaul.site import Site

GRACE = 2.0  # seconds a row's deadline may be past before the sweep gives it up
FORGET_EVERY = 60.0  # seconds between two looks for old tombstones; at least 50 looks in a `retention`

log = structlog.get_logger("keyhaul.settlement")

_BAD = frozenset({AckStatus.FAILED, AckStatus.VOIDED, AckStatus.NOT_PRESENT, AckStatus.FAILED_TO_VOID})
_PROBED = "blind"  # so begin the schemes whose answers could tell a relay of a private key: none on its word
_VOIDING = frozenset({AckStatus.VOIDED, AckStatus.NOT_PRESENT, AckStatus.FAILED_TO_VOID})
_VOID_ANSWERED = frozenset({State.VOIDED, State.TAKEN})  # what a leg says of a void: done, or too late

_Report = tuple[str, AckStatus, bytes]
"""What a neighbour says of one leg: destination, status, and the destination's proof or nothing."""


@dataclass(slots=True)
class News:
    """What a step has to tell: statuses upward, voids downward, by neighbour and by the SAEs they concern."""

    acks: dict[tuple[str, str | None], list[tuple[UUID, AckStatus, Row, bytes]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    voids: dict[tuple[str, str, tuple[str, ...]], list[UUID]] = field(
        default_factory=lambda: defaultdict(list)
    )
    ended: list[Row] = field(default_factory=list)

    def up(self, row: Row, status: AckStatus, proof: bytes = b"") -> None:
        if row.upstream is not None:
            self.acks[row.upstream, row.callback].append((row.ref.key_id, status, row, proof))

    def down(self, peer: str, row: Row, targets: tuple[str, ...]) -> None:
        self.voids[peer, row.initiator, targets].append(row.ref.key_id)


class Settlement:
    """The backward half of the relay of one node; see the module docstring."""

    def __init__(self, site: Site, outbox: Outbox) -> None:
        self.site = site
        self._outbox = outbox
        self._letters = Letters(site)
        self._forgot_at = -math.inf
        self.claimed: Callable[[Ref], bool] = lambda ref: False
        """Whether the master waits for a key right now; set by the origin."""
        self.lost: Callable[[Row], bool] = lambda row: False
        """Whether a destination has lost what was sent there so far; set by the origin."""
        self.doubted: Callable[[Iterable[Ref]], None] = lambda refs: None
        """Told which keys failed because the material of a link did not fit; set by the origin."""
        self.concluded: Callable[[Sequence[Row]], None] = lambda rows: None
        """Told, after the commit, which rows of this origin were confirmed or ended."""

    def trouble(self, peer: str) -> str:
        """Why a neighbour did not answer the last time it was sent something; empty if it did."""
        return self._outbox.trouble(peer)

    # ------------------------------------------------------------------ acknowledgements

    async def acknowledge(self, peer: str, acks: Sequence[Ack], opened: Opened | None = None) -> None:
        """Outcome of keys handed to `peer` (020 ext_keys/ack).

        Raises KeyNotFound, for a plain peer, if it acknowledges a key it never got from here.
        """
        if opened is not None and acks:
            story.go_on(tracecontext.read(acks[0].extension, self.site.settings.pen))
        ids = (key_id for ack in acks for key_id in ack.key_ids)
        status = acks[0].status if acks else ""
        with self.site.tracer.span("settle", "consumer", ids, by=peer, status=status):
            await self._acknowledge(peer, acks, opened)

    async def _acknowledge(self, peer: str, acks: Sequence[Ack], opened: Opened | None) -> None:
        statuses: dict[Ref, list[_Report]] = defaultdict(list)
        for ack in acks:
            story.tell(log, "acknowledged", by=peer, status=ack.status, **_told(ack.key_ids))
            proofs, targets = confirming.proofs_of(ack, self.site.settings.pen), {*ack.target_sae_ids}
            rows: dict[UUID, list[Row]] = defaultdict(list)
            for row in await self.site.ledger.find(*dict.fromkeys(ack.key_ids)):
                rows[row.ref.key_id].append(row)
            for key_id, proof in zip(ack.key_ids, proofs, strict=True):
                known = rows[key_id]
                found = [
                    (row.ref, leg)
                    for row in known
                    for leg, hop in row.peers.items()
                    if hop == peer and {*self.site.targets_at(row, leg)} == targets
                ]
                ours = any(row.upstream == peer for row in known)  # the answer to a void that went up
                if not found and opened is None and not ours:
                    raise KeyNotFound(
                        "no key of this id was handed to the caller", key_not_present=str(key_id)
                    )
                for ref, leg in found:
                    statuses[ref].append((leg, ack.status, proof))
        await self._settle(statuses, opened)

    async def _settle(self, statuses: dict[Ref, list[_Report]], opened: Opened | None) -> None:
        now = self.site.clock.now()
        news = News()
        async with self.site.ledger.edit(*statuses) as change:
            for ref, reports in statuses.items():
                row = change.rows[ref]
                if row is not None:
                    for report in reports:
                        self._report(row, report, news, now)
            if opened is not None:
                opened.spend(change)
            messages = self._write(news, change)
        self._tell(messages, news)

    def _report(self, row: Row, report: _Report, news: News, now: float) -> None:
        """One status for one leg of one row, under the row's lock."""
        leg, status, proof = report
        if status is AckStatus.RELAYED and row.state in lifecycle.UNFINISHED:
            if self.lost(row) or not self._proved(row, leg, proof):
                self._fail(row, news, now)
                row.legs[leg] = State.FAILED
                return
            row.legs[leg] = State.RELAYED
            if lifecycle.reached(row.legs.values()):
                self._confirm(row, now)
                news.up(
                    row, AckStatus.RELAYED, row.proofs.get(self.site.name, proof)
                )  # a gateway has its own
                news.ended.append(row)
        elif status in _BAD and row.state in lifecycle.UNFINISHED:
            row.legs[leg] = State.FAILED
            self._fail(row, news, now, proof if proof == confirming.UNOPENED else b"")
        elif status in _VOIDING and row.state is State.VOIDED and row.legs.get(leg) not in _VOID_ANSWERED:
            row.legs[leg] = State.TAKEN if status is AckStatus.FAILED_TO_VOID else State.VOIDED
            if all(row.legs.get(each) in _VOID_ANSWERED for each in row.peers):
                kept = State.TAKEN in row.legs.values()
                news.up(row, AckStatus.FAILED_TO_VOID if kept else status)

    def _proved(self, row: Row, leg: str, proof: bytes) -> bool:
        """Whether the destination itself says so. A relay cannot tell and keeps what it hands on."""
        if row.ref.leg != self.site.name:
            row.proofs[leg] = proof
            return True
        expected = row.proofs.get(leg)
        if expected is None or hmac.compare_digest(expected, proof):
            return True
        log.error(
            "a false acknowledgement: the destination did not make it",
            key_id=str(row.ref.key_id),
            destination=leg,
            neighbour=row.peers.get(leg),
        )
        return False

    def _confirm(self, row: Row, now: float) -> None:
        """Every target's node holds the key. A master that waits for it takes it in the same commit."""
        if not row.waiting:
            lifecycle.step(row, State.RELAYED, now)
            return
        lifecycle.step(row, State.DELIVERABLE, now)
        if self.claimed(row.ref):
            row.waiting -= {MASTER}
        if not row.waiting:
            lifecycle.step(row, State.TAKEN, now)

    def _fail(self, row: Row, news: News, now: float, word: bytes = b"") -> None:
        lifecycle.step(row, State.FAILED, now)
        if word and not row.scheme.startswith(_PROBED):
            self.doubted((row.ref,))
        for leg, hop in row.peers.items():
            if row.legs.get(leg) is not State.FAILED:
                news.down(hop, row, self.site.targets_at(row, leg))
        news.up(row, AckStatus.FAILED, word)
        news.ended.append(row)

    # ------------------------------------------------------------------ voids

    async def void(self, peer: str, request: Void, opened: Opened | None = None) -> None:
        """Discard keys (020 ext_keys/void), asked by a neighbour that gave them or got them."""
        if opened is not None:
            story.go_on(tracecontext.read(request.extension, self.site.settings.pen))
        with self.site.tracer.span("discard", "consumer", request.key_ids, by=peer):
            await self._void(peer, request, opened)

    async def _void(self, peer: str, request: Void, opened: Opened | None) -> None:
        refs = await self._named(peer, request)
        story.tell(log, "to be discarded", by=peer, **_told([ref.key_id for ref in refs]))
        now = self.site.clock.now()
        news = News()
        async with self.site.ledger.edit(*refs) as change:
            for ref in refs:
                row = change.rows[ref]
                if row is None:
                    row = change.rows[ref] = self._tombstone(ref, peer, request, now)
                    self._answer(news, peer, request, row, AckStatus.NOT_PRESENT)
                elif row.upstream == peer:
                    self._void_from_above(row, peer, request, news, now)
                elif peer in row.peers.values():
                    self._void_from_below(row, peer, request, news, now)
            if opened is not None:
                opened.spend(change)
            messages = self._write(news, change)
        self.site.note(
            "voided", by=peer, initiator=request.initiator_sae_id, keys=[str(ref.key_id) for ref in refs]
        )
        self._tell(messages, news)

    async def _named(self, peer: str, request: Void) -> list[Ref]:
        """The rows a void speaks of; free refs for keys that were never seen here."""
        if not request.key_ids:
            rows = await self.site.ledger.between(request.initiator_sae_id, frozenset(request.target_sae_ids))
            return [row.ref for row in rows if row.upstream == peer or peer in row.peers.values()]
        refs: list[Ref] = []
        for key_id in dict.fromkeys(request.key_ids):
            rows = [
                row
                for row in await self.site.ledger.find(key_id)
                if row.upstream == peer or peer in row.peers.values()
            ]
            unseen = [Ref(key_id, leg) for leg in self._unseen(peer, request)]
            if not rows:  # each will be a tombstone
                self.site.quota.keys(peer, len(unseen), self.site.clock.now())
            refs.extend([row.ref for row in rows] or unseen)
        return list(dict.fromkeys(refs))

    def _unseen(self, peer: str, request: Void) -> list[str]:
        """Under which legs keys would stand that did not come yet: what enters or leaves here starts here."""
        here = self.site.name
        if peer in self.site.foreign:
            return [here]
        legs = self.site.legs(request.target_sae_ids)
        return list(dict.fromkeys(here if leg in self.site.foreign else leg for leg in legs))

    def _void_from_above(self, row: Row, peer: str, request: Void, news: News, now: float) -> None:
        partly = row.state is State.DELIVERABLE and not row.peers and row.waiting != frozenset(row.targets)
        voided = row.state is State.VOIDED
        if partly or row.state is State.TAKEN or (voided and State.TAKEN in row.legs.values()):
            self._answer(news, peer, request, row, AckStatus.FAILED_TO_VOID)
        elif voided and not lifecycle.voided_everywhere(row):
            pass  # asked before: the answer follows when the nodes further on have given theirs
        elif not lifecycle.may(row, State.VOIDED):
            self._answer(news, peer, request, row, AckStatus.NOT_PRESENT)
        elif not row.peers:
            lifecycle.step(row, State.VOIDED, now)
            self._answer(news, peer, request, row, AckStatus.VOIDED)
        else:
            # A relay answers when the nodes further on have: they know whether an SAE has the key.
            lifecycle.step(row, State.VOIDED, now)
            for leg, hop in row.peers.items():
                news.down(hop, row, self.site.targets_at(row, leg))

    def _void_from_below(self, row: Row, peer: str, request: Void, news: News, now: float) -> None:
        # At the origin the master may have its copy while another target here still waits for its own.
        given = row.upstream is None and row.state is State.DELIVERABLE and MASTER not in row.waiting
        if given or row.state is State.TAKEN:
            self._answer(news, peer, request, row, AckStatus.FAILED_TO_VOID)
            return
        if lifecycle.may(row, State.VOIDED):
            unfinished = row.state in lifecycle.UNFINISHED
            lifecycle.step(row, State.VOIDED, now)
            for leg, hop in row.peers.items():
                if hop == peer:
                    row.legs[leg] = State.VOIDED
                else:
                    news.down(hop, row, self.site.targets_at(row, leg))
            if row.upstream is not None and unfinished:
                news.up(row, AckStatus.FAILED)
            elif row.upstream is not None:
                news.down(row.upstream, row, row.targets)
            news.ended.append(row)
        self._answer(news, peer, request, row, AckStatus.VOIDED)

    def _answer(self, news: News, peer: str, request: Void, row: Row, status: AckStatus) -> None:
        news.acks[peer, request.ack_callback_url].append((row.ref.key_id, status, row, b""))

    def _tombstone(self, ref: Ref, peer: str, request: Void, now: float) -> Row:
        return Row(
            ref=ref,
            state=State.VOIDED,
            initiator=request.initiator_sae_id,
            targets=request.target_sae_ids,
            size=0,
            created=now,
            deadline=now,
            expires=now + self.site.settings.ttl,
            upstream=peer,
            history=(Event(State.VOIDED, now),),
        )

    async def abandon(self, refs: Iterable[Ref], *, lost: bool = False) -> list[Row]:
        """The origin gives keys up: void them and everything downstream. Returns the rows as they are.

        With `lost` it is a destination that has not got them any more: whoever waits for keys under way is
        told that they failed, and of keys that the master has, other slaves may still have theirs.
        """
        refs = list(refs)
        now = self.site.clock.now()
        news, rows = News(), []
        async with self.site.ledger.edit(*refs) as change:
            for ref in refs:
                row = change.rows[ref]
                if row is None:
                    continue
                if lost and row.state in lifecycle.UNFINISHED:
                    self._fail(row, news, now)
                elif (MASTER in row.waiting or not lost) and lifecycle.may(row, State.VOIDED):
                    lifecycle.step(row, State.VOIDED, now)
                    for leg, hop in row.peers.items():
                        news.down(hop, row, self.site.targets_at(row, leg))
                rows.append(row)
            messages = self._write(news, change)
        voided = [str(row.ref.key_id) for row in rows if row.state is State.VOIDED]
        self.site.note("voided", by=self.site.name, keys=voided)
        self._tell(messages, news)
        return rows

    # ------------------------------------------------------------------ deadlines

    async def sweep(self) -> int:
        """Give up what is overdue, expire what nobody fetched, forget old tombstones. Returns rows seen."""
        now = self.site.clock.now()
        refs = await self.site.ledger.due(now - GRACE)
        if refs:
            await self._lapse(refs, now)
        retention = self.site.settings.retention
        if abs(now - self._forgot_at) >= min(FORGET_EVERY, retention / 50):
            await self.site.ledger.forget(now - retention)
            self._forgot_at = now
        return len(refs)

    async def _lapse(self, refs: Sequence[Ref], now: float) -> None:
        news = News()
        async with self.site.ledger.edit(*refs) as change:
            for ref in refs:
                row = change.rows[ref]
                if row is None:
                    continue
                if row.state in lifecycle.UNFINISHED and row.deadline <= now:
                    # Nobody knows what lies further on, so it is voided there as well (020 §2.6).
                    self._fail(row, news, now)
                elif row.expires <= now and lifecycle.may(row, State.EXPIRED):
                    lifecycle.step(row, State.EXPIRED, now)
                    news.ended.append(row)
            messages = self._write(news, change)
        self.site.note("lapsed", keys=[str(ref.key_id) for ref in refs])
        self._tell(messages, news)

    # ------------------------------------------------------------------ what the outbox learned

    async def settled(self, messages: Sequence[Message]) -> None:
        """Neighbours accepted these: off the disk with them, and their rows are `sent`."""
        now = self.site.clock.now()
        refs = [ref for message in messages for ref in await self._unsent(message)]
        async with self.site.ledger.edit(*dict.fromkeys(refs)) as change:
            for row in change.rows.values():
                if row is not None and row.state is State.SENDING:
                    lifecycle.step(row, State.SENT, now)
            for message in messages:
                change.drop(message.id)

    async def _unsent(self, message: Message) -> Sequence[Ref]:
        """Rows that may be `sending` still: most have been acknowledged when their message is settled."""
        if message.path != etsi020.EXT_KEYS:
            return ()
        async with self.site.ledger.together(message.refs) as herd:
            return () if herd is not None and herd.row.state is not State.SENDING else message.refs

    async def refused(self, message: Message, answer: Answer) -> None:
        """The neighbour kept nothing: the leg has failed. For an ack or a void there is nothing to undo."""
        link = self.site.links.get(message.peer)  # a reload may have taken it away meanwhile
        unopened = message.sealed and answer.status == Tampered.status
        if unopened:
            if link is not None:
                link.doubt()
            self.doubted(message.refs)
        elif message.sealed and link is not None:
            link.recheck()
        await self._give_up(message, void=False, word=confirming.UNOPENED if unopened else b"")

    async def lapsed(self, message: Message) -> None:
        """No definite answer in time: the leg has failed, and what may lie there is voided."""
        await self._give_up(message, void=True)

    async def _give_up(self, message: Message, *, void: bool, word: bytes = b"") -> None:
        refs = message.refs if message.path == etsi020.EXT_KEYS else ()
        now = self.site.clock.now()
        news = News()
        async with self.site.ledger.edit(*refs) as change:
            change.drop(message.id)
            for row in change.rows.values():
                if row is None or row.state not in lifecycle.UNFINISHED:
                    continue
                if not void:
                    for leg, hop in row.peers.items():
                        if hop == message.peer:
                            row.legs[leg] = State.FAILED
                self._fail(row, news, now, word)
            messages = self._write(news, change)
        self._tell(messages, news)

    # ------------------------------------------------------------------ paper B's void

    def deactivate(self, rows: Iterable[Row], change: Change) -> list[Message]:
        """Voids of keys that all applications here have, back along their path (paper B §5).

        For `void_delivered` alone: V1.1.1 has relays purge on the acknowledgement, and calls a void of a
        key that an SAE has failed. Relays of ours take it as the end of their tombstone.
        """
        if not self.site.settings.void_delivered:
            return []
        news = News()
        for row in rows:
            if row.state is State.TAKEN and row.upstream is not None:
                news.down(row.upstream, row, row.targets)
        return self._write(news, change)

    def send(self, messages: Sequence[Message]) -> None:
        """Messages that were committed."""
        if messages:
            self._tell(messages, News())

    # ------------------------------------------------------------------ telling

    def _write(self, news: News, change: Change) -> list[Message]:
        """Turn news into messages of the same commit: one a neighbour and kind, however many keys."""
        messages = []
        for (peer, callback), reports in news.acks.items():
            grouped: dict[tuple[AckStatus, Saes], list[tuple[UUID, bytes]]] = defaultdict(list)
            for key_id, status, row, proof in reports:
                word = b"" if proof == confirming.UNOPENED and peer in self.site.foreign else proof
                grouped[status, (row.initiator, row.targets)].append((key_id, word))
            acks = [
                ack
                for (status, saes), outcomes in grouped.items()
                for ack in confirming.acks(outcomes, status, saes, self.site.settings.pen)
            ]
            messages.append(self._letters.acks(peer, acks, callback))
        for (peer, initiator, targets), ids in news.voids.items():
            void = Void(tuple(ids), initiator, targets, self.site.callback)
            messages.append(self._letters.void(peer, void))
        for message in messages:
            change.post(message)
        return messages

    def _tell(self, messages: Sequence[Message], news: News) -> None:
        for message in messages:
            self._outbox.send(message)
        if news.ended:
            self.concluded(news.ended)


def _told(key_ids: Sequence[UUID]) -> dict[str, Any]:
    """What a line of the log says of keys that go together."""
    return {"keys": len(key_ids), "key_id": str(key_ids[0]) if key_ids else ""}
