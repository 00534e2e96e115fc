"""What a program that uses keys looks like to the agents: three calls, in an order that loses nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from keyhaul.errors import Unavailable
from keyhaul.keys import Secret

Role = Literal["initiator", "responder"]
"""Initiator: the master SAE, who gets the key. Responder: the slave SAE, who fetches it."""


@dataclass(frozen=True, slots=True)
class AgreedKey:
    """A key that both ends have, or are about to have. The bits are wiped once they are installed."""

    key_id: UUID
    bits: Secret


class Consumer(Protocol):
    """One program. All calls raise Unavailable if the program does not do it, with what it said.

    The agents call one after the other, never two at once.
    """

    key_bits: int
    """The size of the keys it takes, in bits."""

    async def held(self) -> list[UUID]:
        """The keys the program has already, oldest first; none if it cannot say."""

    async def install(self, key: AgreedKey) -> None:
        """A responder's program takes this key from its peer from now on, and where it can, older ones too.
        An initiator's program begins with this key from now on; its peer takes it already."""

    async def drop(self, key_id: UUID) -> None:
        """This older key is used by nobody any more; the program forgets it."""

    async def lock(self) -> None:
        """No key is valid any more: nothing new may begin, and what can be ended ends."""

    async def close(self) -> None:
        """The agent ends; the program goes on with what it has."""


def unusable(what: str, why: str) -> Unavailable:
    """The error of a program that does not do what it was asked."""
    return Unavailable(f"{what}: {why}", "see what the program itself says")
