"""The SAE client against a real port: typed results, typed errors, bounded patience."""

from __future__ import annotations

import asyncio
import email.utils
import time
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web

from keyhaul.edge.accepting import Bounds
from keyhaul.edge.client import SaeClient
from keyhaul.edge.sae import render
from keyhaul.edge.server import Port, bind
from keyhaul.edge.tls import Policy, server_context
from keyhaul.errors import (
    ExtensionRefused,
    InsufficientKey,
    KeyNotFound,
    Malformed,
    PeerUnreachable,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from keyhaul.identity import sae_id
from keyhaul.messages.etsi014 import Delivered, Order
from keyhaul.unanswered import seconds_until
from tests.northbound import (
    FAR,
    MASTER,
    OTHER,
    SLAVE,
    TRUST,
    Cast,
    Kernel,
    stage,
)


def test_client_gets_and_fetches(cast: Cast) -> None:
    async def story() -> None:
        async with (
            stage(cast) as port,
            SaeClient(port.url, cast.tls(MASTER)) as master,
            SaeClient(port.url, cast.tls(SLAVE)) as slave,
        ):
            keys = await master.get_key(
                SLAVE, 3, 512, additional=[OTHER], optional=[{"keyhaul_trust": True}, {"acme_x": 1}]
            )
            assert [(len(key.bits), key.trust) for key in keys] == [(64, TRUST)] * 3
            ids = [key.key_id for key in reversed(keys)]
            fetched = await slave.fetch_key(MASTER, ids)
            assert [key.key_id for key in fetched] == ids
            assert all(a.bits.same_as(b.bits) for a, b in zip(reversed(keys), fetched, strict=True))
            assert (await slave.status(MASTER)).master_sae == SLAVE

    asyncio.run(story())


def test_client_errors_are_typed_and_carry_the_nodes_words(cast: Cast) -> None:
    async def story() -> None:
        async with stage(cast) as port, SaeClient(port.url, cast.tls(MASTER)) as client:
            with pytest.raises(Refused, match="size shall be a multiple of 8"):
                await client.get_key(SLAVE, size=9)
            with pytest.raises(ExtensionRefused, match="not all extension_mandatory request options"):
                await client.get_key(SLAVE, mandatory=[{"keyhaul_scheme": "blind"}])
            with pytest.raises(KeyNotFound, match="ask the master for fresh keys"):
                await client.fetch_key(SLAVE, [uuid4()])
            with pytest.raises(Unavailable, match="no path of links"):
                await client.get_key(FAR)
            [key] = await client.get_key(SLAVE)
            with pytest.raises(Unauthorized, match="not named"):
                await client.fetch_key(MASTER, [key.key_id])
            port.kernel.left = 100
            with pytest.raises(InsufficientKey) as lacking:
                await client.get_key(SLAVE)
            assert lacking.value.details == {"key_bits_requested": 256, "key_bits_available": 100}
            assert lacking.value.retry_after == 2

    asyncio.run(story())


def test_client_waits_for_key_while_its_patience_lasts(cast: Cast) -> None:
    class Refilling(Kernel):
        calls = 0

        async def request(self, order: Order) -> list[Delivered]:
            self.calls += 1
            if self.calls == 2:
                return await super().request(order)
            lacking = InsufficientKey("not enough key material available", "try again later")
            lacking.retry_after = 0 if self.calls == 1 else 3
            raise lacking

    async def story() -> tuple[int, int]:
        kernel = Refilling()
        async with stage(cast, kernel=kernel) as port:
            async with SaeClient(port.url, cast.tls(MASTER), patience=5) as patient:
                keys = await patient.get_key(SLAVE)
            async with SaeClient(port.url, cast.tls(MASTER), patience=1) as hasty:
                with pytest.raises(Unavailable):
                    await hasty.get_key(SLAVE)
        return len(keys), kernel.calls

    assert asyncio.run(story()) == (1, 3)


def test_a_time_to_come_back_is_a_number_or_a_date() -> None:
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 <= (seconds_until(soon) or 0) <= 31
    assert seconds_until(email.utils.formatdate(0, usegmt=True)) == 0
    assert [seconds_until(text) for text in ("7", "", "soon", "-3", "²")] == [7, None, None, None, None]


class Never(Kernel):
    """A kernel that does not come back."""

    async def request(self, order: Order) -> list[Delivered]:
        await asyncio.Event().wait()
        return []


def test_client_reports_what_stands_in_the_way(cast: Cast, tmp_path: Path) -> None:
    async def story() -> None:
        async with SaeClient("https://localhost:1", cast.tls(MASTER)) as nobody:
            with pytest.raises(PeerUnreachable, match="cannot connect"):
                await nobody.status(SLAVE)
        kernel = Never()
        async with stage(cast, kernel=kernel, bounds=Bounds(grace=0.1)) as port:
            wrong_name = port.url.replace("localhost", "127.0.0.2")
            async with SaeClient(wrong_name, cast.tls(MASTER)) as elsewhere:
                with pytest.raises(PeerUnreachable):
                    await elsewhere.status(SLAVE)
            async with SaeClient(port.url, cast.tls(MASTER), timeout=0.2) as hasty:
                with pytest.raises(TimedOut):
                    await hasty.get_key(SLAVE)

    asyncio.run(story())


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"keys":[]}', b'{"keys":[{"key_ID":"x","key":"AA=="}]}', b"\xff"]
)
def test_client_refuses_answers_that_are_not_014(cast: Cast, body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    async def story() -> None:
        application = web.Application()
        application.router.add_route("*", "/{anything:.*}", answer)
        port = Port("sae", application, render, sae_id, server_context(cast.port, Policy.COMPATIBLE))
        await port.open([bind("127.0.0.1", 0)])
        async with SaeClient(f"https://localhost:{port.addresses[0][1]}", cast.tls(MASTER)) as client:
            for call in (client.get_key(SLAVE), client.fetch_key(SLAVE, [uuid4()]), client.status(SLAVE)):
                with pytest.raises(Malformed):
                    await call
        await port.close()

    asyncio.run(story())
