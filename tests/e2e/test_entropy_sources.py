"""Entropy from the real thing: an HTTPS QRNG with its own CA, a TPM in software, and a SoftHSM token."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from keyhaul.config import parse_entropy
from keyhaul.edge.server import bind
from keyhaul.edge.tls import Credentials, Policy, server_context
from keyhaul.entropy import HttpSource, MixedEntropy, Source, configured
from keyhaul.entropy.hardware import TPM_ONCE
from keyhaul.errors import KeyhaulError, Malformed, PeerUnreachable, SealError, Unavailable
from keyhaul.pki import Files, Pki
from tests.e2e.test_pkcs11 import MODULE, PIN
from tests.e2e.test_tpm import SoftwareTpm
from tests.pump import until

pytestmark = pytest.mark.e2e
HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("pki"), ["lab", "elsewhere"])


@pytest.fixture(scope="module")
def server(pki: Pki) -> Files:
    return pki.device("lab", "qrng", HOSTS)


def made(**source: Any) -> Source:
    """One source, as a configuration names it."""
    (built,) = configured.sources(parse_entropy({"sources": [source]}, Path("node.toml")))
    return built


# --- HTTP ----------------------------------------------------------------------------------------


@dataclass
class Qrng:
    """An appliance: answers as `answer` says, and remembers what it was asked."""

    url: str = ""
    asked: list[web.Request] = field(default_factory=list)
    answer: Callable[[int], Any] = lambda length: {"success": True, "data": os.urandom(length).hex()}
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    async def get(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        body = self.answer(int(request.query.get("length", "1024")))
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=self.status, body=body, headers=self.headers)


@contextlib.asynccontextmanager
async def appliance(files: Files, mutual: bool = False) -> AsyncIterator[Qrng]:
    if mutual:
        tls = server_context(Credentials(files.cert, files.key, files.ca), Policy.COMPATIBLE)
    else:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(files.cert, files.key)
    qrng = Qrng()
    application = web.Application()
    application.router.add_get("/api", qrng.get)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    listener = bind("127.0.0.1", 0)
    await web.SockSite(runner, listener, ssl_context=tls).start()
    qrng.url = f"https://localhost:{listener.getsockname()[1]}/api"
    try:
        yield qrng
    finally:
        await runner.cleanup()


def with_qrng(files: Files, story: Callable[[Qrng], Awaitable[None]], *, mutual: bool = False) -> None:
    async def run() -> None:
        async with appliance(files, mutual) as qrng:
            await story(qrng)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def opened(qrng: Qrng, files: Files, **settings: Any) -> AsyncIterator[Source]:
    source = made(kind="http", **{"url": qrng.url, "ca": str(files.ca), **settings})
    try:
        yield source
    finally:
        await source.close()


async def refusal(qrng: Qrng, files: Files, **settings: Any) -> KeyhaulError:
    async with opened(qrng, files, **settings) as source:
        with pytest.raises(KeyhaulError) as caught:
            await source.read(1024)
    return caught.value


@pytest.mark.parametrize(
    ("encoding", "json_path", "wrap"),
    [
        ("hex", "data", lambda raw: {"data": raw.hex()}),
        ("hex", "data", lambda raw: {"data": [raw[:8].hex(), raw[8:].hex()]}),
        ("base64", "result.0.bits", lambda raw: {"result": [{"bits": base64.b64encode(raw).decode()}]}),
        ("uint8", "$", list),
        ("uint8", "$.data", lambda raw: {"data": list(raw)}),
        ("raw", "data", bytes),
    ],
)
def test_every_encoding_gives_the_same_bytes(
    server: Files, encoding: str, json_path: str, wrap: Callable[[bytes], Any]
) -> None:
    raw = os.urandom(200)

    async def story(qrng: Qrng) -> None:
        qrng.answer = lambda length: wrap(raw[:length])
        url = qrng.url + "?length={bytes}"
        async with opened(qrng, server, url=url, encoding=encoding, json_path=json_path) as source:
            assert await source.read(200) == raw
            assert await source.read(50) == raw[:50]

    with_qrng(server, story)


def test_an_http_qrng_feeds_the_node(server: Files, tmp_path: Path) -> None:
    (tmp_path / "api.key").write_text("sesame")

    async def story(qrng: Qrng) -> None:
        entropy = MixedEntropy()
        url = qrng.url + "?length={bytes}"
        key = {"api_key_file": str(tmp_path / "api.key"), "api_key_header": "x-token"}
        entropy.start(
            [made(kind="http", url=url, ca=str(server.ca), per_request=512, **key)], "fail-closed", 4096
        )
        await until(lambda: entropy.status()["sources"][1]["bytes_ready"] >= 4096)
        assert len(entropy.read(1024)) == 1024
        assert entropy.status()["state"] == "good"
        await entropy.close()
        assert {request.headers["x-token"] for request in qrng.asked} == {"sesame"}
        assert all(0 < int(request.query["length"]) <= 512 for request in qrng.asked)

    with_qrng(server, story)


def test_a_client_certificate_is_shown_where_one_is_asked_for(pki: Pki, server: Files) -> None:
    mine = pki.device_client("lab", "vigo")
    foreign = pki.device_client("elsewhere", "vigo")

    async def story(qrng: Qrng) -> None:
        async with opened(qrng, server, cert=str(mine.cert), key=str(mine.key)) as source:
            assert len(await source.read(100)) > 0
        asked = len(qrng.asked)
        for files in ({"cert": str(foreign.cert), "key": str(foreign.key)}, {}):
            assert isinstance(await refusal(qrng, server, **files), PeerUnreachable)
        assert len(qrng.asked) == asked

    with_qrng(server, story, mutual=True)


def test_a_wrong_ca_or_host_is_refused(pki: Pki, server: Files) -> None:
    foreign = pki.device("elsewhere", "qrng", HOSTS)
    named = pki.device("lab", "other", ("qrng.example",))

    async def story(qrng: Qrng) -> None:
        assert isinstance(await refusal(qrng, foreign), PeerUnreachable)
        assert qrng.asked == []

    async def other_host(qrng: Qrng) -> None:
        assert isinstance(await refusal(qrng, server), PeerUnreachable)
        assert qrng.asked == []

    with_qrng(server, story)
    with_qrng(named, other_host)


@pytest.mark.parametrize(
    ("body", "settings"),
    [
        (b"", {}),
        (b"not json", {}),
        (b"[" * 100_000, {}),
        ({"data": ""}, {}),
        ({"data": "xyz"}, {}),
        ({"data": 7}, {}),
        ({"data": None}, {}),
        ({"other": "00"}, {}),
        ({"data": [1, 2, 256]}, {"encoding": "uint8"}),
        ({"data": [1, True]}, {"encoding": "uint8"}),
        ({"data": "0102"}, {"encoding": "uint8"}),
        ({"data": "****"}, {"encoding": "base64"}),
        ({"data": ["00"]}, {"json_path": "data.7"}),
        ({"data": ["00"]}, {"json_path": "data.x"}),
        (bytes(1024 * 1024 + 1), {"encoding": "raw"}),
    ],
)
def test_an_answer_that_is_not_what_was_configured_is_malformed(
    server: Files, body: Any, settings: dict[str, Any]
) -> None:
    async def story(qrng: Qrng) -> None:
        qrng.answer = lambda length: body
        assert isinstance(await refusal(qrng, server, **settings), Malformed)

    with_qrng(server, story)


@pytest.mark.parametrize("status", [204, 302, 401, 404, 429, 500])
def test_other_answers_than_200_are_told_without_the_key_in_the_url(server: Files, status: int) -> None:
    async def story(qrng: Qrng) -> None:
        qrng.status = status
        qrng.headers = {"Retry-After": "7", "Location": qrng.url}
        error = await refusal(qrng, server, url=qrng.url + "?key=sesame")
        assert isinstance(error, Unavailable)
        assert f"answered {status}" in error.cause
        assert "sesame" not in str(error)
        assert error.details["pause"] == 7
        assert len(qrng.asked) == 1, "redirects are not followed"

    with_qrng(server, story)


def test_an_appliance_that_is_not_there_says_so(server: Files) -> None:
    with (
        socket.socket() as reserved
    ):  # bound and not listening: nobody answers, and nobody else gets the port
        reserved.bind(("127.0.0.1", 0))
        qrng = Qrng(url=f"https://localhost:{reserved.getsockname()[1]}/api")
        assert isinstance(asyncio.run(refusal(qrng, server)), PeerUnreachable)


def test_an_appliance_that_says_nothing_is_given_up(server: Files) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def story() -> None:
            url = f"https://localhost:{silent.getsockname()[1]}/api"
            source = HttpSource("silent", url, ssl.create_default_context(cafile=server.ca), 7.0, timeout=0.2)
            with pytest.raises(PeerUnreachable, match="TimeoutError"):
                await source.read(1)
            await source.close()

        asyncio.run(story())


def test_a_cache_in_front_of_the_appliance_is_noticed(server: Files) -> None:
    frozen = {"data": os.urandom(600).hex()}

    async def story(qrng: Qrng) -> None:
        qrng.answer = lambda length: frozen
        entropy = MixedEntropy()
        entropy.start([made(kind="http", url=qrng.url, ca=str(server.ca))], "fail-closed", 4096)
        await until(lambda: entropy.status()["sources"][1]["state"] == "failed")
        assert "same block" in entropy.status()["sources"][1]["last_cause"]
        await entropy.close()

    with_qrng(server, story)


# --- TPM -----------------------------------------------------------------------------------------

needs_tpm = [
    pytest.mark.tpm,
    pytest.mark.skipif(
        shutil.which("swtpm") is None, reason="no swtpm here: run scripts/install-debian-packages.sh tpm"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("tpm2_pytss") is None,
        reason="tpm2-pytss is not installed: scripts/install-debian-packages.sh tpm says how",
    ),
]


def marked(marks: list[pytest.MarkDecorator]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def apply(test: Callable[..., None]) -> Callable[..., None]:
        for mark in marks:
            test = mark(test)
        return test

    return apply


@pytest.fixture
def chip(tmp_path: Path) -> Iterator[SoftwareTpm]:
    tpm = SoftwareTpm(tmp_path / "tpm")
    tpm.start()
    yield tpm
    tpm.stop()


@marked(needs_tpm)
def test_a_tpm_feeds_the_node_fails_and_comes_back_by_replacement(chip: SoftwareTpm) -> None:
    async def story() -> None:
        entropy = MixedEntropy()
        entropy.start([made(kind="tpm", tcti=chip.tcti)], "fail-closed", 1024)
        await until(lambda: entropy.status()["sources"][1]["bytes_ready"] >= 1024)
        chip.stop()
        entropy.read(1024)
        await until(lambda: entropy.status()["sources"][1]["state"] == "unreachable")
        assert "cannot be reached" in entropy.status()["sources"][1]["last_cause"]
        with pytest.raises(Unavailable, match="tpm: unreachable"):
            entropy.read(32)
        chip.start()  # it may listen on another port now
        await entropy.replace([made(kind="tpm", tcti=chip.tcti)], "fail-closed", 1024)
        assert len(entropy.read(32)) == 32
        await entropy.close()

    asyncio.run(story())


@marked(needs_tpm)
def test_one_read_of_a_tpm_is_bounded_and_never_the_same(chip: SoftwareTpm) -> None:
    async def story() -> None:
        source = made(kind="tpm", tcti=chip.tcti)
        first, second = await source.read(100_000), await source.read(50)
        assert (len(first), len(second)) == (TPM_ONCE, 50)
        assert len({first[at : at + 32] for at in range(0, TPM_ONCE, 32)}) == TPM_ONCE // 32

    asyncio.run(story())


# --- PKCS#11 -------------------------------------------------------------------------------------

needs_token = [
    pytest.mark.pkcs11,
    pytest.mark.skipif(
        MODULE is None or shutil.which("softhsm2-util") is None,
        reason="no SoftHSM 2 here: run scripts/install-debian-packages.sh pkcs11",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("pkcs11") is None,
        reason="python-pkcs11 is not installed: scripts/install-debian-packages.sh pkcs11 says how",
    ),
]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The token `random`. SoftHSM reads its configuration once, when the module is first used."""
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory / 'tokens'}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(directory / "softhsm2.conf"))
        command = ["softhsm2-util", "--init-token", "--free", "--label", "random"]
        subprocess.run([*command, "--so-pin", "9911", "--pin", PIN], check=True, capture_output=True)
        yield
        importlib.import_module("pkcs11").unload(str(MODULE))


