"""The Python client against a real port: sync, async, from threads, with certificates renewed under it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from keyhaul.client import AsyncClient, Client
from keyhaul.errors import (
    ConfigError,
    InsufficientKey,
    KeyNotFound,
    PeerUnreachable,
    Refused,
    Unauthorized,
    Unavailable,
)
from keyhaul.messages.etsi014 import Delivered, Order
from tests.northbound import MASTER, OTHER, SLAVE, TRUST, Cast, Kernel, Slow, Stage, stage


@dataclass(frozen=True)
class Identity:
    """PEM files of one SAE in a folder of its own, as an operator would renew them."""

    folder: Path

    def become(self, cast: Cast, sae: str) -> Identity:
        found = cast.saes[sae]
        for source, name in ((found.cert, "cert"), (found.key, "key"), (found.ca, "ca")):
            fresh = self.folder / f"{name}.new"
            shutil.copy(source, fresh)
            fresh.replace(self.folder / name)
        return self

    @property
    def files(self) -> dict[str, Path]:
        return {name: self.folder / name for name in ("cert", "key", "ca")}


def files_of(cast: Cast, sae: str) -> dict[str, Path]:
    found = cast.saes[sae]
    return {"cert": found.cert, "key": found.key, "ca": found.ca}


@asynccontextmanager
async def two(cast: Cast, kernel: Any = None) -> AsyncIterator[tuple[Stage, AsyncClient, AsyncClient]]:
    async with (
        stage(cast, kernel=kernel) as port,
        AsyncClient(port.url, **files_of(cast, MASTER)) as master,
        AsyncClient(port.url, **files_of(cast, SLAVE)) as slave,
    ):
        yield port, master, slave


async def in_thread(work: Callable[..., Any], *values: Any) -> Any:
    """Blocking work of a program without a loop, while this loop serves the port."""
    with ThreadPoolExecutor() as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *values)


def test_the_same_bits_at_both_ends_once(cast: Cast) -> None:
    async def story() -> None:
        async with two(cast) as (_, master, slave):
            keys = await master.get_key(SLAVE, number=3, size=128, additional=[OTHER])
            assert [len(key.bits) for key in keys] == [16] * 3
            ids = [str(key.key_id) for key in keys]
            got = await slave.fetch_key(MASTER, ids, trust=True)
            assert all(a.bits.same_as(b.bits) for a, b in zip(keys, got, strict=True))
            assert [key.trust for key in got] == [TRUST] * 3
            with pytest.raises(KeyNotFound):
                await slave.fetch_key(MASTER, ids[:1])
            assert (await master.status(SLAVE)).slave_sae == SLAVE

    asyncio.run(story())


def test_a_program_without_a_loop_has_the_same_calls(cast: Cast) -> None:
    def program(url: str) -> None:
        with (
            Client(url, **files_of(cast, MASTER)) as master,
            Client(url, **files_of(cast, SLAVE)) as slave,
            ThreadPoolExecutor(4) as threads,
        ):
            many = list(threads.map(lambda _: master.get_key(SLAVE)[0], range(12)))
            assert len({key.key_id for key in many}) == 12
            got = slave.fetch_key(MASTER, [key.key_id for key in many])
            assert all(a.bits.same_as(b.bits) for a, b in zip(many, got, strict=True))
            assert slave.status(MASTER).master_sae == SLAVE
            with pytest.raises(Refused, match="no key ID"):
                slave.fetch_key(MASTER, ["not-an-id"])
        master.close()
        with pytest.raises(Refused, match="closed"):
            master.status(SLAVE)

    async def story() -> None:
        async with stage(cast) as port:
            await in_thread(program, port.url)

    asyncio.run(story())


def test_a_sync_client_works_inside_a_running_loop(cast: Cast) -> None:
    """As in a notebook, whose cells run in a loop; here the port's own, so the call goes by a thread."""

    async def story() -> None:
        async with stage(cast) as port:
            client = await in_thread(lambda: Client(port.url, **files_of(cast, MASTER)))
            assert len(await in_thread(client.get_key, SLAVE)) == 1
            await in_thread(client.close)

    asyncio.run(story())


