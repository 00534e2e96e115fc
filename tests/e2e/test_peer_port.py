"""The node port over real TLS: an independent 020 KME as its neighbour, and what bad callers get."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from structlog.testing import capture_logs

from keyhaul.edge.accepting import Bounds
from keyhaul.edge.peer import BOUNDS, ENVELOPE_PATH, RECORDS_PATH, REFILL_PATH
from keyhaul.edge.posting import HttpPeers
from keyhaul.edge.tls import Policy, client_context
from keyhaul.errors import (
    Conflict,
    InsufficientKey,
    KeyNotFound,
    Refused,
    Unauthorized,
)
from keyhaul.identity import urn
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
from tests.interop.minimal020 import MinimalKme
from tests.interop.schema020 import check
from tests.sideways import (
    ACK,
    CALLBACK,
    EXT_KEYS,
    PREFIX,
    SECRET,
    VOID,
    Cast,
    Node,
    ack,
    make_cast,
    message,
    node,
    peers,
    session,
    transfer,
    until,
    void,
)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("cast"))


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
            whole = json.dumps(transfer(keys=large)).encode()
            async with caller.post(here.url + EXT_KEYS, data=io.BytesIO(whole)) as response:
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
        quick = Bounds(body=BOUNDS.body, body_time=0.1, linger=0.1)
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
