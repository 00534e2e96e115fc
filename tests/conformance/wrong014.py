"""A small 014 KME that can be wrong in one way at a time; nothing of keyhaul is in it.

Without a defect it does what ETSI GS QKD 014 V1.1.1 says, for SAEs that all sit at this one KME.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

PREFIX = "/api/v1/keys/"
NOT_FOUND = "one or more keys specified are not found on KME"
LIMITS = {
    "key_size": 256, "stored_key_count": 100, "max_key_count": 1000, "max_key_per_request": 4,
    "max_key_size": 1024, "min_key_size": 64, "max_SAE_ID_count": 2,
}  # fmt: skip


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Held:
    """A key that waits for those who were named."""

    master: str
    named: list[str]
    waiting: list[str]
    bits: bytes


@dataclass
class WrongKme:
    """`saes` maps the URI in a certificate to an SAE id; `defect` is what it does wrong."""

    saes: Mapping[str, str]
    defect: str = ""
    keys: dict[str, Held] = field(default_factory=dict)
    dry: int = 0

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.serve)
        return application

    async def serve(self, request: web.Request) -> web.Response:
        try:
            value = self.answer(request, self._caller(request), await request.read())
            status = 200
        except Refused as refused:
            status, value = refused.status, {"message": str(refused)}
            if self.defect == "plain text errors":
                return web.Response(status=status, text=str(refused))
            if self.defect == "details object":
                value["details"] = {"why": "because"}
        kind = "text/html" if self.defect == "html" else "application/json"
        return web.Response(status=status, body=json.dumps(value).encode(), content_type=kind)

    def _caller(self, request: web.Request) -> str:
        assert request.transport is not None
        certificate = request.transport.get_extra_info("ssl_object").getpeercert() or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        return self.saes.get(uris[0], "nobody") if uris else "nobody"

    def answer(self, request: web.Request, caller: str, body: bytes) -> Any:
        path = request.rel_url.raw_path
        parts = path.removeprefix(PREFIX).split("/")
        if self.defect == "slash is a separator":
            parts = unquote(path).removeprefix(PREFIX).split("/")
        if not path.startswith(PREFIX) or len(parts) != 2:
            raise Refused(404, "no such path")
        sae = unquote(parts[0])
        sae = unquote(sae) if self.defect == "decodes twice" else sae
        served = {"status": ("GET",), "enc_keys": ("GET", "POST"), "dec_keys": ("GET", "POST")}
        allowed = (*served.get(parts[1], ()), *(("PUT",) if self.defect == "PUT works" else ()))
        if request.method not in allowed:
            raise Refused(405, "no such method")
        if request.method == "PUT":
            return {}
        if parts[1] == "status":
            return self.status(caller, sae)
        query = [pair.split("=") for pair in request.rel_url.raw_query_string.split("&") if pair]
        if parts[1] == "enc_keys":
            return self.enc_keys(caller, sae, request.method, query, body)
        return self.dec_keys(caller, sae, request.method, query, body)

    # --- the three calls

    def status(self, caller: str, slave: str) -> dict[str, Any]:
        self._known(slave)
        names = {"source_KME_ID": "a", "target_KME_ID": "a", "master_SAE_ID": caller, "slave_SAE_ID": slave}
        if self.defect == "status names swapped":
            names |= {"master_SAE_ID": slave, "slave_SAE_ID": caller}
        value: dict[str, Any] = {**names, **LIMITS}
        if self.defect == "numbers as texts":
            value["stored_key_count"] = "100"
        if self.defect == "more than fits":
            value["stored_key_count"] = 1001
        if self.defect == "a member missing":
            del value["source_KME_ID"]
        return value

    def enc_keys(self, caller: str, slave: str, method: str, query: list[list[str]], body: bytes) -> Any:
        if self.dry:
            self.dry -= 1
            raise Refused(503, "no keys just now")
        given = [] if self.defect == "GET ignores the query" else query
        asked = {name: self._number(value) for name, value in given}
        if method == "POST":
            asked = self._object(body)
        number, size = asked.get("number", 1), asked.get("size", LIMITS["key_size"])
        additional = asked.get("additional_slave_SAE_IDs", [])
        mandatory, optional = asked.get("extension_mandatory", []), asked.get("extension_optional", [])
        wrong_status = 422 if self.defect == "422" else 400
        typed = [(number, int), (size, int), (additional, list), (mandatory, list), (optional, list)]
        if self.defect != "extensions of any type" and not all(isinstance(v, t) for v, t in typed):
            raise Refused(wrong_status, "a member has a wrong type")
        if not all(isinstance(v, t) for v, t in typed[:3]):
            raise Refused(wrong_status, "a member has a wrong type")
        self._check(number, size, mandatory, optional, [slave, *additional])
        if self.defect == "default size 128" and "size" not in asked:
            size = 128
        return {"keys": [self._mint(caller, [slave, *additional], size) for _ in range(number)]}

    def dec_keys(self, caller: str, master: str, method: str, query: list[list[str]], body: bytes) -> Any:
        if method == "GET":
            ids = [value for name, value in query if name == "key_ID"]
            if len(ids) != 1 and (self.defect != "GET with two ids" or not ids):
                raise Refused(400, "give one key_ID")
        else:
            ids = [self._id(item) for item in self._list(self._object(body).get("key_IDs"))]
        found = {key_id: self.keys[key_id] for key_id in ids if key_id in self.keys}
        if self.defect != "any master":
            found = {key_id: held for key_id, held in found.items() if held.master == master}
        if self.defect != "gives to anyone" and any(caller not in held.named for held in found.values()):
            if self.defect == "loses what it refuses":
                self.keys = {}
            raise Refused(403 if self.defect == "403" else 401, "not named")
        free = self.defect in ("delivers twice", "gives to anyone")
        ready = {i: held for i, held in found.items() if free or caller in held.waiting}
        if len(ready) < len(ids) and not (self.defect == "partial" and ready):
            if self.defect == "takes though it refuses":
                self._take(caller, ready)
            status = 404 if self.defect == "404" else 400
            raise Refused(status, "Key not found" if self.defect == "own wording" else NOT_FOUND)
        self._take(caller, ready)
        return {"keys": [self._shown(key_id, held.bits) for key_id, held in ready.items()]}

    # --- what they share

    def _known(self, sae: str) -> None:
        if sae not in self.saes.values():
            raise Refused(404 if self.defect == "unknown slave 404" else 400, "unknown SAE")

    def _check(self, number: int, size: int, mandatory: Any, optional: Any, slaves: list[str]) -> None:
        if size % 8:
            text = "odd size" if self.defect == "odd size in own words" else "size shall be a multiple of 8"
            raise Refused(400, text)
        bounded = self.defect != "no bounds" or number <= 0 or size <= 0
        if bounded and not (64 <= size <= 1024 and 1 <= number <= 4):
            raise Refused(400, "out of bounds")
        if mandatory and self.defect != "mandatory ignored":
            status = 503 if self.defect == "mandatory 503" else 400
            raise Refused(status, "not all extension_mandatory parameters are supported")
        if optional and self.defect == "optional refused":
            raise Refused(400, "no")
        if len(slaves) > 3 and self.defect != "any number of slaves":
            raise Refused(400, "too many")
        for slave in slaves if self.defect != "any number of slaves" else slaves[:1]:
            self._known(slave)

    def _mint(self, master: str, named: list[str], size: int) -> dict[str, str]:
        key_id, bits = str(uuid.uuid4()), os.urandom(size // 8)
        self.keys[key_id] = Held(master, named, list(named), bits)
        if self.defect == "other bits at the slave":
            self.keys[key_id].bits = os.urandom(size // 8)
        if self.defect == "ids are no UUIDs":
            return {**self._shown(key_id, bits), "key_ID": key_id[:-1]}
        return self._shown(key_id, bits)

    def _shown(self, key_id: str, bits: bytes) -> dict[str, str]:
        text = base64.b64encode(bits).decode()
        return {"key_ID": key_id, "key": text.rstrip("=") if self.defect == "no padding" else text}

    def _take(self, caller: str, ready: dict[str, Held]) -> None:
        for held in ready.values():
            if self.defect == "first slave takes all":
                held.waiting = []
            elif caller in held.waiting and self.defect not in ("delivers twice", "gives to anyone"):
                held.waiting.remove(caller)

    def _number(self, text: str) -> Any:
        if not text.isdecimal():
            raise Refused(400, "not a number")
        return int(text)

    def _object(self, body: bytes) -> dict[str, Any]:
        status = 422 if self.defect == "422" else 400
        try:
            value = json.loads(body)
        except ValueError:
            raise Refused(status, "not JSON") from None
        if not isinstance(value, dict):
            raise Refused(status, "no object")
        return value

    def _list(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Refused(422 if self.defect == "422" else 400, "no key_IDs")
        return value

    def _id(self, item: Any) -> str:
        key_id = item.get("key_ID") if isinstance(item, dict) else None
        if not isinstance(key_id, str):
            raise Refused(422 if self.defect == "422" else 400, "no key_ID")
        return key_id


@asynccontextmanager
async def serving(kme: WrongKme, cert: str, key: str, ca: str) -> AsyncIterator[str]:
    """Its address, while it listens."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL if kme.defect == "no certificate asked" else ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(cert, key)
    runner = web.AppRunner(kme.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
