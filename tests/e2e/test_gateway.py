"""A whole node beside an independent 020 KME of another maker: keys in both directions, voids, restarts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from keyhaul import config
from keyhaul.conformance.call import Caller
from keyhaul.edge import tls
from keyhaul.errors import KeyNotFound, Unavailable
from keyhaul.identity import urn
from keyhaul.keys import Message, Secret
from keyhaul.messages import etsi020
from keyhaul.messages.payload import Pair, Scheme
from keyhaul.messages.wrapping import Wrapping, wrap
from keyhaul.node import Node
from keyhaul.schemes.bfv import DENSE
from keyhaul.schemes.blind import Blind
from keyhaul.schemes.masked import Masked
from tests.gateway import Gateway, make_gateway
from tests.interop.minimal020 import MinimalKme
from tests.neighbours import context as vouched

pytestmark = pytest.mark.e2e
OURS, THEIRS = "sae-vigo", "SAE_B"


class _Numbers:
    """Bytes of the right form in place of BFV; what is in them nobody here reads."""

    profile = DENSE

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        return bytes(len(plain)), bytes(DENSE.rest_bytes(len(plain)))


BLIND = Blind(_Numbers(), lambda _: bytes([DENSE.id]))  # type: ignore[arg-type]


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return make_gateway(tmp_path, OURS)


@pytest.fixture
def minimal(gateway: Gateway) -> Iterator[MinimalKme]:
    files = gateway.foreign("kme-b")
    kme = MinimalKme(str(files.cert), str(files.key), str(files.ca), urn("node", "vigo"), {THEIRS, "SAE_C"})
    kme.start()
    gateway.configure(
        OURS, {"kme-b": kme.url}, {THEIRS: "kme-b", "SAE_C": "kme-b"}, delivery={"request_timeout": 5.0}
    )
    yield kme
    kme.stop()


@contextlib.asynccontextmanager
async def running(gateway: Gateway, minimal: MinimalKme) -> AsyncIterator[Node]:
    async with gateway.running() as node:
        minimal.allowed_origin = node.urls["plain"]
        yield node


async def outcome(minimal: MinimalKme, key_id: str) -> str:
    async with asyncio.timeout(60.0):
        while key_id not in minimal.outcomes:
            await asyncio.sleep(0.01)
    return minimal.outcomes[key_id]


def test_our_key_reaches_a_foreign_sae_and_is_released_on_its_ack(
    gateway: Gateway, minimal: MinimalKme
) -> None:
    async def story() -> None:
        async with running(gateway, minimal) as node, gateway.application(node) as application:
            keys = await application.get_key(THEIRS, 3)
            for key in keys:
                assert minimal.take(str(key.key_id), THEIRS) == key.bits.reveal()
            minimal.hold.clear()  # the foreign KME accepts, but does not acknowledge in time
            with pytest.raises(Unavailable):
                await application.get_key(THEIRS)
            minimal.hold.set()
            async with asyncio.timeout(60.0):
                while len(minimal.answers) < 3:  # the first ack, the late one, and that of our void
                    await asyncio.sleep(0.01)

    asyncio.run(story())


def test_a_foreign_key_is_held_for_our_sae_across_a_restart(gateway: Gateway, minimal: MinimalKme) -> None:
    async def story() -> None:
        key_id, value = str(uuid4()), b"0123456789abcdef0123456789abcdef"
        async with running(gateway, minimal) as node:
            status, _ = await asyncio.to_thread(
                minimal.send_keys, node.urls["plain"], THEIRS, [OURS], {key_id: value}
            )
            assert status == 202
            assert await outcome(minimal, key_id) == "relayed"
            again, _ = await asyncio.to_thread(
                minimal.send_keys, node.urls["plain"], THEIRS, [OURS], {key_id: value}
            )
            assert again == 202
            other, body = await asyncio.to_thread(
                minimal.send_keys, node.urls["plain"], THEIRS, [OURS], {key_id: b"x" * 32}
            )
            assert other == 503, "a conflict is never answered 400 (020 V1.1.1 §2.6)"
            assert base64.b64encode(value) not in body
        async with running(gateway, minimal) as node, gateway.application(node) as application:
            (key,) = await application.fetch_key(THEIRS, [UUID(key_id)])
            assert key.bits.reveal() == value
            with pytest.raises(KeyNotFound):
                await application.fetch_key(THEIRS, [UUID(key_id)])

    asyncio.run(story())


def test_a_void_overtakes_its_key_and_one_after_delivery_fails(gateway: Gateway, minimal: MinimalKme) -> None:
    async def story() -> None:
        early, late, value = str(uuid4()), str(uuid4()), b"0123456789abcdef0123456789abcdef"
        async with running(gateway, minimal) as node, gateway.application(node) as application:
            base = node.urls["plain"]
            await asyncio.to_thread(minimal.send_void, base, THEIRS, [OURS], [early])
            assert await outcome(minimal, early) == "key not present"
            minimal.outcomes.clear()
            await asyncio.to_thread(minimal.send_keys, base, THEIRS, [OURS], {early: value})
            assert await outcome(minimal, early) == "voided"
            with pytest.raises(KeyNotFound):
                await application.fetch_key(THEIRS, [UUID(early)])
            await asyncio.to_thread(minimal.send_keys, base, THEIRS, [OURS], {late: value})
            assert await outcome(minimal, late) == "relayed"
            await application.fetch_key(THEIRS, [UUID(late)])
            minimal.outcomes.clear()
            await asyncio.to_thread(minimal.send_void, base, THEIRS, [OURS], [late])
            assert await outcome(minimal, late) == "failed to void"

    asyncio.run(story())


@pytest.mark.parametrize("scheme", [Masked(), BLIND], ids=["masked", "blind"])
def test_a_foreign_kme_refuses_what_is_no_key_and_so_do_we(
    scheme: Scheme, gateway: Gateway, minimal: MinimalKme
) -> None:
    """Masked keys and ciphertexts are not taken for keys: their extension is mandatory (020 V1.1.1 §2.5)."""
    context = vouched(scheme=scheme.name, initiator=OURS, targets=(THEIRS,))
    keys, pair = [Secret(bytes(32)), Secret(bytes(32))], Pair(bytes(16), Secret(bytes(32)))
    payload = scheme.originate(keys, context, pair)

    async def story() -> None:
        async with running(gateway, minimal) as node:
            own = node.urls["plain"] + "/kmapi/v1/ext_keys/ack"
            transfer = wrap(Wrapping(context, payload, 0.0), own, 32473)
            body = etsi020.encode_ext_keys(transfer)
            message = Message(uuid4(), "kme-b", etsi020.EXT_KEYS, body, False, (), 0.0, 0.0)
            answer = await node.peers.post(message)
            assert answer.status == 503
            assert "E32473_keyhaul" in answer.cause
            assert minimal.keys == {}
            values = {str(key.key_id): key.value for key in transfer.keys}
            extension = {name: etsi020.plain(value) for name, value in transfer.extension_mandatory.items()}
            status, told = await asyncio.to_thread(
                minimal.send_keys, node.urls["plain"], THEIRS, [OURS], values, extension_mandatory=extension
            )
            assert status == 503
            assert b"unsupported-mandatory-extension" in told
            assert [await node.vault.ledger.find(key.key_id) for key in transfer.keys] == [[], []]

    asyncio.run(story())


def test_foreign_kmes_have_a_port_of_their_own_and_the_node_port_stays_post_quantum(
    gateway: Gateway, minimal: MinimalKme
) -> None:
    """Each kind of neighbour is believed on its own port only."""
    plain = x509.load_pem_x509_certificate(gateway.plain.cert.read_bytes())
    assert isinstance(plain.public_key(), ec.EllipticCurvePublicKey)
    settings = config.load(gateway.file)
    assert (settings.listeners.node.tls, settings.listeners.plain and settings.listeners.plain.tls) == (
        "pq",
        "compatible",
    )
    assert [each for each in config.check(gateway.file) if not each.warning] == []

    async def story() -> None:
        async with running(gateway, minimal) as node:
            kme = gateway.foreign("kme-b")
            own = gateway.pki.node("others", "neighbour", ("127.0.0.1",))
            as_foreign = tls.client_context(kme, tls.Policy.COMPATIBLE)
            answer = await Caller("", node.urls["plain"], as_foreign).get("/kmapi/versions")
            assert (answer.status, answer.tls) == (200, "TLSv1.3")
            sealed = await Caller("", node.urls["plain"], as_foreign).ask("POST", "/keyhaul/v1/envelope", b"")
            assert sealed.status == 401
            for cert, ca in ((kme, own.ca), (own, gateway.anchor)):
                wrong = tls.client_context(tls.Credentials(cert.cert, cert.key, ca), tls.Policy.COMPATIBLE)
                port = "node" if ca == own.ca else "plain"
                with pytest.raises(aiohttp.ClientError):
                    await Caller("", node.urls[port], wrong).get("/kmapi/versions")

    asyncio.run(story())
