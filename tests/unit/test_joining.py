"""Who travels together: all that is ready in one turn of the loop, never more than may be unanswered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from keyhaul.edge.joining import Joined, Waiting
from keyhaul.messages import bundle


class Road:
    """Keeps what is sent until it is told to answer."""

    def __init__(self, most: int = 8, patience: float = 60.0) -> None:
        self.lots: list[Sequence[Waiting]] = []
        self.open = asyncio.Event()
        self.joined = Joined(self.carry, most, patience)

    async def carry(self, lot: Sequence[Waiting]) -> None:
        self.lots.append(lot)
        await self.open.wait()
        for each in lot:
            each.told(202, each.body)

    def post(self, *bodies: bytes) -> list[asyncio.Task[tuple[int, bytes]]]:
        return [asyncio.create_task(self.joined.post(body)) for body in bodies]

    @property
    def bodies(self) -> list[list[bytes]]:
        return [[each.body for each in lot] for lot in self.lots]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_that_is_alone_goes_alone_and_at_once() -> None:
    async def story() -> None:
        road = Road()
        (first,) = road.post(b"a")
        await turns()
        (second,) = road.post(b"b")
        await turns()
        assert road.bodies == [[b"a"], [b"b"]]
        road.open.set()
        assert (await first, await second) == ((202, b"a"), (202, b"b"))

    asyncio.run(story())


def test_those_of_one_turn_go_together_and_the_others_when_there_is_room() -> None:
    async def story() -> None:
        road = Road(most=4)
        posts = road.post(*(b"%d" % number for number in range(6)))
        await turns()
        assert road.bodies == [[b"0", b"1", b"2", b"3"]]
        road.lots[0][2].told(400, b"no")
        await turns()
        assert road.bodies[1:] == [[b"4"]]
        road.open.set()
        answers = await asyncio.gather(*posts)
        assert [status for status, _ in answers] == [202, 202, 400, 202, 202, 202]

    asyncio.run(story())


def test_large_ones_do_not_share() -> None:
    async def story() -> None:
        road = Road()
        half = bytes(bundle.LARGEST // 2)
        road.open.set()
        await asyncio.gather(*road.post(half, half, b"x", bytes(bundle.LARGEST * 2), b"y"))
        assert [[len(body) for body in lot] for lot in road.bodies] == [
            [len(half)],
            [len(half), 1],
            [bundle.LARGEST * 2],
            [1],
        ]

    asyncio.run(story())


def test_what_goes_wrong_is_told_to_those_without_an_answer() -> None:
    async def story() -> None:
        async def carry(lot: Sequence[Waiting]) -> None:
            lot[0].told(202, b"")
            raise ConnectionResetError("torn")

        joined = Joined(carry, 8, 60.0)
        for _ in range(8):  # places come free again
            good, *bad = await asyncio.gather(*(joined.post(b"x") for _ in range(3)), return_exceptions=True)
            assert good == (202, b"")
            assert [type(each) for each in bad] == [ConnectionResetError] * 2

    asyncio.run(story())


def test_an_answer_that_leaves_one_out_leaves_nobody_waiting() -> None:
    async def story() -> None:
        async def carry(lot: Sequence[Waiting]) -> None:
            lot[0].told(202, b"")

        results = await asyncio.gather(
            *(Joined(carry, 8, 60.0).post(b"x") for _ in range(1)), return_exceptions=True
        )
        joined = Joined(carry, 8, 60.0)
        results += await asyncio.gather(joined.post(b"x"), joined.post(b"y"), return_exceptions=True)
        assert results[:2] == [(202, b"")] * 2
        assert isinstance(results[2], OSError)

    asyncio.run(story())


def test_who_finds_no_place_in_time_has_not_left() -> None:
    async def story() -> None:
        road = Road(most=1, patience=0.01)
        first, second = road.post(b"a", b"b")
        with pytest.raises(TimeoutError):
            await second
        road.open.set()
        assert await first == (202, b"a")
        await turns()
        assert road.bodies == [[b"a"]]

    asyncio.run(story())


def test_who_stops_waiting_is_not_sent_and_gives_its_place_back() -> None:
    async def story() -> None:
        road = Road(most=1)
        first, second, third = road.post(b"a", b"b", b"c")
        await turns()
        second.cancel()
        first.cancel()
        await turns()
        assert road.bodies == [[b"a"], [b"c"]]
        road.open.set()
        assert await third == (202, b"c")

    asyncio.run(story())


def test_closing_ends_what_is_under_way() -> None:
    async def story() -> None:
        road = Road()
        posts = road.post(b"a", b"b")
        await turns()
        await road.joined.close()
        results = await asyncio.gather(*posts, return_exceptions=True)
        assert [isinstance(each, OSError) for each in results] == [True, True]

    asyncio.run(story())
