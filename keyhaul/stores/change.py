"""What an edit collects before it is committed, and which secrets it wipes on leaving.

Ownership of secrets: the ledger copies what it is given and never wipes a Secret that a caller put
into a row. A Secret that came with a draft is wiped when the edit ends, committed or not, if no row
of the edit holds it any more, because then nobody else can have a use for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from keyhaul.errors import IllegalStep
from keyhaul.keys import Message, Ref, Row, Secret
from keyhaul.lifecycle import FINAL


@dataclass(frozen=True, slots=True)
class Post:
    message: Message


@dataclass(frozen=True, slots=True)
class Drop:
    message_id: UUID


@dataclass(frozen=True, slots=True)
class Put:
    space: str
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    space: str
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Spend:
    space: str
    name: str


@dataclass(frozen=True, slots=True)
class Erase:
    space: str
    name: str


Step = Post | Drop | Put | Claim | Spend | Erase


class StagedChange:
    """The `ports.Change` of both ledgers: drafts to alter in place and steps in the order they were asked."""

    def __init__(self, drafts: dict[Ref, Row | None]) -> None:
        self.rows = drafts
        self.steps: list[Step] = []
        self._before = {ref: None if row is None else row.draft() for ref, row in drafts.items()}

    def post(self, message: Message) -> None:
        self.steps.append(Post(message))

    def drop(self, message_id: UUID) -> None:
        self.steps.append(Drop(message_id))

    def put(self, space: str, name: str, value: bytes) -> None:
        self.steps.append(Put(space, name, value))

    def claim(self, space: str, name: str, value: bytes = b"") -> None:
        self.steps.append(Claim(space, name, value))

    def spend(self, space: str, name: str) -> None:
        self.steps.append(Spend(space, name))

    def erase(self, space: str, name: str) -> None:
        self.steps.append(Erase(space, name))

    def altered(self) -> Iterator[Row]:
        """The rows to write: new ones and drafts that differ from what was handed out.

        Raises IllegalStep for a row under a ref the edit does not hold, and for a row taken away:
        rows leave a ledger through `forget` only.
        """
        for ref, row in self.rows.items():
            if ref not in self._before:
                raise IllegalStep(f"row {ref} is written by an edit that does not hold it")
            before = self._before[ref]
            if row is None:
                if before is not None:
                    raise IllegalStep(f"row {ref} is taken away by an edit")
            elif row.ref != ref:
                raise IllegalStep(f"row {row.ref} is put in the place of {ref}")
            elif before is None or _differ(before, row):
                yield row

    def wipe_orphans(self) -> None:
        """Wipe the secrets that were handed out and that no row of this edit holds any more."""
        given = [before.secret for before in self._before.values() if before is not None]
        held = {id(row.secret) for row in self.rows.values() if row is not None}
        for secret in given:
            if secret is not None and id(secret) not in held:
                secret.wipe()


class Herd:
    """The `ports.Herd` of both ledgers: one draft that stands for rows that are alike."""

    def __init__(self, row: Row, secrets: list[Secret]) -> None:
        self.row = row
        self.secrets = secrets
        self._before = row.draft()

    @property
    def keeps(self) -> bool:
        """Whether rows in this state still hold their secrets."""
        return bool(self.secrets) and self.row.state not in FINAL

    def altered(self) -> bool:
        return _differ(self._before, self.row)


def _differ(before: Row, after: Row) -> bool:
    # Identity first: Secret refuses ==, and a draft's secret changes only by being replaced.
    return before.secret is not after.secret or before != after
