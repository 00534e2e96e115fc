"""The SKIP port over real TLS: the draft's four calls, whose key it is, how often, and every refusal."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import jsonschema
import pytest
import yaml

from keyhaul.admission import Admission, Rules
from keyhaul.edge.client import SaeClient
from keyhaul.edge.server import Port, bind
from keyhaul.edge.skip import SkipApplication, render
from keyhaul.edge.tls import Credentials, Policy, client_context, server_context
from keyhaul.edge.turns import Turns
from keyhaul.entropy.mixer import SystemEntropy
from keyhaul.errors import StoreUnavailable, Unavailable
from keyhaul.identity import sae_id
from keyhaul.keys import Secret
from keyhaul.messages.skip import Systems
from keyhaul.policy import Limits
from tests.gateway import make_gateway
from tests.northbound import FAR, MASTER, OTHER, SLAVE, STRANGER, Cast, Kernel

pytestmark = pytest.mark.e2e
OPENAPI = yaml.safe_load((Path(__file__).parents[3] / "docs" / "openapi" / "skip.yaml").read_text())
NAMED = {"Alice": MASTER, "Bob": SLAVE}


Answer = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body and headers."""


@dataclass
class Source:
    """The node's generator; `fails` is raised instead."""

    fails: Exception | None = None
    given: list[bytes] = field(default_factory=list)

    def __call__(self, length: int) -> Secret:
        if self.fails is not None:
            raise self.fails
        secret = SystemEntropy().read(length)
        self.given.append(secret.reveal())
        return secret


@dataclass
class Provider:
    """A key provider that listens; `get` asks it as one of the cast and checks every answer."""

    url: str
    cast: Cast
    kernel: Any
    random: Source

    async def get(self, sae: str, path: str, method: str = "GET") -> Answer:
        files = self.cast.saes[sae]
        tls = client_context(Credentials(files.cert, files.key, files.ca), Policy.COMPATIBLE)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session,
            session.request(method, self.url + path) as answer,
        ):
            text = await answer.read()
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        value = json.loads(text) if text else {}
        if answer.status == 200:
            _validate(path, value)
        return answer.status, value, dict(answer.headers)


