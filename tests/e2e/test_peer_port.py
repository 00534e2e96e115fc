"""The node port and the posting client over real TLS, with an independent 020 KME and with bad callers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from keyhaul import certificates
from keyhaul.certificates import CLIENT, SERVER, Leaf
from keyhaul.edge.peer import BOUNDS, ENVELOPE_PATH, RECORDS_PATH, REFILL_PATH, NodePort, PeerKind, render
from keyhaul.edge.posting import HttpPeers
from keyhaul.edge.server import Bounds, Port, bind
from keyhaul.edge.tls import Credentials, Policy, client_context, server_context
from keyhaul.errors import (
    Conflict,
    InsufficientKey,
    KeyNotFound,
    Malformed,
    NoSuchTarget,
    PeerUnreachable,
    Refused,
    Tampered,
    TimedOut,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from keyhaul.identity import node_name, urn
from keyhaul.keys import Message
from keyhaul.messages.etsi020 import (
    Ack,
    AckStatus,
    ExtKey,
    ExtKeys,
    Void,
    encode_acks,
    encode_ext_keys,
    encode_void,
)
from keyhaul.pki import Files, Lifetimes, Pki
from tests.interop.minimal020 import MinimalKme
from tests.interop.schema020 import check

HOST = "127.0.0.1"
PREFIX = "https://qkd.etsi.org/gs020-interop-kms/"
EXT_KEYS, ACK, VOID = "/kmapi/v1/ext_keys", "/kmapi/v1/ext_keys/ack", "/kmapi/v1/ext_keys/void"
CALLBACK = "https://kme-b.example/kmapi/v1/ext_keys/ack"
SECRET = b"bits that must not be seen anywhere"


# --- who takes part


@dataclass(frozen=True)
class Cast:
    """`vigo` is the node under test; its plain neighbours are ECDSA like other makers' KMEs."""

    vigo: Credentials
    vigo_ecdsa: Credentials
    derio: Credentials
    stranger: Credentials
    kme: Credentials
    draft: Credentials
    sae: Credentials
    foreign: Credentials


def _credentials(files: Files) -> Credentials:
    return Credentials(files.cert, files.key, files.ca)


class _Ecdsa:
    """A CA of another maker, in whose PKI nodes have ECDSA certificates."""

    def __init__(self, directory: Path, domain: str) -> None:
        self._directory, self._domain = directory, domain
        self._window = Lifetimes(start=datetime.now(UTC)).window(2)
        self._ca, self._key = certificates.authority(domain, "sae", self._window)
        directory.mkdir()
        self.anchor = directory / "ca.pem"
        self.anchor.write_bytes(self._ca.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, uri: str | None = None) -> Credentials:
        leaf = Leaf(name, uri or urn("node", name), (HOST, "localhost"), (*SERVER, *CLIENT))
        certificate, key = certificates.issue(leaf, self._domain, self._ca, self._key, self._window)
        pem = serialization.Encoding.PEM
        form = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        stem = self._directory / name
        stem.with_suffix(".pem").write_bytes(certificate.public_bytes(pem))
        stem.with_suffix(".key").write_bytes(key.private_bytes(*form))
        return Credentials(stem.with_suffix(".pem"), stem.with_suffix(".key"), self.anchor)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    directory = tmp_path_factory.mktemp("cast")
    pki = Pki.create(directory / "pki", ["galicia", "euskadi"])
    other = _Ecdsa(directory / "other", "others")
    foreign = _Ecdsa(directory / "foreign", "foreign")
    stranger_to_us = foreign.issue("kme-b")
    return Cast(
        vigo=_credentials(pki.node("galicia", "vigo", (HOST, "localhost"))),
        vigo_ecdsa=other.issue("vigo"),
        derio=_credentials(pki.node("euskadi", "derio", (HOST, "localhost"))),
        stranger=_credentials(pki.node("euskadi", "stranger", (HOST,))),
        kme=other.issue("kme-b"),
        draft=other.issue("kme-draft"),
        sae=other.issue("app", urn("sae", "kme-b")),
        foreign=Credentials(stranger_to_us.cert, stranger_to_us.key, other.anchor),
    )


