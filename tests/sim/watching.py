"""Eyes of the simulation: what a message says, what a relay sees, what became of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keyhaul.errors import KeyhaulError
from keyhaul.keys import Message, Row, State
from keyhaul.messages import etsi020
from keyhaul.messages.payload import Context, Pair, Payload, Scheme

if TYPE_CHECKING:
    from tests.sim.world import World

VERB_OF = {
    State.DELIVERABLE: "stored",
    State.RELAYED: "relayed",
    State.VOIDED: "dropped",
    State.FAILED: "dropped",
    State.EXPIRED: "expired",
}


def contents(message: Message) -> str:
    """What a message of the outbox says, with the key ids it speaks of."""
    try:
        if message.path == etsi020.ACK:
            acks = etsi020.decode_acks(message.body, sealed=True)
            return "ack " + "; ".join(f"{ack.status.value} {_ids(ack.key_ids)}" for ack in acks)
        if message.path == etsi020.VOID:
            return f"void {_ids(etsi020.decode_void(message.body, sealed=True).key_ids)}"
    except KeyhaulError:
        return message.path
    return f"keys {_ids(ref.key_id for ref in message.refs)}"


def _ids(key_ids: Any) -> str:
    return " ".join(str(key_id) for key_id in key_ids)


class Watched:
    """A scheme that remembers what a relay could read: payloads with the old pad off and no new one on."""

    def __init__(self, scheme: Scheme, world: World, node: str) -> None:
        self._scheme = scheme
        self._world = world
        self._node = node
        self.name = scheme.name
        self.labels = scheme.labels
        self.authenticated = scheme.authenticated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheme, name)

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        if pad_in is not None:  # a relay, or the destination, which may see it
            bare = self._scheme.transit(payload, pad_in, None)
            self._world.glimpses.append((self._node, "memory", bytes(bare.head) + bytes(bare.body)))
        return self._scheme.transit(payload, pad_in, pad_out)

    def originate(self, keys: Any, context: Context, pair: Pair) -> Payload:
        return self._scheme.originate(keys, context, pair)

    def deliver(self, payload: Payload, context: Context, pair: Pair) -> Any:
        return self._scheme.deliver(payload, context, pair)


class Altering(Watched):
    """The scheme of a relay that changes what passes through it; its own keys it sends honestly.

    An origin that gives its SAE other bits than it sends is nobody's to find out: its SAE trusts it.
    """

    def __init__(self, honest: Watched, alter: Callable[[Payload], Payload]) -> None:
        super().__init__(honest._scheme, honest._world, honest._node)
        self._alter = alter

    def transit(self, payload: Payload, pad_in: bytes | None, pad_out: bytes | None) -> Payload:
        if pad_in is not None:
            payload = self._alter(self._scheme.transit(payload, pad_in, None))
        return self._scheme.transit(payload, None, pad_out and pad_out[: len(payload.body)])


def committed(world: World, node: str, row: Row) -> None:
    """A row was saved in this state: a line of the history."""
    key_id = str(row.ref.key_id)
    if row.version == 1 and row.upstream is None and row.state is not State.VOIDED:
        world.history.note(node, "minted", key_id=key_id)
    verb = VERB_OF.get(row.state)
    if verb is not None and world.last.get((node, row.ref.key_id, row.ref.leg)) is not row.state:
        world.history.note(node, verb, key_id=key_id, text=row.state.value if verb == "dropped" else "")
    world.last[node, row.ref.key_id, row.ref.leg] = row.state
