"""Counts of what applications got: by second, in total, and how long they waited."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from keyhaul.activity import SAMPLES, WINDOW, Activity
from keyhaul.errors import Unavailable
from keyhaul.keys import Secret
from keyhaul.messages.etsi014 import Delivered, Order, Standing


class Shop:
    """A delivery that takes as long as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.takes = 0.0
        self.fails = False

    async def request(self, order: Order) -> list[Delivered]:
        self.now += self.takes
        if self.fails:
            raise Unavailable("the link is dry")
        return [Delivered(uuid4(), Secret(bytes(32))) for _ in range(order.number)]

    async def fetch(self, caller: str, master: str, key_ids: Sequence[UUID]) -> list[Delivered]:
        return [Delivered(key_id, Secret(bytes(32))) for key_id in key_ids]

    async def status(self, master: str, slave: str) -> Standing:
        return Standing(master, slave, 3, 9)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def order(number: int = 1) -> Order:
    return Order("a", ("b",), number, 256)


def test_keys_are_counted_in_the_second_they_were_given() -> None:
    async def story() -> None:
        shop = Shop()
        activity = Activity(shop, lambda: shop.now)
        await activity.request(order(2))
        await activity.request(order(3))
        shop.now += 1
        await activity.request(order())
        shop.now += 2
        summary = activity.summary()
        assert summary["given_total"] == 6
        assert summary["given_per_second"][-4:] == [5, 1, 0, 0]
        assert len(summary["given_per_second"]) == WINDOW
        shop.now += WINDOW
        await activity.request(order())
        assert activity.summary()["given_per_second"] == [0] * (WINDOW - 1) + [1]

    run(story())


def test_waits_are_told_as_percentiles_of_the_latest_samples() -> None:
    async def story() -> None:
        shop = Shop()
        activity = Activity(shop, lambda: shop.now)
        assert activity.summary()["wait_ms"] == {"samples": 0}
        for takes in [9.0, *([0.001] * 95), *([0.5] * 5)]:
            shop.takes = takes
            await activity.request(order())
        waits = activity.summary()["wait_ms"]
        assert (waits["samples"], waits["p50"], waits["p95"], waits["p99"]) == (101, 1.0, 500.0, 500.0)
        shop.takes = 0.002
        for _ in range(SAMPLES):
            await activity.request(order())
        assert activity.summary()["wait_ms"]["p99"] == 2.0

    run(story())


def test_refusals_fetches_and_status_pass_through() -> None:
    async def story() -> None:
        shop = Shop()
        activity = Activity(shop, lambda: shop.now)
        key_ids = [uuid4(), uuid4()]
        assert [key.key_id for key in await activity.fetch("b", "a", key_ids)] == key_ids
        assert (await activity.status("a", "b")).stored_key_count == 3
        shop.fails = True
        with pytest.raises(Unavailable):
            await activity.request(order())
        summary = activity.summary()
        assert (summary["fetched_total"], summary["refused_total"], summary["given_total"]) == (2, 1, 0)
        assert summary["last_refusal"] == "the link is dry"

    run(story())
