"""A whole node whose keys need a QRNG: it fails under load, is replaced while it runs, and no key is lost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keyhaul import config
from keyhaul.config.write import toml, write
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.messages.etsi014 import PREFIX
from keyhaul.node import Node, prepare
from keyhaul.pki import Files, Pki
from tests.pump import pumped, stuck, until

pytestmark = pytest.mark.e2e
HOSTS = ("127.0.0.1", "localhost")
MASTER, SLAVE = "sae-one", "sae-two"
BUFFER = 4096  # bytes


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Scene:
    """A running node, its operator and its applications."""

    node: Node
    file: Path
    pki: Pki
    session: aiohttp.ClientSession

    def _tls(self, files: Files) -> Any:
        return client_context(Credentials(files.cert, files.key, files.ca), Policy.COMPATIBLE)

    async def keys(self, number: int = 1, size: int = 256) -> Answer:
        """enc_keys of the master."""
        url = f"{self.node.urls['sae']}{PREFIX}/{SLAVE}/enc_keys"
        return await self._send("POST", url, self.master, {"number": number, "size": size})

    async def fetch(self, key_id: str) -> Answer:
        url = f"{self.node.urls['sae']}{PREFIX}/{MASTER}/dec_keys"
        return await self._send("POST", url, self.slave, {"key_IDs": [{"key_ID": key_id}]})

    async def replace(self, table: Any) -> Answer:
        return await self._send("POST", f"{self.node.urls['admin']}/admin/v1/entropy", self.operator, table)

    async def entropy(self) -> Any:
        answer = await self._send("GET", f"{self.node.urls['admin']}/admin/v1/status", self.operator)
        return answer.body["entropy"]

    async def _send(self, method: str, url: str, tls: Any, body: Any = None) -> Answer:
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        async with self.session.request(method, url, data=content, ssl=tls) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.json())

    def __post_init__(self) -> None:
        self.master = self._tls(self.pki.sae("lab", MASTER))
        self.slave = self._tls(self.pki.sae("lab", SLAVE))
        self.operator = self._tls(self.pki.admin("lab", "operator"))


def pem(files: Files) -> dict[str, Any]:
    return {"cert": files.cert, "key": files.key, "ca": files.ca}


@contextlib.asynccontextmanager
async def scene(directory: Path, **entropy: Any) -> AsyncIterator[Scene]:
    """One node that serves both applications."""
    pki = Pki.create(directory / "pki", ["lab"])
    write(directory / "root.credential", "0123456789abcdef" * 4)
    tables = {
        "name": "vigo",
        "domain": "lab",
        "listeners": {
            "sae": pem(pki.sae_port("lab", "vigo", HOSTS)),
            "node": pem(pki.node("lab", "vigo", HOSTS)),
            "admin": pem(pki.admin_port("lab", "vigo", HOSTS)),
        },
        "store": {"slots": [{"kind": "credential", "file": "root.credential"}]},
        "network": {"nodes": {"vigo": "lab"}, "saes": {MASTER: "vigo", SLAVE: "vigo"}},
        "entropy": {"buffer": BUFFER, **entropy},
    }
    file = directory / "node.toml"
    write(file, toml(tables))
    prepare(config.load(file))
    node = Node(config.load(file))
    await node.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Scene(node, file, pki, session)
    finally:
        await node.stop()


def fifo(path: Path, name: str = "qrng") -> dict[str, Any]:
    return {"kind": "file", "name": name, "path": str(path)}


def played(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def test_the_operating_system_alone_serves_by_default(tmp_path: Path) -> None:
    async def story() -> None:
        async with scene(tmp_path) as at:
            answer = await at.keys(3)
            assert answer.status == 200
            told = await at.entropy()
            assert (told["state"], told["bytes_served"]) == ("good", 96)
            assert [source["kind"] for source in told["sources"]] == ["os"]

    played(story)


def test_a_source_that_fails_under_load_closes_the_port_until_it_is_replaced(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "first") as first, pumped(tmp_path / "second") as second:
            async with scene(tmp_path, sources=[fifo(first.path)]) as at:
                await until(lambda: at.node.entropy.status()["sources"][1]["bytes_ready"] >= BUFFER)
                given: list[Answer] = []

                async def application() -> None:
                    while (answer := await at.keys(4)).status == 200:
                        given.append(answer)
                    given.append(answer)

                load = [asyncio.create_task(application()) for _ in range(4)]
                await until(lambda: len(given) >= 8)
                assert all(answer.status == 200 for answer in given)
                first.make = stuck
                async with asyncio.timeout(60.0):
                    await asyncio.gather(*load)

                refused = [answer for answer in given if answer.status != 200]
                assert [answer.status for answer in refused] == [503] * 4
                for answer in refused:
                    assert int(answer.headers["Retry-After"]) > 0
                    assert "no entropy source can serve (qrng: " in answer.body["message"]
                    assert str(first.path) not in json.dumps(answer.body)
                await until(lambda: at.node.entropy.status()["sources"][1]["state"] == "failed")
                assert (await at.entropy())["state"] == "closed"

                swapped = await at.replace({"sources": [fifo(second.path, "spare")], "buffer": BUFFER})
                assert swapped.status == 200
                assert [source["name"] for source in swapped.body["sources"]] == ["os", "spare"]
                fresh = await at.keys(4)
                assert fresh.status == 200
                (await at.fetch(fresh.body["keys"][0]["key_ID"])).body["keys"]

    played(story)


def test_replacing_while_keys_are_requested_loses_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "a") as one, pumped(tmp_path / "b") as other:
            async with scene(tmp_path, sources=[fifo(one.path)]) as at:
                await until(lambda: at.node.entropy.status()["sources"][1]["bytes_ready"] >= BUFFER)
                given: list[Answer] = []
                done = asyncio.Event()

                async def application() -> None:
                    while not done.is_set():
                        given.append(await at.keys())

                load = [asyncio.create_task(application()) for _ in range(3)]
                for pump in (other, one, other):
                    before = len(given)
                    answer = await at.replace({"sources": [fifo(pump.path)], "buffer": BUFFER})
                    assert answer.status == 200
                    await until(lambda before=before: len(given) > before + 3)
                done.set()
                await asyncio.gather(*load)

                assert {answer.status for answer in given} == {200}
                keys = [answer.body["keys"][0] for answer in given]
                assert len({key["key_ID"] for key in keys}) == len(keys)
                assert len({key["key"] for key in keys}) == len(keys)
                for key in keys:
                    fetched = await at.fetch(key["key_ID"])
                    assert fetched.body["keys"][0]["key"] == key["key"]

    played(story)


def test_keys_are_not_what_the_source_gave(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "qrng") as pump:
            async with scene(tmp_path, sources=[fifo(pump.path)]) as at:
                await until(lambda: at.node.entropy.status()["sources"][1]["bytes_ready"] >= BUFFER)
                answer = await at.keys(8)
                for key in answer.body["keys"]:
                    assert base64.b64decode(key["key"]) not in pump.given

    played(story)


def test_degrading_serves_on_and_raises_the_alarm(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "qrng", stuck) as pump:
            async with scene(tmp_path, sources=[fifo(pump.path)], on_failure="degrade-with-alarm") as at:
                await until(lambda: at.node.entropy.status()["sources"][1]["state"] == "failed")
                assert (await at.keys()).status == 200
                told = await at.entropy()
                assert (told["state"], told["bytes_from_system_alone"]) == ("degraded", 32)
                assert "repetition count" in told["sources"][1]["last_cause"]

    played(story)


def test_a_repaired_source_is_taken_back_under_its_name(tmp_path: Path) -> None:
    async def story() -> None:
        table = {"sources": [fifo(tmp_path / "qrng")]}
        async with scene(tmp_path, **table) as at:
            with pumped(tmp_path / "qrng", stuck):
                await until(lambda: at.node.entropy.status()["sources"][1]["state"] == "failed")
            with pumped(tmp_path / "qrng"):
                assert (await at.replace(table)).status == 200
                assert (await at.keys()).status == 200

    played(story)


def test_mistakes_at_the_admin_port_change_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "dead", stuck) as dead:
            async with scene(tmp_path) as at:
                before = await at.entropy()
                for table, status, said in (
                    (b"not json", 400, "not a JSON object"),
                    (b"[" * 100_000, 400, "not a JSON object"),
                    ([], 400, "not a JSON object"),
                    ({"source": []}, 400, "did you mean 'sources'"),
                    ({"sources": [{"kind": "file"}]}, 400, "path is missing in [entropy.sources.0]"),
                    ({"sources": [{"kind": "tpm", "tcti": "cmd:true"}]}, 400, "configuration file does not"),
                    ({"sources": [{"kind": "http", "url": "https://a", "ca": "no"}]}, 400, "no CA cert"),
                    ({"sources": [fifo(dead.path)]}, 503, "qrng: failed, repetition count test"),
                    ({"sources": [fifo(tmp_path / "gone")]}, 503, "cannot be read"),
                ):
                    answer = await at.replace(table)
                    assert (answer.status, said in answer.body["message"]) == (status, True), answer
                assert await at.entropy() == before
                assert (await at.keys()).status == 200

    played(story)


def test_only_operators_may_replace(tmp_path: Path) -> None:
    async def story() -> None:
        async with scene(tmp_path) as at:
            at.operator = at.master
            with pytest.raises(aiohttp.ClientError):
                await at.replace({})

    played(story)


def test_what_stands_in_the_file_may_be_set_without_a_restart(tmp_path: Path) -> None:
    """The file is read again at the call: write the new device into it, then send it."""

    async def story() -> None:
        table = {"sources": [{"kind": "tpm", "tcti": f"swtpm:path={tmp_path}/none"}]}
        async with scene(tmp_path) as at:
            assert (await at.replace(table)).status == 400
            lines = [f'[[entropy.sources]]\nkind = "tpm"\ntcti = "{table["sources"][0]["tcti"]}"\n']
            at.file.write_text(at.file.read_text() + "\n".join(lines))
            answer = await at.replace(table)
            assert answer.status == 503, "let through, and there is no such TPM"
            assert "tpm: " in answer.body["message"]

    played(story)


def test_secrets_of_the_status_are_none(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "qrng") as pump:
            async with scene(tmp_path, sources=[fifo(pump.path)]) as at:
                await until(lambda: at.node.entropy.status()["sources"][1]["bytes_ready"] >= BUFFER)
                source = (await at.entropy())["sources"][1]
                assert {name for name, value in source.items() if isinstance(value, str)} == {
                    "name",
                    "kind",
                    "state",
                    "last_cause",
                }
                assert os.fspath(pump.path) not in json.dumps(source)

    played(story)
