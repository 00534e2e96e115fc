"""Relays that cheat, for tests and testbeds: what a malicious node may do with the payloads that pass it.

A cheat has everything a relay has: it takes the incoming pad off, sees the payload as its scheme shows it to
a relay, does what its attack says, and puts the outgoing pad on. It breaks no rule of the links, so that
what is found is found by the origin and the destination.

Nothing here can be switched on by a configuration: `keyhaul serve` does not know this module. A testbed
starts a cheating node as another program (`keyhaul.cli.byzantine`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from uuid import UUID

from keyhaul.errors import Unsupported
from keyhaul.keys import Secret
from keyhaul.letters import Letters
from keyhaul.messages import confirming
from keyhaul.messages.etsi020 import AckStatus
from keyhaul.messages.payload import TAG_BYTES, Context, Pair, Payload, Scheme
from keyhaul.messages.wrapping import Wrapping
from keyhaul.ports import Opened
from keyhaul.relay import Relay


class Attack(StrEnum):
    """What a cheating relay does; `ATTACKS` says it in words."""

    LISTEN = "listen"
    FLIP = "flip"
    SUBSTITUTE = "substitute"
    GARBAGE = "garbage"
    NOISE = "noise"
    PROBE = "probe"
    SWAP = "swap"
    REPLAY = "replay"
    REDIRECT = "redirect"
    REORDER = "reorder"
    DROP = "drop"
    PRETEND = "pretend"


ATTACKS = {
    Attack.LISTEN: "is honest, but keeps everything it ever sees",
    Attack.FLIP: "flips a bit of the first key",
    Attack.SUBSTITUTE: "puts a key of its own in place, with a tag of its own",
    Attack.GARBAGE: "adds (an encryption of) random bits",
    Attack.NOISE: "spoils what carries no key bit: noise of a ciphertext, else the tag",
    Attack.PROBE: "alters another bit each time, to learn from what is accepted",
    Attack.SWAP: "swaps the ids of two keys",
    Attack.REPLAY: "sends the payload of an earlier key again, under the new id",
    Attack.REDIRECT: "names another application as the master",
    Attack.REORDER: "holds keys back and lets later ones pass first",
    Attack.DROP: "takes keys in and forgets them",
    Attack.PRETEND: "forgets them and acknowledges that they arrived",
}


class Cheat:
    """What one relay does to payloads, what it saw of them, and what became of those it altered.

    `seen` are payload bodies without pads, as this relay had them in memory. `touched` are the keys it
    altered, held back or dropped. `hoard` are decrypted messages and pads: with `seen` all a relay gets.
    """

    def __init__(self, relay: Relay, attack: Attack) -> None:
        self.attack = attack
        self.seen: list[bytes] = []
        self.hoard: list[bytes] = []
        self.touched: list[UUID] = []
        self._relay = relay
        self._letters = Letters(relay.site)
        self._pass_on = relay._pass_on
        self._old: Payload | None = None
        self._held: tuple[str, Wrapping, Opened] | None = None
        self._probes = 0

    async def pass_on(self, peer: str, wrapping: Wrapping, opened: Opened) -> None:
        """In the place of `Relay._pass_on`."""
        scheme = self._relay._scheme(wrapping.context.scheme)
        pad = opened.pad(scheme.pad_bytes(wrapping.payload))
        bare = scheme.transit(wrapping.payload, pad, None)
        self.seen.append(bare.body)
        if self.attack is Attack.LISTEN:
            self.hoard += [opened.content, pad]
        if self.attack in (Attack.DROP, Attack.PRETEND):
            self.touched.extend(wrapping.context.key_ids)
            await self._swallow(peer, wrapping.context, opened)
            return
        context, changed = self._change(wrapping.context, bare)
        if (context, changed) != (wrapping.context, bare):
            self.touched.extend(wrapping.context.key_ids)
        padded = replace(wrapping, context=context, payload=scheme.transit(changed, None, pad))
        if self.attack is Attack.REORDER:
            self.touched.extend(context.key_ids)
            self._held, earlier = (peer, padded, opened), self._held
            if earlier is not None:
                await self._pass_on(peer, padded, opened)
                await self._pass_on(*earlier)
                self._held = None
            return
        await self._pass_on(peer, padded, opened)

    def _change(self, context: Context, bare: Payload) -> tuple[Context, Payload]:
        if self.attack is Attack.SWAP and len(context.key_ids) > 1:
            first, second, *others = context.key_ids
            return replace(context, key_ids=(second, first, *others)), bare
        if self.attack is Attack.REDIRECT:
            return replace(context, initiator=context.initiator + "-other"), bare
        change = _CHANGES.get(self.attack)
        return context, bare if change is None else change(self, context, bare)

    def _flip(self, context: Context, bare: Payload) -> Payload:
        return replace(bare, body=_xor_at(bare.body, 0, b"\1"))

    def _probe(self, context: Context, bare: Payload) -> Payload:
        """Each time another place of the body, all over it."""
        self._probes += 1
        place = (self._probes * 7919) % (8 * len(bare.body))
        return replace(bare, body=_xor_at(bare.body, place // 8, bytes([1 << place % 8])))

    def _noise(self, context: Context, bare: Payload) -> Payload:
        keys = _key_bytes(context)
        start = keys + TAG_BYTES if len(bare.body) > keys + TAG_BYTES else keys
        spoiled = min(64, len(bare.body) - start)
        return replace(bare, body=_xor_at(bare.body, start, os.urandom(spoiled)))

    def _substitute(self, context: Context, bare: Payload) -> Payload:
        """As an origin would, but without its secret: the best a relay can do."""
        return replace(self._own(context, bare), head=bare.head)

    def _garbage(self, context: Context, bare: Payload) -> Payload:
        keys = _key_bytes(context)
        other = self._own(context, bare).body
        added = _xor_at(bare.body, 0, other[:keys])
        return replace(bare, body=added[: keys + TAG_BYTES] + other[keys + TAG_BYTES :])

    def _replay(self, context: Context, bare: Payload) -> Payload:
        if self._old is None or len(self._old.body) != len(bare.body):
            self._old = bare
            return bare
        return self._old

    def _own(self, context: Context, bare: Payload) -> Payload:
        """Keys of this relay's own, wrapped by the scheme under a secret of its own."""
        keys = [Secret(os.urandom(context.size // 8)) for _ in context.key_ids]
        pair = Pair(bare.head[:16], Secret(os.urandom(32)), bare.head[16:])
        scheme = self._relay._scheme(context.scheme)
        try:
            return scheme.originate(keys, context, pair)
        except Unsupported:  # a relay of scheme `blind` without a library
            return Payload(bare.scheme, bare.head, os.urandom(len(bare.body) - 21) + bare.body[-21:])

    async def _swallow(self, peer: str, context: Context, opened: Opened) -> None:
        messages = []
        if self.attack is Attack.PRETEND:
            outcomes = [(key_id, os.urandom(TAG_BYTES)) for key_id in context.key_ids]
            saes = context.initiator, context.targets
            acks = confirming.acks(outcomes, AckStatus.RELAYED, saes, self._relay.site.settings.pen)
            messages = [self._letters.acks(peer, acks)]
        async with self._relay.site.ledger.edit() as change:
            opened.spend(change)
            for message in messages:
                change.post(message)
        for message in messages:
            self._relay._outbox.send(message)


_CHANGES: dict[Attack, Callable[[Cheat, Context, Payload], Payload]] = {
    Attack.FLIP: Cheat._flip,
    Attack.SUBSTITUTE: Cheat._substitute,
    Attack.GARBAGE: Cheat._garbage,
    Attack.NOISE: Cheat._noise,
    Attack.PROBE: Cheat._probe,
    Attack.REPLAY: Cheat._replay,
}


def turn(relay: Relay, attack: Attack) -> Cheat:
    """Make an honest relay cheat from now on, where it passes payloads on; its own keys are left alone."""
    cheat = Cheat(relay, attack)
    relay._pass_on = cheat.pass_on  # type: ignore[method-assign]
    if attack is not Attack.LISTEN:
        relay._renewed = _as_it_is  # type: ignore[method-assign]
    return cheat


async def _as_it_is(scheme: Scheme, wrapping: Wrapping) -> Wrapping:
    """A cheat of a scheme that re-randomises adds nothing but what its attack says."""
    return wrapping


def _key_bytes(context: Context) -> int:
    return context.size // 8 * len(context.key_ids)


def _xor_at(body: bytes, at: int, mask: bytes) -> bytes:
    end = at + len(mask)
    return body[:at] + bytes(a ^ b for a, b in zip(body[at:end], mask, strict=True)) + body[end:]