# --- the kernel of these tests


@dataclass
class Memory:
    """What a node keeps, as a dictionary: idempotent, with tombstones, acknowledging after it answered."""

    saes: frozenset[str] = frozenset({"SAE_A", "a b", "ñ"})
    held: dict[UUID, ExtKeys] = field(default_factory=dict)
    values: dict[UUID, bytes] = field(default_factory=dict)
    ended: set[UUID] = field(default_factory=set)
    acks: list[tuple[str, Ack]] = field(default_factory=list)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    owed: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    raises: Exception | None = None

    def _begin(self, operation: str, peer: str, content: Any) -> None:
        self.calls.append((operation, peer, content))
        if self.raises is not None:
            raise self.raises

    async def accept(self, peer: str, transfer: ExtKeys) -> None:
        self._begin("accept", peer, transfer)
        if transfer.extension_mandatory:
            raise Unsupported(", ".join(transfer.extension_mandatory))
        for target in transfer.target_sae_ids:
            if target not in self.saes:
                raise NoSuchTarget(f"no node serves {target}")
        for key in transfer.keys:
            if self.values.get(key.key_id, key.value) != key.value:
                raise Conflict("the key differs from the one accepted before")
        alive = [key.key_id for key in transfer.keys if key.key_id not in self.ended]
        dead = [key.key_id for key in transfer.keys if key.key_id in self.ended]
        self.values |= {key.key_id: key.value for key in transfer.keys if key.key_id in alive}
        self.held |= dict.fromkeys(alive, transfer)
        for ids, status in ((alive, AckStatus.RELAYED), (dead, AckStatus.FAILED)):
            self._owe(peer, ids, status, transfer)

    async def void(self, peer: str, request: Void) -> None:
        self._begin("void", peer, request)
        for key_id in request.key_ids or [
            key_id
            for key_id, held in self.held.items()
            if (held.initiator_sae_id, held.target_sae_ids)
            == (request.initiator_sae_id, request.target_sae_ids)
        ]:
            known = self.values.pop(key_id, None) is not None
            self.ended.add(key_id)
            self._owe(peer, [key_id], AckStatus.VOIDED if known else AckStatus.NOT_PRESENT, request)

    async def acknowledge(self, peer: str, acks: Sequence[Ack]) -> None:
        self._begin("acknowledge", peer, acks)
        self.acks += [(peer, ack) for ack in acks]

    async def envelope(self, peer: str, body: bytes) -> None:
        self._begin("envelope", peer, body)

    async def refill(self, peer: str, body: bytes) -> bytes:
        self._begin("refill", peer, body)
        return body[::-1]

    async def records(self, peer: str, body: bytes) -> None:
        self._begin("records", peer, body)

    def _owe(self, peer: str, ids: list[UUID], status: AckStatus, about: ExtKeys | Void) -> None:
        if ids:
            ack = Ack(tuple(ids), status, about.initiator_sae_id, about.target_sae_ids)
            self.owed.put_nowait(message(peer, "ack", encode_acks([ack]), url=about.ack_callback_url))


def message(peer: str, path: str, body: bytes, *, url: str | None = None, sealed: bool = False) -> Message:
    return Message(uuid4(), peer, path, body, sealed, (), 0.0, 0.0, url)


@dataclass
class Node:
    url: str
    kernel: Memory
    callbacks: dict[str, str]


@contextlib.asynccontextmanager
async def node(
    credentials: Credentials, *, bounds: Bounds = BOUNDS, policy: Policy = Policy.COMPATIBLE
) -> AsyncIterator[Node]:
    """The node port of vigo."""
    kernel = Memory()
    callbacks = {"kme-b": CALLBACK, "kme-draft": CALLBACK}
    peers = {"kme-b": PeerKind.PLAIN, "kme-draft": PeerKind.PLAIN, "derio": PeerKind.SEALED}
    handlers = NodePort(kernel, peers, callbacks, drafts=frozenset({"kme-draft"}))
    port = Port(
        "node", handlers.application(), render, node_name, server_context(credentials, policy), bounds
    )
    await port.open([bind(HOST, 0)])
    try:
        yield Node(f"https://{HOST}:{port.addresses[0][1]}", kernel, callbacks)
    finally:
        await port.close()


