"""The story of a key: sent on its way, accepted, passed on, acknowledged, voided, or given up.

One short coroutine a step. Every step does its I/O first (pads, one-time keys), then opens an edit,
re-reads the rows under their locks, asks the lifecycle table, and commits rows, spent key material and
outgoing messages as one. Only what is on disk is sent or answered. Repeated, late and unknown messages
are normal input.

    dispatch   origin and gateway: keys leave for the nodes of their targets
    envelope   a sealed message comes in: open it once, hand its content to the right step
    accept     a neighbour hands keys on: pass them on, or hold them for an SAE

What becomes of keys afterwards (acknowledgements, voids, deadlines) is in `keyhaul.settlement`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

import structlog

from keyhaul import handover, lifecycle, story
from keyhaul.detours import Detours
from keyhaul.errors import (
    Conflict,
    Malformed,
    NoSuchTarget,
    Refused,
    Spent,
    Taken,
    Tampered,
    Unsupported,
)
from keyhaul.keys import Event, Message, Ref, Row, Secret, State
from keyhaul.letters import Letters
from keyhaul.messages import carrying, confirming, etsi020, receipts, tracecontext
from keyhaul.messages.etsi020 import Ack, AckStatus, ExtKeys
from keyhaul.messages.payload import NO_PAIR, Context, Payload, Scheme, renewing
from keyhaul.messages.wrapping import Wrapping, unwrap, wrap
from keyhaul.outbox import Outbox
from keyhaul.ports import Change, Grant, Opened
from keyhaul.promise import NOTHING, Ask, handed_over, joined, refuse_forbidden, refuse_plain, trust
from keyhaul.rounds import Payer, own
from keyhaul.settlement import Settlement
from keyhaul.site import Site
from keyhaul.story import Told
from keyhaul.ways import choose

CLOCK_SKEW = 300.0  # seconds another node's clock may run ahead of ours
HOP_PATIENCE = 2.0  # seconds a relay waits for key material before it says 503
HEAVY = 2048  # bytes of keys in one payload from which on a heavy scheme computes in a thread

_Result = TypeVar("_Result")

log = structlog.get_logger("keyhaul.relay")


@dataclass(slots=True)
class Batch:
    """Keys of one request: same SAEs, same size (bits), same fate. Times in Unix seconds."""

    keys: list[tuple[UUID, Secret]]
    initiator: str
    targets: tuple[str, ...]
    size: int
    created: float
    deadline: float
    expires: float
    upstream: str | None = None
    callback: str | None = None
    waiting: frozenset[str] = frozenset()
    ask: Ask = NOTHING
    letter: Message | None = None
    leave: Mapping[str, int] | None = None
    """Bits that have to stay ready on links to neighbours, if these keys are relayed ahead of demand."""
    optional: Mapping[str, Any] = field(default_factory=dict)
    trust: dict[str, str] | None = None
    ways: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The nodes to each destination, the last one tried last."""
    failed: list[tuple[str, ...]] = field(default_factory=list)
    doubted: bool = False  # the first link's material did not fit


@dataclass(slots=True)
class _Leg:
    """One destination of a batch: where it is, which neighbour is next, what will be sent there."""

    destination: str
    peer: str
    targets: tuple[str, ...]
    route: tuple[str, ...]
    trust: dict[str, str]
    message: Message
    grant: Grant | None
    proofs: dict[UUID, bytes] = field(default_factory=dict)
    passed: bytes = b""


