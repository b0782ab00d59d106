"""How often the master listens to one worker: a worker that talks without end must not keep the others waiting."""

from __future__ import annotations

# A worker has little to say: some ten messages in its life, and one whenever it arms a deadline while nobody looks. What
# has gathered while the master was halted is less than this: the channel's buffer holds about 300.
MOST = 1000
SPAN = 1.0


class Allowance:
    """What one worker may send within SPAN seconds."""

    def __init__(self) -> None:
        self._began = 0.0
        self._taken = 0
        self.was_exceeded = False

    def take(self, now: float) -> bool:
        """Return whether one more thing may be taken from the worker now; if not, it waits."""
        if now - self._began >= SPAN:
            self._began, self._taken = now, 0
        if self._taken >= MOST:
            return False
        self._taken += 1
        return True

    def note_excess(self) -> bool:
        """Return whether this is the first time that the worker has sent too much."""
        is_first, self.was_exceeded = not self.was_exceeded, True
        return is_first
