"""W3C Trace Context, level 1: which trace a message belongs to, and the step that caused it.

It travels in an optional extension of the 020 message inside the envelope, so only the neighbour that sealed
it can have written it, and whoever does not know it passes over it. What a neighbour writes is still not
believed further than its form: 55 characters of hexadecimal, or there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

SAMPLED = 0x01  # W3C Trace Context §3.2.2.5.1

_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class TraceContext(NamedTuple):
    """32 and 16 hexadecimal digits, and whether whoever began the trace has it recorded."""

    trace: str
    span: str
    sampled: bool

    def traceparent(self) -> str:
        """The header's value, version 00."""
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


def parse(text: object) -> TraceContext | None:
    """The context that a `traceparent` names; None for anything that is not one of version 00."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    return TraceContext(found[1], found[2], bool(int(found[3], 16) & SAMPLED))


def extension_name(pen: int) -> str:
    """The extension's name under a private enterprise number."""
    return f"E{pen}_traceparent"


def written(context: TraceContext | None, pen: int) -> dict[str, Any]:
    """The member for an extension object; nothing where there is no context."""
    return {} if context is None else {extension_name(pen): context.traceparent()}


def read(extension: Mapping[str, Any], pen: int) -> TraceContext | None:
    """What an extension object says, None where it says nothing or nonsense."""
    raw = extension.get(extension_name(pen))
    if raw is None:
        return None
    try:
        return parse(msgspec.json.decode(raw) if isinstance(raw, msgspec.Raw) else raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
