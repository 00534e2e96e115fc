"""A small 020 KME that can be wrong in one way at a time; nothing of keyhaul is in it.

Without a defect it does what ETSI GS QKD 020 V1.1.1 says, between two neighbours and one SAE of its own,
which it serves over 014 on the same port.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web

PROBLEMS = "https://qkd.etsi.org/gs020-interop-kms/"
EXT_KEYS, ACK, VOID = "/kmapi/v1/ext_keys", "/kmapi/v1/ext_keys/ack", "/kmapi/v1/ext_keys/void"
SAE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,64}")
STATUSES = ("relayed", "failed", "voided", "failed to void", "key not present")
NOT_FOUND = "one or more keys specified are not found on KME"
PATIENCE = 1.5  # seconds for an acknowledgement
RETRY = 0.05  # seconds


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, slug: str, detail: str = "", message: str = "") -> None:
        super().__init__(slug)
        self.status = status
        name = detail or slug.replace("-", "_")
        self.body = {"type": PROBLEMS + slug, "status": status, "title": slug, "details": {name: slug}}
        if message:
            self.body = {"message": message}


@dataclass
class Neighbour:
    """Another KME: its address, and the SAE behind it."""

    url: str
    sae: str


@dataclass
class Held:
    """A key, or what is left of one."""

    value: bytes
    source: str
    initiator: str
    targets: list[str]
    callback: str
    state: str = "accepted"
    onward: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class WrongKme:
    """`peers` maps the URI in a certificate to a neighbour, `application` is the URI and id of its SAE."""

    peers: Mapping[str, Neighbour]
    application: tuple[str, str]
    client: ssl.SSLContext
    defect: str = ""
    url: str = ""
    keys: dict[str, Held] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def web(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.serve)
        return application

    async def serve(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        certificate = request.transport.get_extra_info("ssl_object").getpeercert() or {}
        uri = next((value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"), "")
        try:
            value = await self.answer(uri, request.path, request.rel_url.raw_path, await request.read())
        except Refused as refused:
            status = refused.body.get("status", refused.status)
            if self.defect == "draft errors" and "type" in refused.body:
                refused.body = {"message": refused.body["title"]}
            if self.defect == "503 for 400" and status == 400 and "type" in refused.body:
                return web.json_response({**refused.body, "status": 503}, status=503)
            return web.json_response(refused.body, status=refused.status)
        if isinstance(value, int):
            body = b"{}" if self.defect == "202 with a body" and value == 202 else b""
            return web.Response(status=value, body=body)
        return web.json_response(value)

    async def answer(self, uri: str, path: str, raw_path: str, body: bytes) -> Any:
        if raw_path.startswith("/api/v1/keys/") and uri == self.application[0]:
            return await self.keys_of_sae(unquote(raw_path.split("/")[4]), path, body)
        if uri not in self.peers and self.defect != "anybody":
            raise Refused(401, "unauthorized")
        match path:
            case "/kmapi/versions":
                return {"versions": ["v2"] if self.defect == "no v1" else ["v1"]}
            case "/kmapi/v1/ext_keys":
                return await self.ext_keys(uri, body)
            case "/kmapi/v1/ext_keys/ack":
                return self.ack(uri, body)
            case "/kmapi/v1/ext_keys/void":
                return await self.void(uri, body)
        raise Refused(404, "not-found")

    # --- what neighbours call

    async def ext_keys(self, uri: str, body: bytes) -> int:
        value = _object(body, "invalid-parameter")
        try:
            self._check(value, uri)
            keys = self._keys(value)
        except Refused:
            if self.defect == "keeps what it refuses" and isinstance(value.get("keys"), list):
                self._keep(uri, value["keys"], value)
            raise
        if value.get("extension_mandatory") and self.defect != "mandatory ignored":
            status = 400 if self.defect == "mandatory 400" else 503
            raise Refused(status, "unsupported-mandatory-extension")
        if value.get("extension_optional") and self.defect == "optional refused":
            raise Refused(503, "unsupported-mandatory-extension")
        fresh = self._keep(uri, value["keys"], value)
        again = [key_id for key_id in keys if key_id not in fresh]
        for key_id in again:
            held = self.keys[key_id]
            if held.state == "voided":
                self._tell(held, [key_id], "voided")
            elif held.value != keys[key_id] and self.defect != "overwrites":
                if self.defect == "conflict 400":
                    raise Refused(400, "invalid-parameter")
                raise Refused(503, "server-side-general-error")
            elif self.defect == "retry 503":
                raise Refused(503, "server-side-general-error")
            else:
                held.value, held.callback = keys[key_id], value["ack_callback_url"]
                self._tell(held, [key_id], "relayed")
        work = self._deliver(fresh, value, body)
        if self.defect == "works before 202":
            await work
        else:
            self._later(work)
        return 200 if self.defect == "200 for 202" else 202

    def _check(self, value: dict[str, Any], uri: str) -> None:
        for name in ("keys", "initiator_sae_id", "target_sae_ids"):
            if name not in value:
                raise Refused(400, "missing-parameters")
        if "ack_callback_url" not in value:
            if self.defect == "no callback needed":
                return
            raise Refused(400, "missing-parameters")
        saes = [value["initiator_sae_id"], *_list(value["target_sae_ids"])]
        loose = self.defect == "any SAE id"
        if len(saes) < 2 or not (
            loose or all(isinstance(each, str) and SAE.fullmatch(each) for each in saes)
        ):
            raise Refused(400, "invalid-parameter")
        for name in ("extension_optional", "extension_mandatory"):
            members = value.get(name, {"E1_x": 1})
            if not isinstance(members, dict) or not all(re.match(r"E\d+_", each) for each in members):
                raise Refused(400, "invalid-parameter")
        url = value["ack_callback_url"]
        expected = self.peers[uri].url + ACK if uri in self.peers else ""
        if not str(url).startswith("https://") or (url != expected and self.defect != "any callback"):
            raise Refused(400, "invalid-parameter")
        for target in saes[1:]:
            self._check_target(target, uri)

    def _check_target(self, target: str, uri: str) -> None:
        if target == self.application[1] or (self.defect == "any SAE id" and " " in target):
            return
        there = next((each for each, peer in self.peers.items() if peer.sae == target), "")
        if not there:
            raise Refused(404 if self.defect == "unknown target 404" else 400, "key-routing-error")
        if there == uri and self.defect != "passes back":
            raise Refused(400, "key-routing-error", "invalid_routing")

    def _keys(self, value: dict[str, Any]) -> dict[str, bytes]:
        keys = {}
        for item in _list(value["keys"]):
            try:
                key_id = str(uuid.UUID(item["key_id"]))
                keys[key_id] = base64.b64decode(item["value"], validate=self.defect != "sloppy base64")
            except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
                raise Refused(400, "invalid-parameter") from None
        if not keys:
            raise Refused(400, "invalid-parameter")
        return keys

    def _keep(self, uri: str, items: list[dict[str, Any]], value: dict[str, Any]) -> list[str]:
        fresh = []
        for item in items:
            key_id = str(item.get("key_id"))
            if key_id not in self.keys:
                try:
                    bits = base64.b64decode(item.get("value", ""))
                except ValueError:
                    bits = b""
                targets = value.get("target_sae_ids") or []
                callback = value.get("ack_callback_url", "")
                initiator = value.get("initiator_sae_id", "")
                self.keys[key_id] = Held(bits, uri, initiator, targets, callback)
                fresh.append(key_id)
        return fresh

    async def _deliver(self, ids: list[str], value: dict[str, Any], body: bytes) -> None:
        target = value["target_sae_ids"][0]
        there = next((each for each, peer in self.peers.items() if peer.sae == target), "")
        held = [self.keys[key_id] for key_id in ids]
        if not held:
            return
        if self.defect == "other bits":
            for each in held:
                each.value = os.urandom(len(each.value))
        if not there or there == self.keys[ids[0]].source:
            for each in held:
                each.state = "relayed"
            await self._post_ack(held[0], ids, "relayed")
            return
        for each in held:
            each.onward = there
        if self.defect == "relayed too early":
            await self._post_ack(held[0], ids, "relayed")
        status = await self._send(there, ids, _extension_of(body))
        if status == 400:
            await self._post_ack(held[0], ids, "relayed" if self.defect == "failure hidden" else "failed")

    def ack(self, uri: str, body: bytes) -> int:
        blame = "ack-not-understood"
        try:
            value = json.loads(body)
        except ValueError:
            raise Refused(400, blame) from None
        if isinstance(value, dict) and self.defect == "takes single acks":
            value = [value]
        if not isinstance(value, list):
            raise Refused(400, blame)
        for item in value:
            if item.get("ack_status") not in STATUSES and self.defect != "any ack status":
                raise Refused(400, blame)
            for each in item["key_id_container"]:
                held = self.keys.get(each["key_id"])
                if held is None and self.defect != "acks for anything":
                    raise Refused(400, "key-not-present")
                if held is not None:
                    self._settle(each["key_id"], held, item["ack_status"])
        return 200

    def _settle(self, key_id: str, held: Held, status: str) -> None:
        failed_is_fine = self.defect == "failed is fine" and status == "failed"
        if held.state != "voided":
            held.state = "relayed" if failed_is_fine else status
        held.settled.set()
        if held.source and self.defect != "relayed too early":
            self._tell(held, [key_id], status)

    async def void(self, uri: str, body: bytes) -> int:
        blame = "void-request-not-understood"
        value = _object(body, blame)
        ids = value.get("key_ids")
        try:
            ids = [str(uuid.UUID(each)) for each in _list(ids)]
            saes = [value["initiator_sae_id"], *_list(value["target_sae_ids"])]
            assert all(isinstance(each, str) for each in saes)
        except (KeyError, ValueError, AttributeError, TypeError, AssertionError, Refused):
            raise Refused(400, blame) from None
        if not ids:
            if value.get("all_confirmation") is not True and self.defect != "unconfirmed void":
                raise Refused(400, "no-key-ids-or-confirmation")
            pair = (saes[0], saes[1:])
            ids = [i for i, held in self.keys.items() if (held.initiator, held.targets) == pair]
            ids = [i for i in ids if self.keys[i].state in ("relayed", "accepted")]
            ids = ids[:1] if self.defect == "voids one of all" else ids
        self._later(self._void(uri, ids, value))
        return 202

    async def _void(self, uri: str, ids: list[str], value: dict[str, Any]) -> None:
        for key_id in ids:
            held = self.keys.get(key_id)
            if held is None:
                held = Held(b"", uri, value["initiator_sae_id"], value["target_sae_ids"], "", "voided")
                if self.defect != "no tombstone":
                    self.keys[key_id] = held
                status = "voided" if self.defect == "unknown is voided" else "key not present"
            elif held.state == "taken":
                status = "voided" if self.defect == "voids delivered keys" else "failed to void"
            else:
                status = "voided"
                held.state = held.state if self.defect == "void ignored" else "voided"
                if held.onward and self.defect != "void stays here":
                    await self._post(held.onward, VOID, self._void_body(key_id, held))
                    continue  # the next KME's acknowledgement is passed on
            held.callback = value.get("ack_callback_url", "")
            await self._post_ack(held, [key_id], status)

    # --- what it sends

    def _void_body(self, key_id: str, held: Held) -> dict[str, Any]:
        saes = {"initiator_sae_id": held.initiator, "target_sae_ids": held.targets}
        return {"key_ids": [key_id], **saes, "ack_callback_url": self.url + ACK}

    async def _send(self, there: str, ids: list[str], optional: str = "") -> int:
        """Until it is accepted, or refused for good."""
        held = self.keys[ids[0]]
        keys = [{"key_id": i, "value": base64.b64encode(self.keys[i].value).decode()} for i in ids]
        url = "http://kme" if self.defect == "callback without TLS" else self.url
        saes = {"initiator_sae_id": held.initiator, "target_sae_ids": held.targets}
        text = json.dumps({"keys": keys, **saes, "ack_callback_url": url + ACK})
        if optional and self.defect != "optional dropped":
            optional = '{"E32473_probe":1}' if self.defect == "optional changed" else optional
            text = f'{text[:-1]}, "extension_optional": {optional}}}'
        for _ in range(1 if self.defect == "never repeats" else 20):
            status = await self._post(there, EXT_KEYS, text)
            if status in (202, 400):
                return status
            if self.defect == "repeats with other bits":
                text = re.sub(r'"value": "[^"]*"', f'"value": "{base64.b64encode(bytes(32)).decode()}"', text)
            await asyncio.sleep(RETRY)
        return 0

    async def _post(self, there: str, path: str, value: Any) -> int:
        content = value if isinstance(value, str) else json.dumps(value)
        return await self._call(self.peers[there].url + path, content)

    async def _call(self, url: str, content: str) -> int:
        connector = aiohttp.TCPConnector(ssl=self.client, force_close=True)
        kind = {"Content-Type": "application/json"}
        try:
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.post(url, data=content.encode(), headers=kind) as response,
            ):
                return response.status
        except aiohttp.ClientError:
            return 0

    async def _post_ack(self, held: Held, ids: list[str], status: str) -> None:
        container = {
            "key_id_container": [{"key_id": key_id} for key_id in ids],
            "ack_status": "delivered" if self.defect == "own ack status" and status == "relayed" else status,
            "initiator_sae_id": held.initiator,
            "target_sae_ids": held.targets,
        }
        if self.defect == "draft acks":
            container["key_ids"] = container.pop("key_id_container")
        content = json.dumps(container if self.defect == "single acks" else [container])
        if not held.callback or self.defect == "no acks":
            return
        for _ in range(1 if self.defect == "acks once" else 20):
            if await self._call(held.callback, content) == 200:
                return
            await asyncio.sleep(RETRY)

    def _tell(self, held: Held, ids: list[str], status: str) -> None:
        self._later(self._post_ack(held, ids, status))

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- 014, for its own SAE

    async def keys_of_sae(self, other: str, path: str, body: bytes) -> Any:
        if path.endswith("/dec_keys"):
            return self._dec_keys(other, [each["key_ID"] for each in json.loads(body)["key_IDs"]])
        there = next(each for each, peer in self.peers.items() if peer.sae == other)
        key_id, value = str(uuid.uuid4()), os.urandom(32)
        held = self.keys[key_id] = Held(value, "", self.application[1], [other], "", onward=there)
        status = await self._send(there, [key_id])
        if status == 202 and self.defect != "releases at once":
            try:
                await asyncio.wait_for(held.settled.wait(), PATIENCE)
            except TimeoutError:
                status = 0
        if status != 202 or held.state not in ("relayed", "accepted"):
            if held.state == "accepted" and status != 400 and self.defect not in _FORGETFUL:
                await self._post(there, VOID, self._void_body(key_id, held))
            if self.defect != "refusal hidden":
                raise Refused(503, "failed", message="the keys did not arrive")
        return {"keys": [{"key_ID": key_id, "key": base64.b64encode(value).decode()}]}

    def _dec_keys(self, master: str, ids: list[str]) -> Any:
        found = [self.keys.get(key_id) for key_id in ids]
        if any(held is None or held.state != "relayed" or held.initiator != master for held in found):
            raise Refused(400, "", message=NOT_FOUND)
        ready = [(key_id, held) for key_id, held in zip(ids, found, strict=True) if held is not None]
        for _, held in ready:
            held.state = "taken"
        return {"keys": [{"key_ID": i, "key": base64.b64encode(held.value).decode()} for i, held in ready]}


_FORGETFUL = ("never repeats", "no void for silence")


def _object(body: bytes, blame: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise Refused(400, blame) from None
    if not isinstance(value, dict):
        raise Refused(400, blame)
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(400, "invalid-parameter")
    return value


def _extension_of(body: bytes) -> str:
    """The optional extension as it was written; it comes last in the probes' bodies."""
    text = body.decode()
    _, found, rest = text.partition('"extension_optional": ')
    return rest[: rest.rindex("}")] if found else ""


@asynccontextmanager
async def serving(kme: WrongKme, cert: str, key: str, ca: str) -> AsyncIterator[str]:
    """Its address, while it listens."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old = kme.defect == "TLS 1.2"
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if old else ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL if kme.defect == "anybody" else ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(cert, key)
    runner = web.AppRunner(kme.web(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    kme.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield kme.url
    finally:
        for task in list(kme.tasks):
            task.cancel()
        await asyncio.gather(*kme.tasks, return_exceptions=True)
        await runner.cleanup()
