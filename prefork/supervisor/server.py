"""All pools together: boot, run, reload, stop. The supervisor is told events and answers with actions; it has no effects.

Time is an argument and never goes back; it does not count while the machine, or the master, did not run.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import Any

from prefork.config.listeners import Key, all_keyed
from prefork.config.order import Order, all_before, predecessors
from prefork.config.schema import Config, Pool
from prefork.supervisor import events, recycling, scaling
from prefork.supervisor.actions import (
    Action,
    Adopt,
    AwaitClients,
    Bury,
    Disown,
    End,
    EndRollout,
    KeepListeners,
    Look,
    LookAgain,
    Spawn,
    Tell,
    Watch,
)
from prefork.supervisor.events import Event, Pulse, Reload, Sighting, WorkerEvent
from prefork.supervisor.pool import ONLY_ONCE, Keeper, addresses_of
from prefork.supervisor.trial import Verdict
from prefork.supervisor.worker import Input, Life, State

# While any deadline is armed nobody sleeps longer than this, so that a machine that stands still is noticed.
LONGEST_SLEEP = 1.0
# What a supervisor is given, finds out anew at once, or hands on in a form of its own.
SURROUNDINGS = {
    "_births",
    "_chance",
    "_now",
    "_kept",
    "_awaited",
    "_look_at",
    "_quiet_looks",
    "keepers",
    "departing",
}
# How often workers are weighed that wake nobody when they are at work: tasks and programs with max_memory.
SLOW_LOOK = 5.0


class Phase(Enum):
    """What the server as a whole is doing; the values are what people read."""

    BOOTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Supervisor:
    """Decides for all pools.

    Args:
        chance: returns a random number in [0, 1), for jitter.

    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self.phase = Phase.BOOTING
        self.generation = 0
        self.keepers: dict[str, Keeper] = {}
        self.departing: list[Keeper] = []
        self._chance = chance
        self._births = count(1)
        self._now = 0.0
        self._config: Config | None = None
        self._candidate: Config | None = None
        self._only: frozenset[str] | None = None
        self._forced: frozenset[str] = frozenset()
        self._pending: Reload | None = None
        self._stopped_at = 0.0
        self._rolling = False
        self._kept: frozenset[Key] | None = None
        self._order: Order = {}
        self._awaited: frozenset[Key] = frozenset()
        self._end: End | None = None
        self._ended = False
        self._look_at: float | None = None
        self._quiet_looks = 1  # as if it had dozed off: workers know that nobody looks

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what is to be done about an event, in order."""
        self._now = now
        # What is answered is done last: its answer goes in before the next action is done, and may make that one stale.
        return sorted([*self._take(event, now), *self._advance(now)], key=_is_answered)

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` is due if nothing else happens before; None if only events matter."""
        lives = [life.deadline for life in self._lives() if life.deadline is not None]
        if lives:
            lives.append(self._now + LONGEST_SLEEP)
        pools = [due for keeper in self._all() if (due := keeper.next_deadline()) is not None]
        looks = [self._look_at] if self._look_at is not None else []
        return min([*lives, *pools, *looks], default=None)

    @property
    def state(self) -> str:
        """What the server is doing, in a word for people."""
        return "reloading" if self.is_rolling and self.phase is Phase.RUNNING else self.phase.value

    @property
    def is_rolling(self) -> bool:
        """Whether a rollout is under way, the first one included."""
        return self._rolling

    @property
    def is_manned(self) -> bool:
        """Whether every pool that counts has the workers that it is to have."""
        keepers = self.keepers.values()
        return self.phase is Phase.RUNNING and all(keeper.is_manned for keeper in keepers)

    def life(self, birth: int) -> Life | None:
        """Return what is known of a worker, if it is still alive."""
        return next((life for keeper in self._all() if (life := keeper.find(birth))), None)

    def _all(self) -> list[Keeper]:
        return [*self.keepers.values(), *self.departing]

    def _lives(self) -> list[Life]:
        return [life for keeper in self._all() for life in keeper.everybody()]

    # Events, one by one.

    def _take(self, event: Event, now: float) -> list[Action]:
        match event:
            case events.Tick():
                return []
            case events.Busy():
                return self._wake_up()
            case events.Knocked(address):
                return self._knock(address, now)
            case events.Looked(pulses, sightings, queues, invalid):
                actions = [action for event in invalid for action in self._take_worker_event(event, now)]
                actions += self._take_sightings(sightings, queues, now)
                return [*actions, *self._take_pulses(pulses, now, any(seen.is_full for seen in sightings))]
            case events.Stop(at_once):
                return self._stop(at_once, now)
            case events.Boot(config):
                return self._reload(Reload(config), now)
            case events.Reload():
                return self._reload(event, now)
            case events.Resume(past):
                return self._resume(past)
            case events.Rest() | events.Shift() | events.Scale():
                return self._change_size(event)
            case _:
                return self._take_worker_event(event, now)

    def _change_size(self, event: events.Rest | events.Shift | events.Scale) -> list[Action]:
        match event:
            case events.Rest():
                return self._rest()
            case events.Shift(by):
                return self._shift(by)
            case events.Scale(pool, workers):
                return self._scale(pool, workers)

    def _take_worker_event(self, event: WorkerEvent, now: float) -> list[Action]:
        life = self.life(event.birth)
        if life is None:
            return _bury_given_up(event)
        kind, detail = _input(event)
        return self._step(life, kind, detail, now)

    def _step(self, life: Life, kind: Input, detail: object, now: float) -> list[Action]:
        was = life.state
        actions = life.handle(kind, detail, now)
        keeper = next(keeper for keeper in self._all() if keeper.find(life.birth))
        if was is State.FORKING and kind is Input.DEADLINE and not life.asked:
            actions += keeper.templates.blame(life.generation, life.pool.boot_timeout, now)
        if life.state is State.READY and was is State.STARTING:
            actions += keeper.note_ready(life)
        if life.state is State.GONE:
            actions += keeper.note_gone(life, now)
            actions += self._pass_on_wake_up(life)
        return actions

    def _pass_on_wake_up(self, dead: Life) -> list[Action]:
        """Have others look at the listeners of a worker that died while it was in their queue.

        The kernel may have woken it, and nobody else, for a connection that it has not accepted.
        """
        if dead.ready_at is None or dead.left_queue:
            return []
        addresses = addresses_of(dead.pool)
        return [
            LookAgain(life.birth)
            for keeper in self._all()
            for life in keeper.lives.values()
            if life.state is State.READY and not addresses.isdisjoint(addresses_of(life.pool))
        ]

    def _rest(self) -> list[Action]:
        if self.phase is not Phase.RUNNING:
            return [Tell("warning", f"the server is {self.phase.value}: its workers are not drained")]
        for keeper in self.keepers.values():
            keeper.resting = True
        return [Tell("info", "draining all workers; a reload brings them back")]

    def _shift(self, by: int) -> list[Action]:
        first = next(iter(self.keepers.values()), None)
        if first is None:
            return [Tell("warning", "there is no pool to scale")]
        workers = first.wanted + by
        if workers == 0 and first.settings is not None and first.settings.size_range[0] > 0:
            return [Tell("warning", f"{first.name}: stays at {first.wanted} workers, 0 is out of range")]
        return self._set_size(first.name, workers)

    def _scale(self, pool: str, workers: int) -> list[Action]:
        keeper = self.keepers.get(pool)
        if workers or keeper is None or keeper.settings is None or self.phase is not Phase.RUNNING:
            return self._set_size(pool, workers)
        if keeper.is_done:
            return [Tell("warning", f"{pool}: all its workers are done: there is nothing to stop")]
        keeper.stop(self._now)
        return [Tell("info", f"{pool}: stopped until it is scaled again")]

    def _set_size(self, pool: str, workers: int) -> list[Action]:
        keeper = self.keepers.get(pool)
        if keeper is None or keeper.settings is None or self.phase is not Phase.RUNNING:
            return [Tell("warning", f"{pool}: there is no such pool running")]
        least, most = keeper.settings.size_range
        if not least <= workers <= most:
            return [Tell("warning", f"{pool}: stays at {keeper.wanted} workers, {workers} is out of range")]
        if keeper.is_done:
            return [Tell("warning", f"{pool}: all its workers are done; a reload starts them anew")]
        keeper.scale(workers, self._now)
        return [Tell("info", f"{pool}: {workers} workers wanted")]

    # Upgrades in place: the supervisor of one program goes on where that of the last one was.

    @property
    def can_be_resumed(self) -> bool:
        """Whether nothing hangs in the air that only this program could bring to its end."""
        forking = any(life.state is State.FORKING for life in self._lives())
        return self.phase is Phase.RUNNING and self._candidate is None and not forking

    def past(self) -> dict[str, Any]:
        """Return all that a supervisor in another program needs to go on; only while it ``can_be_resumed``."""
        known = {name: value for name, value in vars(self).items() if name not in SURROUNDINGS}
        keepers = [keeper.past() for keeper in self.keepers.values()]
        departing = [keeper.past() for keeper in self.departing]
        return known | {"births": next(self._births), "keepers": keepers, "departing": departing}

    def _resume(self, past: dict[str, Any]) -> list[Action]:
        self._births = count(past["births"])
        keepers = [Keeper.resumed(found, self._births, self._chance) for found in past["keepers"]]
        self.keepers = {keeper.name: keeper for keeper in keepers}
        self.departing = [Keeper.resumed(found, self._births, self._chance) for found in past["departing"]]
        mine = vars(self).keys() - SURROUNDINGS
        vars(self).update({name: past[name] for name in mine & past.keys()})
        return self._wake_up()

    # Rollouts.

    def _reload(self, event: Reload, now: float) -> list[Action]:
        if self.phase is Phase.STOPPING:
            self.generation += 1
            self._kept = None  # what was bound for it has to be closed
            return [EndRollout(self.generation, "the server is stopping")]
        if self.phase is Phase.BOOTING and self._candidate is not None:
            pending = self._pending
            self._pending = event.joined(pending.only, pending.forced) if pending else event
            return [Tell("info", "the reload waits for the first generation to get ready")]
        if self._candidate is not None:  # what it was to roll out is not forgotten
            event = event.joined(self._only, self._forced)
        actions = self._abandon(f"superseded by generation {self.generation + 1}", now)
        self.generation += 1
        self._candidate, self._only, self._forced, self._rolling = (
            event.config,
            event.only,
            event.forced,
            True,
        )
        self._order = predecessors(event.config.pools)
        return [*actions, *self._begin_trials(event)]

    def _begin_trials(self, event: Reload) -> list[Action]:
        """Put the new generation on trial in the pools that are rolled out, and have something to roll out."""
        pools, kept = [], []
        for name, settings in event.config.pools.items():
            if event.only is not None and name not in event.only:
                continue
            keeper = self.keepers.setdefault(name, Keeper(name, self._births, self._chance))
            if self._is_unchanged(keeper, settings, event):
                kept.append(Tell("info", f"{name}: keeps its workers: settings and release are the same"))
            else:
                keeper.try_generation(settings, self.generation)
                pools.append(name)
        which = "" if event.only is None else f" of {', '.join(pools) or 'no pool'}"
        return [Tell("info", f"rolling out generation {self.generation}{which}"), *kept]

    def _is_unchanged(self, keeper: Keeper, settings: Pool, event: Reload) -> bool:
        """Tell whether a pool that wants it so keeps its workers: nothing has changed that they depend on."""
        if settings.reload != "if-changed" or keeper.name in event.forced or keeper.is_done:
            return False
        old, new = self._config, event.config
        is_same = old is not None and (old.master, old.log) == (new.master, new.log)
        return is_same and keeper.settings == settings

    def _abandon(self, why: str, now: float) -> list[Action]:
        self._candidate = None
        return [action for keeper in self._all() for action in keeper.abandon(why, now)]

    def _judge(self, now: float) -> list[Action]:
        """Commit or give up the generation on trial, once all pools have shown what it is worth."""
        if self._candidate is None:
            return []
        verdicts = {keeper.name: keeper.verdict() for keeper in self.keepers.values()}
        failed = [name for name, verdict in verdicts.items() if verdict is Verdict.FAILED]
        if failed:
            return self._fail(self.keepers[failed[0]], now)
        if Verdict.PENDING in verdicts.values():
            return []
        return self._commit(self._candidate, now)

    def _clear(self) -> None:
        """Let those trials begin whose predecessors have passed theirs."""
        for keeper in self.keepers.values():
            if keeper.trial is not None and not keeper.trial.cleared:
                keeper.trial.cleared = not (
                    self.waits_for(keeper) or self._is_still_done(keeper.trial.settings)
                )

    def _is_still_done(self, settings: Pool) -> bool:
        """Tell whether work that is never done twice at a time still goes on in a pool that was removed meanwhile."""
        removed = (keeper for keeper in self.departing if keeper.name == settings.name)
        is_single = settings.restart == "once" or settings.stops_first
        return is_single and any(keeper.lives for keeper in removed)

    def waits_for(self, keeper: Keeper) -> list[str]:
        """Return the names of the pools that a pool's next generation has to wait for before it begins."""
        if keeper.trial is None or keeper.trial.cleared:
            return []
        before = self._order[keeper.name] | self._tried_before(keeper)
        return [name for name in self.keepers if name in before and self._is_undecided(name)]

    def _is_undecided(self, name: str) -> bool:
        return self.keepers[name].verdict() is not Verdict.PASSED

    def _tried_before(self, keeper: Keeper) -> set[str]:
        """Return the pools that are tried before one that has to end its workers for the trial.

        If one of them fails, it has ended nobody in vain. A pool that comes after such a one cannot be among them.
        """
        if not _ends_workers(keeper):
            return set()
        last = {name for name, other in self.keepers.items() if _ends_workers(other)}
        return {
            name
            for name in self._order.keys() & self.keepers.keys() - last
            if not last & all_before(name, self._order)
        }

    def _commit(self, config: Config, now: float) -> list[Action]:
        kept = frozenset(all_keyed(config))
        self._config = config
        actions: list[Action] = [Adopt(config, self.generation)]
        for name in [name for name in self.keepers if name not in config.pools]:
            self.departing.append(self.keepers.pop(name))
            self.departing[-1].close("the pool was removed", now, kept=kept)
        self.keepers = {name: self.keepers[name] for name in config.pools}
        for keeper in self.keepers.values():
            actions += keeper.commit(kept, now)
            keeper.resting = keeper.resting and self._only is not None
        self._candidate, self.phase = None, Phase.RUNNING
        if self._pending is not None:
            pending, self._pending = self._pending, None
            actions += self._reload(pending, now)
        return actions

    def _fail(self, keeper: Keeper, now: float) -> list[Action]:
        assert keeper.trial is not None
        failure, traceback = keeper.trial.failure
        reason = f"pool {keeper.name}: {keeper.trial.complaint()}"
        if self.phase is Phase.BOOTING:
            self._end = End(4, f"[pool.{keeper.name}] {failure}", traceback)
            ended = self._end_rollout(reason, traceback)
            return [*ended, *self._quit("the first generation could not boot", now)]
        self._rolling = False
        hint = ONLY_ONCE if keeper.settings is not None and keeper.trial.settings.may_exist_once else None
        displaced = [found for found in self.keepers.values() if found.has_made_room]
        actions = self._abandon(f"generation {self.generation} was given up", now)
        again = [
            Tell("warning", f"{found.name}: its workers of generation {found.generation} are started again")
            for found in displaced
        ]
        return [*actions, *again, EndRollout(self.generation, reason, traceback, hint)]

    # Stopping.

    def _stop_without_essential(self, now: float) -> list[Action]:
        """Stop the server if a pool has ended for good that it is nothing without."""
        if self.phase is not Phase.RUNNING:
            return []
        ended = [keeper for keeper in self.keepers.values() if keeper.is_missed]
        if not ended:
            return []
        status = ended[0].last_status()
        self._end = End(status)
        reason = f"{ended[0].name} is essential and has ended for good: the server ends too, with {status}"
        return [Tell("info" if status == 0 else "error", reason), *self._stop(False, now)]

    def _stop(self, at_once: bool, now: float) -> list[Action]:
        if self.phase is Phase.STOPPING or at_once:
            return self._quit("stopped at once", now)
        ended = self._end_rollout()
        if self.phase is Phase.RUNNING:
            ended += self._abandon("stopped", now)
        elif self.phase is Phase.BOOTING:
            self._stop_booting(now)
        self.phase, self._stopped_at = Phase.STOPPING, now
        return [Tell("info", "stopping: requests in flight are finished"), *ended]

    def _stop_booting(self, now: float) -> None:
        """Take what is on trial for all that there is; what has not begun does not begin any more."""
        for keeper in self._all():
            keeper.settle()
            if not keeper.everybody():
                keeper.close("stopped", now)

    def _let_leave(self, now: float) -> bool:
        """While the server stops, end those pools that nobody needs any more; return whether there was one.

        A pool is needed until every pool that named it in ``after`` has ended: its requests may need this one.
        """
        if self.phase is not Phase.STOPPING:
            return False
        going = [keeper for keeper in self._all() if keeper.closing is None and not self._is_needed(keeper)]
        for keeper in going:
            delay = keeper.settings.drain_delay if keeper.settings else 0.0
            keeper.close("stopped", now, max(0.0, self._stopped_at + delay - now))
        return bool(going)

    def _is_needed(self, keeper: Keeper) -> bool:
        return any(
            other.settings is not None and keeper.name in other.settings.after and not other.is_over
            for other in self._all()
        )

    def _quit(self, why: str, now: float) -> list[Action]:
        actions = [*self._end_rollout(), *self._abandon(why, now)]
        self.phase = Phase.STOPPING
        for keeper in self._all():
            actions += keeper.quit(why, now)
        return [Tell("info", "stopping at once"), *actions]

    def _end_rollout(self, reason: str = "the server is stopping", traceback: str = "") -> list[Action]:
        """Nothing is on trial any more, and no rollout will be finished: the server stops."""
        if self._pending is not None:
            self.generation += 1  # the waiting reload would have got this number; now it is told so
        self._candidate = self._pending = None
        rolling, self._rolling = self._rolling, False
        return [EndRollout(self.generation, reason, traceback)] if rolling else []

    # The scoreboard.

    def _wake_up(self) -> list[Action]:
        self._quiet_looks = 0
        if self._look_at is None:
            self._look_at = self._now
        return [Watch(True)]

    def _take_pulses(self, pulses: tuple[Pulse, ...], now: float, is_busy: bool = False) -> list[Action]:
        """Act on deadlines that have passed, and choose when to look again; ``is_busy`` also without any."""
        actions: list[Action] = []
        for pulse in pulses:
            life = self.life(pulse.birth)
            if life is not None and now >= pulse.deadline:
                actions += self._step(life, Input.OVERDUE, pulse, now)
        if not pulses and not is_busy:
            return self._doze_off(now)
        if self._quiet_looks:  # armed before its worker could know that nobody would look
            actions.append(Watch(True))
        self._quiet_looks = 0
        ahead = [pulse.deadline for pulse in pulses if pulse.deadline > now]
        self._look_at = min([now + self._look_interval(), *ahead])
        return actions

    def _take_sightings(
        self, sightings: tuple[Sighting, ...], queues: dict[str, int], now: float
    ) -> list[Action]:
        for sighting in sightings:
            life = self.life(sighting.birth)
            if life is not None:
                scaling.take_account(life, sighting, now)
                if enough := recycling.weigh(life, sighting.memory):
                    life.handle(Input.SPENT, enough, now)
        return [
            action
            for keeper in self.keepers.values()
            for action in keeper.weigh_load(queues.get(keeper.name, 0), now)
        ]

    def _knock(self, address: Key, now: float) -> list[Action]:
        for keeper in self.keepers.values():
            if address in keeper.addresses():
                keeper.knock(now)
        return []

    def _doze_off(self, now: float) -> list[Action]:
        """Stop looking after two looks at an idle board, and once nobody is under suspicion of being too large.

        Workers wake us from the first one on; the second sees what was armed before they could know.
        """
        self._quiet_looks += 1
        if self._quiet_looks > 1 and not any(recycling.is_suspect(life) for life in self._lives()):
            self._look_at = None
            return []
        self._look_at = now + self._look_interval()
        return [Watch(False)]

    def _look_interval(self) -> float:
        clocks = [
            clock
            for keeper in self._all()
            if keeper.settings
            for clock in (keeper.settings.stall_timeout, keeper.settings.request_timeout)
            if clock
        ]
        return min([LONGEST_SLEEP, *(clock / 4 for clock in clocks)])

    # What follows from all that.

    def _advance(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for life in list(self._lives()):
            if life.deadline is not None and now >= life.deadline:
                actions += self._step(life, Input.DEADLINE, None, now)
        actions += self._judge(now)
        self._clear()
        actions += self._stop_without_essential(now)
        self._let_leave(now)
        actions += self._converge(now)
        if self._is_look_due(now):
            actions.append(Look())
        actions += [*self._bury_pools(), *self._await_clients(), *self._keep_listeners()]
        return [*actions, *self._finish()]

    def _converge(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for keeper in self._all():
            actions += keeper.converge(now)
            keeper.settle_listeners()
        # A pool without workers ends here and now, and nothing else may happen that would let the next ones leave.
        return actions + self._converge(now) if self._let_leave(now) else actions

    def _is_look_due(self, now: float) -> bool:
        """Tell whether it is time to look: at what was armed, or for workers that are too many, or too large."""
        if self._look_at is None and any(keeper.has_unseen_work for keeper in self._all()):
            self._look_at = now + SLOW_LOOK
        if self._look_at is not None and now >= self._look_at:
            self._look_at = now + self._look_interval()
            return True
        return any(due is not None and now >= due for due in (keeper.next_look() for keeper in self._all()))

    def _await_clients(self) -> list[Action]:
        waiting = [keeper for keeper in self.keepers.values() if keeper.is_awaiting]
        awaited = frozenset(address for keeper in waiting for address in keeper.addresses())
        if awaited == self._awaited:
            return []
        self._awaited = awaited
        return [AwaitClients(awaited)]

    def _bury_pools(self) -> list[Action]:
        if self.phase is Phase.STOPPING:
            return []
        over = [keeper for keeper in self.departing if keeper.is_over]
        self.departing = [keeper for keeper in self.departing if not keeper.is_over]
        self.keepers = {
            name: keeper for name, keeper in self.keepers.items() if not self._is_stillborn(keeper)
        }
        return [Tell("info", f"pool {keeper.name} is gone") for keeper in over]

    def _is_stillborn(self, keeper: Keeper) -> bool:
        return keeper.settings is None and keeper.trial is None and not keeper.everybody()

    def _keep_listeners(self) -> list[Action]:
        kept = frozenset(address for keeper in self._all() for address in keeper.addresses())
        if self._pending is not None:  # it waits, with its listeners open
            kept |= all_keyed(self._pending.config).keys()
        if kept == self._kept:
            return []
        self._kept = kept
        return [KeepListeners(kept)]

    def _finish(self) -> list[Action]:
        if self.phase is Phase.STOPPING:
            return self._finish_stop()
        goes_on = any(self._is_awaited(keeper) for keeper in self.keepers.values()) or self.departing
        if self._rolling and self._candidate is None and not goes_on:
            self._rolling = False
            return [EndRollout(self.generation)]
        return []

    def _is_awaited(self, keeper: Keeper) -> bool:
        """Tell whether the rollout is not over in a pool; one that it leaves out may be in trouble for as long as it likes."""
        is_in_trouble = keeper.degraded is not None and keeper.generation < self.generation
        return not (keeper.is_replaced or is_in_trouble)

    def _finish_stop(self) -> list[Action]:
        if self._ended or not all(keeper.is_over for keeper in self._all()):
            return []
        self._ended = True
        return [self._end or End(0)]


def _ends_workers(keeper: Keeper) -> bool:
    """Tell whether workers end so that a pool's next generation can be tried."""
    return keeper.trial is not None and keeper.trial.settings.stops_first and bool(keeper.lives)


def _is_answered(action: Action) -> bool:
    return isinstance(action, Disown | Spawn | Look)


def _bury_given_up(event: WorkerEvent) -> list[Action]:
    """Write the record of a worker that was given up as unkillable, if it has died after all."""
    if not isinstance(event, events.Exited):
        return []
    return [
        Bury(event.birth, event.exit, "killed by prefork: it hung in the kernel until now", expected=False)
    ]


def _input(event: WorkerEvent) -> tuple[Input, object]:
    """Return what an event is to the life of its worker."""
    match event:
        case events.Spawned(_, pid):
            return Input.SPAWNED, pid
        case events.SpawnFailed(_, reason, traceback):
            return Input.SPAWN_FAILED, (reason, traceback)
        case events.Ready(_, memory):
            return Input.READY, memory
        case events.BootFailed(_, reason, traceback):
            return Input.BOOT_FAILED, (reason, traceback)
        case events.Failed(_, reason, traceback):
            return Input.FAILED, (reason, traceback)
        case events.Exited(_, how):
            return Input.EXITED, how
        case events.Spent(_, enough):
            return Input.SPENT, enough
        case events.Invalid(_, reason):
            return Input.INVALID, reason
        case _:
            return _PLAIN[type(event)], None


_PLAIN: dict[type[WorkerEvent], Input] = {
    events.Ordered: Input.ORDERED,
    events.LeftQueue: Input.LEFT_QUEUE,
    events.ChannelLost: Input.CHANNEL_LOST,
    events.StacksRead: Input.STACKS,
    events.Halted: Input.HALTED,
    events.Continued: Input.CONTINUED,
}
