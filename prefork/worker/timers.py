"""Deadlines of connections, in a few classes of constant length: the one armed last in its class is the last to expire.

So each class is a queue, and neither arming nor refreshing a deadline searches anything.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Whatever can have one deadline at a time; ``timer`` is its class, None while there is none."""

    timer: int | None


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """The deadlines of many.

    Args:
        lengths: the length of each class, in seconds.

    Attributes:
        wake_at: when to call ``expired`` next; never too late, and seldom too early.

    """

    def __init__(self, lengths: Sequence[float]) -> None:
        self.wake_at = math.inf
        self._lengths = tuple(lengths)
        self._queues: tuple[OrderedDict[T, float], ...] = tuple(OrderedDict() for _ in lengths)

    def arm(self, timed: T, timer: int, now: float) -> None:
        """Give ``timed`` its whole time, in one class instead of any other."""
        queue = self._queues[timer]
        if timed.timer != timer:
            self.disarm(timed)
            timed.timer = timer
        else:
            queue.move_to_end(timed)
        deadline = queue[timed] = now + self._lengths[timer]
        # A refreshed deadline leaves wake_at behind: one wake-up too early per class's length is cheaper than
        # looking for the earliest one at every request.
        if deadline < self.wake_at:
            self.wake_at = deadline

    def disarm(self, timed: T) -> None:
        """Take the deadline from ``timed``, if it has one."""
        if timed.timer is not None:
            del self._queues[timed.timer][timed]
            timed.timer = None

    def oldest(self, timer: int) -> T | None:
        """Return the one of a class whose deadline comes first, if there is any."""
        return next(iter(self._queues[timer]), None)

    def expired(self, now: float) -> list[T]:
        """Return those whose deadline has come, which they keep until they are armed anew or disarmed."""
        found: list[T] = []
        self.wake_at = math.inf
        for queue in self._queues:
            for timed, deadline in queue.items():
                if deadline > now:
                    self.wake_at = min(self.wake_at, deadline)
                    break
                found.append(timed)
        return found
