"""Two simulated devices in processes of their own, and the 014 client that talks to any device."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from keyhaul.errors import (
    InsufficientKey,
    KeyNotFound,
    PeerUnreachable,
    Refused,
    Unauthorized,
    Unavailable,
)
from keyhaul.links.etsi014 import Device
from keyhaul.pki import Pki
from tests.e2e.devicepair import (
    HERE,
    THERE,
    THIRD,
    Cast,
    End,
    bits,
    configure,
    running,
    serving,
    start,
    stop,
    trusting,
    write,
)

pytestmark = pytest.mark.e2e

NOT_FOUND = "one or more keys specified are not found on KME"


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    folder = tmp_path_factory.mktemp("devices")
    return Cast(folder, Pki.create(folder / "pki", ["island"]), Pki.create(folder / "foreign", ["island"]))


@pytest.fixture(scope="module")
def plain_pair(cast: Cast) -> Iterator[tuple[End, End]]:
    """A conforming pair without delay; 8 keys a request, so that the client must split."""
    with running(cast, "plain", ("instant", "instant"), {"max_key_per_request": 8}) as ends:
        yield ends


@pytest.fixture(scope="module")
def odd_pair(cast: Cast) -> Iterator[tuple[End, End]]:
    """GET only and 400 when empty on one side; one key size and a thin, stale status on the other."""
    overrides = {"delay_median": 0.0, "rate": 0.0, "initial": 256 * 12, "status_every": 600.0}
    with running(cast, "odd", ("kmstn3", "kmstn5"), overrides) as ends:
        yield ends


def balanced(account: dict[str, Any]) -> bool:
    b = account["bits"]
    return bool(b["produced"] == b["stored"] + b["discarded"] + b["waiting"] + b["delivered"])


@pytest.mark.parametrize("direction", ["from the keeper", "from the mirror"])
def test_both_ends_give_the_same_bits_once(plain_pair: tuple[End, End], direction: str) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        near, far = keeper.client(HERE, THERE), mirror.client(THERE, HERE)
        if direction == "from the mirror":
            near, far = far, near
        try:
            sent = await near.enc_keys(20, 512)
            assert len({bytes_ for _, bytes_ in bits(sent)}) == 20
            assert all(len(key.bits) == 64 for key in sent)
            ids = [key.key_id for key in sent]
            assert bits(await far.dec_keys([key_id.upper() for key_id in ids])) == [
                (key_id.upper(), value) for key_id, value in bits(sent)
            ]
            with pytest.raises(KeyNotFound):
                await far.dec_keys(ids)
            assert await far.dec_keys([]) == []
        finally:
            await near.close()
            await far.close()

    asyncio.run(scene())


def test_a_split_call_keeps_what_left_the_device(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        near, far = keeper.client(HERE, THERE), mirror.client(THERE, HERE)
        sent = await near.enc_keys(9, 256)
        ids = [key.key_id for key in sent]
        got = await far.dec_keys([*ids[:8], "11111111-1111-4111-8111-111111111111"])
        assert bits(got) == bits(sent[:8])
        await far.dec_keys(ids[8:])
        await near.close()
        await far.close()

    asyncio.run(scene())


def test_status_has_all_eleven_members_and_the_client_reads_them(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        status, body, _ = await keeper.call(HERE, "GET", f"/api/v1/keys/{quote(THERE, safe='')}/status")
        assert status == 200
        assert len(body) == 11
        device = mirror.client(THERE, HERE)
        read = await device.status()
        assert (read.master_SAE_ID, read.slave_SAE_ID) == (THERE, HERE)
        assert (read.source_KME_ID, read.target_KME_ID) == ("plain-b", "plain-a")
        assert read.stored_key_count is not None
        assert read.stored_key_count > 1000
        limits = await device.limits()
        assert (limits.max_key_per_request, limits.min_key_size, limits.max_key_size) == (8, 8, 65_536)
        await device.close()

    asyncio.run(scene())


def test_the_short_forms_by_get(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair
    there, here = quote(THERE, safe=""), quote(HERE, safe="")

    async def scene() -> None:
        status, body, _ = await keeper.call(HERE, "GET", f"/api/v1/keys/{there}/enc_keys?number=1&size=128")
        assert status == 200
        [key] = body["keys"]
        assert len(base64.b64decode(key["key"], validate=True)) == 16
        path = f"/api/v1/keys/{here}/dec_keys?key_ID={key['key_ID']}"
        assert (await mirror.call(THERE, "GET", path))[:2] == (200, {"keys": [key]})
        assert (await mirror.call(THERE, "GET", path))[:2] == (400, {"message": NOT_FOUND})
        status, body, _ = await keeper.call(HERE, "POST", f"/api/v1/keys/{there}/enc_keys", b"{}")
        assert status == 200
        assert len(base64.b64decode(body["keys"][0]["key"])) == 32

    asyncio.run(scene())


BAD_REQUESTS: list[tuple[str, str, str, bytes | None, int, str]] = [
    ("not JSON", "POST", "enc_keys", b"{", 400, "body"),
    ("wrong type", "POST", "enc_keys", b'{"number": "one"}', 400, "$.number"),
    ("an array", "POST", "enc_keys", b"[]", 400, "body"),
    ("no key", "POST", "enc_keys", b'{"number": 0}', 400, "number shall be from 1 to 8"),
    ("too many", "POST", "enc_keys", b'{"number": 9}', 400, "number shall be from 1 to 8"),
    ("odd size", "POST", "enc_keys", b'{"size": 12}', 400, "size shall be a multiple of 8"),
    ("size nought", "POST", "enc_keys", b'{"size": 0}', 400, "size shall be from"),
    ("too large", "POST", "enc_keys", b'{"size": 65544}', 400, "size shall be from"),
    (
        "mandatory extension",
        "POST",
        "enc_keys",
        b'{"extension_mandatory": [{"abc_route": 1}]}',
        400,
        "not all extension_mandatory parameters are supported",
    ),
    ("unknown slave too", "POST", "enc_keys", b'{"additional_slave_SAE_IDs": ["x"]}', 400, "does not know"),
    ("query", "GET", "enc_keys?number=x", None, 400, "query"),
    ("long body", "POST", "enc_keys", b" " * (1 << 20) + b"{}  ", 413, "Too Large"),
    ("no ids", "POST", "dec_keys", b'{"key_IDs": []}', 400, "key_IDs"),
    ("no member", "POST", "dec_keys", b"{}", 400, "key_IDs"),
    ("no query", "GET", "dec_keys", None, 400, "exactly one key_ID"),
    ("two in a query", "GET", "dec_keys?key_ID=a&key_ID=b", None, 400, "exactly one key_ID"),
    ("unknown id", "POST", "dec_keys", b'{"key_IDs": [{"key_ID": "a"}]}', 400, NOT_FOUND),
    (
        "twice the same",
        "POST",
        "dec_keys",
        b'{"key_IDs": [{"key_ID": "a"}, {"key_ID": "A"}]}',
        400,
        NOT_FOUND,
    ),
    ("verb", "PUT", "enc_keys", b"{}", 405, "Not Allowed"),
    ("path", "GET", "keys", None, 404, "Not Found"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [row[1:] for row in BAD_REQUESTS],
    ids=[r[0] for r in BAD_REQUESTS],
)
def test_bad_requests_cost_nothing(
    plain_pair: tuple[End, End], method: str, path: str, body: bytes | None, status: int, says: str
) -> None:
    keeper, _ = plain_pair

    async def scene() -> None:
        before = (await keeper.account())["keys"]
        got, answer, _ = await keeper.call(HERE, method, f"/api/v1/keys/{quote(THERE, safe='')}/{path}", body)
        assert got == status
        assert says in answer["message"]
        assert (await keeper.account())["keys"] == before

    asyncio.run(scene())


def test_every_certificate_gets_only_what_it_was_named_for(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair
    there, here = quote(THERE, safe=""), quote(HERE, safe="")

    async def scene() -> None:
        near = keeper.client(HERE, THERE)
        [key] = await near.enc_keys(1, 256)
        await near.close()
        fetch = f"/api/v1/keys/{here}/dec_keys?key_ID={key.key_id}"
        refused = [
            (mirror, THIRD, "GET", fetch),  # registered here, but not named for this key
            (mirror, "stranger", "GET", fetch),
            (mirror, "op", "GET", fetch),
            (mirror, "plain-a", "GET", fetch),
            (keeper, THERE, "GET", f"/api/v1/keys/{there}/enc_keys"),
            (keeper, "stranger", "GET", f"/api/v1/keys/{there}/status"),
            (keeper, HERE, "GET", "/testbed/knobs"),
            (keeper, HERE, "PUT", "/testbed/knobs"),
            (keeper, "plain-b", "PUT", "/testbed/knobs"),
            (keeper, HERE, "POST", "/pair/reserve"),
            (keeper, "op", "POST", "/pair/line"),
            (mirror, "plain-b", "POST", "/pair/announce"),
        ]
        for end, sae, method, path in refused:
            status, body, _ = await end.call(sae, method, path, b"{}" if method != "GET" else None)
            assert (status, list(body)) == (401, ["message"]), (sae, path)
        assert (await mirror.call(THERE, "GET", fetch))[0] == 200

    asyncio.run(scene())


def test_foreign_certificates_do_not_get_through_the_handshake(
    plain_pair: tuple[End, End], cast: Cast
) -> None:
    keeper, _ = plain_pair
    impostor = cast.foreign.device_client("island", HERE)

    async def scene() -> None:
        ours = cast.client(HERE)
        cases = [
            (trusting(impostor, ca=ours.ca), Unauthorized),  # the device does not know its CA
            (trusting(ours, ca=impostor.ca), PeerUnreachable),  # we do not know the device's CA
        ]
        for tls, error in cases:
            device = Device(keeper.url, tls, peer_sae=THERE)
            with pytest.raises(error) as caught:
                await device.status()
            assert "certificate" in str(caught.value)
            await device.close()
        wrong_name = Device(keeper.url.replace("127.0.0.1", "localhost"), cast.tls(HERE), peer_sae=THERE)
        with pytest.raises(PeerUnreachable):
            await wrong_name.status()
        await wrong_name.close()

    asyncio.run(scene())


def test_a_multicast_key_waits_for_the_last_of_those_named(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        before = (await mirror.account())["keys"]["waiting"]
        body = json.dumps({"number": 1, "additional_slave_SAE_IDs": [THIRD]}).encode()
        _, answer, _ = await keeper.call(HERE, "POST", f"/api/v1/keys/{quote(THERE, safe='')}/enc_keys", body)
        path = f"/api/v1/keys/{quote(HERE, safe='')}/dec_keys?key_ID={answer['keys'][0]['key_ID']}"
        assert (await mirror.call(THERE, "GET", path))[:2] == (200, answer)
        assert (await mirror.call(THERE, "GET", path))[0] == 400
        assert (await mirror.account())["keys"]["waiting"] == before + 1
        assert (await mirror.call(THIRD, "GET", path))[:2] == (200, answer)
        assert (await mirror.account())["keys"]["waiting"] == before

    asyncio.run(scene())


@pytest.mark.parametrize("at", [0, 1], ids=["keeper", "mirror"])
def test_a_cut_stops_supply_at_both_ends_but_not_what_is_there(plain_pair: tuple[End, End], at: int) -> None:
    async def scene() -> None:
        near, far = plain_pair[0].client(HERE, THERE), plain_pair[1].client(THERE, HERE)
        sent = await near.enc_keys(2, 256)
        try:
            assert (await plain_pair[at].knobs(cut=True))["told_peer"]
            before = (await plain_pair[0].account())["bits"]["produced"]
            for device in (near, far):
                with pytest.raises(Unavailable):
                    await device.enc_keys(1, 256)
            assert bits(await far.dec_keys([key.key_id for key in sent])) == bits(sent)
            await asyncio.sleep(0.2)  # two blocks' time
            assert (await plain_pair[0].account())["bits"]["produced"] == before
        finally:
            await plain_pair[at].knobs(cut=False)
        for device in (near, far):
            await device.enc_keys(1, 256)
            await device.close()

    asyncio.run(scene())


@pytest.mark.parametrize("at", [0, 1], ids=["keeper", "mirror"])
def test_a_dry_pair_says_so_at_both_ends_and_recovers(plain_pair: tuple[End, End], at: int) -> None:
    async def scene() -> None:
        near, far = plain_pair[0].client(HERE, THERE), plain_pair[1].client(THERE, HERE)
        try:
            await plain_pair[at].knobs(dry=True)
            for device, end in zip((near, far), plain_pair, strict=True):
                with pytest.raises(InsufficientKey) as caught:
                    await device.enc_keys(1, 256)
                assert caught.value.retry_after == 2
                assert (await device.status()).stored_key_count == 0
                assert (await end.account())["bits"]["stored"] == 0
        finally:
            await plain_pair[at].knobs(dry=False)
        async with asyncio.timeout(60):
            while not (await near.status()).stored_key_count:
                await asyncio.sleep(0.02)
        assert len(await near.enc_keys(1, 256)) == 1
        await near.close()
        await far.close()

    asyncio.run(scene())


def test_a_lagging_end_sees_keys_later(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        near, far = keeper.client(HERE, THERE), mirror.client(THERE, HERE)
        [key] = await near.enc_keys(1, 256)
        await mirror.knobs(lag_s=3600)
        with pytest.raises(KeyNotFound):
            await far.dec_keys([key.key_id])
        await mirror.knobs(lag_s=0)
        assert bits(await far.dec_keys([key.key_id])) == bits([key])
        await near.close()
        await far.close()

    asyncio.run(scene())


def test_ends_can_be_made_to_disagree(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        near, far = keeper.client(HERE, THERE), mirror.client(THERE, HERE)
        first, second = await near.enc_keys(2, 256)
        await mirror.knobs(disagree=True)
        [flipped] = await far.dec_keys([first.key_id])
        assert flipped.bits.reveal() != first.bits.reveal()
        await mirror.knobs(disagree=False)
        assert bits(await far.dec_keys([second.key_id])) == bits([second])
        await near.close()
        await far.close()

    asyncio.run(scene())


def test_knobs_are_validated_and_change_one_by_one(plain_pair: tuple[End, End]) -> None:
    keeper, _ = plain_pair

    async def scene() -> None:
        await keeper.knobs(delay_scale=0.5)
        assert (await keeper.knobs(lag_s=1.5))["knobs"] == {
            "cut": False,
            "dry": False,
            "lag_s": 1.5,
            "disagree": False,
            "delay_scale": 0.5,
        }
        for wrong in (b"[]", b'{"lag_s": -1}', b'{"cut": 3}', b'{"unplug": true}'):
            assert (await keeper.call("op", "PUT", "/testbed/knobs", wrong))[0] == 400
        await keeper.knobs(lag_s=0, delay_scale=1)

    asyncio.run(scene())


def test_the_accounts_of_both_ends_add_up(plain_pair: tuple[End, End]) -> None:
    keeper, mirror = plain_pair

    async def scene() -> None:
        near, far = keeper.client(HERE, THERE), mirror.client(THERE, HERE)
        start = [await end.account() for end in plain_pair]
        there = await near.enc_keys(12, 256)
        back = await far.enc_keys(5, 128)
        await far.dec_keys([key.key_id for key in there[:10]])
        await near.dec_keys([key.key_id for key in back])
        await keeper.knobs(cut=True)  # the account stands still; the mirror knows its last state
        await keeper.knobs(cut=False)
        await near.close()
        await far.close()
        a, b = [await end.account() for end in plain_pair]
        assert balanced(a)
        assert balanced(b)
        assert a["run"] == b["run"]
        grown = [
            {name: now[part][name] - then[part][name] for part in ("bits", "keys") for name in now[part]}
            for now, then in zip((a, b), start, strict=True)
        ]
        assert [g["enc"] for g in grown] == [12, 5]
        assert [g["dec"] for g in grown] == [5, 10]
        assert [g["delivered"] for g in grown] == [12 * 256 + 5 * 128, 10 * 256 + 5 * 128]
        assert b["keys"]["waiting"] - start[1]["keys"]["waiting"] == 2

    asyncio.run(scene())


def test_a_device_is_small(plain_pair: tuple[End, End]) -> None:
    for end in plain_pair:
        assert psutil.Process(end.process.pid).memory_info().rss < 60 << 20


def test_odd_devices_are_served_as_they_are(odd_pair: tuple[End, End]) -> None:
    getter, fixed = odd_pair

    async def scene() -> None:
        near, far = getter.client(HERE, THERE), fixed.client(THERE, HERE)
        sent = await near.enc_keys(5, 256)  # POST is refused, GET found
        assert (await near.limits()).method == "get"
        assert bits(await far.dec_keys([key.key_id for key in sent])) == bits(sent)
        back = await far.enc_keys(3, 256)
        fresh = getter.client(HERE, THERE)  # meets the refused verb with several ids at once
        assert bits(await fresh.dec_keys([key.key_id for key in back])) == bits(back)
        with pytest.raises(Refused):
            await far.enc_keys(1, 128)
        assert (await fixed.call(THERE, "GET", f"/api/v1/keys/{quote(HERE, safe='')}/enc_keys?size=128"))[
            0
        ] == 400
        status = await far.status()
        assert status.max_SAE_ID_count is None
        assert len(await near.enc_keys(4, 256)) == 4  # 12 keys in all, and no rate
        assert await far.status() == status, "this device's status is allowed to be old"
        with pytest.raises(InsufficientKey):
            await near.enc_keys(1, 256)
        status_code, body, _ = await getter.call(
            HERE, "GET", f"/api/v1/keys/{quote(THERE, safe='')}/enc_keys"
        )
        assert (status_code, body["message"]) == (400, "not enough key material available")
        for device in (near, far, fresh):
            await device.close()

    asyncio.run(scene())


def test_a_restarted_end_is_found_again_and_never_repeats_bits(cast: Cast) -> None:
    async def some(end: End, sae: str, peer: str) -> list[Any]:
        device = end.client(sae, peer)
        try:
            return await device.enc_keys(4, 256)
        finally:
            await device.close()

    overrides = {"rate": 0.0, "initial": 256 * 64, "delay_median": 0.0}
    with running(cast, "restart", ("instant", "clavis3"), overrides) as (keeper, mirror):
        before = asyncio.run(some(mirror, THERE, HERE))
        old_run = asyncio.run(mirror.account())["run"]
        stop(keeper)
        assert not keeper.ready.exists()
        with pytest.raises(Unavailable):
            asyncio.run(some(mirror, THERE, HERE))
        again = start(cast, keeper.config)
        keeper.process = again.process
        asyncio.run(serving(keeper))
        after = asyncio.run(some(mirror, THERE, HERE))
        assert not {value for _, value in bits(before)} & {value for _, value in bits(after)}
        assert asyncio.run(mirror.account())["run"] != old_run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preset": "none"}, "no preset"),
        ({"colour": "red"}, "colour"),
        ({"overrides": {"speed": 1}}, "speed"),
        ({"overrides": {"block": 7}}, "whole bytes"),
        ({"overrides": {"verbs": "patch"}}, "verbs"),
        ({"saes": ["op"]}, "operator"),
        ({"seed": "/nonexistent"}, "/nonexistent"),
    ],
)
def test_a_wrong_configuration_ends_at_once(cast: Cast, change: dict[str, Any], says: str) -> None:
    config = _spare_config(cast) | change
    code, err = _run_device(write(config))
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


def test_secrets_that_others_can_read_are_refused(cast: Cast) -> None:
    config = _spare_config(cast)
    assert _run_device(write(config, 0o644))[0] == 2
    Path(config["seed"]).chmod(0o640)
    code, err = _run_device(write(config))
    assert code == 2
    assert "chmod 600" in err


def _spare_config(cast: Cast) -> dict[str, Any]:
    _spare_config.count = getattr(_spare_config, "count", 0) + 1  # type: ignore[attr-defined]
    return configure(cast, f"spare{_spare_config.count}", ("instant", "instant"), {})[0]  # type: ignore[attr-defined]


def _run_device(path: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "keyhaul.testbed.devices", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_a_device_listens_where_it_is_told_to(cast: Cast) -> None:
    """As in a container, where its peer and its node come from elsewhere."""
    config, _ = configure(cast, "elsewhere", ("instant", "instant"), {})
    end = start(cast, {**config, "host": "127.0.0.2"})
    try:
        asyncio.run(serving(end))
        assert end.url.startswith("https://127.0.0.2:")
    finally:
        stop(end)
