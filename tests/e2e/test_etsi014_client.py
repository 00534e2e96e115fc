"""The 014 client against devices that misbehave: every answer becomes the error that fits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from aiohttp import web

from keyhaul.edge.tls import Credentials, Policy, client_context, server_context
from keyhaul.errors import (
    ConfigError,
    InsufficientKey,
    KeyNotFound,
    Malformed,
    PeerUnreachable,
    Refused,
    Unauthorized,
    Unavailable,
)
from keyhaul.links.etsi014 import Device
from keyhaul.pki import Files, Pki

pytestmark = pytest.mark.e2e

HERE, THERE = "node/1 #?%", "node 2"


@dataclass(frozen=True)
class Cast:
    """A device's certificate and that of its SAE."""

    rogue: Files
    here: Files

    def tls(self) -> ssl.SSLContext:
        return client_context(Credentials(self.here.cert, self.here.key, self.here.ca), Policy.CLASSIC)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    pki = Pki.create(tmp_path_factory.mktemp("rogue"), ["island"])
    return Cast(pki.device("island", "rogue", ["127.0.0.1"]), pki.device_client("island", HERE))


@contextlib.asynccontextmanager
async def rogue(
    cast: Cast, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[str]:
    """A device that answers everything with `handler`."""
    files = cast.rogue
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        tls = server_context(Credentials(files.cert, files.key, files.ca), Policy.CLASSIC)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


LIMITS = {"max_key_per_request": 8, "key_size": 256, "min_key_size": 8, "max_key_size": 4096}
KEY = base64.b64encode(bytes(32)).decode()
TWO_ALIKE = {"keys": [{"key_ID": "a", "key": KEY}, {"key_ID": "A", "key": KEY}]}

ANSWERS: list[tuple[str, int, bytes, type[Exception]]] = [
    ("not JSON", 200, b"<html>", Malformed),
    ("no keys", 200, b"{}", Malformed),
    ("keys of the wrong type", 200, b'{"keys": {}}', Malformed),
    ("not base64", 200, b'{"keys": [{"key_ID": "a", "key": "*"}, {"key_ID": "b", "key": "*"}]}', Malformed),
    ("not UTF-8", 200, b'{"keys": [{"key_ID": "\xff", "key": "a"}]}', Malformed),
    ("nested without end", 200, b'{"x": ' + b"[" * 100_000, Malformed),
    ("a refusal nested without end", 401, b'{"x": ' + b"[" * 100_000, Unauthorized),
    ("too few", 200, b'{"keys": []}', Malformed),
    ("one id twice", 200, json.dumps(TWO_ALIKE).encode(), Malformed),
    ("too long", 200, b" " * ((4 << 20) + 1), Malformed),
    ("moved", 302, b"", Malformed),
    ("401 without body", 401, b"", Unauthorized),
    ("403", 403, b'{"message": "no"}', Unauthorized),
    ("404", 404, b"", Refused),
    ("429", 429, b"", InsufficientKey),
    ("500", 500, b"oops", Unavailable),
    ("503", 503, b"{}", InsufficientKey),
    ("400 when empty", 400, b'{"message": "Not enough keys available"}', InsufficientKey),
    ("400 for another reason", 400, b'{"message": "bad \\u001b[31m day"}', Refused),
]


@pytest.mark.parametrize(
    ("status", "body", "error"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS]
)
def test_what_a_device_answers_becomes_the_right_error(
    cast: Cast, status: int, body: bytes, error: type[Exception]
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Retry-After": "7"})

    async def scene() -> None:
        async with rogue(cast, handler) as url:
            device = Device(url, cast.tls(), peer_sae=THERE, limits=LIMITS)
            with pytest.raises(error) as caught:
                await device.enc_keys(2, 256)
            await device.close()
            assert KEY not in str(caught.value)
            assert str(caught.value).isprintable()
            if error is InsufficientKey:
                assert caught.value.retry_after == 7  # type: ignore[attr-defined]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"", KeyNotFound),
        (400, b'{"message": "Key has expired"}', KeyNotFound),
        (400, b'{"message": "whatever"}', Refused),
        (503, b"{}", Unavailable),
        (200, json.dumps({"keys": [{"key_ID": "b", "key": KEY}]}).encode(), Malformed),
    ],
)
def test_what_a_device_answers_to_dec_keys(
    cast: Cast, status: int, body: bytes, error: type[Exception]
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async def scene() -> None:
        async with rogue(cast, handler) as url:
            device = Device(url, cast.tls(), peer_sae=THERE, limits=LIMITS)
            with pytest.raises(error):
                await device.dec_keys(["a"])
            await device.close()

    asyncio.run(scene())


def test_an_empty_device_is_asked_again_a_bounded_number_of_times(cast: Cast) -> None:
    seen = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        if seen == 2:
            return web.json_response({"Keys": [{"key_ID": "a", "key": KEY, "key_extension": {}}]})
        return web.json_response({"message": "not enough key"}, status=503)

    async def scene() -> None:
        nonlocal seen
        async with rogue(cast, handler) as url:
            device = Device(url, cast.tls(), peer_sae=THERE, limits=LIMITS)
            assert [key.key_id for key in await device.enc_keys(1, 256)] == ["a"]
            seen = 2
            with pytest.raises(InsufficientKey):
                await device.enc_keys(1, 256)
            assert seen == 5
            await device.close()

    asyncio.run(scene())


def test_broken_connections_are_retried_and_silence_is_not(cast: Cast) -> None:
    seen = 0

    async def slams(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def sleeps(_: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        await asyncio.sleep(3600)
        return web.Response()

    async def scene() -> None:
        nonlocal seen
        for handler, tries, patience in ((slams, 3, 60.0), (sleeps, 1, 2.0)):
            seen = 0
            async with rogue(cast, handler) as url:
                device = Device(url, cast.tls(), peer_sae=THERE, limits=LIMITS, timeout=patience)
                with pytest.raises(PeerUnreachable):
                    await device.enc_keys(1, 256)
                assert seen == tries
                await device.close()

    asyncio.run(scene())


def test_nobody_listening_is_peer_unreachable(cast: Cast) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    async def scene() -> None:
        async with rogue(cast, handler) as url:
            pass
        device = Device(url, cast.tls(), peer_sae=THERE)
        with pytest.raises(PeerUnreachable):
            await device.status()
        await device.close()

    asyncio.run(scene())


def test_a_status_of_strings_and_gaps_is_understood(cast: Cast) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(
            {"key_size": "256", "stored_key_count": 3, "max_key_per_request": 0, "extra": []}
        )

    async def scene() -> None:
        async with rogue(cast, handler) as url:
            device = Device(url, cast.tls(), peer_sae=THERE, limits={"max_key_size": 512}, method="get")
            limits = await device.limits()
            assert (limits.max_key_per_request, limits.min_key_size, limits.max_key_size) == (1, 256, 512)
            assert limits.method == "get"
            await device.close()

    asyncio.run(scene())


@pytest.mark.parametrize("limits", [{"colour": 1}, {"key_size": 0}])
def test_impossible_limits_are_a_configuration_error(cast: Cast, limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Device("https://127.0.0.1:1", cast.tls(), peer_sae=THERE, limits=limits)