def _validate(path: str, value: object) -> None:
    first = path.split("?")[0]
    operation = OPENAPI["paths"]["/key/{keyId}" if first.startswith("/key/") else first]["get"]
    answer = operation["responses"]["200"]
    if "$ref" in answer:
        answer = OPENAPI["components"]["responses"]["Key"]
    schema = {**answer["content"]["application/json"]["schema"], "components": OPENAPI["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


@asynccontextmanager
async def provider(cast: Cast, kernel: Any = None, rules: Rules | None = None) -> AsyncIterator[Provider]:
    kernel, random = kernel or Kernel(), Source()
    systems = Systems(NAMED, [MASTER, SLAVE, OTHER, FAR])
    turns = Turns(Admission(rules or Rules()), time.monotonic)
    application = SkipApplication(kernel, systems, random, turns, Limits)
    context = server_context(cast.port, Policy.COMPATIBLE)
    port = Port("skip", application.reply, render, sae_id, context)
    await port.open([bind("127.0.0.1", 0)])
    try:
        yield Provider(f"https://127.0.0.1:{port.addresses[0][1]}", cast, kernel, random)
    finally:
        await port.close()


def test_both_encryptors_get_the_same_key_once(cast: Cast) -> None:
    async def story() -> None:
        async with provider(cast) as kp:
            status, key, _ = await kp.get(MASTER, "/key?remoteSystemID=Bob")
            assert status == 200
            assert (len(key["keyId"]), len(key["key"])) == (32, 64)  # 128 and 256 bits, as the draft has it
            UUID(hex=key["keyId"])
            again = key["keyId"].upper()  # hexadecimal, in either case
            assert await kp.get(SLAVE, f"/key/{again}?remoteSystemID=Alice") == (200, key, _any)
            status, refusal, _ = await kp.get(SLAVE, f"/key/{key['keyId']}?remoteSystemID=Alice")
            assert status == 400
            assert refusal["error"]
            (order,) = kp.kernel.orders
            assert (order.master, order.targets, order.size) == (MASTER, (SLAVE,), 256)

    asyncio.run(story())


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


_any: Any = _Any()


def test_names_are_those_of_the_configuration_or_the_sae_ids(cast: Cast) -> None:
    async def story() -> None:
        async with provider(cast) as kp:
            known = {"entropy": True, "key": True, "algorithm": "hybrid QKD and ML-KEM"}
            _, alice, _ = await kp.get(MASTER, "/capabilities")
            assert alice == {**known, "localSystemID": "Alice", "remoteSystemID": sorted([OTHER, FAR, "Bob"])}
            _, other, _ = await kp.get(OTHER, "/capabilities")
            assert other == {**known, "localSystemID": OTHER, "remoteSystemID": sorted([FAR, "Alice", "Bob"])}
            status, key, _ = await kp.get(OTHER, f"/key?remoteSystemID={SLAVE}&size=512")
            assert (status, len(key["key"])) == (200, 128)
            status, same, _ = await kp.get(SLAVE, f"/key/{key['keyId']}?remoteSystemID={OTHER}")
            assert (status, same) == (200, key)

    asyncio.run(story())


def test_a_key_of_others_is_not_there(cast: Cast) -> None:
    async def story() -> None:
        async with provider(cast) as kp:
            _, key, _ = await kp.get(MASTER, "/key?remoteSystemID=Bob")
            path = f"/key/{key['keyId']}?remoteSystemID="
            texts = []
            for sae, remote in ((STRANGER, "Alice"), (MASTER, "Alice"), (MASTER, "Bob"), (SLAVE, OTHER)):
                status, refusal, _ = await kp.get(sae, path + remote)
                assert status == 400
                texts.append(refusal["error"])
            assert all(key["keyId"] not in text for text in texts)
            assert (await kp.get(SLAVE, path + "Alice"))[0] == 200  # nobody has used it up

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/key", 400),
        ("/key?remoteSystemID=", 400),
        ("/key?remoteSystemID=Bob&remoteSystemID=Bob", 400),
        ("/key?remoteSystemID=Nobody", 400),
        ("/key?remoteSystemID=KP_*", 400),
        ("/key?remoteSystemID=Bob&size=7", 400),
        ("/key?remoteSystemID=Bob&size=0", 400),
        ("/key?remoteSystemID=Bob&size=-8", 400),
        ("/key?remoteSystemID=Bob&size=many", 400),
        ("/key?remoteSystemID=Bob&size=8888888888", 400),
        ("/key?remoteSystemID=Bob&size=65544", 400),
        (f"/key?remoteSystemID={FAR}", 503),
        ("/key/", 400),
        ("/key/xyz?remoteSystemID=Alice", 400),
        (f"/key/{'0' * 31}?remoteSystemID=Alice", 400),
        (f"/key/{'0' * 33}?remoteSystemID=Alice", 400),
        (f"/key/{'0' * 32}?remoteSystemID=Alice", 400),
        (f"/key/{'0' * 32}", 400),
        ("/key/%00%ff?remoteSystemID=Alice", 400),
        ("/key/a/b?remoteSystemID=Alice", 404),
        ("/", 404),
        ("/keys", 404),
        ("/capabilities/", 404),
        ("/api/v1/keys/x/status", 404),
        ("/entropy?minentropy=0", 400),
        ("/entropy?minentropy=x", 400),
        ("/entropy?minentropy=65537", 400),
    ],
)
def test_what_cannot_be_answered_has_the_drafts_status(cast: Cast, path: str, status: int) -> None:
    async def story() -> None:
        async with provider(cast) as kp:
            found, refusal, _ = await kp.get(MASTER, path)
            assert (found, bool(refusal["error"])) == (status, True)
            assert kp.kernel.orders == []

    asyncio.run(story())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_only_get_is_spoken(cast: Cast, method: str) -> None:
    async def story() -> None:
        async with provider(cast) as kp:
            for path in ("/capabilities", "/key?remoteSystemID=Bob", f"/key/{'0' * 32}", "/entropy"):
                status, _, headers = await kp.get(MASTER, path, method)
                assert status == 405
                assert headers["Allow"] == "GET"
            assert kp.kernel.orders == []
            assert kp.random.given == []

    asyncio.run(story())


