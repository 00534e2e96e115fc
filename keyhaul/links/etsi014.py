"""Our side of ETSI GS QKD 014 towards a vendor's device: status, enc_keys, dec_keys, within its limits.

The device knows two SAEs of ours: this node (the caller, by its certificate) and the neighbour (`peer_sae`,
in the path). Applications' SAE ids never reach it.

What a lost answer costs, since 014 has no request ids: enc_keys that were handed out but did not arrive are
burned, and a retry takes fresh ones; the far device keeps its copies until their time to live ends. dec_keys
that were handed out but did not arrive are gone too, and a retry finds KeyNotFound: the message under that
key must be sent again under another. So broken connections are tried again, a bounded number of times;
time-outs are not.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from keyhaul.errors import (
    ConfigError,
    InsufficientKey,
    KeyNotFound,
    Malformed,
    PeerUnreachable,
    Refused,
    Unavailable,
)
from keyhaul.keys import Secret
from keyhaul.links.devicehttp import Exchange, Lost, Operation, Reply, refusal

Method = Literal["auto", "get", "post"]

ATTEMPTS = 3
FIRST_PAUSE = 0.1
"""Seconds before the second attempt; doubled each time, times 0.5 to 1.5 by chance."""
PARALLEL = 4
"""Requests to one device at a time, when a call must be split."""
MAX_ANSWER = 4 << 20
"""Bytes of an answer."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What one request to a device may ask; sizes in bits. `auto`: POST until the device refuses the verb."""

    max_key_per_request: int = 1
    key_size: int = 256
    min_key_size: int = 256
    max_key_size: int = 256
    method: Method = "auto"


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """One link key; `key_id` is spelled as the device that issued it spelled it."""

    key_id: str
    bits: Secret


class DeviceStatus(msgspec.Struct, frozen=True):
    """014 Status; None or empty where the device leaves a member out. Sizes in bits."""

    source_KME_ID: str = ""  # noqa: N815 - the standard's spelling
    target_KME_ID: str = ""  # noqa: N815
    master_SAE_ID: str = ""  # noqa: N815
    slave_SAE_ID: str = ""  # noqa: N815
    key_size: int | None = None
    stored_key_count: int | None = None
    max_key_count: int | None = None
    max_key_per_request: int | None = None
    max_key_size: int | None = None
    min_key_size: int | None = None
    max_SAE_ID_count: int | None = None  # noqa: N815

    def limits(self) -> DeviceLimits:
        """Limits as announced; a device that names no sizes is asked for its default size only."""
        size = self.key_size or 256
        return DeviceLimits(
            max_key_per_request=max(1, self.max_key_per_request or 1),
            key_size=size,
            min_key_size=self.min_key_size or size,
            max_key_size=self.max_key_size or size,
        )


class _Key(msgspec.Struct):
    key_ID: str  # noqa: N815
    key: bytes


class _Container(msgspec.Struct):
    keys: list[_Key] | None = None
    Keys: list[_Key] | None = None  # the standard's table capitalises it, its example does not