@contextlib.asynccontextmanager
async def session(
    credentials: Credentials, policy: Policy = Policy.COMPATIBLE
) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=client_context(credentials, policy))
    async with aiohttp.ClientSession(connector=connector) as opened:
        yield opened


@contextlib.asynccontextmanager
async def peers(*args: Any, **options: Any) -> AsyncIterator[HttpPeers]:
    posting = HttpPeers(*args, **options)
    try:
        yield posting
    finally:
        await posting.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def transfer(**changes: Any) -> dict[str, Any]:
    body = {
        "keys": [{"key_id": str(uuid4()), "value": "AAECAwQFBgcICQoLDA0ODw=="}],
        "initiator_sae_id": "SAE_B",
        "target_sae_ids": ["SAE_A"],
        "ack_callback_url": CALLBACK,
    } | changes
    return {name: value for name, value in body.items() if value is not ...}


def void(**changes: Any) -> dict[str, Any]:
    body = {
        "key_ids": [str(uuid4())],
        "initiator_sae_id": "SAE_B",
        "target_sae_ids": ["SAE_A"],
        "ack_callback_url": CALLBACK,
    } | changes
    return {name: value for name, value in body.items() if value is not ...}


def ack(**changes: Any) -> dict[str, Any]:
    return {
        "key_id_container": [{"key_id": str(uuid4())}],
        "ack_status": "relayed",
        "initiator_sae_id": "SAE_A",
        "target_sae_ids": ["SAE_B"],
    } | changes


# --- the independent peer


@pytest.fixture
def minimal(cast: Cast) -> Iterator[MinimalKme]:
    kme = MinimalKme(
        str(cast.kme.cert),
        str(cast.kme.key),
        str(cast.kme.ca),
        urn("node", "vigo"),
        {"SAE_B", "SAE_C", "c%20d"},
    )
    kme.start()
    yield kme
    kme.stop()


@contextlib.asynccontextmanager
async def beside(cast: Cast, minimal: MinimalKme) -> AsyncIterator[tuple[Node, HttpPeers]]:
    """Our node and the independent KME, each configured as the other's neighbour."""
    async with (
        node(cast.vigo_ecdsa) as here,
        peers({"kme-b": (minimal.url, client_context(cast.vigo_ecdsa, Policy.COMPATIBLE))}) as posting,
    ):
        here.callbacks["kme-b"] = minimal.url + ACK
        minimal.allowed_origin = here.url
        yield here, posting


def test_the_independent_peer_hands_keys_to_us_and_hears_what_became_of_them(
    cast: Cast, minimal: MinimalKme
) -> None:
    async def story() -> None:
        async with beside(cast, minimal) as (here, posting):
            status, body = await asyncio.to_thread(minimal.call, "GET", here.url + "/kmapi/versions")
            assert (status, check("version_container", body)) == (200, {"versions": ["v1"]})
            keys = {str(uuid4()): bytes([n]) * 32 for n in range(3)}
            sent = await asyncio.to_thread(minimal.send_keys, here.url, "SAE_B", ["SAE_A", "a%20b"], keys)
            assert sent == (202, b"")
            assert minimal.outcomes == {}  # the answer comes before the work
            assert {str(key_id): value for key_id, value in here.kernel.values.items()} == keys
            assert next(iter(here.kernel.held.values())).target_sae_ids == ("SAE_A", "a b")
            assert (await posting.post(await here.kernel.owed.get())).status == 200
            assert minimal.outcomes == dict.fromkeys(keys, "relayed")
            again = await asyncio.to_thread(minimal.send_keys, here.url, "SAE_B", ["SAE_A", "a%20b"], keys)
            assert again == (202, b"")  # a retry is byte-equal, and so is its answer
        acks = [seen.body for seen in minimal.seen if seen.path == ACK]
        assert isinstance(check("ack_containers", acks[0]), list)

    asyncio.run(story())


