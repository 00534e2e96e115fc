"""SAE ids here and on the 020 wire: a one-to-one map, so that no two ids are ever confused.

Here an SAE id is any text of 1 to 64 bytes. ETSI GS QKD 020 allows 1 to 64 characters, only those that
RFC 3986 allows in a URI, with `%` only before two hexadecimal digits.
"""

from __future__ import annotations

import re

from keyhaul.errors import Malformed

MAX_SAE_ID = 64  # characters on the wire of the standard, bytes here
MAX_SEALED_SAE_ID = 3 * MAX_SAE_ID  # characters between our own nodes: every byte percent-encoded

_WIRE_ID = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_NOT_PLAIN = re.compile(rb"[^A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


def _escape(text: str) -> str:
    return _NOT_PLAIN.sub(lambda found: b"%%%02X" % found[0][0], text.encode()).decode()


def _unescape(wire: str) -> str | None:
    """The text that `_escape` turns into `wire`, or None if there is none."""
    raw = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), wire.encode())
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if _escape(text) == wire else None


def _verbatim(name: str) -> bool:
    """Whether an id is the same text here and on the wire because of escapes that `_escape` never makes."""
    while _WIRE_ID.fullmatch(name):
        text = _unescape(name)
        if text is None:
            return True
        if text == name:
            return False
        name = text
    return False


def wire_sae_id(name: str) -> str:
    """A local SAE id in the characters RFC 3986 allows.

    Every byte outside that set, and `%` itself, is percent-encoded (`a b` is `a%20b`). An id that
    conforms already but holds escapes this rule never makes (`a%2fb`: lower case, or needless) is left
    alone both ways. So no two ids are ever confused, and every conformant id of a foreign network
    comes back out as it came in. Raises Malformed if the id is not text.
    """
    try:
        return name if _verbatim(name) else _escape(name)
    except UnicodeEncodeError:
        raise Malformed("an SAE id is not Unicode text", invalid_parameter="SAE id") from None


def local_sae_id(wire: str) -> str:
    """The inverse of `wire_sae_id` for a conformant wire id."""
    text = None if _verbatim(wire) else _unescape(wire)
    return wire if text is None else text


def conforms(wire: str) -> bool:
    """Whether an id has only what RFC 3986 allows; its length is not looked at."""
    return _WIRE_ID.fullmatch(wire) is not None
