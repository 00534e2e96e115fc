"""Stores with fixed keys, for tests that open the same file more than once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from keyhaul.keys import Secret
from keyhaul.ledger_samples import add, sample_ref, sample_row
from keyhaul.stores.sqlcipher import SqlcipherLedger

PAGE_KEY = bytes(range(48))
FIELD_KEY = bytes(range(100, 132))


async def open_store(path: Path, page_key: bytes = PAGE_KEY, field_key: bytes = FIELD_KEY) -> SqlcipherLedger:
    return await SqlcipherLedger.open(path, page_key=Secret(page_key), field_key=Secret(field_key))


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, 120))


def make_store(path: Path) -> None:
    async def story() -> None:
        store = await open_store(path)
        await add(store, *(sample_row(sample_ref(number)) for number in range(60)))
        await store.close()

    run(story())


def fingerprint(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}