class Busy(Kernel):
    """Says 503 a few times before it serves."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals

    async def request(self, order: Order) -> list[Delivered]:
        if self.refusals:
            self.refusals -= 1
            busy = InsufficientKey("not enough key material available", "try again later")
            busy.retry_after = 0
            raise busy
        return await super().request(order)


def test_503_is_waited_for_as_long_as_patience_lasts(cast: Cast) -> None:
    async def story() -> None:
        async with two(cast, Busy(3)) as (port, master, _):
            assert len(await master.get_key(SLAVE)) == 1
            port.kernel.refusals = 1
            hasty = AsyncClient(port.url, **files_of(cast, MASTER), patience=0.0)
            with pytest.raises(Unavailable):
                await hasty.get_key(SLAVE)
            await hasty.close()

    asyncio.run(story())


def test_a_renewed_certificate_is_used_from_the_next_call_on(cast: Cast, tmp_path: Path) -> None:
    async def story() -> None:
        identity = Identity(tmp_path).become(cast, MASTER)
        async with two(cast) as (port, _, slave), AsyncClient(port.url, **identity.files) as client:
            (key,) = await client.get_key(SLAVE)
            assert port.kernel.orders[-1].master == MASTER
            identity.become(cast, OTHER)
            await client.get_key(SLAVE)
            assert port.kernel.orders[-1].master == OTHER
            assert len(await slave.fetch_key(MASTER, [key.key_id])) == 1

    asyncio.run(story())


def test_a_broken_renewal_leaves_the_last_good_certificate_and_is_said_once(
    cast: Cast, tmp_path: Path, logs: list[Any]
) -> None:
    async def story() -> None:
        identity = Identity(tmp_path).become(cast, MASTER)
        async with stage(cast) as port, AsyncClient(port.url, **identity.files) as client:
            await client.get_key(SLAVE)
            (tmp_path / "cert").write_text("not a certificate")
            for _ in range(3):
                await client.get_key(SLAVE)
            identity.become(cast, OTHER)
            await client.get_key(SLAVE)
            assert port.kernel.orders[-1].master == OTHER
        said = [entry for entry in logs if "last one stays" in entry["event"]]
        assert len(said) == 1

    asyncio.run(story())


def test_a_call_under_way_survives_the_renewal(cast: Cast, tmp_path: Path) -> None:
    async def story() -> None:
        identity, kernel = Identity(tmp_path).become(cast, MASTER), Slow()
        async with stage(cast, kernel=kernel) as port, AsyncClient(port.url, **identity.files) as client:
            waiting = asyncio.create_task(client.get_key(SLAVE))
            await kernel.entered.wait()
            identity.become(cast, OTHER)
            await client.status(SLAVE)
            kernel.go.set()
            assert len(await waiting) == 1
            assert kernel.orders[-1].master == MASTER

    asyncio.run(story())


Asked = Callable[[AsyncClient], Awaitable[Any]]


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda sae: sae.fetch_key(MASTER, [uuid4()]), KeyNotFound),
        (lambda sae: sae.get_key("sae-nobody"), Refused),
        (lambda sae: sae.get_key(SLAVE, size=7), Refused),
        (lambda sae: sae.get_key(SLAVE, mandatory=[{"acme_x": 1}]), Refused),
    ],
)
def test_refusals_are_typed_and_say_what_to_do(cast: Cast, ask: Asked, error: type[Exception]) -> None:
    async def story() -> None:
        async with two(cast) as (_, master, _slave):
            with pytest.raises(error) as caught:
                await ask(master)
            assert getattr(caught.value, "cause", "")

    asyncio.run(story())


def test_files_that_do_not_fit_and_addresses_that_are_none(cast: Cast, tmp_path: Path) -> None:
    async def story() -> None:
        files = files_of(cast, MASTER)
        with pytest.raises(ConfigError, match="https"):
            AsyncClient("http://localhost:1", **files)
        async with stage(cast) as port:
            with pytest.raises(ConfigError, match="no such file"):
                await AsyncClient(port.url, **{**files, "cert": tmp_path / "none"}).status(SLAVE)
            with pytest.raises(ConfigError, match="does not belong"):
                await AsyncClient(port.url, **{**files, "key": cast.saes[SLAVE].key}).status(SLAVE)
            async with AsyncClient(
                port.url, cert=cast.foreigner.cert, key=cast.foreigner.key, ca=cast.foreigner.ca
            ) as foreigner:
                with pytest.raises((PeerUnreachable, Unauthorized)):
                    await foreigner.status(SLAVE)

    asyncio.run(story())
