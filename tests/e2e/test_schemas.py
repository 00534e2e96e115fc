"""The interface descriptions in docs/openapi against a running node: schemathesis finds nothing."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from keyhaul.config.write import toml
from keyhaul.edge.tls import Credentials
from tests.gateway import Gateway, make_gateway

pytestmark = pytest.mark.e2e
OPENAPI = Path(__file__).parents[2] / "docs" / "openapi"
OURS, THEIRS = "sae-vigo", "SAE_B"
SEED, EXAMPLES = "20260601", "20"

# A method or path that is not in the description is HTTP's business (405, 404), not the standard's.
# 503 is in both standards: no key, no route. That a request fits the description does not make it one
# that can be met: an SAE id may be unknown, keys may be over the limits. And 020 lets a KME answer 503
# to an extension that the description allows.
EXPECTED = ["200", "202", "400", "401", "404", "405", "408", "503"]
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    gateway = make_gateway(tmp_path, OURS)
    gateway.configure(OURS, {"kme-b": "https://127.0.0.1:1"}, {THEIRS: "kme-b"})
    return gateway


async def schemathesis(
    directory: Path, description: Path, url: str, who: Credentials, least: int = 200, **more: object
) -> str:
    """What it reports; an empty text if it found nothing in `least` calls or more."""
    settings = {"checks": {"not_a_server_error": {"expected-statuses": EXPECTED}}, **more}
    (directory / "schemathesis.toml").write_text(toml(settings))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(directory / "schemathesis.toml"),
        "run",
        str(description),
        *("--url", url, "--request-cert", str(who.cert), "--request-cert-key", str(who.key)),
        *("--tls-verify", str(who.ca), "--checks", ",".join(CHECKS), "--seed", SEED),
        *(
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            EXAMPLES,
            "--generation-deterministic",
        ),
        *("--continue-on-failure", "--no-color", "--suppress-health-check", "too_slow"),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    text = out.decode()
    generated = re.search(r"(\d+) generated", text)
    assert generated is not None, text
    assert int(generated[1]) > least, text
    return "" if process.returncode == 0 else text


@pytest.mark.parametrize(
    "parameters", [{}, {"slave_SAE_ID": OURS, "master_SAE_ID": OURS}], ids=["any", "known"]
)
def test_014(gateway: Gateway, tmp_path: Path, parameters: dict[str, str]) -> None:
    """With SAE ids out of the air, and with one that is there, so that keys are made."""

    async def story() -> str:
        async with gateway.running() as node:
            who = Credentials(gateway.sae.cert, gateway.sae.key, gateway.sae.ca)
            more = {"parameters": parameters} if parameters else {}
            return await schemathesis(tmp_path, OPENAPI / "etsi014.yaml", node.urls["sae"], who, **more)

    assert asyncio.run(story()) == ""


def test_020(gateway: Gateway, tmp_path: Path) -> None:
    async def story() -> str:
        async with gateway.running() as node:
            kme = gateway.foreign("kme-b")
            return await schemathesis(tmp_path, OPENAPI / "etsi020.yaml", node.urls["plain"], kme)

    assert asyncio.run(story()) == ""


@pytest.mark.parametrize("parameters", [{}, {"remoteSystemID": "Vigo"}], ids=["any", "known"])
def test_skip(tmp_path: Path, parameters: dict[str, str]) -> None:
    gateway = make_gateway(tmp_path, OURS)
    gateway.configure(OURS, {}, {}, skip={"systems": {"Vigo": OURS}})

    async def story() -> str:
        async with gateway.running() as node:
            who = Credentials(gateway.sae.cert, gateway.sae.key, gateway.sae.ca)
            more = {"parameters": parameters} if parameters else {}
            return await schemathesis(tmp_path, OPENAPI / "skip.yaml", node.urls["skip"], who, 100, **more)

    assert asyncio.run(story()) == ""


def test_a_description_that_the_node_does_not_keep_is_found(gateway: Gateway, tmp_path: Path) -> None:
    """So that the tests above can fail."""
    text = (OPENAPI / "etsi014.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("required: [source_KME_ID,", "required: [no_such_member, source_KME_ID,"))
    assert wrong.read_text() != text

    async def story() -> str:
        async with gateway.running() as node:
            who = Credentials(gateway.sae.cert, gateway.sae.key, gateway.sae.ca)
            known = {"parameters": {"slave_SAE_ID": OURS, "master_SAE_ID": OURS}}
            return await schemathesis(tmp_path, wrong, node.urls["sae"], who, **known)

    assert "no_such_member" in asyncio.run(story())
