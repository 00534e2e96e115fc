"""How a scheme's payload travels inside a 020 message: one mandatory extension beside the key values.

The extension is mandatory so that a key manager that does not speak it refuses the transfer (503)
instead of storing padded or encrypted bytes as keys. The value of each key is its slice of the payload
body; head and tail of the payload, the route and the times stand in the extension. Names follow
020 V1.1.1 §2.5: `E<private enterprise number>_keyhaul`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec

from keyhaul.errors import Malformed
from keyhaul.messages import tracecontext
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.messages.payload import Context, Payload
from keyhaul.messages.tracecontext import TraceContext

VERSION = 1
MAX_ROUTE = 256
MAX_CARRIED = 16_384  # bytes of a foreign key manager's optional extensions, as JSON
LAST_SECOND = 1 << 40  # Unix time no sender can mean, far within a float


@dataclass(frozen=True, slots=True)
class Wrapping:
    """A payload with all that its way and its check need. `deadline`: Unix seconds to be confirmed by."""

    context: Context
    payload: Payload
    deadline: float


class _Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    v: int
    scheme: str
    origin: str
    destination: str
    route: tuple[str, ...]
    size: int
    expires: int
    deadline: float
    trust: tuple[tuple[str, str], ...]
    head: str
    tail: str
    carried: str = ""


def name(pen: int) -> str:
    """The extension's name under a private enterprise number."""
    return f"E{pen}_keyhaul"


def wrap(wrapping: Wrapping, callback: str, pen: int, trace: TraceContext | None = None) -> ExtKeys:
    """The 020 transfer that carries a payload to the next node, and with it which trace it belongs to."""
    context, payload = wrapping.context, wrapping.payload
    width = context.size // 8
    end = width * len(context.key_ids)
    extension = _Extension(
        v=VERSION,
        scheme=context.scheme,
        origin=context.origin,
        destination=context.destination,
        route=context.route,
        size=context.size,
        expires=context.expires,
        deadline=wrapping.deadline,
        trust=context.trust,
        head=base64.b64encode(payload.head).decode(),
        tail=base64.b64encode(payload.body[end:]).decode(),
        carried=base64.b64encode(context.carried).decode(),
    )
    keys = tuple(
        ExtKey(key_id, payload.body[at * width : (at + 1) * width])
        for at, key_id in enumerate(context.key_ids)
    )
    mandatory: dict[str, Any] = {name(pen): msgspec.Raw(msgspec.json.encode(extension))}
    optional = tracecontext.written(trace, pen)
    return ExtKeys(keys, context.initiator, context.targets, callback, mandatory, optional)


def unwrap(transfer: ExtKeys, pen: int) -> Wrapping | None:
    """The payload in a transfer, or None where there is no such extension. Raises Malformed."""
    raw = transfer.extension_mandatory.get(name(pen))
    if raw is None:
        return None
    try:
        extension = msgspec.json.decode(raw, type=_Extension)
        head = base64.b64decode(extension.head, validate=True)
        tail = base64.b64decode(extension.tail, validate=True)
        carried = base64.b64decode(extension.carried, validate=True)
    except (msgspec.MsgspecError, ValueError):  # not base64, not UTF-8
        raise Malformed("the keyhaul extension cannot be read", invalid_parameter=name(pen)) from None
    _check(extension, transfer)
    if len(carried) > MAX_CARRIED:
        raise Malformed(f"more than {MAX_CARRIED} bytes are carried", invalid_parameter=name(pen))
    context = Context(
        scheme=extension.scheme,
        origin=extension.origin,
        destination=extension.destination,
        initiator=transfer.initiator_sae_id,
        targets=transfer.target_sae_ids,
        key_ids=tuple(key.key_id for key in transfer.keys),
        size=extension.size,
        expires=extension.expires,
        route=extension.route,
        trust=extension.trust,
        carried=carried,
    )
    body = b"".join(key.value for key in transfer.keys) + tail
    return Wrapping(context, Payload(extension.scheme, head, body), extension.deadline)


def _check(extension: _Extension, transfer: ExtKeys) -> None:
    route = extension.route
    sound = (
        extension.v == VERSION
        and extension.size > 0
        and extension.size % 8 == 0
        and 0 <= extension.expires < LAST_SECOND
        and extension.deadline < LAST_SECOND
        and 2 <= len(route) <= MAX_ROUTE
        and len(set(route)) == len(route)
        and route[0] == extension.origin
        and route[-1] == extension.destination
        and all(len(key.value) * 8 == extension.size for key in transfer.keys)
        and len({key.key_id for key in transfer.keys}) == len(transfer.keys)
    )
    if not sound:
        raise Malformed(
            "the keyhaul extension contradicts itself or its keys", invalid_parameter="keyhaul extension"
        )
