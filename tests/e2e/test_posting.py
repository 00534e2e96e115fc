"""The posting client over real TLS: sealed neighbours, wrong servers, and answers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Sequence

import pytest

from keyhaul.edge.server import bind
from keyhaul.edge.tls import Credentials, Policy, client_context, server_context
from keyhaul.errors import (
    Conflict,
    InsufficientKey,
    Malformed,
    PeerUnreachable,
    Tampered,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from tests.sideways import (
    ACK,
    EXT_KEYS,
    HOST,
    SECRET,
    Cast,
    ack,
    federation_of,
    make_cast,
    message,
    node,
    peers,
    transfer,
)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("cast"))


# --- sealed neighbours, and the posting client


def test_sealed_neighbours_use_their_own_paths_under_post_quantum_tls(cast: Cast) -> None:
    async def story() -> None:
        async with (
            node(cast.vigo, policy=Policy.PQ) as here,
            peers({"vigo": (here.url, client_context(cast.derio, Policy.PQ))}) as posting,
        ):
            answer = await posting.post(
                message("vigo", "ext_keys", b"\x00envelope", sealed=True, url="https://x/")
            )
            assert (answer.status, answer.cause) == (202, "")
            large = bytes(range(256)) * 4096 * 4
            assert await posting.call("vigo", "refill", large) == large[::-1]
            here.kernel.calls.pop()
            assert await posting.call("vigo", "refill", b"abc") == b"cba"
            assert await posting.call("vigo", "records", b"xyz") == b""
            assert here.kernel.calls == [
                ("envelope", "derio", b"\x00envelope"),
                ("refill", "derio", b"abc"),
                ("records", "derio", b"xyz"),
            ]
            plain = await posting.post(message("vigo", "ext_keys", json.dumps(transfer()).encode()))
            assert plain.status == 401  # a sealed neighbour does not get round its seal
            assert here.kernel.values == {}

    asyncio.run(story())


def test_calls_raise_what_the_answer_says(cast: Cast) -> None:
    cases: list[tuple[Exception, type[Exception]]] = [
        (Malformed("not a batch"), Malformed),
        (Tampered(), Unauthorized),
        (TimedOut("slow"), TimedOut),
        (InsufficientKey("dry"), InsufficientKey),
        (Conflict("differs"), Unavailable),
    ]

    async def story() -> None:
        async with (
            node(cast.vigo, policy=Policy.PQ) as here,
            peers({"vigo": (here.url, client_context(cast.derio, Policy.PQ))}) as posting,
        ):
            for raised, expected in cases:
                here.kernel.raises = raised
                with pytest.raises(expected) as refused:
                    await posting.call("vigo", "refill", b"")
                assert type(refused.value) is expected
                assert str(raised) in str(refused.value)
            with pytest.raises(Unavailable, match="404"):
                await posting.call("vigo", "nowhere", b"")

    asyncio.run(story())


def test_connections_are_kept_and_bounded(cast: Cast) -> None:
    async def story() -> None:
        async with (
            node(cast.vigo, policy=Policy.PQ) as here,
            peers({"vigo": (here.url, client_context(cast.derio, Policy.PQ))}, connections=2) as posting,
        ):
            await asyncio.gather(*(posting.call("vigo", "refill", b"x") for _ in range(40)))
            connector = posting._sessions["vigo"].connector
            assert connector is not None
            assert 1 <= sum(len(idle) for idle in connector._conns.values()) <= 2

    asyncio.run(story())


def test_a_server_with_another_name_gets_not_a_byte(cast: Cast) -> None:
    async def story() -> None:
        async with (
            node(cast.vigo, policy=Policy.PQ) as here,
            peers({"burgos": (here.url, client_context(cast.derio, Policy.PQ))}) as posting,
        ):
            with pytest.raises(PeerUnreachable, match="vigo"):
                await posting.post(message("burgos", "ext_keys", SECRET, sealed=True))
            with pytest.raises(PeerUnreachable, match="vigo"):
                await posting.call("burgos", "refill", SECRET)
            assert here.kernel.calls == []

    asyncio.run(story())


def test_a_name_counts_only_from_the_ca_of_its_own_domain(cast: Cast) -> None:
    """Both CAs are anchors of the federation; the one of euskadi must not speak for nodes of galicia."""

    async def story() -> None:
        right, wrong = {"vigo": "galicia", "derio": "euskadi"}, {"vigo": "euskadi", "derio": "galicia"}
        context = client_context(cast.derio, Policy.PQ)
        async with (
            node(cast.vigo, policy=Policy.PQ, domains=right) as here,
            node(cast.vigo, policy=Policy.PQ, domains=wrong) as strict,
            peers({"vigo": (here.url, context)}, federation=federation_of(cast.derio, right)) as posting,
            peers({"vigo": (here.url, context)}, federation=federation_of(cast.derio, wrong)) as suspicious,
            peers({"vigo": (strict.url, context)}, federation=federation_of(cast.derio, right)) as impostor,
        ):
            assert (await posting.post(message("vigo", "ext_keys", b"x", sealed=True))).status == 202
            with pytest.raises(PeerUnreachable, match="galicia"):
                await suspicious.post(message("vigo", "ext_keys", SECRET, sealed=True))
            assert (await impostor.post(message("vigo", "ext_keys", SECRET, sealed=True))).status == 401
            assert strict.kernel.calls == []

    asyncio.run(story())


def test_servers_that_cannot_be_believed_or_reached(cast: Cast) -> None:
    async def story() -> None:
        with bind(HOST, 0) as silent:
            port = silent.getsockname()[1]
            async with node(cast.foreign) as impostor, node(cast.vigo_ecdsa) as real:
                context = client_context(cast.kme, Policy.COMPATIBLE)
                neighbours = {
                    "kme-b": (impostor.url, context),  # the right name, from another CA
                    "vigo": (real.url.replace(HOST, "127.0.0.2"), context),  # the right name, at another host
                    "silent": (f"https://{HOST}:{port}", context),
                }
                async with peers(neighbours, connect_seconds=0.3, answer_seconds=0.5) as posting:
                    for peer in ("kme-b", "vigo", "silent", "nobody"):
                        with pytest.raises(PeerUnreachable) as failed:
                            await posting.post(message(peer, "ext_keys", SECRET))
                        assert failed.value.remedy
                        assert SECRET.decode() not in str(failed.value)
                assert impostor.kernel.calls == real.kernel.calls == []

    asyncio.run(story())


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:1" + ACK,
        "http://{origin}" + ACK,
        "https://user@{origin}" + ACK,
        "https://{origin}@x.example" + ACK,
        "https://x.example" + ACK,
        "https://{origin}" + ACK + "#x",
        "https://[",
        "",
    ],
)
def test_acks_go_to_the_configured_origin_only(cast: Cast, url: str) -> None:
    async def story() -> None:
        async with (
            node(cast.vigo_ecdsa) as here,
            peers({"vigo": (here.url, client_context(cast.kme, Policy.COMPATIBLE))}) as posting,
        ):
            body = json.dumps([ack()]).encode()
            aimed = url.replace("{origin}", here.url.removeprefix("https://"))
            with pytest.raises(PeerUnreachable, match="callback"):
                await posting.post(message("vigo", "ack", body, url=aimed))
            assert (await posting.post(message("vigo", "ack", body, url=here.url + ACK))).status == 200
            assert len(here.kernel.acks) == 1

    asyncio.run(story())


# --- neighbours that misbehave


@contextlib.asynccontextmanager
async def misbehaving(
    credentials: Credentials, answers: Sequence[bytes]
) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that gives raw answers, one a request, and hangs up after each; counts its requests."""
    requests: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            header = await reader.readuntil(b"\r\n\r\n")
            length = int(header.lower().split(b"content-length:")[1].split()[0])
            await reader.readexactly(length)
            requests.append(length)
            writer.write(answers[min(len(requests), len(answers)) - 1])
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(
        serve, sock=bind(HOST, 0), ssl=server_context(credentials, Policy.COMPATIBLE)
    )
    try:
        yield f"https://{HOST}:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        await server.wait_closed()


