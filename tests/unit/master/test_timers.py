"""The master's timers: in order, in time, and never in the way of everything else."""

from __future__ import annotations

from functools import partial

from prefork.master.timers import Timers


class Clock:
    """Goes on by a little with each look, as a real one does."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def test_timers_fire_in_the_order_of_their_times() -> None:
    clock = Clock()
    timers = Timers(clock)
    fired: list[str] = []
    timers.later(2.0, partial(fired.append, "second"))
    timers.later(1.0, partial(fired.append, "first"))
    timers.later(9.0, partial(fired.append, "not yet"))
    clock.now += 3.0
    timers.fire()
    assert fired == ["first", "second"]


def test_the_wait_is_until_the_next_one() -> None:
    clock = Clock()
    timers = Timers(clock)
    assert timers.wait() is None
    timers.later(5.0, lambda: None)
    wait = timers.wait()
    assert wait is not None
    assert 4.9 < wait <= 5.0
    clock.now += 10.0
    assert timers.wait() == 0.0


def test_a_timer_that_is_due_again_at_once_waits_for_the_next_turn() -> None:
    timers = Timers(Clock())
    fired: list[str] = []

    def again() -> None:
        fired.append("again")
        timers.later(0.0, again)

    timers.later(0.0, again)
    timers.later(0.0, partial(fired.append, "other"))
    timers.fire()
    assert fired == ["again", "other"]
    timers.fire()
    assert fired == ["again", "other", "again"]