class Relay:
    """The steps of one node; see the module docstring."""

    def __init__(self, site: Site, outbox: Outbox, settlement: Settlement) -> None:
        self.site = site
        self._outbox = outbox
        self._settlement = settlement
        self._letters = Letters(site)
        self.detours = Detours(site.name, site.view)
        self.receipted: Callable[[Row], None] = lambda row: None
        """Told of each message that was taken in or sent, after the commit, by one of its rows."""

    # ------------------------------------------------------------------ dispatch

    async def dispatch(self, batch: Batch) -> None:
        """Send a batch on its way to all its targets. On return the intent is durable.

        Raises NoSuchTarget, NoRoute, InsufficientKey, Unavailable or ExtensionRefused; then nothing
        was stored or sent.
        """
        ids = (key_id for key_id, _ in batch.keys)
        with self.site.tracer.span("dispatch", "producer", ids, keys=len(batch.keys)):
            await self._dispatch(batch)

    async def _dispatch(self, batch: Batch) -> None:
        legs: list[_Leg] = []
        rows: list[Row] = []
        local = self.site.legs(batch.targets).get(self.site.name, ())
        try:
            for destination, targets in self.site.legs(batch.targets).items():
                if destination != self.site.name:
                    legs.append(await self._prepare(batch, destination, targets))
            rows = [self._minted(batch, key_id, key, legs, local) for key_id, key in batch.keys]
            batch.trust = dict(rows[0].trust)
            async with self.site.ledger.edit(*(row.ref for row in rows)) as change:
                _add(change, rows)
                for leg in legs:
                    if leg.grant is not None:
                        leg.grant.spend(change)
                    change.post(leg.message)
                if batch.letter is not None:
                    change.post(batch.letter)
        except BaseException:
            for leg in legs:
                if leg.grant is not None:
                    leg.grant.cancel()
            raise
        story.tell(log, "keys leave", by=rows[0].peers, **_told(rows))
        if any(leg.passed for leg in legs):
            self.receipted(rows[0])
        for message in (*(leg.message for leg in legs), batch.letter):
            if message is not None:
                self._outbox.send(message, own(batch.initiator))

    async def _prepare(self, batch: Batch, destination: str, targets: tuple[str, ...]) -> _Leg:
        foreign = self.site.foreign.get(destination)
        if foreign is not None:
            return self._prepare_plain(batch, destination, targets)
        ask = self._asked(batch, targets)
        beyond = [sae for sae in targets if self.site.view.foreign(sae)]
        if beyond:
            refuse_plain(f"the key manager of {beyond[0]}", self.site, ask, destination)
        hops, scheme = await choose(self.site, self.detours, destination, ask, batch.deadline)
        batch.ways[destination] = hops
        statement = trust(self.site, scheme, hops)
        if beyond:
            statement = handed_over(statement)
        context = Context(
            scheme=scheme.name,
            origin=self.site.name,
            destination=destination,
            initiator=batch.initiator,
            targets=targets,
            key_ids=tuple(key_id for key_id, _ in batch.keys),
            size=batch.size,
            expires=int(batch.expires),
            route=hops,
            trust=tuple(sorted(statement.items())),
        )
        pair = NO_PAIR
        if scheme.authenticated:
            pair = await self.site.pairing.outgoing(destination, batch.deadline, once=scheme.once)
            self.site.pairing.sent(destination, pair, batch.keys[0][0])
        if beyond:
            context = carrying.carrying(context, pair, batch.optional)
        bare = [key for _, key in batch.keys]
        payload = await _apart(scheme, context, scheme.originate, bare, context, pair)
        wrapping = Wrapping(context, payload, batch.deadline)
        leave = None if batch.leave is None else batch.leave.get(hops[1], 0)
        first = (hops[1], self.site.name, batch.deadline, own(batch.initiator), leave)
        grant, message = await self._hand_on(scheme, wrapping, *first)
        proofs = confirming.confirmations(pair, context) if scheme.authenticated else {}
        passed = _receipt(scheme, context, payload)
        return _Leg(destination, hops[1], targets, hops, statement, message, grant, proofs, passed)

    def _asked(self, batch: Batch, targets: tuple[str, ...]) -> Ask:
        """What the request wants of a path, and what the configuration demands for these applications."""
        ask = replace(batch.ask, policy=self.site.policy.demanded(batch.initiator, targets))
        if batch.upstream is not None:
            refuse_plain(batch.upstream, self.site, ask)  # its way in was plain already
        return ask

    def _prepare_plain(self, batch: Batch, peer: str, targets: tuple[str, ...]) -> _Leg:
        """Keys for a foreign key manager leave as plain 020; the trust ends at its door."""
        refuse_plain(peer, self.site, self._asked(batch, targets))
        given = (batch.keys, batch.initiator, targets, batch.deadline, batch.optional)
        message = handover.transfer(self.site, self._letters, peer, *given)
        statement = {"scheme": "plain", "path": f"{self.site.name}~{peer}", "wire": "TLS", "relays": "none"}
        return _Leg(peer, peer, targets, (self.site.name, peer), statement, message, None)

    async def _hand_on(
        self,
        scheme: Scheme,
        wrapping: Wrapping,
        peer: str,
        leg: str,
        deadline: float,
        payer: Payer,
        leave: int | None = None,
    ) -> tuple[Grant, Message]:
        """Put the next pad on a bare payload and seal it for a neighbour, at the expense of `payer`."""
        payload = wrapping.payload
        link = self.site.link(peer)
        grant = await link.grant(scheme.pad_bytes(payload), deadline=deadline, payer=payer, leave=leave)
        try:
            padded = scheme.transit(payload, None, grant.pad())
            transfer = wrap(
                Wrapping(wrapping.context, padded, wrapping.deadline),
                self.site.callback,
                self.site.settings.pen,
                story.context(),
            )
            body = grant.seal(etsi020.EXT_KEYS, etsi020.encode_ext_keys(transfer, sealed=True))
        except BaseException:
            grant.cancel()
            raise
        refs = tuple(Ref(key_id, leg) for key_id in wrapping.context.key_ids)
        message = self._letters.message(
            peer, etsi020.EXT_KEYS, body, sealed=True, refs=refs, deadline=wrapping.deadline
        )
        return grant, message

    def _minted(
        self, batch: Batch, key_id: UUID, key: Secret, legs: Sequence[_Leg], local: tuple[str, ...]
    ) -> Row:
        foreign = batch.upstream is not None
        row = Row(
            ref=Ref(key_id, self.site.name),
            state=State.ACCEPTED if foreign else State.MINTED,
            initiator=batch.initiator,
            targets=batch.targets,
            size=batch.size,
            created=batch.created,
            deadline=batch.deadline,
            expires=batch.expires,
            upstream=batch.upstream,
            callback=batch.callback,
            waiting=batch.waiting | frozenset(local),
            legs={leg.destination: State.SENDING for leg in legs},
            peers={leg.destination: leg.peer for leg in legs},
            scheme=legs[0].trust["scheme"] if legs else "local",
            path=legs[0].route if legs else (self.site.name,),
            trust=joined([leg.trust for leg in legs]) if legs else _LOCAL_TRUST,
            secret=key,
            proofs={leg.destination: leg.proofs[key_id] for leg in legs if leg.proofs},
            passed={leg.destination: leg.passed for leg in legs if leg.passed},
        )
        row.history = (Event(row.state, batch.created),)
        lifecycle.step(row, State.SENDING if legs else State.DELIVERABLE, batch.created)
        if not legs and not row.waiting:
            lifecycle.step(row, State.TAKEN, batch.created)
        return row

    # ------------------------------------------------------------------ accept

    async def envelope(self, peer: str, body: bytes) -> None:
        """A sealed message from a neighbour. Returning means: accepted, and durably so."""
        link = self.site.link(peer)
        opened = await link.open(body)
        if opened is None:
            return
        try:
            await self._receive(peer, opened)
        except (Taken, Spent):
            # The same message came twice at once; the other copy was stored first.
            if await link.open(body) is not None:
                raise

    async def _receive(self, peer: str, opened: Opened) -> None:
        if opened.path == etsi020.EXT_KEYS:
            transfer = etsi020.decode_ext_keys(opened.content, sealed=True)
            story.go_on(tracecontext.read(transfer.extension_optional, self.site.settings.pen))
            await self.accept(peer, transfer, opened)
        elif opened.path == etsi020.ACK:
            await self._settlement.acknowledge(peer, etsi020.decode_acks(opened.content, sealed=True), opened)
        elif opened.path == etsi020.VOID:
            await self._settlement.void(peer, etsi020.decode_void(opened.content, sealed=True), opened)
        else:
            raise Malformed("the envelope holds an operation that 020 does not know")

    async def accept(self, peer: str, transfer: ExtKeys, opened: Opened | None = None) -> None:
        """Keys from a neighbour (020 ext_keys). 400 and 401 promise that nothing was kept."""
        unknown = set(transfer.extension_mandatory) - {f"E{self.site.settings.pen}_keyhaul"}
        wrapping = unwrap(transfer, self.site.settings.pen)
        if unknown or (wrapping is not None) != (opened is not None):
            names = ", ".join(sorted(unknown)) or "keyhaul payloads travel in envelopes only"
            raise Unsupported("a mandatory extension is not supported", unsupported_mandatory_extension=names)
        if wrapping is None or opened is None:
            await self._enter(peer, transfer)
            return
        # A relay cannot check what the origin vouched for, so no neighbour may make it remember for ever.
        longest = self.site.clock.now() + self.site.settings.ttl
        wrapping = replace(wrapping, deadline=min(wrapping.deadline, longest))
        if wrapping.context.expires > longest + CLOCK_SKEW:
            raise Malformed("the keys are to be kept for longer than this node keeps any", "lower ttl there")
        context, now = wrapping.context, self.site.clock.now()
        self.site.came(context.route, peer)
        self.site.quota.keys(peer, len(context.key_ids), now)
        here = context.destination == self.site.name
        what: dict[str, Told] = {"scheme": context.scheme, "keys": len(context.key_ids), "came": peer}
        with self.site.tracer.span("hold" if here else "relay", "consumer", context.key_ids, **what):
            await refuse_forbidden(self.site, context, peer, min(wrapping.deadline, now + HOP_PATIENCE))
            await (self._arrive if here else self._pass_on)(peer, wrapping, opened)

    def _scheme(self, name: str) -> Scheme:
        scheme = self.site.schemes.get(name)
        if scheme is None:
            raise Unsupported(f"scheme {name!r} is not available here", unsupported_mandatory_extension=name)
        return scheme

    async def _pass_on(self, peer: str, wrapping: Wrapping, opened: Opened) -> None:
        """A relay: new pad on, old pad off, and not a bit of the key in the ledger."""
        context, now = wrapping.context, self.site.clock.now()
        hop = self.site.next_hop(context.route)
        payer = self.site.payer(peer, context.route, context.initiator)
        scheme = self._scheme(context.scheme)
        pad = opened.pad(scheme.pad_bytes(wrapping.payload))
        wrapping = replace(wrapping, payload=scheme.transit(wrapping.payload, pad, None))
        took = _receipt(scheme, context, wrapping.payload)
        wrapping = await self._renewed(scheme, wrapping)
        onward = (hop, context.destination, min(wrapping.deadline, now + HOP_PATIENCE), payer)
        grant, message = await self._hand_on(scheme, wrapping, *onward)
        passed = _receipt(scheme, context, wrapping.payload)
        rows = [self._accepted(peer, wrapping, key_id, now, took) for key_id in context.key_ids]
        for row in rows:
            row.legs, row.peers = {context.destination: State.SENDING}, {context.destination: hop}
            row.passed = {context.destination: passed} if passed else {}
            lifecycle.step(row, State.SENDING, now)
        try:
            async with self.site.ledger.edit(*(row.ref for row in rows)) as change:
                _add(change, rows)
                opened.spend(change)
                grant.spend(change)
                change.post(message)
        except _VoidedBefore:
            grant.cancel()
            await self._answer_voided(peer, wrapping, opened)
            return
        except BaseException:
            grant.cancel()
            raise
        story.tell(log, "keys passed on", came=peer, by=hop, **_told(rows))
        if took:
            self.receipted(rows[0])
        self._outbox.send(message, payer)

    async def _renewed(self, scheme: Scheme, wrapping: Wrapping) -> Wrapping:
        """The bare payload in another form, where the scheme has its relays re-randomise."""
        if (by := renewing(scheme)) is None:
            return wrapping
        context = wrapping.context
        return replace(wrapping, payload=await _apart(scheme, context, by.renew, wrapping.payload, context))

    async def _arrive(self, peer: str, wrapping: Wrapping, opened: Opened) -> None:
        """The destination: last pad off, origin checked, keys held, or handed over; only then the ack."""
        context, now = wrapping.context, self.site.clock.now()
        scheme = self._scheme(context.scheme)
        bare = self._bare(scheme, wrapping, opened)
        keys, proofs, optional = await self._unpack(scheme, context, bare)
        took = b"" if bare is None else _receipt(scheme, context, bare)
        messages = handover.onward(self.site, self._letters, context, keys, wrapping.deadline, optional)
        rows = [self._accepted(peer, wrapping, key_id, now, took) for key_id in context.key_ids]
        for at, row in enumerate(rows):
            if keys is None:
                lifecycle.step(row, State.FAILED, now)
                self.site.note("origin_check_failed", by=peer, keys=[str(row.ref.key_id)])
                continue
            row.secret, row.waiting = keys[at], frozenset(self.site.legs(row.targets).get(self.site.name, ()))
            row.peers = {message.peer: message.peer for message in messages}
            row.legs = dict.fromkeys(row.peers, State.SENDING)
            lifecycle.step(row, State.SENDING if messages else State.DELIVERABLE, now)
            if proofs:
                row.proofs[self.site.name] = proofs[row.ref.key_id]
        status = AckStatus.FAILED if keys is None else AckStatus.RELAYED
        messages = messages or [self._letters.acks(peer, self._outcome(context, status, proofs))]
        try:
            async with self.site.ledger.edit(*(row.ref for row in rows)) as change:
                _add(change, rows)
                opened.spend(change)
                for message in messages:
                    change.post(message)
        except _VoidedBefore:
            await self._answer_voided(peer, wrapping, opened)
            return
        story.tell(log, "keys held for their application", came=peer, **_told(rows))
        if took:
            self.receipted(rows[0])
        for message in messages:
            self._outbox.send(message)

    def _outcome(self, context: Context, status: AckStatus, proofs: dict[UUID, bytes]) -> list[Ack]:
        outcomes = [(key_id, proofs.get(key_id, b"")) for key_id in context.key_ids]
        saes = context.initiator, context.targets
        return confirming.acks(outcomes, status, saes, self.site.settings.pen)

    def _bare(self, scheme: Scheme, wrapping: Wrapping, opened: Opened) -> Payload | None:
        """The payload without its last pad; None if it is not what it says it is."""
        try:
            pad = opened.pad(scheme.pad_bytes(wrapping.payload))
            return scheme.transit(wrapping.payload, pad, None)
        except Malformed:
            return None

    async def _unpack(
        self, scheme: Scheme, context: Context, bare: Payload | None
    ) -> tuple[list[Secret] | None, dict[UUID, bytes], Mapping[str, Any]]:
        """The keys, what confirms them, and what goes on beside them; None for keys the origin did not send.

        One constant failure, no hint.
        """
        try:
            here = {self.site.name, *self.site.foreign}
            if bare is None or not self.site.legs(context.targets).keys() <= here:
                raise Tampered
            if self.site.view.home(context.initiator) != context.origin:
                raise Tampered  # only its own node speaks for a master
            pair = NO_PAIR
            if scheme.authenticated:
                pair = await self.site.pairing.incoming(bare.head, context.origin)
            keys = await _apart(scheme, context, scheme.deliver, bare, context, pair)
            proofs = confirming.confirmations(pair, context) if scheme.authenticated else {}
            return keys, proofs, carrying.carried(context, pair)
        except (Tampered, Malformed, NoSuchTarget):
            self.site.pairing.refused(context.scheme)
            log.error(
                "keys refused: not what the origin sent",
                origin=context.origin,
                keys=len(context.key_ids),
                key_id=str(context.key_ids[0]),
            )
            return None, {}, {}

    async def _answer_voided(self, peer: str, wrapping: Wrapping, opened: Opened) -> None:
        """The void overtook its keys: take the message in, keep nothing, say so."""
        message = self._letters.acks(peer, self._outcome(wrapping.context, AckStatus.VOIDED, {}))
        async with self.site.ledger.edit() as change:
            opened.spend(change)
            change.post(message)
        self._outbox.send(message)

    async def _enter(self, peer: str, transfer: ExtKeys) -> None:
        """A gateway: keys of a foreign key manager enter; from here on this node is their origin."""
        now = self.site.clock.now()
        sizes = {len(key.value) * 8 for key in transfer.keys}
        if len(sizes) != 1 or len({key.key_id for key in transfer.keys}) != len(transfer.keys):
            raise Malformed("keys of one transfer must be distinct and of one size", invalid_parameter="keys")
        if self.site.beyond(transfer.initiator_sae_id) != peer:
            raise Refused("the initiator is no SAE of the caller", invalid_parameter="initiator_sae_id")
        if peer in self.site.legs(transfer.target_sae_ids):
            raise Refused("a target is reached through the caller", invalid_routing="next hop is the caller")
        if known := await handover.accepted_before(self.site, peer, transfer):
            await self._answer_again(peer, transfer, known)
            return
        self.site.quota.keys(peer, len(transfer.keys), now)
        batch = Batch(
            keys=[(key.key_id, Secret(key.value)) for key in transfer.keys],
            initiator=transfer.initiator_sae_id,
            targets=transfer.target_sae_ids,
            size=sizes.pop(),
            created=now,
            deadline=now + self.site.settings.request_timeout,
            expires=now + self.site.settings.ttl,
            upstream=peer,
            callback=transfer.ack_callback_url,
            optional=transfer.extension_optional,
        )
        if all(leg == self.site.name for leg in self.site.legs(batch.targets)):
            batch.letter = self._letters.acks(peer, [_relayed(batch)], batch.callback)
        try:
            await self.dispatch(batch)
        except (_VoidedBefore, Conflict):  # a void of these keys, or the same again, came meanwhile
            if not (known := await handover.accepted_before(self.site, peer, transfer)):
                raise
            await self._answer_again(peer, transfer, known)
            return
        handover.note(self.site, "taken_in", peer, batch.initiator, batch.targets, batch.keys)

    async def _answer_again(self, peer: str, transfer: ExtKeys, rows: Sequence[Row]) -> None:
        """The sender repeats itself, so our acknowledgement may be lost: say once more what became of it."""
        outcomes: dict[AckStatus, list[UUID]] = {}
        for row in rows:
            if row.state in _OUTCOMES and (row.state is not State.VOIDED or lifecycle.voided_everywhere(row)):
                outcomes.setdefault(_OUTCOMES[row.state], []).append(row.ref.key_id)
        acks = [
            Ack(tuple(ids), status, transfer.initiator_sae_id, transfer.target_sae_ids)
            for status, ids in outcomes.items()
        ]
        if not acks:
            return
        message = self._letters.acks(peer, acks, transfer.ack_callback_url)
        async with self.site.ledger.edit() as change:
            change.post(message)
        self._outbox.send(message)

    def _accepted(self, peer: str, wrapping: Wrapping, key_id: UUID, now: float, took: bytes) -> Row:
        context = wrapping.context
        return Row(
            ref=Ref(key_id, context.destination),
            state=State.ACCEPTED,
            initiator=context.initiator,
            targets=context.targets,
            size=context.size,
            created=now,
            deadline=wrapping.deadline,
            expires=float(context.expires),
            upstream=peer,
            scheme=context.scheme,
            path=context.route,
            trust=dict(context.trust),
            took=took,
            history=(Event(State.ACCEPTED, now),),
        )


