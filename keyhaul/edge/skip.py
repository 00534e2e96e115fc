"""The port for encryptors that speak SKIP (draft-cisco-skip-02): the kernel behind 014, under other names.

`/key` is enc_keys and `/key/{keyId}` is dec_keys for one key; the encryptor's certificate says which SAE it
is. Everything is GET. The draft knows 200, 400, 404, 405, 500 and 503; a key that waits for somebody else is
answered like one that is not there, 400.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from keyhaul.edge.calls import Call, NoSuchMethod, NoSuchPath, Reply
from keyhaul.edge.sae import Delivery
from keyhaul.edge.turns import Turns
from keyhaul.errors import KeyhaulError, KeyNotFound, Malformed, Refused, StoreUnavailable, Unauthorized
from keyhaul.keys import Secret
from keyhaul.messages import skip
from keyhaul.messages.etsi014 import KeyRequest
from keyhaul.messages.skip import Systems
from keyhaul.policy import Limits, check_sae

Random = Callable[[int], Secret]
"""Fresh random bytes; raises Unavailable."""


class SkipApplication:
    """The four calls of the draft, on top of a kernel. `limits` are those in force."""

    def __init__(
        self,
        delivery: Delivery,
        systems: Systems,
        random: Random,
        turns: Turns,
        limits: Callable[[], Limits],
    ) -> None:
        self._delivery, self._systems, self._random = delivery, systems, random
        self._turns, self._limits = turns, limits

    async def reply(self, call: Call) -> Reply:
        """One call. Raises errors of keyhaul.errors."""
        handler = self._find(call.path)
        if call.method != "GET":  # HEAD would take a key and deliver nothing
            raise NoSuchMethod(["GET"])
        self._turns.call(call.caller)
        return await handler(call)

    def _find(self, path: str) -> Callable[[Call], Awaitable[Reply]]:
        found = {"/capabilities": self._capabilities, "/key": self._new_key, "/entropy": self._entropy}
        if path in found:
            return found[path]
        segment = path.removeprefix("/key/")
        if segment == path or "/" in segment:
            raise NoSuchPath
        return lambda call: self._key(call, segment)

    async def _capabilities(self, call: Call) -> Reply:
        return Reply(200, self._systems.capabilities(call.caller))

    async def _new_key(self, call: Call) -> Reply:
        query = call.query()
        slave = self._systems.sae(skip.read_remote(query))
        asked = KeyRequest(size=skip.read_bits(query, "size", skip.KEY_BITS))
        order = self._limits().check(call.caller, slave, asked)
        async with self._turns.turn(order):
            (key,) = await self._delivery.request(order)
        with key.bits:
            if len(key.bits) * 8 != order.size:
                raise KeyhaulError("the kernel gave a key of another size than was ordered")
            return Reply(200, skip.encode_key(key.key_id, key.bits))

    async def _key(self, call: Call, segment: str) -> Reply:
        key_id = skip.read_key_id(segment)
        master = check_sae(self._systems.sae(skip.read_remote(call.query())))
        try:
            (key,) = await self._delivery.fetch(call.caller, master, [key_id])
        except Unauthorized:
            raise KeyNotFound("this key waits for nobody here by that name", _ONCE) from None
        with key.bits:
            if key.key_id != key_id:
                raise KeyhaulError("the kernel gave another key than was asked for")
            return Reply(200, skip.encode_key(key.key_id, key.bits))

    async def _entropy(self, call: Call) -> Reply:
        wanted = skip.read_bits(call.query(), "minentropy", skip.ENTROPY_BITS)
        if wanted > skip.MOST_ENTROPY:
            raise Malformed(f"minentropy = {wanted} is too much", f"ask for {skip.MOST_ENTROPY} bits at most")
        with self._random((wanted + 7) // 8) as bits:
            return Reply(200, skip.encode_entropy(bits))


_ONCE = "each key is delivered once, to the encryptor it was asked for"


def render(error: KeyhaulError) -> Reply:
    """An error with the draft's status: 400, 404, 405, 500 if a key could not be read, else 503."""
    status = error.status if isinstance(error, Refused | Unauthorized) else 503
    if isinstance(error, StoreUnavailable):
        status = 500
    headers = {}
    if status == 503 and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, NoSuchMethod):
        headers["Allow"] = error.allow
    return Reply(status, skip.encode_refusal(error.cause, error.remedy), headers)
