"""Stores with fixed keys, for tests that open the same file more than once."""

from __future__ import annotations

from pathlib import Path

from keyhaul.keys import Secret
from keyhaul.stores.sqlcipher import SqlcipherLedger

PAGE_KEY = bytes(range(48))
FIELD_KEY = bytes(range(100, 132))


async def open_store(path: Path, page_key: bytes = PAGE_KEY, field_key: bytes = FIELD_KEY) -> SqlcipherLedger:
    return await SqlcipherLedger.open(path, page_key=Secret(page_key), field_key=Secret(field_key))
