"""How many workers a pool with [pool.NAME.scale] shall have: more while too few of them are idle, fewer after a while.

A look tells for how long each worker could take no further request. The sum of these shares of the time since the look
before, rounded, is how many were busy; beside them ``spare`` ones shall be idle. While they are not, or clients wait and
nobody is idle, 1, 2, 4 … workers are added at a time (as Apache's prefork does), the next ones when all of these are
ready. One goes when one less would have done for ``idle_for``, and only one that has nothing in flight.

Nobody looks at an idle server. So all that is ever due is a look when the next worker may have been idle for so long.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from prefork.config.schema import Scale
from prefork.supervisor.events import Sighting
from prefork.supervisor.worker import Life, State

# Two looks that are closer together say nothing about the time between them.
SHORTEST = 0.05
# Who has been ready for longer has had its chance to get busy.
NEW = 1.0


class Load(msgspec.Struct, frozen=True):
    """What the ready workers of a pool are busy with.

    Attributes:
        busy: how many of them could take no further request, on average since the look before.
        idle: who has nothing in flight, by birth.
        queue: how many clients wait to be accepted.
        memory: the average resident size of a worker in bytes; 0: unknown.
        has_served: whether requests were served since the look before.
        has_newcomer: whether somebody got ready after the look before, and had little time to get busy.

    """

    busy: float
    idle: frozenset[int]
    ready: int
    queue: int
    memory: float
    has_served: bool = False
    has_newcomer: bool = False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has happened since the look before, and nothing is going on."""
        return not (self.busy or self.queue or self.has_served) and len(self.idle) == self.ready


def take_account(life: Life, sighting: Sighting, now: float) -> None:
    """Note for which share of the time since the look before a worker was busy."""
    since = max(life.ready_at or now, life.accounted_at)
    life.has_in_flight = sighting.has_in_flight
    if now - since < SHORTEST:
        return
    share = (sighting.busy_time - life.busy_time) / (now - since)
    life.has_served = sighting.served != life.served
    life.busy_share = 1.0 if sighting.is_full else max(0.0, min(1.0, share))
    life.busy_time, life.served, life.memory = sighting.busy_time, sighting.served, sighting.memory
    life.accounted_at = now


def load_of(workers: Iterable[Life], queue: int, before: float, now: float) -> Load:
    """Return what is seen of a pool's workers; ``before`` is when the look before was."""
    ready = [life for life in workers if life.state is State.READY]
    return Load(
        busy=sum(life.busy_share for life in ready),
        idle=frozenset(life.birth for life in ready if not life.has_in_flight),
        ready=len(ready),
        queue=queue,
        memory=sum(life.memory for life in ready) / len(ready) if ready else 0.0,
        has_served=any(life.has_served for life in ready),
        has_newcomer=any((life.ready_at or 0.0) > max(before, now - NEW) for life in ready),
    )


class Scaler(msgspec.Struct):
    """What a pool's next size depends on besides its load.

    Attributes:
        seen_at: when it was looked at, whatever came of it.
        step: how many workers are added next.
        needed_at: when the present number was last found to be needed.

    """

    seen_at: float = 0.0
    step: int = 1
    needed_at: float = 0.0

    def begin(self, now: float) -> None:
        """Take notice of a size that was set by something else than the load."""
        self.step, self.needed_at = 1, now

    def due(self, scale: Scale, wanted: int) -> float | None:
        """Return when to look whether one worker less would do; None if none is too many even at rest."""
        return max(self.needed_at, self.seen_at) + scale.idle_for if wanted > scale.at_rest else None

    def judge(self, scale: Scale, wanted: int, load: Load, now: float) -> int:
        """Return how many workers there shall be from now on."""
        goal = _goal(scale, load)
        if goal > wanted:
            more = min(self.step, scale.max - wanted, _room(scale, wanted, load))
            self.step, self.needed_at = (2 * self.step if more > 0 else 1), now
            return wanted + max(0, more)
        if load.has_newcomer:
            return wanted
        self.step = 1
        if goal == wanted:
            self.needed_at = now
        elif load.idle and now >= self.needed_at + scale.idle_for:
            self.needed_at = now
            return wanted - 1
        return wanted


def _goal(scale: Scale, load: Load) -> int:
    """Return how many workers the load asks for."""
    if load.is_quiet:
        return scale.at_rest
    busy = int(load.busy + 0.5)
    crowded = load.queue > 0 and busy >= load.ready
    return scale.within(max(busy + scale.spare, load.ready + 1 if crowded else 1))


def _room(scale: Scale, wanted: int, load: Load) -> int:
    """Return how many more workers of the present size there is memory for."""
    if not scale.max_memory or not load.memory:
        return scale.max
    return int(scale.max_memory / load.memory) - wanted
