"""The SAE port over real TLS: every mistake is told its cause and next step, and costs nothing."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from uuid import UUID, uuid4

import pytest

from keyhaul.keys import Secret
from keyhaul.messages import etsi014
from keyhaul.messages.etsi014 import Delivered, Order
from keyhaul.policy import Limits
from tests.northbound import (
    FAR,
    MASTER,
    OTHER,
    SLAVE,
    Cast,
    Kernel,
    bits,
    stage,
)

ID = "3f1c0a52-8f0e-4b39-9a39-1d9b8a6c1a01"
NINE = [f"sae-{n}" for n in range(9)]
BLIND = {"keyhaul_scheme": "blind"}
ENC, DEC = f"{SLAVE}/enc_keys", f"{MASTER}/dec_keys"
TWICE = {"key_IDs": [{"key_ID": ID}, {"key_ID": ID.upper()}]}
MANY = {"key_IDs": [{"key_ID": str(UUID(int=n))} for n in range(129)]}
BAD: list[tuple[str, str, str, object, int, str]] = [
    ("not JSON", "POST", ENC, b"{", 400, "truncated"),
    ("not an object", "POST", ENC, [], 400, "`object`"),
    ("not UTF-8", "POST", ENC, b'{"additional_slave_SAE_IDs":["\xff"]}', 400, "UTF-8"),
    ("a lone surrogate", "POST", ENC, b'{"additional_slave_SAE_IDs":["\\ud800 alone"]}', 400, "surrogate"),
    ("NaN", "POST", ENC, b'{"number":NaN}', 400, "malformed"),
    ("something behind it", "POST", ENC, b"{} {}", 400, "trailing"),
    ("very deep", "POST", ENC, b'{"x":' + b"[" * 20_000, 400, "nested"),
    ("one member twice", "POST", ENC, b'{"number":1,"number":2}', 400, "twice"),
    ("text for a number", "POST", ENC, {"number": "1"}, 400, "$.number"),
    ("a fraction", "POST", ENC, {"number": 1.5}, 400, "$.number"),
    ("a boolean", "POST", ENC, {"size": True}, 400, "$.size"),
    ("null", "POST", ENC, {"size": None}, 400, "$.size"),
    ("huge", "POST", ENC, b'{"number":' + b"9" * 5000 + b"}", 400, "$.number"),
    ("infinite", "POST", ENC, b'{"number":1e999}', 400, "$.number"),
    ("large", "POST", ENC, {"number": 10**30}, 400, "number"),
    ("no keys", "POST", ENC, {"number": 0}, 400, "number is out of bounds"),
    ("fewer than none", "POST", ENC, {"number": -1}, 400, "number is out of bounds"),
    ("too many", "POST", ENC, {"number": 129}, 400, "number is out of bounds"),
    ("no octets", "POST", ENC, {"size": 255}, 400, etsi014.SIZE_NOT_OCTETS),
    ("no octets, too small", "POST", ENC, {"size": 7}, 400, etsi014.SIZE_NOT_OCTETS),
    ("no bits", "POST", ENC, {"size": 0}, 400, "size is out of bounds"),
    ("negative", "POST", ENC, {"size": -8}, 400, "size is out of bounds"),
    ("too long", "POST", ENC, {"size": 65_544}, 400, "size is out of bounds"),
    ("slaves no list", "POST", ENC, {"additional_slave_SAE_IDs": OTHER}, 400, "additional_slave_SAE_IDs"),
    ("a slave no text", "POST", ENC, {"additional_slave_SAE_IDs": [1]}, 400, "additional_slave_SAE_IDs"),
    ("an empty slave", "POST", ENC, {"additional_slave_SAE_IDs": [""]}, 400, "empty"),
    ("a slave twice", "POST", ENC, {"additional_slave_SAE_IDs": [OTHER, OTHER]}, 400, "named twice"),
    ("the slave again", "POST", ENC, {"additional_slave_SAE_IDs": [SLAVE]}, 400, "named twice"),
    ("the master again", "POST", ENC, {"additional_slave_SAE_IDs": [MASTER]}, 400, "master"),
    (
        "nine slaves",
        "POST",
        ENC,
        {"additional_slave_SAE_IDs": [f"sae-{n}" for n in range(9)]},
        400,
        "at most 8",
    ),
    ("an unknown slave", "POST", ENC, {"additional_slave_SAE_IDs": ["nobody"]}, 400, "no node serves nobody"),
    ("an unknown slave in the path", "GET", "nobody/enc_keys", None, 400, "no node serves nobody"),
    ("status of nobody", "GET", "nobody/status", None, 400, "no node serves nobody"),
    ("an empty id", "GET", "/status", None, 400, "empty"),
    ("an endless id", "GET", f"{'x' * 65}/status", None, 400, "longer than 64"),
    ("a control character", "GET", "a%0Ab/status", None, 400, "control"),
    ("half an escape", "GET", "a%4/status", None, 400, "%25"),
    ("an id not in UTF-8", "GET", "a%FF/status", None, 400, "UTF-8"),
    ("extensions no list", "POST", ENC, {"extension_mandatory": {"a_b": 1}}, 400, "extension_mandatory"),
    ("an extension no object", "POST", ENC, {"extension_optional": ["a_b"]}, 400, "extension_optional"),
    ("unknown", "POST", ENC, {"extension_mandatory": [{"acme_x": 1}]}, 400, etsi014.MANDATORY_UNSUPPORTED),
    (
        "unmet",
        "POST",
        ENC,
        {"extension_mandatory": [BLIND]},
        400,
        etsi014.MANDATORY_UNMET,
    ),
    ("trust no flag", "POST", ENC, {"extension_optional": [{"keyhaul_trust": 1}]}, 400, "keyhaul_trust"),
    ("scheme no word", "POST", ENC, {"extension_mandatory": [{"keyhaul_scheme": []}]}, 400, "keyhaul_scheme"),
    (
        "labels no list",
        "POST",
        ENC,
        {"extension_optional": [{"keyhaul_labels": 1}]},
        400,
        "keyhaul_labels",
    ),
    (
        "an extension twice",
        "POST",
        ENC,
        {"extension_optional": [{"a_b": 1}, {"a_b": 2}]},
        400,
        "more than once",
    ),
    ("a word in the query", "GET", f"{ENC}?number=one", None, 400, "number"),
    ("a sign in the query", "GET", f"{ENC}?number=%2B1", None, 400, "number"),
    ("foreign digits", "GET", f"{ENC}?number=%D9%A1", None, 400, "number"),
    ("number twice", "GET", f"{ENC}?number=1&number=1", None, 400, "more than once"),
    ("an extension in the query", "GET", f"{ENC}?extension_mandatory=a_b", None, 400, "POST"),
    ("no octets in the query", "GET", f"{ENC}?size=9", None, 400, etsi014.SIZE_NOT_OCTETS),
    ("no key id", "GET", DEC, None, 400, "key_ID is missing"),
    ("two key ids", "GET", f"{DEC}?key_ID={ID}&key_ID={ID}", None, 400, "more than once"),
    ("no UUID in the query", "GET", f"{DEC}?key_ID=abc", None, 400, "not a UUID"),
    ("an unknown id", "GET", f"{DEC}?key_ID={ID}", None, 400, etsi014.KEYS_NOT_FOUND),
    ("nothing asked", "POST", DEC, b"", 400, "key IDs"),
    ("no ids", "POST", DEC, {}, 400, "key_IDs"),
    ("an empty list", "POST", DEC, {"key_IDs": []}, 400, "key_IDs is empty"),
    ("bare ids", "POST", DEC, {"key_IDs": [ID]}, 400, "key_IDs"),
    ("no UUID", "POST", DEC, {"key_IDs": [{"key_ID": "abc"}]}, 400, "key_ID"),
    (
        "one id twice",
        "POST",
        DEC,
        TWICE,
        400,
        "more than once",
    ),
    (
        "129 ids",
        "POST",
        DEC,
        MANY,
        400,
        "at most 128",
    ),
    ("POST status", "POST", f"{SLAVE}/status", {}, 405, "method"),
    ("DELETE", "DELETE", ENC, None, 405, "method"),
    ("no such call", "GET", f"{SLAVE}/all_keys", None, 404, "path"),
    ("no call", "GET", SLAVE, None, 404, "path"),
    ("a call too far", "GET", f"{SLAVE}/status/", None, 404, "path"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"), [c[1:] for c in BAD], ids=[c[0] for c in BAD]
)
def test_a_mistake_is_told_and_costs_nothing(
    cast: Cast, logs: list[Any], method: str, path: str, body: object, status: int, said: str
) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            before = port.kernel.left
            answer = await port.call(MASTER, method, path, body)
            assert answer.status == status
            assert said in answer.body.decode()
            assert answer.json["message"].strip()
            assert any("next_step" in entry for entry in answer.json["details"])
            assert (port.kernel.left, port.kernel.held) == (before, {})
            line = [entry for entry in logs if entry["event"] == "request refused"]
            assert [(entry["sae"], entry["status"]) for entry in line] == [(MASTER, status)]
            assert line[0]["cause"]

    asyncio.run(story())


FIXED = {
    etsi014.SIZE_NOT_OCTETS,
    etsi014.MANDATORY_UNSUPPORTED,
    etsi014.MANDATORY_UNMET,
    etsi014.KEYS_NOT_FOUND,
}


def test_the_fixed_wordings_are_whole_messages(cast: Cast) -> None:
    async def story() -> set[str]:
        async with stage(cast) as port:
            fixed = [case for case in BAD if case[5] in FIXED]
            answers = [await port.call(MASTER, *case[1:4]) for case in fixed]
            return {answer.json["message"] for answer in answers}

    assert asyncio.run(story()) == FIXED


def test_unknown_mandatory_extensions_are_named(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            asked = [{"acme_route": "direct", "keyhaul_trust": True}, {"zeta_x": 1}]
            answer = await port.post(MASTER, ENC, {"extension_mandatory": asked})
            told = answer.json["details"][0]["extension_mandatory_unsupported"]
            assert ("acme_route" in told, "zeta_x" in told, "keyhaul_trust" in told) == (True, True, False)

    asyncio.run(story())


def test_lacking_key_is_503_with_numbers_and_a_time_to_come_back(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast, kernel=Kernel(left=1000)) as port:
            answer = await port.get(MASTER, f"{ENC}?number=4")
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
            assert answer.json["details"][0] == {"key_bits_requested": 1024, "key_bits_available": 1000}
            assert (await port.get(MASTER, f"{ENC}?number=3")).status == 200

    asyncio.run(story())


def test_no_route_is_503_with_the_reason(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            answer = await port.get(MASTER, f"{FAR}/enc_keys")
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")
            assert "no path of links" in answer.json["message"]

    asyncio.run(story())


def test_self_association_is_a_policy(cast: Cast) -> None:
    async def story(limits: Limits) -> int:
        async with stage(cast, limits) as port:
            return (await port.get(MASTER, f"{MASTER}/enc_keys")).status

    assert asyncio.run(story(Limits())) == 200
    assert asyncio.run(story(Limits(allow_self=False))) == 400


def test_the_content_type_is_not_looked_at(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            for kind in (
                "text/plain",
                "application/x-www-form-urlencoded",
                "application/json; charset=utf-8",
            ):
                assert (await port.post(MASTER, ENC, {"number": 2}, Content_Type=kind)).status == 200

    asyncio.run(story())


class Broken(Kernel):
    """A kernel with a bug."""

    async def request(self, order: Order) -> list[Delivered]:
        hidden = os.urandom(4).hex()
        raise RuntimeError(f"value {hidden} leaked")

    async def fetch(self, *_: object) -> list[Delivered]:
        return [Delivered(uuid4(), Secret(b"x"))]


class Cut(Kernel):
    """A kernel whose own connection to somebody broke: the caller's has not."""

    async def request(self, order: Order) -> list[Delivered]:
        raise ConnectionResetError("value leaked")


