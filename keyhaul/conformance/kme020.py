"""The key manager under test over ETSI GS QKD 020, as one or two neighbouring KMEs and an SAE see it."""

from __future__ import annotations

import asyncio
import base64
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from keyhaul.conformance import kme014
from keyhaul.conformance.call import Answer, Caller
from keyhaul.conformance.desk import Desk, Received
from keyhaul.conformance.judge020 import ACK, EXT_KEYS, VERSIONS, VOID, bits_of, transfer_fault
from keyhaul.conformance.probe import Catalogue, Deviation, NotApplicable, expect

KEY_BYTES = 32
Keys = dict[str, bytes]


@dataclass(slots=True)
class Neighbour:
    """The tester as one KME: how it calls, where it listens, and an SAE that is behind it."""

    caller: Caller
    desk: Desk
    sae: str
    held: dict[str, list[Any]] = field(default_factory=dict)

    def acknowledge(self, body: dict[str, Any], path: str) -> list[dict[str, Any]]:
        """The acknowledgement a good neighbour sends for a transfer or void it accepted."""
        pair = f"{body.get('initiator_sae_id')} {body.get('target_sae_ids')}"
        if path == EXT_KEYS:
            ids = [key.get("key_id") for key in body.get("keys", [])]
            self.held.setdefault(pair, []).extend(ids)
            return [self.ack(ids, "relayed", body)]
        return [self.ack(body.get("key_ids") or self.held.pop(pair, []), "voided", body)]

    @staticmethod
    def ack(ids: Iterable[Any], status: str, body: dict[str, Any]) -> dict[str, Any]:
        """One ack_container about keys of a request."""
        return {
            "key_id_container": [{"key_id": key_id} for key_id in ids],
            "ack_status": status,
            "initiator_sae_id": body.get("initiator_sae_id"),
            "target_sae_ids": body.get("target_sae_ids"),
        }


