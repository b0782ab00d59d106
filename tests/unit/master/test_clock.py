"""Time as the supervisor counts it: what nobody could use does not count."""

from __future__ import annotations

import pytest

from prefork.master.clock import LATE, SteadyClock


class Machine:
    """A clock over seconds that the test lets pass."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.clock = SteadyClock(lambda: self.seconds)
        self.began = self.clock.now()

    @property
    def counted(self) -> float:
        """What has been counted since the beginning."""
        return round(self.clock.now() - self.began, 6)

    def work(self, seconds: float) -> None:
        self.seconds += seconds

    def sleep(self, seconds: float, meant: float | None, halted: bool = False) -> float:
        self.clock.now()
        self.seconds += seconds
        return round(self.clock.note_sleep(meant, halted), 6)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_sleep_that_is_cut_short_or_lasts_as_meant_counts(machine: Machine) -> None:
    assert machine.sleep(3, meant=5) == 0
    assert machine.sleep(5, meant=5) == 0
    assert machine.sleep(5 + LATE / 2, meant=5) == 0
    assert machine.sleep(100, meant=None) == 0
    assert machine.counted == 113 + LATE / 2


def test_what_a_sleep_lasts_longer_than_meant_is_lost(machine: Machine) -> None:
    assert machine.sleep(20, meant=5) == 15
    assert machine.counted == 5


def test_a_sleep_in_which_the_process_was_halted_is_lost_as_a_whole(machine: Machine) -> None:
    assert machine.sleep(20, meant=None, halted=True) == 20
    assert machine.sleep(3, meant=5, halted=True) == 3
    assert machine.counted == 0


def test_work_counts(machine: Machine) -> None:
    for _ in range(10):
        machine.work(LATE / 2)
        machine.clock.now()
    assert machine.counted == 10 * LATE / 2


def test_being_halted_in_the_midst_of_work_does_not_count(machine: Machine) -> None:
    machine.work(20)
    assert machine.counted == 0
    assert machine.sleep(0.001, meant=5, halted=True) == 0.001
    assert machine.counted == 0


def test_a_deadline_fixed_before_a_loss_is_moved_and_one_fixed_after_it_is_not(machine: Machine) -> None:
    before = machine.seconds
    machine.sleep(20, meant=5)
    machine.work(20)
    machine.clock.now()
    after = machine.seconds
    assert machine.clock.adjust(before, before + 10) - machine.began == pytest.approx(10)
    assert machine.clock.adjust(after, after + 10) - machine.clock.now() == pytest.approx(10)


def test_another_program_counts_on(machine: Machine) -> None:
    machine.sleep(7, meant=2)
    armed = machine.seconds
    machine.sleep(5, meant=1)
    past = machine.clock.past()
    machine.seconds += LATE + 1  # nobody looked while it began
    machine.clock = SteadyClock(lambda: machine.seconds)
    machine.clock.resume(past)
    assert machine.counted == 3
    assert machine.clock.adjust(armed, armed + 10) == pytest.approx(machine.began + 2 + 10)