class Careless(Kernel):
    """A kernel that hands out less than was ordered."""

    async def request(self, order: Order) -> list[Delivered]:
        return [Delivered(uuid4(), Secret(b""))]


@pytest.mark.parametrize(
    ("kernel", "path"), [(Broken(), ENC), (Broken(), f"{DEC}?key_ID={ID}"), (Cut(), ENC), (Careless(), ENC)]
)
def test_a_bug_is_503_logged_without_values(cast: Cast, logs: list[Any], kernel: Kernel, path: str) -> None:
    async def story() -> None:
        async with stage(cast, kernel=kernel) as port:
            answer = await port.get(MASTER, path)
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
            failed = next(entry for entry in logs if entry["event"] == "request failed")
            assert failed["frames"][-1].endswith((" request", " _fetch", " _container"))
            assert "leaked" not in repr(logs) + answer.body.decode()
            assert (await port.get(MASTER, f"{SLAVE}/status")).status == 200

    asyncio.run(story())


def test_keys_are_wiped_once_the_answer_is_made(cast: Cast) -> None:
    handed: list[Delivered] = []

    class Watched(Kernel):
        async def request(self, order: Order) -> list[Delivered]:
            handed.extend(await super().request(order))
            return handed

    async def story() -> None:
        async with stage(cast, kernel=Watched()) as port:
            assert len(bits(await port.get(MASTER, f"{ENC}?number=5"))) == 5

    asyncio.run(story())
    assert [len(key.bits) for key in handed] == [0] * 5
