"""The node port: ETSI GS QKD 020 V1.1.1 for KMEs of other makers, and our own paths for sealed neighbours.

Who calls is what the certificate says, never a header or a body, and each neighbour may use one of the two
families of paths. 400 and 401 promise the caller that nothing was kept (020, state rules): what can be
refused is refused before the kernel sees it, and the kernel raises such errors only while nothing is
stored. `render` turns every error into a problem document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from enum import StrEnum
from typing import Protocol

from aiohttp import web

from keyhaul import story
from keyhaul.edge.accepting import Bounds
from keyhaul.edge.connection import connection_of, read_body
from keyhaul.edge.neighbours import neighbour_of
from keyhaul.edge.server import Handler
from keyhaul.edge.turns import Turns
from keyhaul.errors import KeyhaulError, Malformed, Refused, Unauthorized
from keyhaul.identity import Federation
from keyhaul.messages import bundle, etsi020
from keyhaul.messages.etsi020 import Ack, ExtKeys, Void
from keyhaul.messages.problems import plain_problem, problem

BOUNDS = Bounds(body=8 * 1024 * 1024, grace=3.0)  # these close after the applications' ports
ENVELOPE_PATH = "/keyhaul/v1/envelope"
BUNDLE_PATH = "/keyhaul/v1/envelopes"
REFILL_PATH = "/keyhaul/v1/refill"
RECORDS_PATH = "/keyhaul/v1/records"

TOGETHER = 0.02  # seconds in which envelopes of a bundle are answered in one piece

_JSON = {"Content-Type": "application/json; charset=UTF-8"}


class PeerKind(StrEnum):
    """Which family of paths a neighbour may use."""

    PLAIN = "plain"
    """A KME of another maker in the same site, over 020."""
    SEALED = "sealed"
    """A node of ours, over envelopes."""


class Receiving(Protocol):
    """What the node does with what neighbours send. Returning is the promise that the answer makes.

    Errors of keyhaul.errors become answers; those of status 400 and 401 say that nothing was kept.
    """

    async def accept(self, peer: str, transfer: ExtKeys) -> None:
        """Keys to deliver; durable when this returns (202)."""

    async def acknowledge(self, peer: str, acks: Sequence[Ack]) -> None:
        """Outcomes of transfers and voids we sent (200)."""

    async def void(self, peer: str, request: Void) -> None:
        """Keys to discard; durable when this returns (202)."""

    async def envelope(self, peer: str, body: bytes) -> None:
        """A sealed message; durable when this returns (202)."""

    async def refill(self, peer: str, body: bytes) -> bytes:
        """Link control between neighbours: a request and its answer (200)."""

    async def records(self, peer: str, body: bytes) -> bytes:
        """Signed descriptors, or which ones the neighbour holds, and the answer (202)."""


_Act = Callable[[str, bytes, web.Request], Awaitable[web.StreamResponse]]


class NodePort:
    """Handlers of the node port, to be served by a `Port` with `render`, `node_name` and BOUNDS.

    `peers` says what each configured neighbour is; `callbacks` the one URL to which each plain peer may
    ask for acknowledgements; `drafts` which plain peers speak a draft of 020. The mappings are looked at
    on every request.
    """

    def __init__(
        self,
        kernel: Receiving,
        peers: Mapping[str, PeerKind],
        callbacks: Mapping[str, str],
        *,
        drafts: Set[str] = frozenset(),
        federation: Federation | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._kernel = kernel
        self._peers = peers
        self._callbacks = callbacks
        self._drafts = drafts
        self._federation = federation
        self._turns = turns

    def application(self) -> web.Application:
        """The routes, ready for a listener that demands client certificates."""
        application = web.Application(middlewares=[self._known], client_max_size=BOUNDS.body)
        plain, sealed = PeerKind.PLAIN, PeerKind.SEALED
        add = application.router.add_post
        add(etsi020.PATHS["ext_keys"], self._serve(plain, self._ext_keys))
        add(etsi020.PATHS["ack"], self._serve(plain, self._ack, "ack_not_understood"))
        add(etsi020.PATHS["void"], self._serve(plain, self._void, "key_voiding_error"))
        add(ENVELOPE_PATH, self._serve(sealed, self._envelope))
        add(BUNDLE_PATH, self._serve(sealed, self._bundle))
        add(REFILL_PATH, self._serve(sealed, self._refill))
        add(RECORDS_PATH, self._serve(sealed, self._records))
        versions = self._serve(plain, self._versions)
        application.router.add_get(etsi020.VERSIONS_PATH, versions, allow_head=False)
        return application

    # --- one method a path

    async def _versions(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        return web.Response(body=etsi020.encode_versions(), headers=_JSON)

    async def _ext_keys(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        transfer = etsi020.decode_ext_keys(body, liberal=peer in self._drafts)
        self._check_callback(peer, transfer.ack_callback_url)
        await self._kernel.accept(peer, transfer)
        return web.Response(status=202)

    async def _ack(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        await self._kernel.acknowledge(peer, etsi020.decode_acks(body, liberal=peer in self._drafts))
        return web.Response(status=200)

    async def _void(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        draft = peer in self._drafts
        confirmed = draft and request.query.get("all_confirmation") == "true"
        void = etsi020.decode_void(body, confirmed=confirmed, liberal=draft)
        self._check_callback(peer, void.ack_callback_url)
        await self._kernel.void(peer, void)
        return web.Response(status=202)

    async def _envelope(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        await self._kernel.envelope(peer, body)
        return web.Response(status=202)

    async def _bundle(self, peer: str, body: bytes, request: web.Request) -> web.StreamResponse:
        """Each envelope as if it had come alone; one that takes long keeps no other's answer back."""
        envelopes = bundle.decode(body)
        ones = [self._one(peer, place, each, request) for place, each in enumerate(envelopes)]
        tasks = [asyncio.create_task(one, name="an envelope of several") for one in ones]
        try:
            done, pending = await asyncio.wait(tasks, timeout=TOGETHER)
            if not pending:
                return web.Response(body=_told(tasks), content_type="application/octet-stream")
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            await response.prepare(request)
            await response.write(_told(done))
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                await response.write(_told(done))
            await response.write_eof()
            return response
        except ConnectionError:
            await asyncio.wait(tasks)  # the neighbour hung up; what it sent is worked on all the same
            raise
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise

    async def _one(self, peer: str, place: int, envelope: bytes, request: web.Request) -> bytes:
        """The verdict on one envelope of a bundle, with a story of its own."""
        story.begin()
        port = connection_of(request).port
        try:
            if place and self._turns is not None:  # the first was counted with its request
                self._turns.message(peer)
            await self._kernel.envelope(peer, envelope)
        except Exception as bug:  # noqa: BLE001  the root of its story: the others are not touched
            refused = port.refuse(request, port.refusals.shown(bug))
            assert isinstance(refused.body, bytes)
            return bundle.encode_verdict(place, refused.status, refused.body)
        return bundle.encode_verdict(place, 202)

    async def _refill(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        answer = await self._kernel.refill(peer, body)
        return web.Response(body=answer, content_type="application/octet-stream")

    async def _records(self, peer: str, body: bytes, request: web.Request) -> web.Response:
        answer = await self._kernel.records(peer, body)
        return web.Response(status=202, body=answer, content_type="application/octet-stream")

    # --- what all paths share

    def _serve(self, kind: PeerKind, act: _Act, blame: str = "invalid_parameter") -> Handler:
        """A handler for neighbours of one kind; `blame` names the problem where a refusal itself does not."""

        async def handle(request: web.Request) -> web.StreamResponse:
            peer = self._entitled(request, kind)
            if self._turns is not None:
                self._turns.message(peer)
            try:
                return await act(peer, await read_body(request), request)
            except Refused as error:
                error.details.setdefault(blame, error.cause)
                raise

        return handle

    def _entitled(self, request: web.Request, kind: PeerKind | None = None) -> str:
        peer = neighbour_of(request.transport, self._federation)
        found = self._peers.get(peer)
        if found is None:
            raise Unauthorized(f"{peer} is not a neighbour of this node", "have it configured as one")
        if kind is not None and found is not kind:
            raise Unauthorized(f"{peer} is a {found} neighbour", f"this path is for {kind} ones")
        return peer

    def _check_callback(self, peer: str, url: str | None) -> None:
        """Calling any other URL would let a peer aim this node's certificate at a host of its choice."""
        if url is None:
            text = "ack_callback_url is required: this KME has no synchronous_mode"
            raise Malformed(text, missing_parameters=text)
        if url != self._callbacks.get(peer):
            text = "ack_callback_url is not the one agreed with this peer"
            raise Malformed(text, "send the URL that this node has configured", invalid_parameter=text)

    @web.middleware
    async def _known(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Strangers are refused before they learn which paths exist."""
        self._entitled(request)
        return await handler(request)


def _told(tasks: Iterable[asyncio.Task[bytes]]) -> bytes:
    return b"".join(task.result() for task in tasks)


def render(error: KeyhaulError) -> web.Response:
    """The answer to a request that failed: problem details, and when to try again."""
    if isinstance(error, Refused) and error.status != Refused.status:  # a path or method of HTTP's concern
        return web.Response(status=error.status, headers=_JSON, body=plain_problem(error.status, str(error)))
    status, body = problem(error, "ext_keys")
    headers = dict(_JSON)
    if status == 503 and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return web.Response(status=status, headers=headers, body=body)
