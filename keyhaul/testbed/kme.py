"""The ETSI GS QKD 014 V1.1.1 face of a simulated device: status, enc_keys, dec_keys, and the testbed's knobs.

A handler reads, validates, waits as long as the real device would, acts, and answers. SAEs are told apart by
their certificates alone.
"""

from __future__ import annotations

import asyncio
import random
from typing import Annotated, Any
from uuid import uuid4

import msgspec
from aiohttp import web

from keyhaul.errors import Malformed, Refused, Unauthorized
from keyhaul.testbed.http import CALLER, KeyIds, KeyRequest, answer, parse
from keyhaul.testbed.pair import NOT_FOUND, End, Level, Line, Order
from keyhaul.testbed.presets import Profile
from keyhaul.testbed.qkdlink import KeyStream


class Knobs(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator may turn on one end.

    `cut`: no production and no classical channel. `dry`: the store is emptied and stays empty. `lag_s`:
    announced keys become fetchable here so many seconds late. `disagree`: this end hands out flipped bits.
    `delay_scale`: factor on the response delay.
    """

    cut: bool = False
    dry: bool = False
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    disagree: bool = False
    delay_scale: Annotated[float, msgspec.Meta(ge=0)] = 1.0


class Counters(msgspec.Struct):
    """What applications got at this end."""

    enc_keys: int = 0
    dec_keys: int = 0
    delivered_bits: int = 0


class Kme:
    """One device as its applications see it."""

    def __init__(
        self,
        name: str,
        peer: str,
        profile: Profile,
        end: End,
        *,
        seed: bytes,
        saes: frozenset[str],
        remote_saes: frozenset[str],
        operator: str,
        rng: random.Random,
    ) -> None:
        self._name = name
        self._peer = peer
        self._profile = profile
        self._end = end
        self._seed = seed
        self._saes = saes
        self._remote_saes = remote_saes
        self._operator = operator
        self._rng = rng
        self._delay = profile.delay()
        self._streams: dict[str, KeyStream] = {}
        self._seen: tuple[float, Level] | None = None
        self.knobs = Knobs()
        self.counters = Counters()

    def routes(self) -> list[web.RouteDef]:
        """014 paths, with the verbs this vendor understands, and the operator's path."""
        keys = "/api/v1/keys/{sae}"
        routes = [
            web.get(f"{keys}/status", self.status),
            web.get("/testbed/knobs", self.show),
            web.put("/testbed/knobs", self.turn),
        ]
        if self._profile.verbs != "post":
            routes += [web.get(f"{keys}/enc_keys", self.enc_keys), web.get(f"{keys}/dec_keys", self.dec_keys)]
        if self._profile.verbs != "get":
            routes += [
                web.post(f"{keys}/enc_keys", self.enc_keys),
                web.post(f"{keys}/dec_keys", self.dec_keys),
            ]
        return routes

    async def status(self, request: web.Request) -> web.Response:
        """Get status; the count of stored keys may be as old as the profile says."""
        caller = self._admit(request)
        slave = self._slave(request)
        profile = self._profile
        level = await self._level()
        members: dict[str, Any] = {
            "source_KME_ID": self._name,
            "target_KME_ID": self._peer,
            "master_SAE_ID": caller,
            "slave_SAE_ID": slave,
            "key_size": profile.key_size,
            "stored_key_count": level.stored // profile.key_size,
            "max_key_count": profile.capacity // profile.key_size,
            "max_key_per_request": profile.max_key_per_request,
            "max_key_size": profile.max_key_size,
            "min_key_size": profile.min_key_size,
            "max_SAE_ID_count": profile.max_extra_saes,
        }
        return answer({name: value for name, value in members.items() if name not in profile.status_omits})

    async def enc_keys(self, request: web.Request) -> web.Response:
        """Get key: bits leave this end's account when the far end knows their ids."""
        caller = self._admit(request)
        slave = self._slave(request)
        wanted = await self._key_request(request)
        self._check(wanted)
        await self._pause()
        order = Order(
            key_ids=tuple(str(uuid4()) for _ in range(wanted.number)),
            size=wanted.size or self._profile.key_size,
            master=caller,
            slaves=tuple(dict.fromkeys((slave, *wanted.additional_slave_SAE_IDs))),
        )
        place = await self._end.reserve(order)
        self.counters.enc_keys += len(order.key_ids)
        self.counters.delivered_bits += order.bits
        return self._container(
            [(key_id, place.run, place.position + i * order.size) for i, key_id in enumerate(order.key_ids)],
            [order.size] * len(order.key_ids),
        )

    async def dec_keys(self, request: web.Request) -> web.Response:
        """Get key with key IDs: all of them or none, each once per SAE that was named."""
        caller = self._admit(request)
        master = request.match_info["sae"]
        key_ids = await self._key_ids(request)
        if len(key_ids) > self._profile.max_key_per_request:
            raise Refused(f"at most {self._profile.max_key_per_request} keys per request")
        await self._pause()
        now = asyncio.get_running_loop().time()
        taken = self._end.shelf.take(key_ids, master, caller, now, self.knobs.lag_s)
        for item, last in taken:
            if last:  # a multicast key counts when nobody waits for it any more
                self.counters.dec_keys += 1
                self.counters.delivered_bits += item.order.size
        return self._container(
            [(item.key_id, item.run, item.position) for item, _ in taken],
            [item.order.size for item, _ in taken],
        )

    async def show(self, request: web.Request) -> web.Response:
        """Knobs, and an account in bits: produced == stored + discarded + waiting + delivered."""
        self._admit_operator(request)
        return answer(await self._account())

    async def turn(self, request: web.Request) -> web.Response:
        """Set the knobs that are named; the others stay."""
        self._admit_operator(request)
        body = await request.read()
        change = parse(body, Knobs)
        named: set[str] = {*msgspec.json.decode(body)}
        for name in named:
            setattr(self.knobs, name, getattr(change, name))
        told = True
        if {"cut", "dry"} & named:
            told = await self._end.disturb(Line(self.knobs.cut, self.knobs.dry))
        return answer({**await self._account(), "told_peer": told})

    async def _account(self) -> dict[str, Any]:
        level = await self._end.level()
        shelf = self._end.shelf
        shelf.expire(asyncio.get_running_loop().time())
        return {
            "name": self._name,
            "run": level.run,
            "knobs": self.knobs,
            "bits": {
                "produced": level.produced,
                "stored": level.stored,
                "discarded": level.discarded + shelf.expired_bits,
                "waiting": shelf.bits,
                "delivered": self.counters.delivered_bits,
            },
            "keys": {
                "enc": self.counters.enc_keys,
                "dec": self.counters.dec_keys,
                "waiting": len(shelf),
                "expired": shelf.expired_keys,
            },
        }

    def _admit(self, request: web.Request) -> str:
        caller = request[CALLER]
        if caller not in self._saes:
            raise Unauthorized("this SAE is not registered at the device")
        return caller

    def _admit_operator(self, request: web.Request) -> None:
        if request[CALLER] != self._operator:
            raise Unauthorized("only the operator of the testbed may do this")

    def _slave(self, request: web.Request) -> str:
        slave = request.match_info["sae"]
        if slave not in self._remote_saes:
            raise Refused("the device does not know the slave SAE")
        return slave

    async def _key_request(self, request: web.Request) -> KeyRequest:
        if request.method == "GET":
            values = {name: request.query[name] for name in ("number", "size") if name in request.query}
            try:
                return msgspec.convert(values, KeyRequest, strict=False)
            except msgspec.ValidationError as error:
                raise Malformed(f"the query is not what the interface says: {error}") from None
        return parse(await request.read() or b"{}", KeyRequest)

    async def _key_ids(self, request: web.Request) -> list[str]:
        if request.method == "GET":
            key_ids = request.query.getall("key_ID", [])
            if len(key_ids) != 1:
                raise Malformed("GET asks for exactly one key_ID")
        else:
            key_ids = [item.key_ID for item in parse(await request.read(), KeyIds).key_IDs]
        if len({key_id.lower() for key_id in key_ids}) < len(key_ids):
            raise Refused(NOT_FOUND)  # the second fetch of the same key cannot be met
        return key_ids

    def _check(self, wanted: KeyRequest) -> None:
        profile = self._profile
        size = profile.key_size if wanted.size is None else wanted.size
        if wanted.extension_mandatory:
            raise Refused("not all extension_mandatory parameters are supported")
        if size % 8:
            raise Refused("size shall be a multiple of 8")
        if not profile.min_key_size <= size <= profile.max_key_size:
            raise Refused(f"size shall be from {profile.min_key_size} to {profile.max_key_size} bits")
        if not 1 <= wanted.number <= profile.max_key_per_request:
            raise Refused(f"number shall be from 1 to {profile.max_key_per_request}")
        if len(wanted.additional_slave_SAE_IDs) > profile.max_extra_saes:
            raise Refused(f"at most {profile.max_extra_saes} additional_slave_SAE_IDs")
        if not self._remote_saes.issuperset(wanted.additional_slave_SAE_IDs):
            raise Refused("the device does not know one of additional_slave_SAE_IDs")

    async def _pause(self) -> None:
        seconds = self._delay.draw(self._rng) * self.knobs.delay_scale
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _level(self) -> Level:
        now = asyncio.get_running_loop().time()
        if self._seen is None or now - self._seen[0] >= self._profile.status_every:
            self._seen = (now, await self._end.level())
        return self._seen[1]

    def _container(self, places: list[tuple[str, str, int]], sizes: list[int]) -> web.Response:
        keys = [
            {"key_ID": key_id, "key": self._bits(run, position, size)}  # msgspec writes bytes as base64
            for (key_id, run, position), size in zip(places, sizes, strict=True)
        ]
        return answer({"keys": keys})

    def _bits(self, run: str, position: int, size: int) -> bytearray:
        if run not in self._streams:
            self._streams[run] = KeyStream(self._seed, bytes.fromhex(run))
        bits = self._streams[run].bits(position, size)
        if self.knobs.disagree:
            bits[:] = bytes(byte ^ 0xFF for byte in bits)
        return bits