def test_we_hand_keys_to_the_independent_peer_and_it_acknowledges_later(
    cast: Cast, minimal: MinimalKme
) -> None:
    async def story() -> None:
        async with beside(cast, minimal) as (here, posting):
            key_id = uuid4()
            sent = ExtKeys((ExtKey(key_id, SECRET),), "SAE_A", ("SAE_B", "c d"), here.url + ACK)
            minimal.hold.clear()
            answer = await posting.post(message("kme-b", "ext_keys", encode_ext_keys(sent)))
            assert answer.status == 202
            assert here.kernel.acks == []
            minimal.hold.set()
            await until(lambda: here.kernel.acks)
            assert here.kernel.acks == [
                ("kme-b", Ack((key_id,), AckStatus.RELAYED, "SAE_A", ("SAE_B", "c d")))
            ]
            assert minimal.take(str(key_id), "SAE_B") == SECRET
            check("ext_key_container", minimal.seen[0].body)

    asyncio.run(story())


def test_voids_go_both_ways(cast: Cast, minimal: MinimalKme) -> None:
    async def story() -> None:
        async with beside(cast, minimal) as (here, posting):
            ours, taken, unknown = (uuid4() for _ in range(3))
            keys = tuple(ExtKey(key_id, SECRET) for key_id in (ours, taken))
            sent = ExtKeys(keys, "SAE_A", ("SAE_B",), here.url + ACK)
            await posting.post(message("kme-b", "ext_keys", encode_ext_keys(sent)))
            minimal.take(str(taken), "SAE_B")
            body = encode_void(Void((ours, taken, unknown), "SAE_A", ("SAE_B",), here.url + ACK))
            check("void_container", body)
            assert (await posting.post(message("kme-b", "void", body))).status == 202
            await until(lambda: len(here.kernel.acks) == 4)
            statuses = {ack.key_ids: ack.status for _, ack in here.kernel.acks[1:]}
            assert statuses == {
                (ours,): AckStatus.VOIDED,
                (taken,): AckStatus.FAILED_TO_VOID,
                (unknown,): AckStatus.NOT_PRESENT,
            }
            theirs = str(uuid4())
            for expected in ("key not present", "failed"):  # a void that arrives first leaves a tombstone
                if expected == "failed":
                    sending = asyncio.to_thread(
                        minimal.send_keys, here.url, "SAE_B", ["SAE_A"], {theirs: SECRET}
                    )
                else:
                    sending = asyncio.to_thread(minimal.send_void, here.url, "SAE_B", ["SAE_A"], [theirs])
                assert (await sending)[0] == 202
                await posting.post(await here.kernel.owed.get())
                assert minimal.outcomes[theirs] == expected
            assert here.kernel.values == {}

    asyncio.run(story())


def test_what_the_independent_peer_refuses_reaches_us_with_its_reason(
    cast: Cast, minimal: MinimalKme
) -> None:
    async def story() -> None:
        async with beside(cast, minimal) as (here, posting):
            key = ExtKey(uuid4(), SECRET)
            for changes, status, says in (
                ({"target_sae_ids": ("SAE_Z",)}, 400, "key routing error: SAE_Z"),
                ({"ack_callback_url": None}, 400, "ack_callback_url is required"),
                ({"extension_mandatory": {"E32473_x": 1}}, 503, "E32473_x"),
            ):
                members: dict[str, Any] = {
                    "target_sae_ids": ("SAE_B",),
                    "ack_callback_url": here.url + ACK,
                } | changes
                body = encode_ext_keys(ExtKeys((key,), "SAE_A", **members))
                answer = await posting.post(message("kme-b", "ext_keys", body))
                assert answer.status == status
                assert says in answer.cause
        assert minimal.keys == {}

    asyncio.run(story())


