"""Clients other people wrote, and use today, against the SAE port: with TLS 1.2 and 1.3, on one port."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etsi_qkd_014_client import QKD014Client

from keyhaul.messages.etsi014 import KEYS_NOT_FOUND
from tests.northbound import MASTER, ODD, OTHER, SLAVE, STRANGER, Cast, Stage, make_cast, segment, stage

HERE = Path(__file__).parent
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("pki") / "pki")


def against_port(cast: Cast, story: Callable[[Stage], None]) -> None:
    """Run a blocking client in a thread beside the port."""

    async def both() -> None:
        async with stage(cast) as port:
            await asyncio.to_thread(story, port)

    asyncio.run(both())


def test_etsi_qkd_014_client(cast: Cast) -> None:
    def client(port: Stage, sae: str) -> QKD014Client:
        files = cast.saes[sae]
        return QKD014Client(f"localhost:{port.address[1]}", str(files.cert), str(files.key), str(files.ca))

    def story(port: Stage) -> None:
        master, slave = client(port, MASTER), client(port, SLAVE)
        code, status = master.get_status(SLAVE)
        assert (code, status.source_kme_id, status.max_sae_id_count) == (200, "node-vigo", 8)
        code, one = master.get_key(SLAVE)
        assert (code, len(one.keys)) == (200, 1)
        code, many = master.get_key(SLAVE, number=3, size=512, additional_slave_sae_ids=[OTHER])
        assert (code, [len(base64.b64decode(key.key)) for key in many.keys]) == (200, [64] * 3)
        ids = [key.key_id for key in (*one.keys, *many.keys)]
        code, fetched = slave.get_key_with_key_IDs(MASTER, ids)
        assert code == 200
        assert {key.key_id: key.key for key in fetched.keys} == {
            key.key_id: key.key for key in (*one.keys, *many.keys)
        }
        code, refused = slave.get_key_with_key_IDs(MASTER, ids)
        assert (code, refused.message) == (400, KEYS_NOT_FOUND)
        code, refused = client(port, STRANGER).get_key_with_key_IDs(MASTER, ids)
        assert code == 401
        assert refused.message

    against_port(cast, story)


def ask(port: Stage, sae: str, version: ssl.TLSVersion, method: str, path: str, body: object = None) -> Any:
    """One request with the standard library, one connection for it, one TLS version."""
    files = cast_files(port, sae)
    tls = ssl.create_default_context(cafile=files[2])
    tls.load_cert_chain(files[0], files[1])
    tls.minimum_version = tls.maximum_version = version
    connection = http.client.HTTPSConnection("localhost", port.address[1], context=tls, timeout=60)
    try:
        content = None if body is None else json.dumps(body)
        headers = {
            "Connection": "close",
            **({"Content-Type": "application/json"} if body is not None else {}),
        }
        connection.request(method, f"/api/v1/keys/{path}", content, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def cast_files(port: Stage, sae: str) -> tuple[str, str, str]:
    files = port.cast.saes[sae]
    return str(files.cert), str(files.key), str(files.ca)


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_standard_library(cast: Cast, version: ssl.TLSVersion) -> None:
    def story(port: Stage) -> None:
        assert ask(port, MASTER, version, "GET", f"{segment(ODD)}/status")[1]["slave_SAE_ID"] == ODD
        for method, body in (("GET", None), ("POST", {}), ("POST", {"number": 1})):
            status, given = ask(port, MASTER, version, method, f"{segment(ODD)}/enc_keys", body)
            assert status == 200
            path = f"{MASTER}/dec_keys?key_ID={given['keys'][0]['key_ID']}"
            assert ask(port, ODD, version, "GET", path) == (200, given)
            assert ask(port, MASTER, version, "GET", path)[0] == 401

    against_port(cast, story)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--tls-max=1.2", "--tlsv1.3"])
def test_curl(cast: Cast, version: str) -> None:
    def curl(port: Stage, sae: str, path: str, *options: str) -> Any:
        cert, key, ca = cast_files(port, sae)
        secured = ["--cert", cert, "--key", key, "--cacert", ca, *version.split("=")]
        url = f"{port.url}/api/v1/keys/{path}"
        command = ["curl", "--silent", "--show-error", "--max-time", "60", *secured, *options, url]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def story(port: Stage) -> None:
        given = curl(port, MASTER, f"{SLAVE}/enc_keys?number=2&size=128")
        wanted = json.dumps({"key_IDs": [{"key_ID": key["key_ID"]} for key in given["keys"]]})
        assert curl(port, SLAVE, f"{MASTER}/dec_keys", "--json", wanted) == given
        # curl says it is a form unless told otherwise, and many examples on the web leave it so
        assert len(curl(port, MASTER, f"{SLAVE}/enc_keys", "--data", '{"number":3}')["keys"]) == 3
        refused = curl(port, MASTER, f"{SLAVE}/enc_keys?size=7")
        assert refused["message"] == "size shall be a multiple of 8"

    against_port(cast, story)


@pytest.fixture(scope="module")
def java() -> list[str]:
    if shutil.which("javac") is None:
        pytest.skip("no JDK; scripts/install-debian-packages.sh clients")
    return ["java", "-XX:TieredStopAtLevel=1", str(HERE / "Client014.java")]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if shutil.which("go") is None:
        pytest.skip("no Go; scripts/install-debian-packages.sh clients")
    made = tmp_path_factory.mktemp("go")
    program = made / "client014"
    environment = {**os.environ, "GOCACHE": str(made / "cache"), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    build = ["go", "build", "-o", str(program), str(HERE / "client014.go")]
    subprocess.run(build, check=True, env=environment)
    return [str(program)]


@pytest.mark.parametrize("language", ["java", "go"])
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_clients_of_other_languages(
    cast: Cast, language: str, version: str, request: pytest.FixtureRequest
) -> None:
    command: list[str] = request.getfixturevalue(language)

    def call(port: Stage, sae: str, method: str, path: str, *body: str) -> tuple[int, Any]:
        url = f"{port.url}/api/v1/keys/{path}"
        words = [*command, version, *cast_files(port, sae), method, url, *body]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        status, answer = done.stdout.split("\n", 1)
        return int(status), json.loads(answer)

    def story(port: Stage) -> None:
        status, given = call(port, MASTER, "POST", f"{SLAVE}/enc_keys", "{}")
        assert status == 200
        path = f"{MASTER}/dec_keys?key_ID={given['keys'][0]['key_ID']}"
        assert call(port, SLAVE, "GET", path) == (200, given)
        assert call(port, STRANGER, "GET", path)[0] == 401

    against_port(cast, story)
