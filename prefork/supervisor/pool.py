"""One pool: keeps its wanted number of workers alive, and replaces one generation of them by the next.

A new generation is on trial first: a batch of its workers starts beside the old ones, and nothing else changes. Once
one of them is ready it has passed; the server then commits it in all pools at once, or abandons it in all of them.
After the commit old workers retire as new ones get ready, so that the number of ready workers never falls below the
wanted one.

Deaths before Ready, or soon after, delay the next spawn of the pool by BACKOFF * 1.5**n with jitter, BACKOFF_LIMIT
at most; while that lasts one worker at a time is tried. Ready ends it; only after a good life does it begin anew.

With ``replace = "stop-first"`` no more workers live than there shall be, those that still leave included: a generation on
trial is given places of the one before it, which are that one's again if it fails; and a spent worker goes before its
successor starts.

An end after which ``restart`` lets nobody follow leaves the place empty until the next generation. A pool that runs once
does all its work within the trial: it has passed when all its workers have ended well.
With ``preload`` a generation's workers are forked from its template (template.py), which has to be ready first. One
that dies is rebuilt under the same rule of delays, and nobody who was forked from it is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from prefork.config.listeners import Key, keyed
from prefork.config.schema import TEMPLATE, Pool
from prefork.supervisor import recycling
from prefork.supervisor.actions import Action, ShutDoors, Spawn, Tell
from prefork.supervisor.events import Exit
from prefork.supervisor.scaling import Scaler, load_of
from prefork.supervisor.template import Templates
from prefork.supervisor.trial import Trial, Verdict
from prefork.supervisor.worker import Input, Life, Retirement, State, recycled

BACKOFF = 0.5
BACKOFF_FACTOR = 1.5
BACKOFF_LIMIT = 30.0
# A worker that died sooner after it was ready did not have a good life.
GOOD_LIFE = 1.0
# Between the last SYN that was let in and the closing of a listener: time for handshakes that are under way.
SETTLE = 0.1
STOPPED = "the pool was stopped"
ONLY_ONCE = 'if only one of it may run at a time (a port, a lock, a schedule): replace = "stop-first"'
# What a keeper is given, or what ends with the program that it is in.
SURROUNDINGS = {"_births", "_chance", "templates"}


class Closing(msgspec.Struct):
    """The end of a pool: its doors are shut at one time, its workers drain at a later one, then nobody queues."""

    why: str
    kept: frozenset[Key]
    doors_at: float
    drain_at: float | None = None
    drained: bool = False
    queue_left: bool = False


class Keeper:
    """The bookkeeping of one pool.

    Attributes:
        settings: the pool's configuration that counts; None until its first generation has passed its trial.
        generation: the newest one that counts.
        wanted: how many workers there shall be.
        ends: the final ones of this generation, by slot, the latest last: nobody comes after them.
        stopped: whether it was scaled to 0, which holds over reloads until it is scaled again.
        degraded: why fewer workers than wanted are ready, if it is for their failing.
        restarts: how many workers ended unasked.

    """

    def __init__(self, name: str, births: Iterator[int], chance: Callable[[], float]) -> None:
        self.name = name
        self.settings: Pool | None = None
        self.generation = 0
        self.wanted = 0
        self.trial: Trial | None = None
        self.lives: dict[int, Life] = {}
        self.ends: dict[int, Exit] = {}
        self.templates = Templates(births)
        self.degraded: str | None = None
        self.restarts = 0
        self.resting = False
        self.stopped = False
        self.closing: Closing | None = None
        self._births = births
        self._chance = chance
        self._pause = 0.0  # the latest one without its jitter; 0 while nothing fails
        self._last_pause = 0.0  # where to go on from, should who got ready after it not live well
        self._not_before = 0.0
        self._spawn_at: float | None = None
        self._template_at: float | None = None
        self._retire_from: float | None = None
        self._leaving: frozenset[Key] = frozenset()
        self._recycled: Life | None = None  # one at a time, from the choice to its end
        self._scaler = Scaler()
        self._idle: frozenset[int] = frozenset()  # who may go, where one is too many

    # What one program of the master tells the next.

    def past(self) -> dict[str, Any]:
        """Return all that this keeper knows by itself, by the names of its attributes."""
        return {name: value for name, value in vars(self).items() if name not in SURROUNDINGS}

    @classmethod
    def resumed(cls, past: dict[str, Any], births: Iterator[int], chance: Callable[[], float]) -> Keeper:
        """Return a keeper that goes on where another one was, as far as this version knows what that one knew."""
        keeper = cls(past["name"], births, chance)
        vars(keeper).update({name: past[name] for name in keeper.past().keys() & past.keys()})
        return keeper

    # What the server decides.

    def try_generation(self, settings: Pool, generation: int) -> None:
        """Begin the trial of a generation."""
        self.trial = Trial(settings, generation)

    def verdict(self) -> Verdict:
        """Return what the trial has shown; a pool without one, or a stopped one, has nothing against the generation."""
        if self.trial is None or self.stopped:
            return Verdict.PASSED
        workers = [life for life in self.lives.values() if life.generation == self.trial.generation]
        return self.trial.verdict(workers)

    def commit(self, kept: frozenset[Key], now: float) -> list[Action]:
        """Let the generation on trial count, if there is one. ``kept`` are the addresses that the new configuration has."""
        if self.trial is None:
            return []
        old, new = self.settings, self.trial.settings
        self.wanted = self._size_for(new)
        self._scaler.begin(now)
        self.ends = self.trial.ends
        self.settings, self.generation, self.trial = new, self.trial.generation, None
        self.resting, self.degraded, self._recycled = False, None, None
        self._pause, self._last_pause, self._not_before = 0.0, 0.0, 0.0
        return self._leave_addresses(addresses_of(old), kept, now)

    def knock(self, now: float) -> None:
        """Take notice of a client that waits while there is nobody to serve it."""
        if self.is_awaiting:
            self.scale(1, now)

    def weigh_load(self, queue: int, now: float) -> list[Action]:
        """Choose the number of workers by what a look has shown of them; ``queue`` clients wait."""
        before, self._scaler.seen_at = self._scaler.seen_at, now
        if self.settings is None or self.settings.scale is None or not self._is_steady():
            return []
        load = load_of(self._of(self.generation), queue, before, now)
        wanted = self._scaler.judge(self.settings.scale, self.wanted, load, now)
        if wanted == self.wanted:
            return []
        self._idle, self.wanted = load.idle, wanted
        busy = f"{load.busy:.1f} of {load.ready} busy, {queue} clients wait"
        return [Tell("info", f"{self.name}: {wanted} workers wanted: {busy}")]

    def abandon(self, why: str, now: float) -> list[Action]:
        """Retire the workers of the generation on trial."""
        if self.trial is None:
            return []
        generation, self.trial = self.trial.generation, None
        return self.templates.retire(generation, why, now) + self._retire_all(generation, why, now)

    def close(self, why: str, now: float, delay: float = 0.0, kept: frozenset[Key] = frozenset()) -> None:
        """End the pool: go on for ``delay`` seconds, then shut its doors, empty its queue and drain.

        ``kept`` are addresses that stay open, because another pool listens there.
        """
        if self.closing is not None:
            return
        self.settle()
        self.closing = Closing(why, kept, now + delay)

    def settle(self) -> None:
        """Go on with those who are on trial, if there is nobody else: the first generation will not be judged any more."""
        if self.settings is None and self.trial is not None:
            self.settings, self.generation, self.ends = (
                self.trial.settings,
                self.trial.generation,
                self.trial.ends,
            )
            self.trial = None
            self.wanted = len(self._of(self.generation)) + len(self.ends)

    def scale(self, workers: int, now: float) -> None:
        """Want another number of workers; of fewer, those that still run are the last to be given up."""
        self.wanted, self.stopped, self.degraded = workers, False, None
        self._scaler.begin(now)
        running = len(self._of(self.generation))
        while len(self.ends) > max(0, workers - running):
            self.ends.popitem()

    def stop(self, now: float) -> None:
        """Want no workers until the pool is scaled again, whatever is reloaded meanwhile and whoever comes."""
        self.scale(0, now)
        self.stopped = True
        if self.trial is not None:  # should it be scaled before that ends, it begins anew
            self.trial = Trial(self.trial.settings, self.trial.generation, cleared=self.trial.cleared)

    def quit(self, why: str, now: float) -> list[Action]:
        """End the pool at once."""
        self.closing = Closing(why, frozenset(), now, now, drained=True, queue_left=True)
        return [action for life in self.everybody() for action in life.handle(Input.QUIT, why, now)]

    # What the server asks.

    def everybody(self) -> list[Life]:
        """Return all processes of the pool: workers and templates."""
        return [*self.lives.values(), *self.templates.lives.values()]

    def find(self, birth: int) -> Life | None:
        """Return one of the pool's processes."""
        return self.lives.get(birth) or self.templates.lives.get(birth)

    @property
    def is_over(self) -> bool:
        """Whether a closed pool has nobody left."""
        return self.closing is not None and self.closing.drained and not self.everybody()

    @property
    def is_replaced(self) -> bool:
        """Whether nobody of an older generation is left, and nobody of this one is about to get ready."""
        is_short = self.settings is not None and self.settings.stops_first and self._missing() > 0
        is_over = all(life.generation >= self.generation for life in self.everybody())
        return is_over and not is_short and not self._is_probing()

    @property
    def is_manned(self) -> bool:
        """Whether as many workers serve as there shall be."""
        return self.settings is not None and self.ready >= self._target()

    @property
    def is_settled(self) -> bool:
        """Whether as many workers serve as there shall be, and nobody else is there."""
        return self.trial is None and len(self.lives) == self.ready == self._target()

    @property
    def has_made_room(self) -> bool:
        """Whether workers have ended, or are about to, to make room for a generation on trial."""
        if self.trial is None or not self.trial.taken or self.settings is None:
            return False
        return len(self._of(self.generation)) < self.unfinished

    @property
    def is_done(self) -> bool:
        """Whether all workers of the generation that counts have ended, and nobody comes after them."""
        return bool(self.ends) and len(self.ends) >= self.wanted and not self._of(self.generation)

    @property
    def unfinished(self) -> int:
        """How many workers there shall be beside those that have ended for good."""
        return max(0, self.wanted - len(self.ends))

    @property
    def is_missed(self) -> bool:
        """Whether the pool is done and the server is to be nothing without it."""
        return self.settings is not None and self.settings.essential and self.is_done

    def last_status(self) -> int:
        """Return the exit status of the worker that has ended last, of those that nobody comes after."""
        return next(reversed(self.ends.values())).status

    @property
    def is_awaiting(self) -> bool:
        """Whether the first client is awaited that needs a worker."""
        return self.settings is not None and not (self.wanted or self.resting or self.stopped or self.closing)

    @property
    def has_unseen_work(self) -> bool:
        """Whether workers have to be looked at though they wake nobody."""
        return self.settings is not None and self.settings.has_unseen_work and self.ready > 0

    @property
    def size(self) -> int:
        """How many workers there shall be, also before the first generation counts."""
        return self.trial.settings.first_size if self.settings is None and self.trial else self.wanted

    @property
    def ready(self) -> int:
        """How many workers serve; of work that is done once it is the end that counts."""
        return sum(life.state is State.READY and life.pool.restart != "once" for life in self.lives.values())

    def addresses(self) -> frozenset[Key]:
        """Return the addresses that have to stay open for this pool."""
        trial = addresses_of(self.trial.settings if self.trial else None)
        if self.closing and self.closing.queue_left:
            return trial
        return addresses_of(self.settings) | trial | self._leaving

    def next_deadline(self) -> float | None:
        """Return when something is due that is not a worker's own deadline."""
        expiry = recycling.next_expiry(self._of(self.generation))
        waits = [self._retire_from, self._spawn_at, self._template_at, expiry, self.next_look()]
        if self.closing:
            if self.closing.drained:
                return None
            waits = [self.closing.drain_at] if self.closing.drain_at else [self.closing.doors_at, *waits]
        return min((due for due in waits if due is not None), default=None)

    def next_look(self) -> float | None:
        """Return when to look whether one worker is too many."""
        if self.settings is None or self.settings.scale is None or self.stopped:
            return None
        if self.resting or self.closing:
            return None
        return self._scaler.due(self.settings.scale, self.wanted)

    # What happens.

    def note_ready(self, life: Life) -> list[Action]:
        """Take notice of a worker that has got ready."""
        if life.generation == self.generation:
            self._last_pause = self._pause or self._last_pause
            self._pause, self._not_before = 0.0, 0.0
        if life.pool.restart == "once" and life.slot != TEMPLATE:
            return []  # it is there to be done: its end tells of it
        if life.slot == TEMPLATE:
            return [Tell("debug", f"{self.name}: the template of generation {life.generation} is ready")]
        count = sum(other.state is State.READY for other in self._of(life.generation))
        wanted = self._size_for(self.trial.settings) if self.trial else self.wanted
        return [
            Tell("debug", f"{self.name}: {count} of {wanted} workers of generation {life.generation} ready")
        ]

    def note_gone(self, life: Life, now: float) -> list[Action]:
        """Take notice of a worker that is gone, and of what that says about the pool."""
        del (self.templates.lives if life.slot == TEMPLATE else self.lives)[life.birth]
        if life is self._recycled:
            self._recycled = None
        if life.asked or (self.closing and now >= self.closing.doors_at):
            return []
        if life.generation > self.generation:  # on trial, or already given up
            if self.trial and life.generation == self.trial.generation:
                self.trial.note_gone(life)
            return []
        if life.generation == self.generation and life.is_final:
            return self._note_final(life)
        self.restarts += life.slot != TEMPLATE
        if life.generation < self.generation:
            return []
        if life.ready_at is None:
            return self._back_off(life.reason, now)
        if now - life.ready_at < GOOD_LIFE:
            self._pause = max(self._pause, self._last_pause)
            return self._back_off(f"{life.name} {_short_life(life)}", now)
        self._last_pause = 0.0
        return []

    def converge(self, now: float) -> list[Action]:
        """Return the next steps towards what is wanted."""
        if self.closing and now >= self.closing.doors_at:
            return self._close_on(self.closing, now)
        actions = self._retire_templates(now) + self._start_trial()
        if self.stopped and self.trial is not None:
            actions += self._retire_all(self.trial.generation, STOPPED, now)
        if self.settings is not None:
            actions += self._retire_old(now)
            self._choose_spent(now)
            actions += self._retire_spent(now) + self._retire_excess(now)
            actions += self._keep_template(self.settings, now) + self._spawn_missing(now)
            is_complete = self._ready_now() >= self._target() + self._substitutes()
            if is_complete and (self._can_fork() or not self._needs_template(self.settings)):
                self.degraded = None
        return actions

    # How.

    def _of(self, generation: int) -> list[Life]:
        return [life for life in self.lives.values() if life.generation == generation and life.counts]

    def _old(self) -> list[Life]:
        return [life for life in self.lives.values() if life.generation < self.generation and life.counts]

    def _target(self) -> int:
        """Return how many workers of the generation that counts there shall be."""
        taken = self.trial.taken if self.trial else 0
        return 0 if self.resting or self.stopped else max(0, self.unfinished - taken)

    def _room(self, least: int = 0) -> int:
        """Return how many workers may start before others have ended: those that still leave have a place, too."""
        return max(0, max(self.unfinished, least) - len(self.lives))

    def _size_for(self, new: Pool) -> int:
        """Return how many workers a generation is to have: as many as there are, unless its settings say otherwise."""
        old = self.settings
        if self.stopped:
            return 0
        if old is None or new.restart == "once":
            return new.first_size
        if new.scale is not None:
            return max(1, new.scale.within(self.wanted))
        return self.wanted if old.scale is None and old.workers == new.workers else new.workers

    def _is_steady(self) -> bool:
        """Tell whether all wanted workers serve, and nobody is about to be replaced."""
        changing = self.trial or self._recycled or self.resting or self.stopped or self.closing or self._old()
        return not changing and len(self._of(self.generation)) == self._ready_now() == self.wanted

    def _ready_now(self) -> int:
        return sum(life.state is State.READY for life in self._of(self.generation))

    def _choose_spent(self, now: float) -> None:
        """Choose who is recycled next; nobody while a rollout is about to replace all of them."""
        workers = self._of(self.generation)
        recycling.note_expired(workers, now)
        if self._recycled is None and self.trial is None and not self._old() and self._can_spare():
            self._recycled = recycling.next_spent(workers)

    def _can_spare(self) -> bool:
        """Tell whether one may go before its successor is there, if it has to: when nobody else is missing."""
        assert self.settings is not None
        return not self.settings.stops_first or self._ready_now() >= self._target()

    def _retire_spent(self, now: float) -> list[Action]:
        """Let a spent worker go at once whose successor may only start when it has ended."""
        spent = self._recycled
        if spent is None or not spent.pool.stops_first or spent.state is not State.READY:
            return []
        return self._retire(spent, recycled(spent), now)

    def _substitutes(self) -> int:
        """Return how many workers there shall be beyond the wanted ones, until a spent one can be spared."""
        serves = self._recycled is not None and self._recycled.state is State.READY
        if self.settings is not None and self.settings.stops_first:
            return 0
        return int(serves and not self.resting and self._ready_now() <= self._target())

    def _missing(self) -> int:
        return max(0, self._target() + self._substitutes() - len(self._of(self.generation)))

    def _is_probing(self) -> bool:
        return any(life.ready_at is None for life in self._of(self.generation))

    def _start_trial(self) -> list[Action]:
        if self.trial is None or self.trial.begun or not self.trial.cleared or self.stopped:
            return []
        trial, settings, is_once = self.trial, self.trial.settings, self.trial.is_once
        if is_once and any(life.asked or life.pool.restart == "once" for life in self.lives.values()):
            return []  # work that was superseded is not done twice at a time, however far its end has got
        if not self.templates.can_fork(settings, self.trial.generation):
            return self._ensure_template(settings, self.trial.generation)
        if trial.places is None:
            size = self._first_size(settings)
            batch = size if self.settings is None or is_once else settings.surge.of(size)
            trial.places = min(batch, size)
        count = trial.places - trial.spawned
        if settings.stops_first:
            count = min(count, self._room(trial.places))
        trial.spawned += count
        trial.begun = trial.spawned == trial.places
        return [self._spawn(settings, trial.generation) for _ in range(count)]

    def _first_size(self, settings: Pool) -> int:
        """Return how many workers the generation on trial is to have."""
        return settings.workers if settings.restart == "once" else self._size_for(settings)

    def _spawn_missing(self, now: float) -> list[Action]:
        assert self.settings is not None
        count = self._missing() if self._can_fork() else 0
        old = len(self._old())
        if old:
            surge = self.settings.surge.of(self._target())
            count = min(count, self._target() + surge - len(self._of(self.generation)) - old)
        if self.settings.stops_first:
            count = min(count, self._room())
        self._spawn_at = None
        if self._pause and count > 0:
            count = 0 if self._is_probing() else 1
            if count and now < self._not_before:
                count, self._spawn_at = 0, self._not_before
        return [self._spawn(self.settings, self.generation) for _ in range(count)]

    def _spawn(self, settings: Pool, generation: int) -> Spawn:
        # Where ends may be final each is noted by its slot: there a spent worker's is not given away before its end.
        given_away = self._recycled if settings.restart == "always" else None
        taken = {life.slot for life in self._of(generation) if life is not given_away}
        if settings.stops_first:
            taken |= {life.slot for life in self.lives.values()}
        if generation == self.generation:
            taken |= self.ends.keys()
        elif self.trial is not None:
            taken |= self.trial.ends.keys()
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        life = Life(next(self._births), settings, slot, generation, jitter=self._chance())
        self.lives[life.birth] = life
        return Spawn(life.birth, settings, slot, generation, recycling.max_requests(life))

    def _can_fork(self) -> bool:
        assert self.settings is not None
        return self.templates.can_fork(self.settings, self.generation)

    def _keep_template(self, settings: Pool, now: float) -> list[Action]:
        """Have a template even while no worker is missing: the next one that is will not wait for it."""
        self._template_at = None
        if not self._needs_template(settings) or self.templates.has(self.generation):
            return []
        if now < self._not_before:
            self._template_at = self._not_before
            return []
        return self._ensure_template(settings, self.generation)

    def _needs_template(self, settings: Pool) -> bool:
        return settings.preload and not (self.resting or self.stopped or self.is_done)

    def _ensure_template(self, settings: Pool, generation: int) -> list[Action]:
        return [] if self.templates.has(generation) else [self.templates.spawn(settings, generation)]

    def _retire_templates(self, now: float) -> list[Action]:
        """Let templates go from which nobody will be forked any more."""
        kept = {self.trial.generation} if self.trial else set()
        why = "drained on request" if self.resting else "nobody is to be forked any more"
        if self.stopped:
            kept.clear()
        if self.settings is not None and self._needs_template(self.settings):
            kept.add(self.generation)
            why = f"replaced by generation {self.generation}"
        return self.templates.retire_others(kept, why, now)

    def _retire_old(self, now: float) -> list[Action]:
        """Retire old workers that are not ready, and as many ready ones as can be spared."""
        if self._retire_from is not None and now < self._retire_from:
            return []
        self._retire_from = None
        why = f"replaced by generation {self.generation}"
        old = sorted(self._old(), key=lambda life: (life.state is State.READY, life.generation, life.slot))
        ready_old = sum(life.state is State.READY for life in old)
        ready_new = sum(life.state is State.READY for life in self._of(self.generation))
        assert self.settings is not None
        floor = self._target()
        if self.settings.stops_first:
            floor = max(0, floor - self.settings.surge.of(max(1, floor)))
        spare = max(0, ready_new + ready_old - floor)
        leavers = old[: len(old) - ready_old + spare]
        return [
            action
            for life in leavers
            for action in self._retire(life, why, now, empty_queue=bool(self._leaving))
        ]

    def _retire_excess(self, now: float) -> list[Action]:
        workers = sorted(
            self._of(self.generation),
            key=lambda life: (
                life.state is not State.READY,
                life is self._recycled,
                life.birth in self._idle,
                life.slot,
            ),
        )
        self._idle = frozenset()
        excess = workers[self._target() + self._substitutes() :]
        return [action for life in excess for action in self._retire(life, self._why_too_many(life), now)]

    def _why_too_many(self, life: Life) -> str:
        if self.resting:
            return "drained on request"
        if self.stopped:
            return STOPPED
        if self.trial is not None and self.trial.taken:
            return f"replaced by generation {self.trial.generation}"
        return recycled(life) if life is self._recycled else "scaled down"

    def _note_final(self, life: Life) -> list[Action]:
        self.ends[life.slot] = life.exit or Exit()
        left = f", {self._target()} of {self.wanted} go on" if not self.is_done else ""
        how = "is done" if life.done else f"has ended for good: {life.reason}"
        return [Tell("info" if life.done else "warning", f"{life.name} {how}{left}")]

    def _retire_all(self, generation: int, why: str, now: float) -> list[Action]:
        return [action for life in self._of(generation) for action in self._retire(life, why, now)]

    def _retire(self, life: Life, why: str, now: float, empty_queue: bool = False) -> list[Action]:
        return life.handle(Input.RETIRE, Retirement(why, empty_queue, life.pool.graceful_timeout), now)

    def _back_off(self, reason: str, now: float) -> list[Action]:
        self.degraded = reason
        if now < self._not_before:
            return []  # workers that were tried together fail together: that is one failure
        self._pause = min(self._pause * BACKOFF_FACTOR or BACKOFF, BACKOFF_LIMIT)
        delay = min(self._pause * (0.75 + self._chance() / 2), BACKOFF_LIMIT)
        self._not_before = now + delay
        return [Tell("error", f"{self.name}: {reason}; the next try is in {delay:.1f} s{self._remedy()}")]

    def _remedy(self) -> str:
        """Return a hint for a pool of which only one may run, maybe: its workers fail while another one lives."""
        assert self.settings is not None
        return f"\nhint: {ONLY_ONCE}" if self._recycled and self.settings.may_exist_once else ""

    def _leave_addresses(self, old: frozenset[Key], kept: frozenset[Key], now: float) -> list[Action]:
        lost = old - kept
        self._leaving = (self._leaving | lost) - kept
        if not lost:
            return []
        self._retire_from = now + SETTLE
        return [ShutDoors(lost)]

    def _close_on(self, closing: Closing, now: float) -> list[Action]:
        """Shut the doors, then, once handshakes under way have settled, let everybody empty the queue and go."""
        actions: list[Action] = []
        if closing.drain_at is None:
            closing.drain_at = now + SETTLE
            if lost := addresses_of(self.settings) - closing.kept:
                actions.append(ShutDoors(lost))
        if now >= closing.drain_at and not closing.drained:
            closing.drained = True
            actions += self.templates.retire_others(set(), closing.why, now)
            for life in list(self.lives.values()):
                actions += self._retire(life, closing.why, now, empty_queue=True)
        return actions

    def _queue_is_left(self, why: str) -> bool:
        """Tell whether somebody has found the queue empty after the doors were shut, or nobody is left to look."""
        emptiers = [life for life in self.lives.values() if life.why == why and life.state is State.DRAINING]
        return not emptiers or any(life.left_queue for life in emptiers)

    def settle_listeners(self) -> None:
        """Forget addresses that were taken from the pool, once nobody has to accept there any more."""
        if self.closing and self.closing.drained and self._queue_is_left(self.closing.why):
            self.closing.queue_left = True
        old = (life for life in self.lives.values() if life.generation < self.generation)
        if all(life.left_queue for life in old):
            self._leaving = frozenset()


def addresses_of(settings: Pool | None) -> frozenset[Key]:
    """Return where a pool listens."""
    return frozenset(keyed(settings)) if settings else frozenset()


def _short_life(life: Life) -> str:
    return (
        "was done right after it was ready" if life.done else f"died right after it was ready: {life.reason}"
    )
