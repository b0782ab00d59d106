"""Functions that the master's loop calls when their time has come."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from itertools import count


class Timers:
    """Timers of one loop, in seconds of the monotonic clock.

    Args:
        monotonic: returns seconds that never go back.

    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def later(self, seconds: float, run: Callable[[], None]) -> None:
        """Call a function after so many seconds."""
        heapq.heappush(self._heap, (self._monotonic() + seconds, next(self._numbers), run))

    def wait(self) -> float | None:
        """Return for how many seconds nothing is due, None if nothing is pending."""
        return max(0.0, self._heap[0][0] - self._monotonic()) if self._heap else None

    def fire(self) -> None:
        """Call what is due now, once: a timer that is set meanwhile waits for the next turn, even if it is due by then.

        Otherwise a timer that sets itself again with too short a time (WATCHDOG_USEC=1) would never let the loop go on.
        """
        now = self._monotonic()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for run in due:
            run()
