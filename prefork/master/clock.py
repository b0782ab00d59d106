"""Time as the supervisor counts it: the monotonic clock, less the time during which nobody could run.

A machine that was suspended or starved, or a process tree that was halted, must not make deadlines pass. The loop
never sleeps longer than it means to, so waking up late tells how much was lost; after SIGCONT all of the last sleep
counts as lost, for it cannot be known when it was cut short.
"""

from __future__ import annotations

import time
from collections import deque

# Waking up later than this is no ordinary delay. A loaded machine delays a wake-up by tens of milliseconds.
LATE = 0.5
# How many losses are remembered, for deadlines armed before them.
MEMORY = 64


class SteadyClock:
    """Counts only time in which things could happen."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._losses: deque[tuple[float, float]] = deque(maxlen=MEMORY)

    def now(self) -> float:
        """Return the present moment in seconds."""
        return time.monotonic() - self._lost

    def note_sleep(self, began: float, meant: float | None, halted: bool) -> float:
        """Take notice of a sleep that has just ended, and return how much of it was lost.

        Args:
            began: when it began, on the monotonic clock.
            meant: how long it was to last at most; None: until something happens.
            halted: whether SIGCONT has come meanwhile.

        """
        slept = time.monotonic() - began
        lost = slept if halted else slept - meant if meant is not None and slept > meant + LATE else 0.0
        if lost:
            self._lost += lost
            self._losses.append((began, lost))
        return lost

    def adjust(self, since: float, moment: float) -> float:
        """Return when, as counted here, a moment is that was fixed at ``since``; both on the monotonic clock.

        What was lost before ``since`` was not known to anybody, what was lost after it is made up for.
        """
        return moment - self._lost + sum(lost for began, lost in self._losses if began + lost > since)
