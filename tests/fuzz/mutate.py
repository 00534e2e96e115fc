"""Changes inputs where it matters: a member of JSON, an item of msgpack, a line of TOML, or a byte.

libFuzzer sees Python's branches but not those inside msgspec, so bytes changed at random seldom get past
the grammar. Deterministic: the same input and seed give the same output.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 8, 255, 2**31, 2**53 + 1, 2**64, -(2**63), 0.0, -0.0, 1e308, 1.5, "", " ",
    "0", "a" * 65, "ñ", "\x00", "\ud800", "%", "%2F", "%2f%", "../..", "https://", "E32473_x", "E1_", "E_",
    "[::1]:99999", "https://[", "00000000-0000-0000-0000-000000000001", "relayed", "failed to void", "AA==",
    "AA=", "otp", [], {}, [[]], [None], {"": None}, {"E32473_keyhaul": {}}, b"", b"\xff",
    bytes(16), bytes(1184),
)  # fmt: skip
LINES = (
    "", "[", "[[peers]]", "[network]", "x = 1", 'tls = "pq"', "port = 99999999999999999999", 'name = ""',
    "a.b.c = 1", "nodes = 1", "[listeners]", 'file = "x.toml"', "\u0000", 'url = "https://[::1"',
)  # fmt: skip
DEPTH = 12


def mutate(data: bytes, seed: int) -> bytes:
    """One to four changes of `data`."""
    rng = random.Random(seed)
    if rng.random() < 0.15:
        return _bytes(data, rng)
    for read, write in _FORMS:
        try:
            value = read(data)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            continue
        if isinstance(value, (dict, list)):
            for _ in range(rng.randint(1, 4)):
                value = _change(value, rng, 0)
            try:
                return write(value)
            except (ValueError, TypeError, OverflowError, msgspec.MsgspecError, RecursionError):
                return _bytes(data, rng)
    return _lines(data, rng) if data.count(b"\n") > 3 else _bytes(data, rng)


def _to_json(value: Any) -> bytes:
    text = json.dumps(value, default=lambda odd: odd.decode("latin-1"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


_FORMS: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...] = (
    (json.loads, _to_json),
    (msgspec.msgpack.decode, msgspec.msgpack.encode),
)


def _change(value: Any, rng: random.Random, depth: int) -> Any:
    """Go down to some member and change it there."""
    if isinstance(value, bytes) and value and rng.random() < 0.7:
        return mutate(value, rng.getrandbits(32)) if depth < DEPTH else value
    if not isinstance(value, (dict, list)) or not value or depth >= DEPTH or rng.random() < 0.15:
        return _leaf(value, rng)
    where: Any = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    what = rng.random()
    if what < 0.1:
        del value[where]
    elif what < 0.2 and isinstance(value, list):
        value.insert(where, copy.deepcopy(value[where]))
    elif what < 0.2:
        value[str(rng.choice(ODD))] = copy.deepcopy(value[where])
    else:
        value[where] = _change(value[where], rng, depth + 1)
    return value


def _leaf(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(("", "%", "\x00", "ñ", "=", "_", "\ud800", value)) + value[at + 1 :]
    if type(value) in (int, float) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2**31, 2**63, -(2**63), 0.5))
    return copy.deepcopy(rng.choice(ODD))


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    what = rng.random()
    if what < 0.25:
        del lines[at]
    elif what < 0.5:
        lines.insert(at, rng.choice((*LINES, *lines)))
    else:
        name, equals, _ = lines[at].partition("=")
        odd = rng.choice(ODD)
        shown = odd.hex() if isinstance(odd, bytes) else json.dumps(odd)
        lines[at] = f"{name}{equals}{shown}"
    return "\n".join(lines).encode("utf-8", "replace")


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\x00")
    for _ in range(rng.randint(1, 4)):
        at, what = rng.randrange(len(changed)), rng.random()
        if what < 0.5:
            changed[at] ^= 1 << rng.randrange(8)
        elif what < 0.7 and len(changed) > 1:
            del changed[at]
        elif what < 0.9:
            changed.insert(at, rng.randrange(256))
        else:
            changed = changed[: at + 1]
    return bytes(changed)
