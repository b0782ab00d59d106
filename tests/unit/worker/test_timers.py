from __future__ import annotations

import math

from prefork.worker.timers import Timers

SHORT, LONG = 0, 1


class Thing:
    def __init__(self) -> None:
        self.timer: int | None = None


def test_each_expires_after_its_own_time_in_any_class() -> None:
    timers: Timers[Thing] = Timers([1.0, 10.0])
    first, second, third = Thing(), Thing(), Thing()
    timers.arm(first, LONG, 0.0)
    timers.arm(second, SHORT, 0.5)
    timers.arm(third, SHORT, 0.7)
    assert timers.wake_at == 1.5
    assert timers.expired(1.5) == [second]
    timers.disarm(second)
    assert timers.wake_at == 1.7
    assert timers.expired(20.0) == [third, first]


def test_a_refreshed_deadline_moves_behind_the_others() -> None:
    timers: Timers[Thing] = Timers([1.0, 10.0])
    first, second = Thing(), Thing()
    timers.arm(first, SHORT, 0.0)
    timers.arm(second, SHORT, 0.1)
    timers.arm(first, SHORT, 0.5)
    assert timers.expired(1.2) == [second]
    timers.disarm(second)
    assert timers.expired(1.2) == []
    assert timers.wake_at == 1.5


def test_another_class_replaces_the_deadline() -> None:
    timers: Timers[Thing] = Timers([1.0, 10.0])
    thing = Thing()
    timers.arm(thing, SHORT, 0.0)
    timers.arm(thing, LONG, 0.0)
    assert timers.expired(5.0) == []
    assert timers.wake_at == 10.0
    timers.disarm(thing)
    assert timers.expired(50.0) == []
    assert timers.wake_at == math.inf
    timers.disarm(thing)
