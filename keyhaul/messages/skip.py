"""SKIP (draft-cisco-skip-02) as values: what an encryptor asks, what it is answered, whose name is whose.

The draft's key ids are hexadecimal, 128 bits by default: a UUID without its dashes. Its peers are called by
system ids; `Systems` knows which SAE each one is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec

from keyhaul.errors import Malformed
from keyhaul.keys import Secret

ALGORITHM = "hybrid QKD and ML-KEM"
KEY_BITS = ENTROPY_BITS = 256
"""What is meant where a request names no size."""
MOST_ENTROPY = 65_536  # bits of one answer

_HEX = re.compile(r"[0-9A-Fa-f]+")
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Systems:
    """System ids and SAE ids. `named` maps the first to the second; an SAE without a name there has its id.

    `saes` are those that can be reached, for the list of capabilities.
    """

    named: Mapping[str, str]
    saes: Sequence[str]

    def sae(self, system: str) -> str:
        """The SAE behind a system id."""
        return self.named.get(system, system)

    def system(self, sae: str) -> str:
        """The system id of an SAE."""
        return next((name for name, known in self.named.items() if known == sae), sae)

    def capabilities(self, caller: str) -> bytes:
        """The answer to `/capabilities`: nobody is remote to himself, except where he is alone."""
        remote = [self.system(sae) for sae in self.saes if sae != caller] or [self.system(caller)]
        return _encode(
            {
                "entropy": True,
                "key": True,
                "algorithm": ALGORITHM,
                "localSystemID": self.system(caller),
                "remoteSystemID": sorted(remote),
            }
        )


def read_key_id(segment: str) -> UUID:
    """A key id in a path, still escaped; case does not matter. Raises Malformed."""
    text = unquote_to_bytes(segment.encode("utf-8", "surrogateescape")).decode("latin-1")
    if not _HEX.fullmatch(text) or len(text) != 32:
        raise Malformed("keyId is not 32 hexadecimal digits", "send the keyId as the other encryptor got it")
    return UUID(hex=text)


def read_remote(query: Mapping[str, Sequence[str]]) -> str:
    """The system id that a key is shared with. Raises Malformed."""
    remote = _once(query, "remoteSystemID")
    if not remote:
        raise Malformed("remoteSystemID is missing", "name the other key provider's localSystemID")
    return remote


def read_bits(query: Mapping[str, Sequence[str]], name: str, default: int) -> int:
    """`size` or `minentropy`, in bits. Raises Malformed."""
    text = _once(query, name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or int(text) == 0:
        raise Malformed(f"{name} is not a number of bits", "write it with decimal digits")
    return int(text)


def encode_key(key_id: UUID, bits: Secret) -> bytes:
    """A key and its id, both hexadecimal."""
    return _encode({"keyId": key_id.hex, "key": bits.reveal().hex()})


def encode_entropy(bits: Secret) -> bytes:
    """Random bits and their number."""
    return _encode({"randomStr": bits.reveal().hex(), "minentropy": len(bits) * 8})


def encode_refusal(cause: str, remedy: str) -> bytes:
    """An error; the draft fixes statuses alone."""
    return _encode({"error": cause, "next_step": remedy} if remedy else {"error": cause})


def _once(query: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = query.get(name)
    if values is None:
        return None
    if len(values) != 1:
        raise Malformed(f"{name} is given more than once", "give it once")
    return values[0]


def _encode(value: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(value)
