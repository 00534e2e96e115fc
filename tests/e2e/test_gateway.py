"""A whole node beside an independent 020 KME of another maker: keys in both directions, voids, restarts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from keyhaul import config
from keyhaul.config.write import toml, write
from keyhaul.edge import tls
from keyhaul.edge.client import SaeClient
from keyhaul.errors import KeyNotFound, Unavailable
from keyhaul.identity import urn
from keyhaul.node import Node, prepare
from keyhaul.pki import Files, Pki
from tests.interop.minimal020 import MinimalKme
from tests.sideways import Cast, make_cast

pytestmark = pytest.mark.e2e
OURS, THEIRS = "sae-vigo", "SAE_B"


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("cast"))


@pytest.fixture
def minimal(cast: Cast) -> Iterator[MinimalKme]:
    kme = MinimalKme(
        str(cast.kme.cert), str(cast.kme.key), str(cast.kme.ca), urn("node", "vigo"), {THEIRS, "SAE_C"}
    )
    kme.start()
    yield kme
    kme.stop()


def pem(files: Files | tls.Credentials) -> dict[str, object]:
    return {"host": "127.0.0.1", "cert": files.cert, "key": files.key, "ca": files.ca}


def configure(directory: Path, cast: Cast, minimal: MinimalKme) -> tuple[Path, Files]:
    """One node whose only neighbour is the foreign KME; both use classical certificates."""
    pki = Pki.create(directory / "pki", ["others"])
    hosts = ("127.0.0.1", "localhost")
    write(directory / "root.credential", "0123456789abcdef" * 4)
    tables = {
        "name": "vigo",
        "domain": "others",
        "directory": ".",
        "listeners": {
            "sae": pem(pki.sae_port("others", "vigo", hosts)),
            "node": {**pem(cast.vigo_ecdsa), "tls": "compatible"},
            "admin": pem(pki.admin_port("others", "vigo", hosts)),
        },
        "store": {
            "file": "keyhaul.db",
            "root": "root.slots",
            "slots": [{"kind": "credential", "file": "root.credential"}],
        },
        "peers": [{"name": "kme-b", "url": minimal.url, "kind": "plain"}],
        "network": {
            "nodes": {"vigo": "others"},
            "saes": {OURS: "vigo"},
            "foreign": {name: {"node": "vigo", "peer": "kme-b"} for name in (THEIRS, "SAE_C")},
        },
        "delivery": {"request_timeout": 5.0},
    }
    write(directory / "node.toml", toml(tables, "A gateway for the tests."))
    return directory / "node.toml", pki.sae("others", OURS)


@contextlib.asynccontextmanager
async def running(file: Path, minimal: MinimalKme) -> AsyncIterator[Node]:
    node = Node(config.load(file))
    await node.start()
    minimal.allowed_origin = node.urls["node"]
    try:
        yield node
    finally:
        await node.stop()


def client(node: Node, sae: Files) -> SaeClient:
    context = tls.client_context(tls.Credentials(sae.cert, sae.key, sae.ca), tls.Policy.COMPATIBLE)
    return SaeClient(node.urls["sae"], context)


async def outcome(minimal: MinimalKme, key_id: str) -> str:
    async with asyncio.timeout(10.0):
        while key_id not in minimal.outcomes:
            await asyncio.sleep(0.01)
    return minimal.outcomes[key_id]


def test_our_key_reaches_a_foreign_sae_and_is_released_on_its_ack(
    tmp_path: Path, cast: Cast, minimal: MinimalKme
) -> None:
    async def story() -> None:
        file, sae = configure(tmp_path, cast, minimal)
        prepare(config.load(file))
        async with running(file, minimal) as node, client(node, sae) as application:
            keys = await application.get_key(THEIRS, 3)
            for key in keys:
                assert minimal.take(str(key.key_id), THEIRS) == key.bits.reveal()
            minimal.hold.clear()  # the foreign KME accepts, but does not acknowledge in time
            with pytest.raises(Unavailable):
                await application.get_key(THEIRS)
            minimal.hold.set()
            async with asyncio.timeout(10.0):
                while len(minimal.answers) < 3:  # the first ack, the late one, and that of our void
                    await asyncio.sleep(0.01)

    asyncio.run(story())


def test_a_foreign_key_is_held_for_our_sae_across_a_restart(
    tmp_path: Path, cast: Cast, minimal: MinimalKme
) -> None:
    async def story() -> None:
        file, sae = configure(tmp_path, cast, minimal)
        prepare(config.load(file))
        key_id, value = str(uuid4()), b"0123456789abcdef0123456789abcdef"
        async with running(file, minimal) as node:
            status, _ = await asyncio.to_thread(
                minimal.send_keys, node.urls["node"], THEIRS, [OURS], {key_id: value}
            )
            assert status == 202
            assert await outcome(minimal, key_id) == "relayed"
            again, _ = await asyncio.to_thread(
                minimal.send_keys, node.urls["node"], THEIRS, [OURS], {key_id: value}
            )
            assert again == 202
            other, body = await asyncio.to_thread(
                minimal.send_keys, node.urls["node"], THEIRS, [OURS], {key_id: b"x" * 32}
            )
            assert other == 503, "a conflict is never answered 400 (020 V1.1.1 §2.6)"
            assert base64.b64encode(value) not in body
        async with running(file, minimal) as node, client(node, sae) as application:
            (key,) = await application.fetch_key(THEIRS, [UUID(key_id)])
            assert key.bits.reveal() == value
            with pytest.raises(KeyNotFound):
                await application.fetch_key(THEIRS, [UUID(key_id)])

    asyncio.run(story())


def test_a_void_overtakes_its_key_and_one_after_delivery_fails(
    tmp_path: Path, cast: Cast, minimal: MinimalKme
) -> None:
    async def story() -> None:
        file, sae = configure(tmp_path, cast, minimal)
        prepare(config.load(file))
        early, late, value = str(uuid4()), str(uuid4()), b"0123456789abcdef0123456789abcdef"
        async with running(file, minimal) as node, client(node, sae) as application:
            base = node.urls["node"]
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
