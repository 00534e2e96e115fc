"""Writes what goes to a neighbour: sealed on a link of ours, plain 020 for a foreign key manager."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from keyhaul import story
from keyhaul.keys import Message, Ref
from keyhaul.messages import etsi020, tracecontext
from keyhaul.messages.etsi020 import Ack, Dialect, Void
from keyhaul.site import Site

PATIENCE = 2.0  # seconds to wait for a one-time key of the neighbour
WORTH = 86_400.0  # seconds an acknowledgement or a void is worth sending


class Letters:
    """Messages of one node.

    Keys are sealed before they are saved, so that a relay's ledger holds no key. Acknowledgements and
    voids hold nothing secret and may be repeated under a new envelope: they are sealed when they leave,
    cost no device key, and no step has to wait for the neighbour before it can commit.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    def message(
        self,
        peer: str,
        path: str,
        body: bytes,
        *,
        sealed: bool,
        refs: tuple[Ref, ...] = (),
        deadline: float | None = None,
        url: str | None = None,
    ) -> Message:
        """A message ready to be posted. `deadline`: Unix seconds until which it is worth repeating."""
        now = self._site.clock.now()
        return Message(uuid.uuid4(), peer, path, body, sealed, refs, now, deadline or now + WORTH, url)

    def acks(self, peer: str, acks: Sequence[Ack], callback: str | None = None) -> Message:
        """Acknowledgements, to the neighbour the keys came from or to a foreign one's callback."""
        foreign = self._site.foreign.get(peer)
        dialect = foreign.dialect if foreign else Dialect.V1_1_1
        trace = tracecontext.written(story.context() if foreign is None else None, self._site.settings.pen)
        if trace:
            acks = [replace(ack, extension={**ack.extension, **trace}) for ack in acks]
        body = etsi020.encode_acks(acks, dialect, sealed=foreign is None)
        return self.message(peer, etsi020.ACK, body, sealed=False, url=callback if foreign else None)

    def void(self, peer: str, void: Void) -> Message:
        """A void, to a neighbour up or down the path."""
        ours = peer not in self._site.foreign
        trace = tracecontext.written(story.context() if ours else None, self._site.settings.pen)
        if trace:
            void = replace(void, extension={**void.extension, **trace})
        body = etsi020.encode_void(void, sealed=ours)
        return self.message(peer, etsi020.VOID, body, sealed=False)

    async def seal(self, message: Message) -> Message:
        """The message as it goes out: sealed, unless it is already or the peer speaks plain 020.

        Raises InsufficientKey while the neighbour's one-time keys are used up.
        """
        if message.sealed or message.peer in self._site.foreign:
            return message
        deadline = self._site.clock.now() + PATIENCE
        grant = await self._site.link(message.peer).grant(0, deadline=deadline)
        return replace(message, body=grant.seal(message.path, message.body), sealed=True)