@marked(needs_token)
def test_a_module_that_many_threads_need_first_is_loaded_once(token: None, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(PIN)
    pin_file = str(tmp_path / "pin")
    importlib.import_module("pkcs11").unload(str(MODULE))

    async def story() -> None:
        sources = [
            made(kind="pkcs11", module=str(MODULE), token="random", **extra)
            for extra in ({}, {"pin_file": pin_file}) * 3
        ]
        assert [len(chunk) for chunk in await asyncio.gather(*(each.read(500) for each in sources))] == [
            500
        ] * 6

    asyncio.run(story())


@marked(needs_token)
def test_a_token_feeds_the_node_with_and_without_login(token: None, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(PIN + "\n")

    async def story() -> None:
        plain = made(kind="pkcs11", name="plain", module=str(MODULE), token="random")
        logged_in = made(
            kind="pkcs11", name="in", module=str(MODULE), token="random", pin_file=str(tmp_path / "pin")
        )
        entropy = MixedEntropy()
        entropy.start([plain, logged_in], "fail-closed", 4096)
        await until(lambda: all(each["state"] == "good" for each in entropy.status()["sources"]))
        assert len(entropy.read(2048)) == 2048
        await entropy.close()

    asyncio.run(story())


@marked(needs_token)
def test_a_missing_token_is_named(token: None) -> None:
    with pytest.raises(SealError, match="token gone is not there"):
        asyncio.run(made(kind="pkcs11", module=str(MODULE), token="gone").read(1))


@marked(needs_token)
def test_a_wrong_pin_is_tried_once_so_that_the_token_does_not_lock(token: None, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("000111")

    async def story() -> None:
        wrong = made(kind="pkcs11", module=str(MODULE), token="random", pin_file=str(tmp_path / "pin"))
        entropy = MixedEntropy()
        entropy.start([wrong], "fail-closed", 4096)
        await until(lambda: entropy.status()["sources"][1]["state"] == "failed")
        told = entropy.status()["sources"][1]
        assert (told["failures"], told["last_cause"]) == (1, "PKCS#11 token random: wrong PIN")
        await entropy.close()

    asyncio.run(story())
