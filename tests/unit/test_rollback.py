"""A counter outside the store tells an old copy of it from the newest, whenever the power fails."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from keyhaul.errors import SealError
from keyhaul.stores.sealing import (
    Guard,
    check,
)


class PowerCut(Exception):
    pass


@dataclass
class Machine:
    """A store's epoch and a counter that goes up; the power can fail before any of its writes."""

    epoch: tuple[int, int] | None = None
    count: int = 1
    writes_left: int = 10**9

    def read(self) -> int:
        return self.count

    def increment(self) -> int:
        self._write()
        self.count += 1
        return self.count

    def save(self, epoch: tuple[int, int]) -> None:
        self._write()
        self.epoch = epoch

    def guard(self) -> Guard:
        return Guard(lambda: self.epoch, self.save, self)

    def _write(self) -> None:
        if self.writes_left == 0:
            raise PowerCut
        self.writes_left -= 1


def test_each_start_begins_a_new_epoch() -> None:
    machine = Machine()
    assert [machine.guard().advance() for _ in range(3)] == [2, 3, 4]
    assert machine.epoch == (4, 4)


@pytest.mark.parametrize("already", [0, 1, 2])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_crash_between_any_two_steps_does_not_lock_the_store(already: int, writes: int) -> None:
    machine = Machine()
    for _ in range(already):
        machine.guard().advance()
    for _ in range(3):  # and again, and again
        machine.writes_left = writes
        with pytest.raises(PowerCut):
            machine.guard().advance()
    machine.writes_left = 10**9
    assert machine.guard().advance() == machine.count


def test_an_old_copy_is_refused_and_nothing_is_written() -> None:
    machine = Machine()
    machine.guard().advance()
    old = machine.epoch
    machine.guard().advance()
    machine.epoch, count = old, machine.count
    with pytest.raises(SealError, match=r"rollback: .* old copy"):
        machine.guard().advance()
    assert (machine.epoch, machine.count) == (old, count)


def test_an_old_copy_taken_between_the_steps_is_refused_too() -> None:
    machine = Machine(writes_left=1)
    with pytest.raises(PowerCut):
        machine.guard().advance()
    old, machine.writes_left = machine.epoch, 10**9
    machine.guard().advance()
    machine.guard().advance()
    machine.epoch = old
    with pytest.raises(SealError, match="rollback"):
        machine.guard().advance()


def test_a_restored_copy_can_be_accepted_explicitly() -> None:
    machine = Machine()
    machine.guard().advance()
    old = machine.epoch
    machine.guard().advance()
    machine.epoch = old
    machine.guard().accept_restored()
    assert machine.guard().advance() == machine.count


def test_a_running_clone_is_noticed() -> None:
    machine = Machine()
    machine.guard().advance()
    clone = Guard(lambda: (2, 2), lambda _: None, machine)
    clone.advance()
    with pytest.raises(SealError, match="rollback"):
        machine.guard().advance()


def test_a_counter_turned_by_somebody_else_in_between_is_noticed() -> None:
    machine = Machine()

    def save(epoch: tuple[int, int]) -> None:
        machine.epoch = epoch
        machine.count += 1

    with pytest.raises(SealError, match="another node turns the same counter"):
        Guard(lambda: machine.epoch, save, machine).advance()


@pytest.mark.parametrize(
    ("stored", "counter", "verdict"),
    [
        (None, 7, None),
        ((7, 7), 7, None),
        ((6, 7), 6, None),
        ((6, 7), 7, None),
        ((6, 6), 7, "old copy"),
        ((6, 7), 8, "old copy"),
        ((8, 8), 7, "not the counter"),
        ((7, 8), 6, "not the counter"),
    ],
)
def test_the_counter_must_be_where_the_store_left_it(
    stored: tuple[int, int] | None, counter: int, verdict: str | None
) -> None:
    if verdict is None:
        check(stored, counter)
    else:
        with pytest.raises(SealError, match=f"rollback: .*{verdict}"):
            check(stored, counter)
