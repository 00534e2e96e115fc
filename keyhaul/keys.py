"""Secrets that do not print or compare, and the row that tells where one key stands."""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, Self
from uuid import UUID


class Secret:
    """Key bytes that cannot be printed, compared with ==, hashed, copied or pickled by accident.

    Wiping is best effort: CPython and the JSON edge make copies nobody can reach.
    """

    __slots__ = ("_bytes",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self._bytes = bytearray(value)

    @classmethod
    def adopt(cls, value: bytearray) -> Self:
        """A secret that takes a buffer over instead of copying it; whoever made it lets go of it."""
        secret = cls.__new__(cls)
        secret._bytes = value
        return secret

    def reveal(self) -> bytes:
        """The bytes themselves. Every call is a place to look at in review."""
        return bytes(self._bytes)

    def wipe(self) -> None:
        """Overwrite and empty; calling it twice is fine."""
        self._bytes[:] = bytes(len(self._bytes))
        self._bytes.clear()

    def same_as(self, other: Secret) -> bool:
        """Constant-time comparison."""
        return hmac.compare_digest(self._bytes, other._bytes)

    def __len__(self) -> int:
        """Length in bytes."""
        return len(self._bytes)

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """True for itself, which records that hold it are compared by; any other comparison is a mistake."""
        if other is self:
            return True
        raise TypeError("secrets are compared with same_as()")

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()


MASTER = ""
"""Stands in `Row.waiting` for the initiator's own copy: an SAE may be master and target of one key."""


class State(enum.StrEnum):
    """Where a row stands; `lifecycle.NEXT` says what may follow (design §4)."""

    MINTED = "minted"
    ACCEPTED = "accepted"
    SENDING = "sending"
    SENT = "sent"
    RELAYED = "relayed"
    DELIVERABLE = "deliverable"
    TAKEN = "taken"
    FAILED = "failed"
    VOIDED = "voided"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """One key on its way to one destination node. At origin and destination, `leg` is the node itself."""

    key_id: UUID
    leg: str

    def __hash__(self) -> int:
        # Refs are looked up a dozen times a step, and UUID's own hash is a call more each time.
        return hash(self.key_id.int)

    def __str__(self) -> str:
        return f"{self.key_id}/{self.leg}"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a key's story: a state entered, at a Unix time in seconds."""

    state: State
    at: float


@dataclass(slots=True)
class Row:
    """What one node knows of one key. Only rows that still owe a key to somebody hold its bits.

    `targets` are the SAEs this row answers for, `waiting` those at this node that have not
    fetched yet (and MASTER while the initiator has not got its copy).
    `legs` maps each onward destination (node, or foreign KME) to its state; a transit row has one.
    `peers` maps each onward destination to the neighbour the message goes to.
    `proofs` maps destinations to the tag that confirms the key (`messages.confirming`): at the origin the
    one that must come, elsewhere the one that came or was sent.
    `took` and `passed`, by destination, are digests of what came and went (`messages.receipts`).
    `created`, `deadline`, `expires` are Unix seconds: the transfer must be confirmed by `deadline`,
    the key may be fetched until `expires`.
    """

    ref: Ref
    state: State
    initiator: str
    targets: tuple[str, ...]
    size: int  # bits
    created: float
    deadline: float
    expires: float
    upstream: str | None = None
    callback: str | None = None
    waiting: frozenset[str] = frozenset()
    legs: dict[str, State] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    scheme: str = ""
    path: tuple[str, ...] = ()
    trust: dict[str, str] = field(default_factory=dict)
    secret: Secret | None = None
    history: tuple[Event, ...] = ()
    proofs: dict[str, bytes] = field(default_factory=dict)
    took: bytes = b""
    passed: dict[str, bytes] = field(default_factory=dict)
    version: int = 0  # of the stored row; 0 = not stored yet

    def draft(self) -> Row:
        """A copy that a step may change and then commit or drop."""
        copied = Row(*_members(self))
        copied.legs, copied.peers, copied.trust = dict(self.legs), dict(self.peers), dict(self.trust)
        copied.proofs, copied.passed = dict(self.proofs), dict(self.passed)
        return copied

    def summary(self) -> dict[str, Any]:
        """Everything that may be shown to an operator: never bits."""
        return {
            "key_ID": str(self.ref.key_id),
            "leg": self.ref.leg,
            "state": self.state.value,
            "initiator": self.initiator,
            "targets": list(self.targets),
            "waiting": sorted(sae or "(master)" for sae in self.waiting),
            "size": self.size,
            "upstream": self.upstream,
            "legs": {name: state.value for name, state in self.legs.items()},
            "peers": dict(self.peers),
            "scheme": self.scheme,
            "path": list(self.path),
            "trust": dict(self.trust),
            "created": self.created,
            "deadline": self.deadline,
            "expires": self.expires,
            "took": self.took.hex(),
            "passed": {name: value.hex() for name, value in self.passed.items()},
            "history": [{"state": event.state.value, "at": event.at} for event in self.history],
        }


_members = attrgetter(*(member.name for member in fields(Row)))
"""All members at once: `dataclasses.replace` takes ten times as long, and every edit copies its rows."""


@dataclass(frozen=True, slots=True)
class Message:
    """One thing owed to a neighbour: bytes that are sent again unchanged until the neighbour answered.

    `path` is the 020 operation (`ext_keys`, `ack`, `void`). `sealed` tells an envelope from a plain
    020 body. `refs` are the rows that a definite answer concerns. `deadline` is in Unix seconds.
    """

    id: UUID
    peer: str
    path: str
    body: bytes
    sealed: bool
    refs: tuple[Ref, ...]
    created: float
    deadline: float
    url: str | None = None
