"""OpenFHE for tests: workers that end with the test, one place that says why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import UUID

import pytest

from keyhaul.errors import Unsupported
from keyhaul.keys import Secret
from keyhaul.messages.payload import Context
from keyhaul.openfhe import OpenFhe, layout
from keyhaul.schemes.paper_b import PaperB
from tests.neighbours import context

SMALL = 1024
"""Ring dimension of the parameter sets `small` and `binary`; `paper` has 8,192."""


@cache
def _missing() -> str:
    try:
        OpenFhe("small").close()
    except Unsupported as reason:
        return str(reason)
    return ""


def needs_openfhe() -> None:
    """Skip, with the reason, where no interpreter loads OpenFHE."""
    if reason := _missing():
        pytest.skip(reason)


@contextmanager
def worker(parameters: str, **limits: Any) -> Iterator[OpenFhe]:
    needs_openfhe()
    fhe = OpenFhe(parameters, **limits)
    try:
        yield fhe
    finally:
        fhe.close()


class Node:
    """A destination with a static key pair; `scheme` is origin, relay and destination in one."""

    def __init__(self, fhe: OpenFhe) -> None:
        self.fhe = fhe
        self.public, self.secret = fhe.generate()
        own = (self.public, Secret(self.secret))
        self.scheme = PaperB(fhe, lambda destination: self.public, lambda: own)

    def encrypt(self, key: bytes, pad: bytes = b"") -> bytes:
        return self.fhe.originate(self.public, key, pad).value

    def decrypt(self, wire: bytes, size: int = 32) -> bytes:
        return self.fhe.deliver(self.public, self.secret, wire, size).value

    def crafted(self, first: list[int], second: list[int]) -> bytes:
        """A ciphertext of two polynomials as they are given, behind a header of OpenFHE's."""
        empty = layout.cleared(layout.unpacked(self.encrypt(bytes(32))), len(first))
        return layout.packed(layout.altered(empty, len(first), first, second))

    def modulus(self, n: int = SMALL) -> int:
        return layout.modulus(layout.unpacked(self.encrypt(bytes(32))), n)


def vouched(number: int = 1, size: int = 256, **changes: Any) -> Context:
    ids = tuple(UUID(int=at + 1) for at in range(number))
    return context(scheme="blind-paper", key_ids=ids, size=size, **changes)