class Device:
    """A device, or its vendor's key manager. `timeout`, in seconds, bounds each request with its retries.

    `limits` overrides members of what the device's status says; with `max_key_per_request` and all three
    sizes given, status is not asked at all. A `session` that is handed in is not closed.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        *,
        peer_sae: str,
        timeout: float = 10.0,
        limits: Mapping[str, int] | None = None,
        method: Method = "auto",
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self._exchange = Exchange(url, tls, session, MAX_ANSWER)
        self._url = url
        self._path = f"/api/v1/keys/{quote(peer_sae, safe='')}/"
        self._timeout = timeout
        self._overrides = _checked(limits or {})
        self._method: Method = method
        self._limits: DeviceLimits | None = None
        self._turns = asyncio.Semaphore(PARALLEL)

    async def status(self) -> DeviceStatus:
        """What the device says of itself and its store; costs no key.

        Raises PeerUnreachable, Unauthorized, Malformed, Refused or Unavailable.
        """
        reply = await self._ask("status", "GET", "status", None)
        try:
            return msgspec.json.decode(reply.body, type=DeviceStatus, strict=False)
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError, and what is not UTF-8
            raise Malformed(f"the device's status is not what 014 says: {error}") from None

    async def limits(self) -> DeviceLimits:
        """The limits in force: the configuration's, else the device's, asked once."""
        if self._limits is None:
            known = len(self._overrides) == len(_LIMIT_NAMES)
            found = DeviceLimits() if known else (await self.status()).limits()
            self._limits = replace(found, **self._overrides)
        return replace(self._limits, method=self._method)

    async def enc_keys(self, number: int, size: int) -> list[DeviceKey]:
        """Up to `number` fresh keys of `size` bits; fewer if the device ran dry on the way, never none.

        Raises InsufficientKey (dry), PeerUnreachable (no answer), Unauthorized, Malformed, Unavailable, and
        Refused if the device does not make keys of that size.
        """
        limits = await self.limits()
        if number < 1 or size % 8 or not limits.min_key_size <= size <= limits.max_key_size:
            raise Refused(
                f"{number} keys of {size} bits cannot be had from this device",
                f"it makes keys of {limits.min_key_size} to {limits.max_key_size} bits",
            )
        step = limits.max_key_per_request
        counts = [min(step, number - start) for start in range(0, number, step)]
        return await self._gather(self._enc(count, size) for count in counts)

    async def dec_keys(self, key_ids: Sequence[str]) -> list[DeviceKey]:
        """The keys the neighbour's device announced under these ids, spelled and ordered as asked.

        One request is all or nothing. A call that had to be split returns what it got, because those keys are
        no longer on the device. Raises KeyNotFound if nothing could be had because an id is unknown, expired,
        fetched or not there yet, and otherwise as `enc_keys`.
        """
        if not key_ids:
            return []
        step = (await self.limits()).max_key_per_request if self._method != "get" else 1
        parts = [key_ids[start : start + step] for start in range(0, len(key_ids), step)]
        return await self._gather(self._dec(part) for part in parts)

    async def close(self) -> None:
        """Close the connections."""
        await self._exchange.close()

    async def _enc(self, number: int, size: int) -> list[DeviceKey]:
        query = urlencode({"number": number, "size": size})
        body = {"number": number, "size": size}
        keys = self._parsed(await self._with_verb("enc_keys", query, body))
        if len(keys) != number or any(len(key.key) * 8 != size for key in keys):
            raise Malformed(f"the device sent other keys than the {number} of {size} bits asked for")
        if len({key.key_ID.lower() for key in keys}) < number or not all(key.key_ID for key in keys):
            raise Malformed("the device sent two keys under one key_ID, or a key without")
        return [DeviceKey(key.key_ID, Secret(key.key)) for key in keys]

    async def _dec(self, key_ids: Sequence[str]) -> list[DeviceKey]:
        query = urlencode({"key_ID": key_ids[0]}, quote_via=quote) if len(key_ids) == 1 else None
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        try:
            reply = await self._with_verb("dec_keys", query, body)
        except _VerbRefused:
            return await self._gather(self._dec([key_id]) for key_id in key_ids)
        found = {key.key_ID.lower(): key.key for key in self._parsed(reply)}
        if found.keys() != {key_id.lower() for key_id in key_ids}:
            raise Malformed("the device sent other keys than the key_IDs asked for")
        return [DeviceKey(key_id, Secret(found[key_id.lower()])) for key_id in key_ids]

    async def _with_verb(self, operation: Operation, query: str | None, body: object) -> Reply:
        """By POST, or by GET if that is this device's way and `query` can say it."""
        if self._method != "get":
            reply = await self._ask(operation, "POST", operation, msgspec.json.encode(body))
            if reply.status not in (405, 501):
                return reply
            self._method = "get"
        if query is None:
            raise _VerbRefused
        return await self._ask(operation, "GET", f"{operation}?{query}", None)

    async def _ask(self, operation: Operation, verb: str, path: str, body: bytes | None) -> Reply:
        """One request with its retries; only 200 comes back, or a refused verb that has an alternative."""
        try:
            async with self._turns, asyncio.timeout(self._timeout):
                return await self._attempts(operation, verb, path, body)
        except TimeoutError:
            raise PeerUnreachable(f"no answer from the device at {self._url} in {self._timeout} s") from None

    async def _attempts(self, operation: Operation, verb: str, path: str, body: bytes | None) -> Reply:
        failure: Unavailable = PeerUnreachable(f"no answer from the device at {self._url}")
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * (0.5 + random.random()))  # noqa: S311
            try:
                reply = await self._exchange.send(verb, self._path + path, body)
            except Lost as lost:
                failure = PeerUnreachable(str(lost), "check that it runs and that its URL is right")
                continue
            other_verb = verb == "POST" and self._method == "auto" and reply.status in (405, 501)
            if reply.status == 200 or other_verb:
                return reply
            refused = refusal(reply, operation)
            if not isinstance(refused, InsufficientKey) or (reply.retry_after or 0) >= 1:
                raise refused  # a device that says when to come back is not asked before
            failure = refused
        raise failure

    async def _gather(self, requests: Iterable[Awaitable[list[DeviceKey]]]) -> list[DeviceKey]:
        """All keys that could be had; the first error if there are none, or if it is no lack of keys."""
        results = await asyncio.gather(*requests, return_exceptions=True)
        keys: list[DeviceKey] = []
        failure: BaseException | None = None
        for result in results:
            if isinstance(result, list):
                keys += result
            elif not isinstance(result, Unavailable | KeyNotFound):
                raise result
            else:
                failure = failure or result
        if failure and not keys:
            raise failure
        return keys

    def _parsed(self, reply: Reply) -> list[_Key]:
        try:
            container = msgspec.json.decode(reply.body, type=_Container)
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError, and what is not UTF-8
            raise Malformed(f"the device's key container is not what 014 says: {error}") from None
        keys = container.keys if container.keys is not None else container.Keys
        if keys is None:
            raise Malformed("the device's key container has no member keys")
        return keys


class _VerbRefused(Exception):
    """The device wants GET, and this request does not fit into one."""


_LIMIT_NAMES = frozenset({"max_key_per_request", "key_size", "min_key_size", "max_key_size"})


def _checked(limits: Mapping[str, int]) -> dict[str, Any]:
    for name, value in limits.items():
        if name not in _LIMIT_NAMES:
            raise ConfigError(f"a device has no limit {name}", f"use {', '.join(sorted(_LIMIT_NAMES))}")
        if value < 1:
            raise ConfigError(f"the device limit {name} is {value}", "use a number above 0")
    return dict(limits)
