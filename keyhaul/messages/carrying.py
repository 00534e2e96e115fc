"""Optional 020 extensions of a foreign key manager reach the next one unread, whatever lies between.

020 V1.1.1 has whoever does not understand an optional extension pass it on as it was written. Between two
gateways of ours it is masked for the far one, and stands among what the origin vouches for: a relay can
neither read nor change it, nor take it away. The stream is bound to the key ids, and a gateway takes a key id
once, so no two extensions get the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from keyhaul.errors import TooLarge
from keyhaul.messages import labels
from keyhaul.messages.envelope import xor
from keyhaul.messages.etsi020 import decode_extension
from keyhaul.messages.payload import NO_PAIR, Context, Pair, stream
from keyhaul.messages.wrapping import MAX_CARRIED


def carrying(context: Context, pair: Pair, optional: Mapping[str, Any]) -> Context:
    """At the origin: the context with the extensions in it. Raises TooLarge above MAX_CARRIED bytes."""
    if not optional:
        return context
    text = msgspec.json.encode(optional)
    if len(text) > MAX_CARRIED:
        what = f"extension_optional has more than the {MAX_CARRIED} bytes that are carried on"
        raise TooLarge(what, "send less of it", invalid_parameter="extension_optional")
    return replace(context, carried=_masked(context, pair, text))


def carried(context: Context, pair: Pair) -> Mapping[str, Any]:
    """At the destination, once the origin is checked: the members as they were. Raises Malformed."""
    if not context.carried:
        return {}
    return decode_extension(_masked(replace(context, carried=b""), pair, context.carried))


def _masked(context: Context, pair: Pair, text: bytes) -> bytes:
    """On and off are the same step. Without a secret (`paper-a`) it goes as it is, inside the envelopes."""
    if pair is NO_PAIR:
        return text
    return xor(text, stream(pair, context, labels.CARRIED_STREAM, len(text)))