def test_entropy_is_fresh_and_as_long_as_it_was_asked_for(cast: Cast) -> None:
    async def story() -> None:
        async with provider(cast) as kp:
            seen = set()
            for query, bits in (("", 256), ("", 256), ("?minentropy=512", 512), ("?minentropy=9", 16)):
                status, answer, _ = await kp.get(MASTER, f"/entropy{query}")
                assert (status, answer["minentropy"], len(answer["randomStr"])) == (200, bits, bits // 4)
                assert kp.random.given[-1].hex() == answer["randomStr"]
                seen.add(answer["randomStr"])
            assert len(seen) == 4
            kp.random.fails = Unavailable("the source is dry", "see to it")
            status, refusal, headers = await kp.get(MASTER, "/entropy")
            assert (status, refusal["error"]) == (503, "the source is dry")
            assert headers["Retry-After"]

    asyncio.run(story())


def test_trouble_behind_the_port_has_the_drafts_status(cast: Cast) -> None:
    async def story() -> None:
        empty = Kernel(left=100)
        async with provider(cast, empty) as kp:
            status, _, headers = await kp.get(MASTER, "/key?remoteSystemID=Bob")
            assert (status, headers["Retry-After"]) == (503, "2")

        class Broken(Kernel):
            async def fetch(self, caller: str, master: str, key_ids: Any) -> Any:
                raise StoreUnavailable("the disk is full")

        async with provider(cast, Broken()) as kp:
            assert (await kp.get(SLAVE, f"/key/{'0' * 32}?remoteSystemID=Alice"))[0] == 500

        class Wrong(Kernel):
            async def request(self, order: Any) -> Any:
                (key,) = await super().request(order)
                key.bits.wipe()
                return [key]

        async with provider(cast, Wrong()) as kp:
            assert (await kp.get(MASTER, "/key?remoteSystemID=Bob"))[0] == 503

    asyncio.run(story())


def test_callers_have_their_turns_here_as_well(cast: Cast) -> None:
    async def story() -> None:
        async with provider(cast, rules=Rules(sae_requests=0.01, burst=100.0)) as kp:
            assert (await kp.get(MASTER, "/capabilities"))[0] == 200
            assert (await kp.get(MASTER, "/entropy"))[0] == 503
            assert (await kp.get(SLAVE, "/entropy"))[0] == 200

    asyncio.run(story())


def test_bits_are_wiped_once_they_are_answered(cast: Cast) -> None:
    async def story() -> None:
        handed: list[Secret] = []

        class Watched(Kernel):
            async def request(self, order: Any) -> Any:
                keys = await super().request(order)
                handed.extend(key.bits for key in keys)
                return keys

            async def fetch(self, caller: str, master: str, key_ids: Any) -> Any:
                keys = await super().fetch(caller, master, key_ids)
                handed.extend(key.bits for key in keys)
                return keys

        async with provider(cast, Watched()) as kp:
            _, key, _ = await kp.get(MASTER, "/key?remoteSystemID=Bob")
            await kp.get(SLAVE, f"/key/{key['keyId']}?remoteSystemID=Alice")
        assert [len(bits) for bits in handed] == [0, 0]

    asyncio.run(story())


def test_keys_go_from_skip_to_014_and_back_on_a_real_node(tmp_path: Path) -> None:
    """An encryptor at one end, an application at the other: one kernel stands behind both ports."""

    async def story() -> None:
        gateway = make_gateway(tmp_path, "sae-vigo")
        gateway.configure("sae-vigo", {}, {}, skip={"systems": {"Vigo": "sae-vigo"}})
        async with gateway.running() as node, gateway.application(node) as application:
            assert isinstance(application, SaeClient)
            files = Credentials(gateway.sae.cert, gateway.sae.key, gateway.sae.ca)
            tls = client_context(files, Policy.COMPATIBLE)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:

                async def get(path: str) -> Any:
                    async with session.get(node.urls["skip"] + path) as answer:
                        return await answer.json()

                assert (await get("/capabilities"))["localSystemID"] == "Vigo"
                made = await get("/key?remoteSystemID=Vigo")
                (fetched,) = await application.fetch_key("sae-vigo", [UUID(hex=made["keyId"])])
                assert fetched.bits.reveal().hex() == made["key"]
                (asked,) = await application.get_key("sae-vigo")
                taken = await get(f"/key/{asked.key_id.hex}?remoteSystemID=Vigo")
                assert taken == {"keyId": asked.key_id.hex, "key": asked.bits.reveal().hex()}
                assert len((await get("/entropy"))["randomStr"]) == 64

    asyncio.run(story())