def test_the_independent_peer_refuses_acks_outside_an_array(cast: Cast, minimal: MinimalKme) -> None:
    async def story() -> None:
        async with beside(cast, minimal) as (_, posting):
            one = encode_acks([Ack((uuid4(),), AckStatus.RELAYED, "SAE_B", ("SAE_A",))])
            assert (await posting.post(message("kme-b", "ack", one, url=minimal.url + ACK))).status == 200
            answer = await posting.post(message("kme-b", "ack", one[1:-1], url=minimal.url + ACK))
            assert (answer.status, answer.cause) == (400, "ack not understood: not an array")

    asyncio.run(story())


# --- what bad input gets

RAW = "raw"
BAD: list[tuple[str, str, Any, int, str]] = [
    ("no JSON", EXT_KEYS, b"{nope", 400, "invalid-parameter"),
    ("no body", EXT_KEYS, b"", 400, "invalid-parameter"),
    ("an array", EXT_KEYS, [transfer()], 400, "invalid-parameter"),
    ("no keys", EXT_KEYS, transfer(keys=...), 400, "missing-parameters"),
    ("no targets", EXT_KEYS, transfer(target_sae_ids=...), 400, "missing-parameters"),
    ("wrong type", EXT_KEYS, transfer(target_sae_ids="SAE_A"), 400, "invalid-parameter"),
    (
        "bad base64",
        EXT_KEYS,
        transfer(keys=[{"key_id": str(uuid4()), "value": "?"}]),
        400,
        "invalid-parameter",
    ),
    ("unknown target", EXT_KEYS, transfer(target_sae_ids=["SAE_Z"]), 400, "key-routing-error"),
    ("synchronous", EXT_KEYS, transfer(ack_callback_url=...), 400, "missing-parameters"),
    (
        "foreign host",
        EXT_KEYS,
        transfer(ack_callback_url="https://x.example" + ACK),
        400,
        "invalid-parameter",
    ),
    (
        "foreign port",
        EXT_KEYS,
        transfer(ack_callback_url="https://kme-b.example:1" + ACK),
        400,
        "invalid-parameter",
    ),
    ("other path", EXT_KEYS, transfer(ack_callback_url=CALLBACK + "/x"), 400, "invalid-parameter"),
    ("query", EXT_KEYS, transfer(ack_callback_url=CALLBACK + "?x"), 400, "invalid-parameter"),
    (
        "look-alike",
        EXT_KEYS,
        transfer(ack_callback_url="https://kme-b.example@x" + ACK),
        400,
        "invalid-parameter",
    ),
    (
        "mandatory",
        EXT_KEYS,
        transfer(extension_mandatory={"E1_x": 1}),
        503,
        "unsupported-mandatory-extension",
    ),
    ("wrapped", EXT_KEYS, {"ext_key_container": transfer()}, 400, "missing-parameters"),
    ("ack outside an array", ACK, ack(), 400, "ack-not-understood"),
    ("ack without JSON", ACK, b"", 400, "ack-not-understood"),
    ("invented status", ACK, [ack(ack_status="done")], 400, "ack-not-understood"),
    ("void without JSON", VOID, b"!", 400, "void-request-not-understood"),
    ("void of nothing", VOID, void(key_ids=[]), 400, "no-key-ids-or-confirmation"),
    ("void, synchronous", VOID, void(ack_callback_url=...), 400, "missing-parameters"),
    ("void, foreign host", VOID, void(ack_callback_url="https://x.example" + ACK), 400, "invalid-parameter"),
    (
        "draft confirmation",
        VOID + "?all_confirmation=true",
        void(key_ids=[]),
        400,
        "no-key-ids-or-confirmation",
    ),
    ("sealed path", ENVELOPE_PATH, b"x", 401, "unauthorized"),
    ("link control", REFILL_PATH, b"x", 401, "unauthorized"),
    ("descriptors", RECORDS_PATH, b"x", 401, "unauthorized"),
]


