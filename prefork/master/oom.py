"""Which deaths the kernel's OOM killer is to blame for."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefork.system import process

# The kernel counts before it kills, and several dead are reaped one by one. What has not explained a death after so
# many seconds was somebody else's, such as a program's that a worker had started.
FRESH = 5.0


class OomKills:
    """The balance of kills that have been counted for this cgroup and of deaths that they explain.

    Args:
        count: returns how often the OOM killer has struck so far, or None if the kernel does not say.

    """

    def __init__(self, count: Callable[[], int | None] = process.oom_kills) -> None:
        self._count = count
        self._seen = count()
        self._seen_at = 0.0
        self._unexplained = 0

    def explain(self) -> bool:
        """Tell whether the OOM killer explains the death of a worker by SIGKILL; each of its kills explains one."""
        self._look(time.monotonic())
        if not self._unexplained:
            return False
        self._unexplained -= 1
        return True

    def _look(self, now: float) -> None:
        before, self._seen = self._seen, self._count()
        if now - self._seen_at > FRESH:
            self._unexplained = 0
        if before is not None and self._seen is not None and self._seen > before:
            self._unexplained += self._seen - before
            self._seen_at = now
