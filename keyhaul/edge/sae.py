"""The port for applications: ETSI GS QKD 014 V1.1.1, server side. Who calls is what its certificate says.

A handler reads, checks against the policy, asks the kernel (`Delivery`), and answers: from `Call` to
`Reply`, wherever the HTTP was read. Errors become answers in `render` alone. The standard knows 400, 401
and 503; two more are HTTP's own, 404 for a path and 405 for a method that are not part of the interface. A
body that comes too slowly gets 400, not 503: the fault is the sender's, and 503 would invite it to send the
same again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from keyhaul.admission import Admission, Rules
from keyhaul.edge.calls import Call, NoSuchMethod, NoSuchPath, Reply
from keyhaul.edge.turns import Turns
from keyhaul.errors import ExtensionRefused, KeyhaulError, KeyNotFound, Refused, TimedOut, Unauthorized
from keyhaul.messages import etsi014
from keyhaul.messages.etsi014 import TRUST, Delivered, KeyIds, KeyRequest, Order, Refusal, Standing
from keyhaul.policy import Limits, check_sae
from keyhaul.story import NO_TRACER, Told, Tracer


class Delivery(Protocol):
    """The kernel behind the port. The `bits` it hands out are the port's, which wipes them."""

    async def request(self, order: Order) -> list[Delivered]:
        """Fresh keys for the master, promised to every target: `order.number` of `order.size` bits.

        Raises NoSuchTarget, ExtensionRefused (only for names in `order.mandatory`), and Unavailable or
        one of its kinds. InsufficientKey may carry `key_bits_requested` and `key_bits_available`.
        """

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        """Keys of `master` that `caller` was named for, in the order of the ids; all of them or none.

        Raises Unauthorized if the caller was not named for one of them, KeyNotFound if one is unknown,
        delivered, voided or expired, and Unavailable.
        """

    async def status(self, master: str, slave: str) -> Standing:
        """Where this pair stands; consumes nothing. Raises NoSuchTarget and Unavailable."""


_Method = Callable[[Call, str], Awaitable[Reply]]


class SaeApplication:
    """The five calls of clause 5, on top of a kernel and the limits the node announces."""

    def __init__(
        self,
        delivery: Delivery,
        limits: Limits | None = None,
        turns: Turns | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._tracer = tracer
        self._delivery = delivery
        self.limits = limits or Limits()
        self._turns = turns or Turns(Admission(Rules()), time.monotonic)

        self._methods: dict[tuple[str, str], _Method] = {
            ("status", "GET"): self._status,
            ("enc_keys", "GET"): self._enc_keys_short,
            ("enc_keys", "POST"): self._enc_keys,
            ("dec_keys", "GET"): self._dec_keys_short,
            ("dec_keys", "POST"): self._dec_keys,
        }

    async def reply(self, call: Call) -> Reply:
        """One call. Raises errors of keyhaul.errors."""
        operation, sae = find(call.method, call.path)
        self._turns.call(call.caller)  # before its body is read
        return await self._methods[operation, call.method](call, sae)

    async def _status(self, call: Call, sae: str) -> Reply:
        """Get status (5.1)."""
        slave = check_sae(etsi014.unquote_sae(sae))
        standing = await self._delivery.status(call.caller, slave)
        return Reply(200, etsi014.encode_status(self.limits.status(call.caller, slave, standing)))

    async def _enc_keys_short(self, call: Call, sae: str) -> Reply:
        """Get key (5.2) with GET."""
        return await self._request(call.caller, sae, etsi014.request_from_query(call.query()))

    async def _enc_keys(self, call: Call, sae: str) -> Reply:
        """Get key (5.2) with POST. The content type is not looked at; the body must be JSON."""
        return await self._request(call.caller, sae, etsi014.decode_request(await call.body()))

    async def _dec_keys_short(self, call: Call, sae: str) -> Reply:
        """Get key with key IDs (5.3) with GET."""
        return await self._fetch(call.caller, sae, etsi014.key_ids_from_query(call.query()))

    async def _dec_keys(self, call: Call, sae: str) -> Reply:
        """Get key with key IDs (5.3) with POST."""
        return await self._fetch(call.caller, sae, etsi014.decode_key_ids(await call.body()))

    async def _request(self, master: str, sae: str, asked: KeyRequest) -> Reply:
        order = self.limits.check(master, etsi014.unquote_sae(sae), asked)
        what: dict[str, Told] = {"master": master, "slaves": order.targets, "number": order.number}
        with self._tracer.span("enc_keys", "server", (), size=order.size, **what):
            async with self._turns.turn(order):
                keys = await self._delivery.request(order)
        return _container(keys, [order.size] * order.number, trust=order.options.get(TRUST) is True)

    async def _fetch(self, caller: str, sae: str, asked: KeyIds) -> Reply:
        self.limits.check_ids(asked)
        master = check_sae(etsi014.unquote_sae(sae))
        with self._tracer.span("dec_keys", "server", asked.ids, slave=caller, master=master):
            keys = await self._delivery.fetch(caller, master, asked.ids)
        if [key.key_id for key in keys] != list(asked.ids):
            raise KeyhaulError("the kernel gave other keys than were asked for")
        return _container(keys, [len(key.bits) * 8 for key in keys], trust=asked.trust)


def render(error: KeyhaulError) -> Reply:
    """An error as 014 says it: its own message where clause 5 fixes one, cause and next step beside it."""
    message, cause = error.cause, ""
    if isinstance(error, KeyNotFound):
        message, cause = etsi014.KEYS_NOT_FOUND, error.cause
    elif isinstance(error, ExtensionRefused):
        message, cause = etsi014.MANDATORY_UNMET, error.cause
    told: list[Mapping[str, str | int]] = [error.details, {"cause": cause}, {"next_step": error.remedy}]
    details = tuple(dict(pairs) for pairs in told if any(value != "" for value in pairs.values()))
    status, headers = _status(error), {}
    if status == 503 and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, NoSuchMethod):
        headers["Allow"] = error.allow
    return Reply(status, etsi014.encode_refusal(Refusal(message, details)), headers)


def _status(error: KeyhaulError) -> int:
    """Anything that is neither the caller's fault nor its missing right is ours: 503."""
    if isinstance(error, Unauthorized):
        return 401
    if isinstance(error, TimedOut):
        return 400
    return error.status if isinstance(error, Refused) else 503


def _container(keys: Sequence[Delivered], sizes: list[int], *, trust: bool) -> Reply:
    try:
        if not all(sizes) or [len(key.bits) * 8 for key in keys] != sizes:
            raise KeyhaulError("the kernel gave keys of other sizes than were ordered")
        return Reply(200, etsi014.encode_container(keys, trust=trust))
    finally:
        for key in keys:
            key.bits.wipe()


_PREFIX = etsi014.PREFIX.split("/")
_VERBS = {"status": ("GET",), "enc_keys": ("GET", "POST"), "dec_keys": ("GET", "POST")}


def find(method: str, path: str) -> tuple[str, str]:
    """Which operation a path means, and the SAE named in it, still escaped. Raises NoSuchPath, NoSuchMethod.

    HEAD is not among the methods: on enc_keys it would take keys and deliver nothing.
    """
    # The path is split while `%2F` is still escaped, and its pieces are unescaped once.
    pieces = path.split("/")
    verbs = _VERBS.get(pieces[-1])
    if verbs is None or len(pieces) != len(_PREFIX) + 2 or pieces[: len(_PREFIX)] != _PREFIX:
        raise NoSuchPath
    if method not in verbs:
        raise NoSuchMethod(verbs)
    return pieces[-1], pieces[-2]