def test_bad_requests_get_their_problem_and_leave_nothing(cast: Cast) -> None:
    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here, session(cast.kme) as caller:
            for name, path, body, status, kind in BAD:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                with capture_logs() as logs:
                    async with caller.post(here.url + path, data=raw) as response:
                        answer = await response.read()
                        said = check("problem_details", answer)
                        assert (name, response.status, said["type"]) == (name, status, PREFIX + kind)
                        assert said["status"] == status
                        assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
                assert [entry["status"] for entry in logs] == [status], name
                assert logs[0]["node"] == "kme-b"
                assert not any("AAECAwQF" in str(value) for value in logs[0].values())
            kept = here.kernel
            assert (kept.values, kept.held, kept.ended, kept.acks, kept.owed.qsize()) == (
                {},
                {},
                set(),
                [],
                0,
            )
            reached = {operation for operation, _, _ in kept.calls}
            assert reached == {"accept"}  # unknown target and unknown extension only
            assert len(kept.calls) == 2

    asyncio.run(story())


def test_a_good_request_after_bad_ones_goes_through(cast: Cast) -> None:
    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here, session(cast.kme) as caller:
            for body, status in ((b"{", 400), (json.dumps(transfer()).encode(), 202), (b"[]", 400)):
                async with caller.post(here.url + EXT_KEYS, data=body) as response:
                    assert response.status == status
            async with caller.post(here.url + VOID, json=void(key_ids=[], all_confirmation=True)) as response:
                assert response.status == 202
                assert await response.read() == b""
            assert [operation for operation, _, _ in here.kernel.calls] == ["accept", "void"]

    asyncio.run(story())


