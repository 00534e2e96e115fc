"""Two key managers of other makers, and two nodes of ours between them as processes: keys both ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tomllib
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from keyhaul.config.write import toml, write
from keyhaul.identity import urn
from keyhaul.pki import Pki
from keyhaul.testbed.layout import pem_paths
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import Link, Node, Topology
from tests.e2e.test_audit import events, verified
from tests.interop.minimal020 import MinimalKme
from tests.sideways import Ecdsa

pytestmark = pytest.mark.e2e

HOSTS = ("127.0.0.1", "localhost")
PAIR = Topology(
    "two-gateways",
    "each has a key manager of another maker behind it",
    (Node("near", "lab", ("sae-near",)), Node("far", "lab", ("sae-far",))),
    (Link("near", "far", "pqc"),),
)
SAES = {"near": "SAE_A", "far": "SAE_B"}
SETTINGS = {"delivery": {"request_timeout": 8.0}, "audit": {"file": "audit.log"}}
VALUE = b"0123456789abcdef0123456789abcdef"


@contextlib.asynccontextmanager
async def between(directory: Path) -> AsyncIterator[tuple[Testbed, dict[str, MinimalKme]]]:
    """The testbed with a plain port at each node, and a foreign key manager behind each, by node."""
    async with contextlib.AsyncExitStack() as stack:
        testbed = await stack.enter_async_context(Testbed(PAIR, directory / "net", settings=SETTINGS))
        maker = Ecdsa(directory / "maker", "maker")
        pki = Pki.open(testbed.directory / "pki")
        kmes = {}
        for node, sae in SAES.items():
            files = pki.plain("lab", node, HOSTS, [maker.anchor])
            own = maker.issue(f"kme-{node}")
            anchor = str(pki.directory / "lab" / "ca" / "plain.pem")
            kme = MinimalKme(str(own.cert), str(own.key), anchor, urn("node", node), {sae})
            kme.start()
            stack.callback(kme.stop)
            kmes[node] = kme
            add(testbed.layout.node_file(node), plain=pem_paths(files), peer=(f"kme-{node}", kme.url))
        network = testbed.directory / "network.toml"
        foreign = {sae: {"node": node, "peer": f"kme-{node}"} for node, sae in SAES.items()}
        write(network, toml({**tomllib.loads(network.read_text()), "foreign": foreign}, "Two gateways."))
        for node in SAES:
            await restarted(testbed, kmes, node)
        yield testbed, kmes


def add(file: Path, plain: dict[str, str], peer: tuple[str, str]) -> None:
    """A plain port and a plain neighbour, for a node that has been configured already."""
    tables: dict[str, Any] = tomllib.loads(file.read_text())
    tables["listeners"]["plain"] = {"host": "127.0.0.1", **plain}
    tables["peers"].append({"name": peer[0], "url": peer[1], "kind": "plain"})
    write(file, toml(tables, "A gateway."))


async def restarted(testbed: Testbed, kmes: dict[str, MinimalKme], node: str) -> None:
    await testbed.restart(node)
    kmes[node].allowed_origin = plain_url(testbed, node)


def plain_url(testbed: Testbed, node: str) -> str:
    return str(json.loads(testbed.layout.ready_file(node).read_text())["plain_url"])


async def outcome(kme: MinimalKme, key_id: str) -> str:
    async with asyncio.timeout(60.0):
        while key_id not in kme.outcomes:
            await asyncio.sleep(0.02)
    return kme.outcomes[key_id]


async def give(testbed: Testbed, kmes: dict[str, MinimalKme], node: str, other: str) -> str:
    key_id, kme = str(uuid4()), kmes[node]
    saes = SAES[node], [SAES[other]]
    extension = {"extension_optional": {"E32473_of": {"id": key_id, "n": [1.50, None]}}}
    status, _ = await asyncio.to_thread(
        kme.send_keys, plain_url(testbed, node), *saes, {key_id: VALUE}, **extension
    )
    assert status == 202
    return key_id


def test_keys_pass_between_two_foreign_key_managers_both_ways_and_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with between(tmp_path) as (testbed, kmes):
            for node, other in (("near", "far"), ("far", "near")):
                key_id = await give(testbed, kmes, node, other)
                assert await outcome(kmes[node], key_id) == "relayed"
                assert kmes[other].take(key_id, SAES[other]) == VALUE
                (given,) = [call for call in kmes[other].seen if call.path.endswith("/ext_keys")]
                written = f'"E32473_of":{{"id": "{key_id}", "n": [1.5, null]}}'  # as json.dumps spaces it
                assert written.encode() in given.body
            kmes["far"].hold.clear()  # it accepts, and says nothing more
            key_id = await give(testbed, kmes, "near", "far")
            await testbed.kill("far")
            await restarted(testbed, kmes, "far")
            kmes["far"].hold.set()
            assert await outcome(kmes["near"], key_id) in ("relayed", "failed")

    asyncio.run(story())
    logs = {node: tmp_path / "net" / "nodes" / node / "audit.log" for node in SAES}
    for node, other in (("near", "far"), ("far", "near")):
        code, report = verified(logs[node])
        assert code == 0, report
        given, taken = (
            next(line for line in events(logs[at]) if line["event"] == event)
            for at, event in ((other, "handed_over"), (node, "taken_in"))
        )
        assert (given["by"], taken["by"]) == (f"kme-{other}", f"kme-{node}")
        assert given["keys"] == taken["keys"]
        assert (given["master"], given["targets"]) == (SAES[node], [SAES[other]])
        for form in (VALUE, VALUE.hex().encode(), b64encode(VALUE)):
            assert form not in logs[node].read_bytes()


def test_a_far_key_manager_that_is_gone_is_told_of_as_a_failure(tmp_path: Path) -> None:
    async def story() -> None:
        async with between(tmp_path) as (testbed, kmes):
            kmes["far"].stop()
            key_id = await give(testbed, kmes, "near", "far")
            assert await outcome(kmes["near"], key_id) == "failed"
            kmes["far"].start()  # so that it can be stopped like the other

    asyncio.run(story())
