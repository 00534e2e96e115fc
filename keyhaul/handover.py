"""What leaves for a key manager of another maker: plain 020, and none of our promises beyond its door.

At the origin the keys of an application here, or of another foreign key manager, leave for the one behind
which their target sits. At a destination the same happens to keys that came over links of ours: the node is
the last one that can check them, holds them until the key manager has acknowledged them, and only then says
to the origin that they arrived. Optional extensions go along, over one gateway or two (`messages.carrying`).
Of what comes in from such a key manager it knows what came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from keyhaul.errors import Conflict
from keyhaul.keys import Message, Ref, Row, Secret
from keyhaul.letters import Letters
from keyhaul.messages import etsi020
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.messages.payload import Context
from keyhaul.promise import Ask, refuse_plain
from keyhaul.site import Site


def transfer(
    site: Site,
    letters: Letters,
    peer: str,
    keys: Iterable[tuple[UUID, Secret]],
    initiator: str,
    targets: tuple[str, ...],
    deadline: float,
    optional: Mapping[str, Any] | None = None,
) -> Message:
    """The message that hands keys over to `peer`, the key manager behind which `targets` sit."""
    pairs = list(keys)
    note(site, "handed_over", peer, initiator, targets, pairs)
    given = tuple(ExtKey(key_id, key.reveal()) for key_id, key in pairs)
    # 020 V1.1.1, extensions: what nobody here understands goes on as it was written.
    body = etsi020.encode_ext_keys(
        ExtKeys(given, initiator, targets, site.callback, extension_optional=optional or {})
    )
    refs = tuple(Ref(key.key_id, site.name) for key in given)
    return letters.message(peer, etsi020.EXT_KEYS, body, sealed=False, refs=refs, deadline=deadline)


def note(
    site: Site,
    event: str,
    peer: str,
    initiator: str,
    targets: tuple[str, ...],
    keys: Iterable[tuple[UUID, Secret]],
) -> None:
    """What crossed the door, for the audit log: ids and names."""
    site.note(
        event, by=peer, master=initiator, targets=list(targets), keys=[str(key_id) for key_id, _ in keys]
    )


def onward(
    site: Site,
    letters: Letters,
    context: Context,
    keys: Iterable[Secret] | None,
    deadline: float,
    optional: Mapping[str, Any],
) -> list[Message]:
    """What a destination passes on of keys that came over links of ours: one message a key manager.

    `optional` are the extensions that came with them, from the key manager at the other gateway. Nothing of
    keys that were refused (None), and nothing where all targets are applications here. Raises NoRoute where
    the policy of this node demands labels of these applications.
    """
    if keys is None:
        return []
    pairs = list(zip(context.key_ids, keys, strict=True))
    ask = Ask(policy=site.policy.demanded(context.initiator, context.targets))
    messages = []
    for leg, targets in site.legs(context.targets).items():
        if leg != site.name:
            refuse_plain(leg, site, ask)
            given = (pairs, context.initiator, targets, deadline, optional)
            messages.append(transfer(site, letters, leg, *given))
    return messages


async def accepted_before(site: Site, peer: str, transfer: ExtKeys) -> list[Row]:
    """The rows of a transfer from `peer` that was accepted or voided before (020 §2.6), or none.

    Raises Conflict, never 400, if a key id is known with another value or other SAEs.
    """
    found = [await site.ledger.get(Ref(key.key_id, site.name)) for key in transfer.keys]
    for key, row in zip(transfer.keys, found, strict=True):
        if not any(found):
            break
        same = (
            row is not None
            and row.upstream == peer
            and row.initiator == transfer.initiator_sae_id
            and set(row.targets) == set(transfer.target_sae_ids)
            and (row.secret is None or row.secret.same_as(Secret(key.value)))
        )
        if not same:
            raise Conflict("a key of this id is known with another value or other SAEs")
    return [row for row in found if row is not None]