@dataclass(slots=True)
class Kme020:
    """`target` is an SAE of the KME's side. `sae` acts as that SAE over 014; `second` is another neighbour.

    `wait` is how many seconds an acknowledgement, a retry or a void may take. Optional parties are None
    where they were not given; probes that need them are not run.
    """

    first: Neighbour
    target: str
    anonymous: Caller
    wait: float
    sae: Caller | None = None
    second: Neighbour | None = None
    stranger: Caller | None = None
    old_tls: Caller | None = None
    versions: dict[str, Any] | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def start(self) -> None:
        """Have the listeners acknowledge what they accept."""
        for neighbour in (self.first, self.second):
            if neighbour is not None:
                neighbour.desk.acknowledge = self._acknowledging(neighbour)

    def _acknowledging(self, neighbour: Neighbour) -> Any:
        def later(body: dict[str, Any], path: str) -> None:
            self.spawn(neighbour.caller.post(ACK, neighbour.acknowledge(body, path)))

        return later

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Do something beside the probe; ended with it."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def tidy(self) -> None:
        """Between two probes: good neighbours again, nothing under way."""
        for neighbour in (self.first, self.second):
            if neighbour is not None:
                neighbour.desk.reset()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()

    # --- sending keys to the KME

    def body(self, keys: Keys, /, **changes: Any) -> dict[str, Any]:
        """An ext_key_container from the first neighbour's SAE to the target; None leaves a member out."""
        container = {
            "keys": [
                {"key_id": key_id, "value": base64.b64encode(bits).decode()} for key_id, bits in keys.items()
            ],
            "initiator_sae_id": self.first.sae,
            "target_sae_ids": [self.target],
            "ack_callback_url": self.first.desk.callback,
            **changes,
        }
        return {name: value for name, value in container.items() if value is not None}

    async def send(self, keys: Keys, /, **changes: Any) -> Answer:
        """POST ext_keys."""
        return await self.first.caller.post(EXT_KEYS, self.body(keys, **changes))

    async def relay(self, keys: Keys, /, when: str = "", **changes: Any) -> None:
        """Send keys and have them acknowledged as `relayed`. Raises Deviation."""
        answer = await self.send(keys, **changes)
        expect(answer.status == 202, f"{when}ext_keys: {answer.brief()}, not 202")
        for key_id in keys:
            await self.outcome(key_id, "relayed", when=when)

    async def outcome(self, key_id: str, *wanted: str, when: str = "", after: int = 0) -> str:
        """The acknowledged status of a key, the first one after `after` earlier ones. Raises Deviation."""
        seen = self.first.desk.statuses
        try:
            await self.until(self.first.desk, lambda: len(seen[key_id]) > after)
        except TimeoutError:
            raise Deviation(f"{when}no acknowledgement within {self.wait:g} s") from None
        status = seen[key_id][after]
        expect(not wanted or status in wanted, f"{when}acknowledged as {status!r}")
        return status

    async def until(self, desk: Desk, ready: Callable[[], Any]) -> Any:
        """Wait for something at a desk. Raises TimeoutError after `wait` seconds."""
        try:
            async with asyncio.timeout(self.wait):
                return await desk.until(ready)
        except TimeoutError:
            raise TimeoutError(f"nothing came within {self.wait:g} s") from None

    async def again_or_void(self, path: str, key_id: str) -> str:
        """Wait until the KME repeats its call about a key, or voids the key. Raises TimeoutError."""
        desk = self.first.desk

        def came() -> str:
            if len(desk.calls(path, key_id)) > 1:
                return "sent again"
            return "voided" if desk.calls(VOID, key_id) else ""

        return str(await self.until(desk, came))

    async def void(self, ids: Iterable[str], /, **changes: Any) -> Answer:
        """POST void for keys of the first neighbour's SAE."""
        container = {
            "key_ids": list(ids),
            "initiator_sae_id": self.first.sae,
            "target_sae_ids": [self.target],
            "ack_callback_url": self.first.desk.callback,
            **changes,
        }
        return await self.first.caller.post(
            VOID, {name: value for name, value in container.items() if value is not None}
        )

    async def voided(self, ids: Iterable[str], *wanted: str) -> str:
        """Void keys and wait for what is acknowledged. Raises Deviation."""
        ids = list(ids)
        before = {key_id: len(self.first.desk.statuses[key_id]) for key_id in ids}
        answer = await self.void(ids)
        expect(answer.status == 202, f"void: {answer.brief()}, not 202")
        return ", ".join([await self.outcome(each, *wanted, after=before[each]) for each in ids])

    # --- being an SAE of the KME's side

    def application(self) -> Caller:
        """The SAE over 014. Raises NotApplicable."""
        if self.sae is None:
            raise NotApplicable("needs --sae and --sae-url")
        return self.sae

    async def fetch(self, keys: Keys) -> Answer:
        """dec_keys of the target SAE, with the first neighbour's SAE as master."""
        ids = {"key_IDs": [{"key_ID": key_id} for key_id in keys]}
        path = f"{kme014.PREFIX}{kme014.segment(self.first.sae)}/dec_keys"
        return await self.application().post(path, ids)

    async def delivered(self, keys: Keys, when: str = "") -> None:
        """The target SAE gets exactly these keys. Raises Deviation."""
        answer = await self.fetch(keys)
        expect(answer.status == 200, f"{when}dec_keys: {answer.brief()}")
        expect(kme014.container(answer) == keys, f"{when}the SAE got other bits than were sent")

    async def withheld(self, keys: Keys, when: str = "") -> None:
        """The target SAE gets nothing. Raises Deviation."""
        kme014.refusal(await self.fetch(keys), kme014.NOT_FOUND)

    async def asked(self) -> tuple[asyncio.Task[Answer], Received]:
        """The SAE asks for a key to share with the one behind us; what the KME then sends us."""
        desk, sae, before = self.first.desk, self.application(), len(self.first.desk.received)
        path = f"{kme014.PREFIX}{kme014.segment(self.first.sae)}/enc_keys"
        asking: asyncio.Task[Answer] = self.spawn(sae.post(path, {}))

        def came() -> Received | None:
            return next((call for call in desk.received[before:] if call.path == EXT_KEYS), None)

        try:
            call: Received = await self.until(desk, came)
        except TimeoutError:
            seen = (await asking).brief() if asking.done() else "no answer"
            raise Deviation(f"no ext_keys came; the SAE got: {seen}") from None
        return asking, call

    def second_neighbour(self) -> Neighbour:
        """The other KME. Raises NotApplicable."""
        if self.second is None:
            raise NotApplicable("needs --second")
        return self.second

    async def capabilities(self) -> list[str]:
        """What /kmapi/versions announces."""
        if self.versions is None:
            self.versions = (await self.first.caller.get(VERSIONS)).object()
        found = self.versions.get("capabilities", [])
        return found if isinstance(found, list) else []


CATALOGUE: Catalogue[Kme020] = Catalogue()


def fresh(number: int = 1) -> Keys:
    """New keys of 256 bits."""
    return {str(uuid.uuid4()): os.urandom(KEY_BYTES) for _ in range(number)}


def sent_keys(call: Received) -> Keys:
    """The keys in a transfer of the KME. Raises Deviation if it is none."""
    value = call.value()
    fault = transfer_fault(value)
    expect(not fault, fault)
    return {key["key_id"].lower(): bits_of(key) for key in value["keys"]}