def _answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_redirects_are_answers_and_are_not_followed(cast: Cast) -> None:
    async def story() -> None:
        async with (
            node(cast.vigo_ecdsa) as target,
            misbehaving(
                cast.vigo_ecdsa, [_answer("307 Temporary Redirect", b"", f"Location: {target.url}{EXT_KEYS}")]
            ) as (url, requests),
            peers({"vigo": (url, client_context(cast.kme, Policy.COMPATIBLE))}) as posting,
        ):
            answer = await posting.post(message("vigo", "ext_keys", json.dumps(transfer()).encode()))
            assert (answer.status, len(requests)) == (307, 1)
            assert "redirect" in answer.cause
            assert target.kernel.calls == []

    asyncio.run(story())


def test_a_connection_closed_without_an_answer_is_opened_again_once(cast: Cast) -> None:
    async def story() -> None:
        context = client_context(cast.kme, Policy.COMPATIBLE)
        async with (
            misbehaving(cast.vigo_ecdsa, [b"", _answer("202 Accepted")]) as (url, requests),
            peers({"vigo": (url, context)}) as posting,
        ):
            assert (await posting.post(message("vigo", "ext_keys", b"{}"))).status == 202
            assert len(requests) == 2
        async with (
            misbehaving(cast.vigo_ecdsa, [b""]) as (url, requests),
            peers({"vigo": (url, context)}) as posting,
        ):
            with pytest.raises(PeerUnreachable):
                await posting.post(message("vigo", "ext_keys", b"{}"))
            assert len(requests) == 2

    asyncio.run(story())


@pytest.mark.parametrize(
    "answer",
    [
        _answer("503 Service Unavailable", b"x" * 70_000),
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\nabc",
        b"220 mail.example ESMTP\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["endless", "cut", "another protocol", "bad chunks"],
)
def test_answers_that_are_none_leave_the_outcome_open(cast: Cast, answer: bytes) -> None:
    async def story() -> None:
        async with (
            misbehaving(cast.vigo_ecdsa, [answer]) as (url, _),
            peers({"vigo": (url, client_context(cast.kme, Policy.COMPATIBLE))}) as posting,
        ):
            with pytest.raises(PeerUnreachable):
                await posting.post(message("vigo", "ext_keys", b"{}"))

    asyncio.run(story())


def test_a_compressed_answer_is_not_unpacked(cast: Cast) -> None:
    async def story() -> None:
        packed = _answer("400 Bad Request", b"\x1f\x8b\x08\x00", "Content-Encoding: gzip")
        async with (
            misbehaving(cast.vigo_ecdsa, [packed]) as (url, _),
            peers({"vigo": (url, client_context(cast.kme, Policy.COMPATIBLE))}) as posting,
        ):
            assert (await posting.post(message("vigo", "ext_keys", b"{}"))).status == 400

    asyncio.run(story())
