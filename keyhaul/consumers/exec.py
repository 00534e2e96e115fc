"""Any program: a command is run for every step, with the key on its standard input.

KEYHAUL_STEP    `install`, `drop` or `lock`, as in `port.py`
KEYHAUL_KEY_ID  the key's id; empty for `lock`
KEYHAUL_PEER    the other SAE
KEYHAUL_ROLE    `initiator` or `responder`

Only `install` has anything on its input. The step is done when the command ends with 0.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Literal
from uuid import UUID

from keyhaul.consumers.port import AgreedKey, Role
from keyhaul.consumers.programs import run

Encoding = Literal["base64", "hex", "raw"]

_WRITTEN: dict[Encoding, Callable[[bytes], bytes]] = {
    "base64": lambda bits: base64.b64encode(bits) + b"\n",
    "hex": lambda bits: bits.hex().encode() + b"\n",
    "raw": bytes,
}


class Exec:
    """`command` is a program and its arguments, run without a shell; `patience` in seconds."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        peer: str,
        role: Role,
        key_bits: int = 256,
        encoding: Encoding = "base64",
        patience: float = 10.0,
    ) -> None:
        self.key_bits = key_bits
        self._command, self._patience = tuple(command), patience
        self._known = {"KEYHAUL_PEER": peer, "KEYHAUL_ROLE": role}
        self._written = _WRITTEN[encoding]

    async def install(self, key: AgreedKey) -> None:
        """See `port.Consumer.install`."""
        await self._step("install", str(key.key_id), self._written(key.bits.reveal()))

    async def held(self) -> list[UUID]:
        """Nobody asks the command."""
        return []

    async def drop(self, key_id: UUID) -> None:
        """See `port.Consumer.drop`."""
        await self._step("drop", str(key_id))

    async def lock(self) -> None:
        """See `port.Consumer.lock`."""
        await self._step("lock", "")

    async def close(self) -> None:
        """Nothing is open."""

    async def _step(self, step: str, key_id: str, given: bytes = b"") -> None:
        environment = {**self._known, "KEYHAUL_STEP": step, "KEYHAUL_KEY_ID": key_id}
        await run(self._command, given, patience=self._patience, environment=environment)
