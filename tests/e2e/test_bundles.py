"""Several envelopes in one POST over real TLS: each has its own answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from keyhaul.admission import Admission, Rules
from keyhaul.edge import peer as peering
from keyhaul.edge.peer import BUNDLE_PATH, NodePort, PeerKind, render
from keyhaul.edge.posting import HttpPeers
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Policy, client_context, server_context
from keyhaul.edge.turns import Turns
from keyhaul.errors import Conflict, Malformed, PeerUnreachable, Tampered
from keyhaul.identity import node_name
from keyhaul.messages import bundle
from keyhaul.messages.bundle import Verdict, Verdicts
from keyhaul.ports import Answer
from tests.sideways import HOST, Cast, Memory, make_cast, message, peers, session, until

Judge = Callable[[bytes], Awaitable[None]]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("cast"))


class Kernel(Memory):
    """Remembers every envelope, and asks `judge` about it."""

    def __init__(self, judge: Judge | None = None) -> None:
        super().__init__()
        self.judge = judge
        self.seen: list[bytes] = []

    async def envelope(self, peer: str, body: bytes) -> None:
        self.seen.append(body)
        if self.judge is not None:
            await self.judge(body)


class Heard:
    """Which paths were asked for."""

    def __init__(self) -> None:
        self.paths: Counter[str] = Counter()
        self.port: Port | None = None

    @web.middleware
    async def note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.paths[request.path] += 1
        answer: web.StreamResponse = await handler(request)
        return answer


@contextlib.asynccontextmanager
async def vigo(
    cast: Cast, kernel: Kernel, *, turns: Turns | None = None, old: bool = False
) -> AsyncIterator[tuple[str, Heard]]:
    """The node port of vigo for derio; an `old` one has no path for bundles."""
    heard = Heard()
    application = NodePort(kernel, {"derio": PeerKind.SEALED}, {}, turns=turns).application()
    if old:
        plain = web.Application(middlewares=list(application.middlewares))
        for route in application.router.routes():
            if route.resource is not None and route.resource.canonical != BUNDLE_PATH:
                plain.router.add_route(route.method, route.resource.canonical, route.handler)
        application = plain
    application.middlewares.append(heard.note)
    heard.port = port = Port(
        "node", application, render, node_name, server_context(cast.vigo, Policy.PQ), peering.BOUNDS
    )
    await port.open([bind(HOST, 0)])
    try:
        yield f"https://{HOST}:{port.addresses[0][1]}", heard
    finally:
        await port.close()


def derio(cast: Cast, url: str, **options: Any) -> contextlib.AbstractAsyncContextManager[HttpPeers]:
    return peers({"vigo": (url, client_context(cast.derio, Policy.PQ))}, **options)


async def post_all(posting: HttpPeers, *bodies: bytes) -> list[Answer | BaseException]:
    posts = (posting.post(message("vigo", "ext_keys", body, sealed=True)) for body in bodies)
    return await asyncio.gather(*posts, return_exceptions=True)


async def judged(body: bytes) -> None:
    refusals: dict[bytes, Exception] = {
        b"malformed": Malformed("no envelope"),
        b"tampered": Tampered(),
        b"used": Conflict("the number is used"),
        b"bug": RuntimeError("a secret"),
    }
    if body in refusals:
        raise refusals[body]


def test_bad_ones_among_good_ones_are_refused_alone(cast: Cast) -> None:
    async def story() -> None:
        kernel = Kernel(judged)
        async with vigo(cast, kernel) as (url, heard), derio(cast, url) as posting:
            bodies = [b"a", b"malformed", b"b", b"tampered", b"used", b"bug", b"c"]
            answers = await post_all(posting, *bodies)
            assert [each.status for each in answers if isinstance(each, Answer)] == [
                202, 400, 202, 401, 503, 503, 202,
            ]  # fmt: skip
            refused = answers[1]
            assert isinstance(refused, Answer)
            assert "no envelope" in refused.cause
            assert "secret" not in repr(answers)
            assert sorted(kernel.seen) == sorted(bodies)
            assert heard.paths == {BUNDLE_PATH: 1}
            assert heard.port is not None
            assert heard.port.traffic.refusals == {
                "Malformed": 1, "Tampered": 1, "Conflict": 1, "Unavailable": 1,
            }  # fmt: skip

    asyncio.run(story())


def test_one_that_takes_long_keeps_no_others_answer_back(cast: Cast) -> None:
    async def story() -> None:
        go_on = asyncio.Event()

        async def judge(body: bytes) -> None:
            if body == b"slow":
                await go_on.wait()

        async with vigo(cast, Kernel(judge)) as (url, _), derio(cast, url) as posting:
            posts = [
                asyncio.create_task(posting.post(message("vigo", "ext_keys", body, sealed=True)))
                for body in (b"a", b"slow", b"b")
            ]
            assert (await posts[0]).status == (await posts[2]).status == 202
            assert not posts[1].done()
            go_on.set()
            assert (await posts[1]).status == 202

    asyncio.run(story())


def test_an_answer_that_breaks_off_leaves_open_only_what_it_did_not_say(cast: Cast) -> None:
    async def story() -> None:
        never = asyncio.Event()

        async def judge(body: bytes) -> None:
            if body == b"lost":
                await never.wait()

        kernel = Kernel(judge)
        async with vigo(cast, kernel) as (url, _), derio(cast, url, answer_seconds=1.0) as posting:
            answers = await post_all(posting, b"a", b"lost", b"b")
            assert answers[0] == answers[2] == Answer(202, "")
            assert isinstance(answers[1], PeerUnreachable)
            never.set()
            assert (await post_all(posting, b"lost"))[0] == Answer(202, "")

    asyncio.run(story())


def test_what_a_neighbour_sent_is_worked_on_though_it_hung_up(cast: Cast) -> None:
    async def story() -> None:
        go_on, done = asyncio.Event(), []

        async def judge(body: bytes) -> None:
            await go_on.wait()
            done.append(body)

        kernel = Kernel(judge)
        async with vigo(cast, kernel) as (url, _), derio(cast, url, answer_seconds=0.5) as posting:
            answers = await post_all(posting, b"a", b"b")
            assert all(isinstance(each, PeerUnreachable) for each in answers)
            await until(lambda: len(kernel.seen) >= 2)
            go_on.set()
            await until(lambda: {*done} == {b"a", b"b"})

    asyncio.run(story())


def test_a_neighbour_that_knows_no_bundles_gets_single_envelopes(cast: Cast) -> None:
    async def story() -> None:
        kernel = Kernel(judged)
        async with vigo(cast, kernel, old=True) as (url, heard), derio(cast, url) as posting:
            for _ in range(2):
                answers = await post_all(posting, b"a", b"malformed", b"b")
                assert [each.status for each in answers if isinstance(each, Answer)] == [202, 400, 202]
            assert sorted(kernel.seen) == sorted([b"a", b"malformed", b"b"] * 2)
            assert heard.port is not None
            assert heard.port.traffic.answers[404] == 1, "it is not asked again"
            await posting.hang_up("vigo")  # a neighbour elsewhere is another one
            await post_all(posting, b"a", b"b")
            assert heard.port.traffic.answers[404] == 2

    asyncio.run(story())


async def raw(caller: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, bytes]:
    async with caller.post(url + BUNDLE_PATH, data=io.BytesIO(body)) as answer:
        return answer.status, await answer.read()


def test_bundles_that_are_none_leave_nothing(cast: Cast) -> None:
    async def story() -> None:
        kernel = Kernel()
        whole = bundle.encode([b"one", b"two"])
        many = bundle.encode([b"x"] * (bundle.MOST + 1))
        async with vigo(cast, kernel) as (url, _), session(cast.derio, Policy.PQ) as caller:
            for bad in (b"", b"\0", whole[:-1], whole + b"\0\0\0", b"\xff" * 8, many):
                assert (await raw(caller, url, bad))[0] == 400
            assert (await raw(caller, url, bytes(peering.BOUNDS.body + 1)))[0] == 400
            assert kernel.seen == []
            status, said = await raw(caller, url, whole)
            assert status == 200
            assert {*Verdicts(2).feed(said)} == {Verdict(0, 202, b""), Verdict(1, 202, b"")}

    asyncio.run(story())


def test_each_envelope_counts_not_each_request(cast: Cast) -> None:
    async def story() -> None:
        kernel, now = Kernel(), 0.0
        admission = Admission(Rules(peer_messages=1.0, burst=5.0))
        turns = Turns(admission, lambda: now)
        async with vigo(cast, kernel, turns=turns) as (url, _), session(cast.derio, Policy.PQ) as caller:
            _, said = await raw(caller, url, bundle.encode([b"%d" % number for number in range(8)]))
            assert Counter(each.status for each in Verdicts(8).feed(said)) == {202: 5, 503: 3}
            assert len(kernel.seen) == 5
            assert admission.refused == {"peer_messages": 3}
            assert (await raw(caller, url, bundle.encode([b"x"])))[0] == 503

    asyncio.run(story())


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        bundle.encode_verdict(1, 202),
        bundle.encode_verdict(9, 202),
        bundle.encode_verdict(1, 202) * 2,
        bundle.encode_verdict(1, 202) + b"\0\0\0\xca\xff\xff\xff\xff",
    ],
    ids=["nothing", "one left out", "no such place", "told twice", "endless problem"],
)
def test_a_neighbour_that_lies_about_a_bundle_is_believed_for_what_it_said(cast: Cast, lie: bytes) -> None:
    async def story() -> None:
        class Liar(NodePort):
            async def _bundle(self, *_: Any) -> web.StreamResponse:
                return web.Response(body=lie)

        application = Liar(Kernel(), {"derio": PeerKind.SEALED}, {}).application()
        port = Port("node", application, render, node_name, server_context(cast.vigo, Policy.PQ))
        await port.open([bind(HOST, 0)])
        url = f"https://{HOST}:{port.addresses[0][1]}"
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(port.close)
            posting = await stack.enter_async_context(derio(cast, url))
            answers = await post_all(posting, b"a", b"b")
            assert isinstance(answers[0], PeerUnreachable)
            if lie.startswith(bundle.encode_verdict(1, 202)):
                assert answers[1] == Answer(202, "")
            else:
                assert isinstance(answers[1], PeerUnreachable)

    asyncio.run(story())