ERRORS: list[tuple[Exception, int, str]] = [
    (Refused("back to the caller", invalid_routing="derio"), 400, "key-routing-error"),
    (KeyNotFound("no such key"), 400, "key-not-present"),
    (Unauthorized("not your key"), 401, "unauthorized"),
    (InsufficientKey("the link is dry"), 503, "insufficient-key-material"),
    (Conflict("it differs"), 503, "server-side-general-error"),
    (RuntimeError(SECRET.decode()), 503, "server-side-general-error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS, ids=[type(row[0]).__name__ for row in ERRORS])
def test_what_the_kernel_raises_becomes_its_problem(
    cast: Cast, error: Exception, status: int, kind: str
) -> None:
    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here, session(cast.kme) as caller:
            here.kernel.raises = error
            with capture_logs() as logs:
                async with caller.post(here.url + ACK, json=[ack()]) as response:
                    answer = await response.read()
                    assert (response.status, check("problem_details", answer)["type"]) == (
                        status,
                        PREFIX + kind,
                    )
                    assert ("Retry-After" in response.headers) is (status == 503)
            assert SECRET not in answer
            assert SECRET.decode() not in str(logs)

    asyncio.run(story())


def test_a_refusal_without_a_name_gets_the_problem_of_its_path(cast: Cast) -> None:
    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here, session(cast.kme) as caller:
            for path, body, kind in (
                (EXT_KEYS, transfer(), "invalid-parameter"),
                (ACK, [ack()], "ack-not-understood"),
                (VOID, void(), "void-request-not-understood"),
            ):
                here.kernel.raises = Refused("no")
                async with caller.post(here.url + path, json=body) as response:
                    assert json.loads(await response.read())["type"] == PREFIX + kind

    asyncio.run(story())


def test_strangers_and_paths_that_do_not_exist(cast: Cast) -> None:
    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here:
            async with session(cast.sae) as caller:  # the right CA and the right name, in another role
                for path in (EXT_KEYS, "/nowhere"):
                    async with caller.post(here.url + path, json=transfer()) as response:
                        assert response.status == 401
                        check("problem_details", await response.read())
            async with session(cast.kme) as caller:
                for method, path, status in (
                    ("GET", "/nowhere", 404),
                    ("GET", EXT_KEYS, 405),
                    ("HEAD", "/kmapi/versions", 405),
                ):
                    async with caller.request(method, here.url + path) as response:
                        assert response.status == status
                        if method != "HEAD":
                            check("problem_details", await response.read())
            async with session(cast.foreign) as caller:
                with pytest.raises(aiohttp.ClientError):
                    await caller.get(here.url + "/kmapi/versions")
            assert here.kernel.calls == []

    asyncio.run(story())


def test_a_connection_older_than_tls_1_3_is_refused(cast: Cast) -> None:
    async def story() -> None:
        context = ssl.create_default_context(cafile=str(cast.kme.ca))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(cast.kme.cert, cast.kme.key)
        async with (
            node(cast.vigo_ecdsa) as here,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as caller,
            caller.get(here.url + "/kmapi/versions") as response,
        ):
            assert response.status == 401
            assert "TLS 1.3" in (await response.read()).decode()

    asyncio.run(story())


def test_bodies_over_the_limit_are_refused_however_they_are_announced(cast: Cast) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(129):
            yield bytes(65_536)

    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here, session(cast.kme) as caller:
            large = [{"key_id": str(uuid4()), "value": "A" * (8 * 1024 * 1024 - 400)}]
            body = json.dumps(transfer(keys=large)).encode()
            async with caller.post(here.url + EXT_KEYS, data=io.BytesIO(body)) as response:
                assert response.status == 202  # eight MiB, less a little
            for body in (bytes(BOUNDS.body + 1), chunks()):
                async with caller.post(
                    here.url + EXT_KEYS, data=io.BytesIO(body) if isinstance(body, bytes) else body
                ) as response:
                    said = check("problem_details", await response.read())
                    assert (response.status, said["type"]) == (400, PREFIX + "invalid-parameter")
            assert len(here.kernel.calls) == 1

    asyncio.run(story())


def test_slow_senders_get_a_timeout_and_leave_nothing(cast: Cast) -> None:
    async def drops(end: asyncio.Event) -> AsyncIterator[bytes]:
        yield b'{"keys": '
        await end.wait()

    async def story() -> None:
        end = asyncio.Event()
        quick = Bounds(body=BOUNDS.body, body_time=0.1)
        async with node(cast.vigo_ecdsa, bounds=quick) as here, session(cast.kme) as caller:
            async with caller.post(here.url + EXT_KEYS, data=drops(end)) as response:
                said = check("problem_details", await response.read())
                assert (response.status, said["type"]) == (408, PREFIX + "timeout")
            end.set()
            assert here.kernel.calls == []

    asyncio.run(story())


def test_draft_peers_are_read_liberally_and_others_are_not(cast: Cast) -> None:
    draft = {
        "key_ids": [{"key_id": str(uuid4())}],
        "ack_status": "relayed",
        "initiator_sae_id": "SAE_A",
        "target_sae_id": "SAE_B",
    }

    async def story() -> None:
        async with node(cast.vigo_ecdsa) as here:
            for credentials, expected in ((cast.draft, (200, 202, 202)), (cast.kme, (400, 400, 400))):
                async with session(credentials) as caller:
                    for (path, body), status in zip(
                        (
                            (ACK, draft),
                            (EXT_KEYS, {"ext_key_container": transfer()}),
                            (VOID + "?all_confirmation=true", void(key_ids=[])),
                        ),
                        expected,
                        strict=True,
                    ):
                        async with caller.post(here.url + path, json=body) as response:
                            assert response.status == status
            assert [(operation, peer) for operation, peer, _ in here.kernel.calls] == [
                ("acknowledge", "kme-draft"),
                ("accept", "kme-draft"),
                ("void", "kme-draft"),
            ]
            assert here.kernel.acks[0][1].target_sae_ids == ("SAE_B",)

    asyncio.run(story())


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


def test_a_connection_closed_meanwhile_is_opened_again_once(cast: Cast) -> None:
    async def story() -> None:
        async with (
            misbehaving(cast.vigo_ecdsa, [b"", _answer("202 Accepted"), b""]) as (url, requests),
            peers({"vigo": (url, client_context(cast.kme, Policy.COMPATIBLE))}) as posting,
        ):
            assert (await posting.post(message("vigo", "ext_keys", b"{}"))).status == 202
            with pytest.raises(PeerUnreachable):
                await posting.post(message("vigo", "ext_keys", b"{}"))
            assert len(requests) == 4

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
