"""Refuses a restored old store: an epoch in the store must keep step with a counter that only goes up.

Encryption and MACs do not notice yesterday's file put back whole, and with it keys that were delivered
since would be delivered again. So the store keeps a pair (current, next) and each start does

    1. save (n, n+1)      the intent
    2. turn the counter   n -> n+1
    3. save (n+1, n+1)    the confirmation

A crash between any two steps leaves a pair that holds the counter's value; a copy from before step 2 of a
later start does not. What it cannot see: a copy taken and put back while the counter did not turn; call
`advance` periodically (minutes, for the wear of a chip's NV memory) to narrow that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from keyhaul.errors import SealError

Epoch = tuple[int, int]


class Counter(Protocol):
    """A counter that nobody can turn back, such as a TPM NV counter. Calls block."""

    def read(self) -> int: ...

    def increment(self) -> int:
        """One step up; returns the new value."""


def check(stored: Epoch | None, counter: int) -> None:
    """SealError("rollback …") unless the counter is where the stored pair left it. None: a new store."""
    if stored is None or counter in stored:
        return
    current, following = stored
    if counter > following:
        raise SealError(
            f"rollback: the store is of epoch {current}, the counter is at {counter}, so this is an old copy",
            "put the newest store back; after a deliberate restore accept it explicitly, "
            "and count every key in it as used",
        )
    raise SealError(
        f"rollback: the store is of epoch {current}, but the counter is only at {counter}",
        "this is not the counter the store was tied to: give that TPM back",
    )


@dataclass(frozen=True, slots=True)
class Guard:
    """Keeps one store and one counter in step.

    `load` returns the stored pair or None; `save` returns only when the pair is durable.
    """

    load: Callable[[], Epoch | None]
    save: Callable[[Epoch], None]
    counter: Counter

    def advance(self) -> int:
        """Refuse an old copy, then begin a new epoch and return it: at each start before the store is used,
        and now and then while running. SealError if somebody else turns the same counter, such as a clone.
        """
        current = self.counter.read()
        check(self.load(), current)
        return self._begin(current)

    def accept_restored(self) -> int:
        """An operator's explicit word that an old copy is wanted: tie it to the counter as it is now."""
        return self._begin(self.counter.read())

    def _begin(self, current: int) -> int:
        self.save((current, current + 1))
        reached = self.counter.increment()
        if reached != current + 1:
            raise SealError(
                f"rollback counter went from {current} to {reached} in one step",
                "another node turns the same counter: give each its own",
            )
        self.save((reached, reached))
        return reached
