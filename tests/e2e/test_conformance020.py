"""A node of ours under the 020 probes: as the neighbour of two key managers, it keeps every rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_conformance import keyhaul, verdicts
from tests.gateway import Gateway, make_gateway
from tests.ports import held

pytestmark = pytest.mark.e2e
OURS = "sae-vigo"
GIVEN = 6.0  # seconds that the node gives a request
WAIT = "30"  # seconds, more than that on any machine


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return make_gateway(tmp_path, OURS)


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """For the probe to listen on."""
    with held() as one, held() as other:
        yield one, other


def test_020_every_rule_holds_between_two_neighbours(gateway: Gateway, ports: tuple[int, int]) -> None:
    first, second, stranger = (gateway.foreign(name) for name in ("kme-a", "kme-b", "kme-x"))
    urls = {name: f"https://127.0.0.1:{port}" for name, port in zip(("kme-a", "kme-b"), ports, strict=True)}
    foreign = {"SAE_A": "kme-a", "SAE_B": "kme-b"}
    gateway.configure(OURS, urls, foreign, delivery={"request_timeout": GIVEN, "pool": 0})

    async def story() -> None:
        async with gateway.running() as node:
            words = [node.urls["plain"], "--cacert", str(first.ca), "--wait", WAIT]
            words += ["--kme", str(first.cert), "--listen", f"127.0.0.1:{ports[0]}", "--initiator", "SAE_A"]
            words += ["--target", OURS, "--sae", str(gateway.sae.cert), "--sae-url", node.urls["sae"]]
            words += ["--sae-ca", str(gateway.sae.ca), "--second", f"{second.cert},{second.key}"]
            words += ["--second-listen", f"127.0.0.1:{ports[1]}", "--second-sae", "SAE_B"]
            words += ["--stranger", str(stranger.cert)]
            code, out, err = await keyhaul("conformance", "020", *words, "--json")
            assert out, err
            assert verdicts(out, "fail") == []
            assert verdicts(out, "not run") == []
            assert code == 0, err
            passed = {each["name"]: each["seen"] for each in json.loads(out)["probes"]}
            assert len(passed) > 40
            assert passed["optional-passed"] == "byte for byte"
            assert "TLS 1.2: " in passed["tls"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ([], "it is not clear who we are"),
        (["--sae", __file__], "half described"),
        (["--second", __file__, "--second-listen", "127.0.0.1:1"], "half described"),
        (["--listen", "nowhere"], "'nowhere' is no address"),
        (["--listen", "203.0.113.1:1"], "cannot listen on"),
        (["--only", "no-such-probe"], "there is no probe"),
        (["--kme", "nowhere.pem"], "nowhere.pem: no such file"),
    ],
)
def test_misuse_is_said(gateway: Gateway, ports: tuple[int, int], words: list[str], cause: str) -> None:
    us = gateway.foreign("kme-a")
    usual = ["--kme", str(us.cert), "--cacert", str(us.ca), "--listen", f"127.0.0.1:{ports[0]}"]
    usual += ["--initiator", "SAE_A", "--target", OURS]
    code, out, err = asyncio.run(
        keyhaul("conformance", "020", "https://127.0.0.1:1", *(usual if words else []), *words)
    )
    assert (code, out) == (2, "")
    assert cause in err