class _VoidedBefore(Exception):
    """The rows are tombstones of a void that came first."""


def _add(change: Change, rows: Sequence[Row]) -> None:
    """Put new rows into a change whose refs must be free."""
    held = [row for row in change.rows.values() if row is not None]
    if held and all(row.state is State.VOIDED for row in held):
        raise _VoidedBefore
    if held:
        raise Conflict("a key of this id exists already")
    for row in rows:
        change.rows[row.ref] = row


def _told(rows: Sequence[Row]) -> dict[str, Any]:
    """What a line of the log says of keys that go together."""
    return {"keys": len(rows), "key_id": str(rows[0].ref.key_id), "scheme": rows[0].scheme}


async def _apart(scheme: Scheme, context: Context, work: Callable[..., _Result], *given: object) -> _Result:
    """What a scheme computes besides pads, off the loop where it may take longer than 5 ms."""
    if scheme.heavy and context.size // 8 * len(context.key_ids) > HEAVY:
        return await asyncio.to_thread(work, *given)
    return work(*given)


def _relayed(batch: Batch) -> Ack:
    ids = tuple(key_id for key_id, _ in batch.keys)
    return Ack(ids, AckStatus.RELAYED, batch.initiator, batch.targets)


def _receipt(scheme: Scheme, context: Context, bare: Payload) -> bytes:
    """What follows a payload along its path; nothing where nobody vouches for it (`paper-a`)."""
    if not scheme.authenticated:
        return b""
    by = renewing(scheme)
    return receipts.digest(context, bare if by is None else by.steady(bare))


_OUTCOMES = {
    State.DELIVERABLE: AckStatus.RELAYED,
    State.TAKEN: AckStatus.RELAYED,
    State.RELAYED: AckStatus.RELAYED,
    State.FAILED: AckStatus.FAILED,
    State.EXPIRED: AckStatus.FAILED,
    State.VOIDED: AckStatus.VOIDED,
}
"""What is acknowledged for a row that stands where it will stay; an unfinished one is told of later."""

_LOCAL_TRUST = {"scheme": "local", "wire": "not on a wire", "relays": "no relay", "neighbour": "no relay"}
