"""The templates of one pool: processes that have loaded the application, from which its workers are forked.

Each generation has its own, and none is forked from another's. A template lives through the states of a worker
(worker.py), but takes no worker's place, so that whoever counts workers does not meet it.
"""

from __future__ import annotations

from collections.abc import Iterator

from prefork.config.schema import TEMPLATE, Pool
from prefork.supervisor.actions import Action, Spawn
from prefork.supervisor.events import Clock, Pulse
from prefork.supervisor.worker import Input, Life, Retirement, State


class Templates:
    """The bookkeeping of a pool's templates.

    Args:
        births: gives each process its birth.

    Attributes:
        lives: all of them, those on their way out included, by birth.

    """

    def __init__(self, births: Iterator[int]) -> None:
        self.lives: dict[int, Life] = {}
        self._births = births

    def spawn(self, settings: Pool, generation: int) -> Spawn:
        """Return the order for a generation's template."""
        life = Life(next(self._births), settings, TEMPLATE, generation)
        self.lives[life.birth] = life
        return Spawn(life.birth, settings, TEMPLATE, generation)

    def has(self, generation: int) -> bool:
        """Tell whether a generation has a template, or is about to have one; one that has failed is still in its place."""
        return any(life.counts for life in self._of(generation))

    def can_fork(self, settings: Pool, generation: int) -> bool:
        """Tell whether workers of a generation can be spawned now: from their template, if they need one."""
        return not settings.preload or any(life.state is State.READY for life in self._of(generation))

    def retire(self, generation: int, why: str, now: float) -> list[Action]:
        """Let a generation's templates go."""
        # Nothing is in flight in a template: it needs no time, and whoever is stuck finds its own clock.
        return [
            action
            for life in self._of(generation)
            if life.counts and not life.asked
            for action in life.handle(
                Input.RETIRE, Retirement(why, empty_queue=False, grace=life.pool.graceful_timeout), now
            )
        ]

    def retire_others(self, kept: set[int], why: str, now: float) -> list[Action]:
        """Let the templates of all generations but these go."""
        gone = {life.generation for life in self.lives.values()} - kept
        return [action for generation in sorted(gone) for action in self.retire(generation, why, now)]

    def blame(self, generation: int, limit: float, now: float) -> list[Action]:
        """End a template that did not fork a worker within ``limit`` seconds, as a worker whose clock has struck."""
        pulse = Pulse(0, Clock.BOOT, now - limit, now, "forking a worker")
        return [
            action
            for life in self._of(generation)
            if life.state is State.READY
            for action in life.handle(Input.OVERDUE, pulse, now)
        ]

    def _of(self, generation: int) -> list[Life]:
        return [life for life in self.lives.values() if life.generation == generation]
