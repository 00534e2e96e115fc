"""A delivery whose every request and every key handed out is in the audit log before the answer leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from keyhaul.audit.log import AuditLog
from keyhaul.messages.etsi014 import Delivered, Order, Standing


class _Delivery(Protocol):
    async def request(self, order: Order) -> list[Delivered]: ...
    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]: ...
    async def status(self, master: str, slave: str) -> Standing: ...


class AuditedDelivery:
    """See the module docstring. Raises Unavailable instead, if the log is required and cannot be written.

    A log that fails is noticed before keys are touched. Keys of the one request at which it begins to
    fail are lost, as those of an answer that is lost on the way: marked as delivered, and not delivered.
    """

    def __init__(self, delivery: _Delivery, log: AuditLog) -> None:
        self._delivery = delivery
        self._log = log

    async def request(self, order: Order) -> list[Delivered]:
        """As the delivery's."""
        await self._log.ready()
        targets, size = list(order.targets), order.size
        self._log.note("request", master=order.master, targets=targets, number=order.number, size=size)
        keys = await self._delivery.request(order)
        await self._write(keys, to=order.master, role="master", targets=targets)
        return keys

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        """As the delivery's."""
        await self._log.ready()
        keys = await self._delivery.fetch(caller, master, key_ids)
        await self._write(keys, to=caller, role="slave", master=master)
        return keys

    async def status(self, master: str, slave: str) -> Standing:
        """As the delivery's; nothing is handed out, so nothing is written."""
        return await self._delivery.status(master, slave)

    async def _write(self, keys: list[Delivered], **fields: object) -> None:
        try:
            await self._log.record("delivery", **fields, keys=[str(key.key_id) for key in keys])
        except BaseException:
            for key in keys:
                key.bits.wipe()
            raise
