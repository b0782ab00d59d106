"""Time as the supervisor counts it: the monotonic clock, less the time during which nobody could run.

A machine that was suspended or starved, or a process tree that was halted, must not make deadlines pass. The loop
never sleeps longer than it means to, so waking up late tells how much was lost; after SIGCONT all of the last sleep
counts as lost, for it cannot be known when it was cut short. Between two sleeps time that nobody looked at is lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

# Waking up later than this is no ordinary delay. A loaded machine delays a wake-up by tens of milliseconds.
LATE = 0.5
# How many losses are remembered, for deadlines armed before them.
MEMORY = 64


class SteadyClock:
    """Counts only time in which things could happen.

    Args:
        monotonic: returns seconds that never go back.

    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen = monotonic()
        self._lost = 0.0
        self._losses: deque[tuple[float, float]] = deque(maxlen=MEMORY)

    def now(self) -> float:
        """Return the present moment in seconds."""
        moment = self._monotonic()
        if moment - self._seen > LATE:
            # Not asleep, but halted in the midst of work: none of the master's takes so long.
            self._lose(self._seen, moment - self._seen)
        self._seen = moment
        return moment - self._lost

    def note_sleep(self, meant: float | None, halted: bool) -> float:
        """Take notice of a sleep that has just ended, and return how much of it was lost; ``now`` has preceded it.

        Args:
            meant: how long it was to last at most; None: until something happens.
            halted: whether SIGCONT has come meanwhile.

        """
        began, self._seen = self._seen, self._monotonic()
        slept = self._seen - began
        lost = slept if halted else slept - meant if meant is not None and slept > meant + LATE else 0.0
        if lost:
            self._lose(began, lost)
        return lost

    def past(self) -> list[Any]:
        """Return what a clock in another program needs to go on where this one was."""
        return [self._seen, self._lost, list(self._losses)]

    def resume(self, past: list[Any]) -> None:
        """Go on where another clock was: the time between the two is lost if it was long."""
        self._seen, self._lost, losses = past
        self._losses.extend(losses)

    def adjust(self, since: float, moment: float) -> float:
        """Return when, as counted here, a moment is that was fixed at ``since``; both on the monotonic clock.

        What was lost before ``since`` was not known to anybody, what was lost after it is made up for.
        """
        return moment - self._lost + sum(lost for began, lost in self._losses if began + lost > since)

    def _lose(self, began: float, lost: float) -> None:
        self._lost += lost
        self._losses.append((began, lost))
