"""The outbox in virtual time: again and unchanged, until answered, refused or lapsed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest

from keyhaul.errors import InsufficientKey, PeerUnreachable, StoreUnavailable
from keyhaul.keys import Message
from keyhaul.outbox import IN_FLIGHT, LONGEST_PAUSE, SETTLE_AFTER, Outbox
from keyhaul.ports import Answer
from keyhaul.rounds import behind, own
from keyhaul.testbed.clock import LoopClock, run

Behaviour = Callable[[Message], Answer | Exception]


def message(number: int = 1, peer: str = "b", *, patience: float = 30.0, sealed: bool = True) -> Message:
    now = LoopClock().now()
    body = f"body {number}".encode()
    return Message(UUID(int=number), peer, "ext_keys", body, sealed, (), now, now + patience)


@dataclass
class Peers:
    """Neighbours that behave as told; every attempt is kept with the time it was made."""

    behave: Behaviour = lambda message: Answer(202)
    delay: float = 0.01
    attempts: list[tuple[float, Message]] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0

    async def post(self, message: Message) -> Answer:
        self.attempts.append((asyncio.get_running_loop().time(), message))
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.busy -= 1
        answer = self.behave(message)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Outcome:
    batches: list[list[Message]] = field(default_factory=list)
    no: list[tuple[Message, int]] = field(default_factory=list)
    late: list[Message] = field(default_factory=list)
    full: bool = False

    async def settled(self, messages: Sequence[Message]) -> None:
        await asyncio.sleep(0.005)
        if self.full:
            raise StoreUnavailable("the disk is full")
        self.batches.append(list(messages))

    async def refused(self, message: Message, answer: Answer) -> None:
        if self.full:
            raise StoreUnavailable("the disk is full")
        self.no.append((message, answer.status))

    async def lapsed(self, message: Message) -> None:
        if self.full:
            raise StoreUnavailable("the disk is full")
        self.late.append(message)


class Bench:
    """An outbox with its world around it."""

    def __init__(self, behave: Behaviour | None = None) -> None:
        self.peers = Peers()
        if behave is not None:
            self.peers.behave = behave
        self.outcome = Outcome()
        self.tasks: set[asyncio.Task[None]] = set()
        self.outbox = Outbox(self.peers, LoopClock(), self.spawn)
        self.outbox.outcome = self.outcome

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def crash(self) -> None:
        for task in list(self.tasks):
            task.cancel()

    def settled(self) -> list[int]:
        return sorted(each.id.int for batch in self.outcome.batches for each in batch)

    def at(self) -> list[float]:
        return [at for at, _ in self.peers.attempts]


def unreachable(_: Message) -> Exception:
    return PeerUnreachable("b does not answer")


def answers(*each: int | Exception) -> Behaviour:
    """These in turn, then the last for ever."""
    left = list(each)

    def behave(_: Message) -> Answer | Exception:
        answer = left.pop(0) if len(left) > 1 else left[0]
        return Answer(answer) if isinstance(answer, int) else answer

    return behave


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("status", [200, 202, 204])
def test_an_accepted_message_is_settled_after_one_attempt(status: int) -> None:
    async def story() -> None:
        bench = Bench(answers(status))
        bench.outbox.send(message())
        await asyncio.sleep(5)
        assert bench.settled() == [1]
        assert len(bench.peers.attempts) == 1
        assert bench.outbox.waiting() == {"b": 0}
        assert not bench.tasks

    run(story())


@pytest.mark.parametrize("status", [400, 401])
def test_a_refused_message_is_not_sent_again(status: int) -> None:
    async def story() -> None:
        bench = Bench(answers(status))
        sent = message()
        bench.outbox.send(sent)
        await asyncio.sleep(60)
        assert bench.outcome.no == [(sent, status)]
        assert len(bench.peers.attempts) == 1
        assert bench.settled() == []
        assert bench.outcome.late == []

    run(story())


@pytest.mark.parametrize("trouble", [503, 408, 404, 500, 302, PeerUnreachable("gone")])
def test_anything_else_is_tried_again_byte_for_byte(trouble: int | Exception) -> None:
    async def story() -> None:
        bench = Bench(answers(trouble, trouble, trouble, 202))
        sent = message()
        bench.outbox.send(sent)
        await asyncio.sleep(29)
        assert [each for _, each in bench.peers.attempts] == [sent] * 4
        assert bench.settled() == [1]

    run(story())


@pytest.mark.parametrize("trouble", [503, PeerUnreachable("gone")])
def test_at_the_deadline_a_message_has_lapsed(trouble: int | Exception) -> None:
    async def story() -> None:
        bench = Bench(answers(trouble))
        sent = message(patience=20)
        bench.outbox.send(sent)
        await asyncio.sleep(19)
        assert bench.outcome.late == []
        assert bench.outbox.waiting() == {"b": 1}
        await asyncio.sleep(2)
        assert bench.outcome.late == [sent]
        assert max(bench.at()) <= 20.0 + 0.001
        count = len(bench.peers.attempts)
        await asyncio.sleep(60)
        assert len(bench.peers.attempts) == count
        assert bench.outbox.waiting() == {"b": 0}

    run(story())


def test_a_message_whose_deadline_passed_while_we_were_down_is_not_sent() -> None:
    async def story() -> None:
        bench = Bench()
        bench.outbox.send(message(patience=-1))
        await asyncio.sleep(1)
        assert bench.peers.attempts == []
        assert len(bench.outcome.late) == 1

    run(story())


def test_a_late_refusal_after_lost_answers_still_counts() -> None:
    async def story() -> None:
        bench = Bench(answers(PeerUnreachable("lost"), 503, 400))
        bench.outbox.send(message())
        await asyncio.sleep(20)
        assert [status for _, status in bench.outcome.no] == [400]

    run(story())


# ---------------------------------------------------------------------- back-off


def test_pauses_grow_and_stay_below_the_longest() -> None:
    async def story() -> None:
        bench = Bench(unreachable)
        bench.outbox.send(message(patience=600))
        await asyncio.sleep(599)
        pauses = [later - earlier for earlier, later in zip(bench.at(), bench.at()[1:], strict=False)]
        assert pauses[0] < 0.2
        assert max(pauses) <= LONGEST_PAUSE + 0.1
        assert min(pauses[10:]) > LONGEST_PAUSE / 3
        assert 600 / LONGEST_PAUSE <= len(pauses) < 600 / LONGEST_PAUSE * 2.5

    run(story())


def test_a_neighbour_that_is_down_is_tried_by_all_messages_together() -> None:
    async def story() -> None:
        bench = Bench(unreachable)
        for number in range(20):
            bench.outbox.send(message(number, patience=300))
        await asyncio.sleep(0.5)
        assert len(set(bench.at())) >= 3, "twenty messages that fail at once are one failure, not twenty"
        await asyncio.sleep(200)
        rounds = Counter(bench.at())
        assert set(rounds.values()) == {20}, "not every message on a timetable of its own"
        assert 200 / LONGEST_PAUSE <= len(rounds) < 200 / LONGEST_PAUSE * 2.5
        bench.peers.behave = answers(202)
        await asyncio.sleep(LONGEST_PAUSE + 1)
        assert bench.settled() == list(range(20)), "and all leave once it is back"

    run(story())


def test_one_dead_neighbour_does_not_slow_another() -> None:
    async def story() -> None:
        bench = Bench(lambda m: PeerUnreachable("gone") if m.peer == "b" else Answer(202))
        for number in range(2 * IN_FLIGHT):
            bench.outbox.send(message(number, "b"))
        await asyncio.sleep(5)
        bench.outbox.send(message(1000, "c"))
        await asyncio.sleep(0.5)
        assert bench.settled() == [1000]

    run(story())


def test_one_message_a_neighbour_cannot_take_does_not_slow_the_others() -> None:
    async def story() -> None:
        bench = Bench(lambda m: Answer(503) if m.id.int == 1 else Answer(202))
        bench.outbox.send(message(1))
        await asyncio.sleep(8)
        for number in range(2, 6):
            bench.outbox.send(message(number))
        await asyncio.sleep(0.5)
        assert bench.settled() == [2, 3, 4, 5]

    run(story())


def test_after_a_success_the_next_trouble_starts_with_short_pauses() -> None:
    async def story() -> None:
        bench = Bench(answers(*[PeerUnreachable("gone")] * 8, 202, PeerUnreachable("gone"), 202))
        bench.outbox.send(message(1, patience=100))
        await asyncio.sleep(60)
        assert bench.settled() == [1]
        bench.outbox.send(message(2))
        await asyncio.sleep(0.5)
        assert bench.settled() == [1, 2]

    run(story())


def test_only_so_many_messages_are_under_way_to_one_neighbour() -> None:
    async def story() -> None:
        bench = Bench()
        bench.peers.delay = 1.0
        for number in range(3 * IN_FLIGHT):
            bench.outbox.send(message(number), own(f"sae-{number}"))
        await asyncio.sleep(0.5)
        assert bench.outbox.waiting() == {"b": 3 * IN_FLIGHT}
        await asyncio.sleep(5)
        assert bench.peers.busiest == IN_FLIGHT
        assert bench.settled() == list(range(3 * IN_FLIGHT))

    run(story())


def test_an_application_has_at_most_as_many_under_way_as_it_leaves_free_and_a_neighbour_thrice() -> None:
    async def story() -> None:
        bench = Bench()
        bench.peers.delay = 1.0
        for number in range(IN_FLIGHT):
            bench.outbox.send(message(number), behind("a", "a", "sae-greedy"))
        await asyncio.sleep(0.5)
        assert bench.peers.busy == IN_FLIGHT // 2
        for number in range(2 * IN_FLIGHT):
            bench.outbox.send(message(1000 + number), behind("a", "a", f"sae-{number}"))
        await asyncio.sleep(0.1)
        assert bench.peers.busy == IN_FLIGHT * 3 // 4
        bench.outbox.send(message(5000), behind("z", "z", "sae-z"))
        await asyncio.sleep(0.1)
        assert bench.peers.attempts[-1][1].id.int == 5000, "there is a place for another neighbour at once"
        await asyncio.sleep(20)
        assert len(bench.settled()) == 3 * IN_FLIGHT + 1

    run(story())


def test_among_several_greedy_ones_a_modest_one_finds_a_place() -> None:
    async def story() -> None:
        bench = Bench()
        bench.peers.delay = 2.0
        for number in range(8 * IN_FLIGHT):
            bench.outbox.send(message(number, patience=300), own(f"sae-{number % 10}"))
        await asyncio.sleep(0.5)
        bench.outbox.send(message(9999), own("sae-modest"))
        await asyncio.sleep(0.1)
        assert bench.peers.attempts[-1][1].id.int == 9999

    run(story())


def test_a_message_that_gets_no_place_in_time_lapses_unsent() -> None:
    async def story() -> None:
        bench = Bench(answers(202))
        bench.peers.delay = 30.0
        for number in range(IN_FLIGHT):
            bench.outbox.send(message(number, patience=100))
        late = message(1000, patience=5)
        bench.outbox.send(late)
        await asyncio.sleep(6)
        assert bench.outcome.late == [late]
        assert late not in [sent for _, sent in bench.peers.attempts]

    run(story())


def test_acknowledgements_do_not_wait_for_places_that_transfers_hold() -> None:
    async def story() -> None:
        bench = Bench()
        bench.peers.delay = 5.0
        for number in range(4 * IN_FLIGHT):
            bench.outbox.send(message(number), own(f"sae-{number}"))
        await asyncio.sleep(0.5)
        bench.outbox.send(replace(message(1000), path="ack"))
        await asyncio.sleep(0.01)
        assert bench.peers.attempts[-1][1].id.int == 1000

    run(story())


# ---------------------------------------------------------------------- sealing on leaving


def test_a_message_is_sealed_when_it_first_leaves_and_repeated_as_it_left() -> None:
    async def story() -> None:
        bench = Bench(answers(PeerUnreachable("lost"), 503, 202))
        sealed = 0

        async def seal(each: Message) -> Message:
            nonlocal sealed
            if each.sealed:
                return each
            sealed += 1
            return replace(each, body=b"envelope %d" % sealed, sealed=True)

        bench.outbox.seal = seal
        bench.outbox.send(message(sealed=False))
        await asyncio.sleep(20)
        assert [each.body for _, each in bench.peers.attempts] == [b"envelope 1"] * 3

    run(story())


def test_a_message_that_cannot_be_sealed_yet_waits() -> None:
    async def story() -> None:
        bench = Bench()
        ready = False

        async def seal(each: Message) -> Message:
            if not ready:
                raise InsufficientKey("no one-time key of b")
            return each

        bench.outbox.seal = seal
        bench.outbox.send(message())
        await asyncio.sleep(10)
        assert bench.peers.attempts == []
        ready = True
        await asyncio.sleep(10)
        assert bench.settled() == [1]

    run(story())


# ---------------------------------------------------------------------- settling


def test_settled_messages_are_reported_in_batches() -> None:
    async def story() -> None:
        bench = Bench()
        for number in range(25):
            bench.outbox.send(message(number))
        await asyncio.sleep(SETTLE_AFTER + 1)
        assert bench.settled() == list(range(25))
        assert len(bench.outcome.batches) == 1
        bench.outbox.send(message(100))
        await asyncio.sleep(SETTLE_AFTER + 1)
        assert [len(batch) for batch in bench.outcome.batches] == [25, 1]

    run(story())


def test_messages_settled_during_a_report_make_the_next_one() -> None:
    async def story() -> None:
        bench = Bench()
        bench.outbox.send(message(1))
        await asyncio.sleep(0.01 + SETTLE_AFTER + 0.001)
        bench.outbox.send(message(2))
        await asyncio.sleep(3)
        assert bench.settled() == [1, 2]

    run(story())


def test_a_report_the_store_could_not_take_costs_one_more_repetition() -> None:
    async def story() -> None:
        bench = Bench()
        bench.outcome.full = True
        sent = message()
        bench.outbox.send(sent)
        await asyncio.sleep(SETTLE_AFTER + 0.05)
        bench.outcome.full = False
        await asyncio.sleep(5)
        assert bench.settled() == [1]
        assert {each for _, each in bench.peers.attempts} == {sent}
        assert len(bench.peers.attempts) >= 2

    run(story())


def test_after_a_restart_the_very_same_bytes_go_out_again() -> None:
    async def story() -> None:
        bench = Bench(unreachable)
        on_disk = [message(number, patience=100) for number in range(5)]
        for each in on_disk:
            bench.outbox.send(each)
        await asyncio.sleep(10)
        bench.crash()
        await asyncio.sleep(1)
        assert not bench.tasks
        assert bench.outbox.waiting() == {"b": 0}
        again = Bench()
        for each in on_disk:
            again.outbox.send(each)
        await asyncio.sleep(5)
        assert again.settled() == list(range(5))
        before = {each.id: each for _, each in bench.peers.attempts}
        assert {each.id: each for _, each in again.peers.attempts} == before

    run(story())


@pytest.mark.parametrize("status", [400, 503])
def test_an_outcome_the_store_could_not_take_is_told_until_it_can(status: int) -> None:
    async def story() -> None:
        bench = Bench(answers(status))
        bench.outcome.full = True
        mine = message(1, patience=2.0)
        bench.outbox.send(mine)
        await asyncio.sleep(60.0)
        attempts = len(bench.peers.attempts)
        assert bench.outcome.no == []
        assert bench.outcome.late == []
        bench.outcome.full = False
        await asyncio.sleep(LONGEST_PAUSE)
        assert [found for found, _ in bench.outcome.no] + bench.outcome.late == [mine], "once, and only once"
        assert len(bench.peers.attempts) == attempts, "the neighbour is not asked again"

    run(story())
