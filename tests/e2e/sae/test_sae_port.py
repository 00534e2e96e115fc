"""The SAE port over real TLS: what an application may ask for, who gets it, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any
from uuid import uuid4

import pytest

from keyhaul.edge.client import SaeClient
from keyhaul.edge.sae import SaeApplication, render
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Policy, client_context, server_context
from keyhaul.errors import (
    PeerUnreachable,
    Unauthorized,
)
from keyhaul.identity import sae_id
from keyhaul.messages import etsi014
from tests.northbound import (
    MASTER,
    ODD,
    OTHER,
    SLAVE,
    STRANGER,
    TRUST,
    Cast,
    Kernel,
    bits,
    read_answer,
    segment,
    stage,
)

pytestmark = pytest.mark.usefixtures("workers")


def test_status_has_all_members_and_says_who_asked(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            answer = await port.get(MASTER, f"{SLAVE}/status")
            assert answer.status == 200
            assert answer.json == {
                "source_KME_ID": "node-vigo",
                "target_KME_ID": "node-derio",
                "master_SAE_ID": MASTER,
                "slave_SAE_ID": SLAVE,
                "key_size": 256,
                "stored_key_count": 390_625,
                "max_key_count": 390_625,
                "max_key_per_request": 128,
                "max_key_size": 65_536,
                "min_key_size": 8,
                "max_SAE_ID_count": 8,
            }

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "query", "body", "count", "size"),
    [
        ("GET", "", None, 1, 256),
        ("GET", "?number=3", None, 3, 256),
        ("GET", "?number=1&size=256", None, 1, 256),
        ("GET", "?size=8&number=128", None, 128, 8),
        ("GET", "?colour=blue", None, 1, 256),
        ("POST", "", b"", 1, 256),
        ("POST", "", {}, 1, 256),
        ("POST", "", {"number": 2, "size": 65_536}, 2, 65_536),
        ("POST", "", {"number": 2, "unheard_of": [1]}, 2, 256),
        ("POST", "", {"extension_optional": [{"acme_max_age": 30_000}, {"acme_x": None}]}, 1, 256),
        ("POST", "", {"extension_mandatory": [], "additional_slave_SAE_IDs": []}, 1, 256),
    ],
)
def test_what_the_master_gets_the_slave_can_fetch_once(
    cast: Cast, method: str, query: str, body: object, count: int, size: int
) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            given = await port.call(MASTER, method, f"{SLAVE}/enc_keys{query}", body)
            assert given.status == 200
            assert [len(key) * 8 for _, key in bits(given)] == [size] * count
            wanted = {"key_IDs": [{"key_ID": key_id} for key_id, _ in bits(given)]}
            fetched = await port.post(SLAVE, f"{MASTER}/dec_keys", wanted)
            assert bits(fetched) == bits(given)
            again = await port.post(SLAVE, f"{MASTER}/dec_keys", wanted)
            assert (again.status, again.json["message"]) == (400, etsi014.KEYS_NOT_FOUND)

    asyncio.run(story())


def test_dec_keys_takes_one_id_in_the_query_in_any_case(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            given = await port.get(MASTER, f"{SLAVE}/enc_keys")
            key_id, key = bits(given)[0]
            fetched = await port.get(SLAVE, f"{MASTER}/dec_keys?other=1&key_ID={key_id.upper()}")
            assert bits(fetched) == [(key_id, key)]

    asyncio.run(story())


def test_every_named_slave_of_a_multicast_gets_the_same_key_once(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            additional = [OTHER, ODD, *(f"sae-{n}" for n in range(6))]
            given = await port.post(
                MASTER, f"{SLAVE}/enc_keys", {"number": 2, "additional_slave_SAE_IDs": additional}
            )
            assert port.kernel.orders[0].targets == (SLAVE, *additional)
            wanted = {"key_IDs": [{"key_ID": key_id} for key_id, _ in bits(given)]}
            for slave in (SLAVE, OTHER, ODD):
                assert bits(await port.post(slave, f"{MASTER}/dec_keys", wanted)) == bits(given)
                assert (await port.post(slave, f"{MASTER}/dec_keys", wanted)).status == 400

    asyncio.run(story())


def test_who_may_fetch(cast: Cast) -> None:
    """401 for everybody the master did not name, the master itself included; nothing is used up by it."""

    async def story() -> None:
        async with stage(cast) as port:
            given = await port.post(MASTER, f"{SLAVE}/enc_keys", {"additional_slave_SAE_IDs": [OTHER]})
            only_slave = await port.post(MASTER, f"{SLAVE}/enc_keys", {})
            (key_id, key), (second, _) = bits(given)[0], bits(only_slave)[0]
            for nosy in (MASTER, STRANGER, ODD):
                refused = await port.get(nosy, f"{MASTER}/dec_keys?key_ID={key_id}")
                assert (refused.status, refused.json["message"] != "") == (401, True)
            both = {"key_IDs": [{"key_ID": key_id}, {"key_ID": second}]}
            assert (await port.post(OTHER, f"{MASTER}/dec_keys", both)).status == 401
            assert bits(await port.get(OTHER, f"{MASTER}/dec_keys?key_ID={key_id}")) == [(key_id, key)]
            assert bits(await port.post(SLAVE, f"{MASTER}/dec_keys", both))[0] == (key_id, key)

    asyncio.run(story())


def test_an_identity_in_a_header_counts_for_nothing(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            key_id, _ = bits(await port.get(MASTER, f"{SLAVE}/enc_keys"))[0]
            for header in ("X_SAE_ID", "X_Client_Cert", "X_SSL_Client_S_DN", "From", "Authorization"):
                path = f"{MASTER}/dec_keys?key_ID={key_id}"
                assert (await port.get(STRANGER, path, **{header: SLAVE})).status == 401

    asyncio.run(story())


def test_all_or_nothing(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            given = bits(await port.get(MASTER, f"{SLAVE}/enc_keys?number=2"))
            ids = [{"key_ID": key_id} for key_id, _ in given]
            mixed = await port.post(
                SLAVE, f"{MASTER}/dec_keys", {"key_IDs": [*ids, {"key_ID": str(uuid4())}]}
            )
            assert (mixed.status, mixed.json["message"]) == (400, etsi014.KEYS_NOT_FOUND)
            assert {"next_step"} <= {name for entry in mixed.json["details"] for name in entry}
            assert bits(await port.post(SLAVE, f"{MASTER}/dec_keys", {"key_IDs": ids})) == given

    asyncio.run(story())


def test_trust_is_told_when_asked_for_and_only_then(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            for member in ("extension_mandatory", "extension_optional"):
                asked = await port.post(MASTER, f"{SLAVE}/enc_keys", {member: [{"keyhaul_trust": True}]})
                assert asked.json["keys"][0]["key_extension"] == {"keyhaul_trust": TRUST}
            key_id, _ = bits(asked)[0]
            wanted = {"key_IDs": [{"key_ID": key_id}], "key_IDs_extension": {"keyhaul_trust": True}}
            fetched = await port.post(SLAVE, f"{MASTER}/dec_keys", wanted)
            assert fetched.json["keys"][0]["key_extension"] == {"keyhaul_trust": TRUST}
            assert "key_extension" not in (await port.get(MASTER, f"{SLAVE}/enc_keys")).json["keys"][0]

    asyncio.run(story())


@pytest.mark.parametrize(
    "sae", [ODD, "a b", "ñ/ü", "%41", "100%", "a+b", "..", ".", "a;b=c", "{sae}", "?", "#"]
)
def test_sae_ids_in_the_path_are_decoded_exactly_once(cast: Cast, sae: str) -> None:
    async def story() -> None:
        kernel = Kernel(known=frozenset({sae}))
        async with stage(cast, kernel=kernel) as port:
            answer = await port.get(MASTER, f"{segment(sae)}/status")
            assert answer.json["slave_SAE_ID"] == sae
            async with SaeClient(port.url, cast.tls(MASTER)) as client:
                assert (await client.status(sae)).slave_sae == sae
                await client.get_key(sae)
            assert kernel.orders[0].targets == (sae,)

    asyncio.run(story())


def test_the_caller_may_have_an_odd_id_too(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            given = await port.get(ODD, f"{SLAVE}/enc_keys")
            key_id, key = bits(given)[0]
            assert bits(await port.get(SLAVE, f"{segment(ODD)}/dec_keys?key_ID={key_id}")) == [(key_id, key)]

    asyncio.run(story())


def test_a_certificate_of_another_ca_ends_in_the_handshake(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            tls = client_context(cast.foreigner, Policy.COMPATIBLE)
            async with SaeClient(port.url, tls) as client:
                with pytest.raises(PeerUnreachable):
                    await client.get_key(SLAVE)
            assert port.kernel.orders == []
            assert (await port.get(MASTER, f"{SLAVE}/status")).status == 200

    asyncio.run(story())


def test_no_certificate_ends_in_the_handshake(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port:
            tls = ssl.create_default_context(cafile=cast.saes[MASTER].ca)
            reader, writer = await asyncio.open_connection("localhost", port.address[1], ssl=tls)
            writer.write(b"GET /api/v1/keys/x/status HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await read_answer(reader)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    asyncio.run(story())


def test_a_port_certificate_is_not_an_sae(cast: Cast) -> None:
    """The port's own certificate is of the same CA; it is for servers, and must not get in as a client."""

    async def story() -> None:
        tls = client_context(cast.port, Policy.COMPATIBLE)
        async with stage(cast) as port, SaeClient(port.url, tls) as client:
            with pytest.raises((PeerUnreachable, Unauthorized)):
                await client.status(SLAVE)

    asyncio.run(story())


def test_the_certificate_is_read_once_per_connection(cast: Cast) -> None:
    reads: list[str] = []

    def name_of(certificate: Any) -> str:
        reads.append(sae_id(certificate))
        return reads[-1]

    async def story() -> None:
        application = SaeApplication(Kernel()).reply
        port = Port("sae", application, render, name_of, server_context(cast.port, Policy.COMPATIBLE))
        await port.open([bind("127.0.0.1", 0)])
        async with SaeClient(f"https://localhost:{port.addresses[0][1]}", cast.tls(MASTER)) as client:
            for _ in range(5):
                await client.get_key(SLAVE)
        await port.close()

    asyncio.run(story())
    assert reads == [MASTER]
