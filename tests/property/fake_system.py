"""An operating system made of a clock and a list: pids, boots, drains, deaths and a scoreboard, obedient or not.

It performs what the supervisor asks for, tells it what came of that, and objects to every order that makes no sense.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import msgspec

from prefork.config.listeners import Key, all_keyed, keyed
from prefork.config.order import predecessors
from prefork.config.schema import TEMPLATE, Config, Listen, Log, Master, Pool
from prefork.master.estate import decode, encode
from prefork.supervisor import actions, events, recycling
from prefork.supervisor.actions import Action
from prefork.supervisor.events import Clock, Event, Exit, Pulse, Sighting
from prefork.supervisor.pool import Keeper
from prefork.supervisor.server import Phase, Supervisor
from prefork.supervisor.worker import Life, State
from prefork.units import Address, Share, TcpAddress

PORTS = [TcpAddress("127.0.0.1", port) for port in (8000, 8001, 8002)]
SOON = (0.0, 0.01, 0.3, 2.0)
# How long a task works; none of the clocks limits it.
RUN = (0.0, 0.5, 3.0, 30.0)
KILLED = Exit(signal="SIGKILL", status=137)
# One deadline may lead to another that is due at once, but not for ever.
SPINNING = 4


# An application that no worker can load.
BROKEN = "broken:app"


def config(*pools: Pool) -> Config:
    master = Master(name="shop", directory="/srv", control="/run/shop.sock")
    return Config(master=master, log=Log(), pools={pool.name: pool for pool in pools})


def pool(
    name: str,
    ports: Sequence[Address],
    *,
    broken: bool = False,
    surge: int = 1,
    task: bool = False,
    **options: object,
) -> Pool:
    listen = () if task else tuple(Listen(address=port) for port in ports)
    kind = {"task" if task else "wsgi": BROKEN if broken else "shop:app"}
    if options.get("reload") == "if-changed":  # as a program
        kind = {"command": (BROKEN if broken else "shop:app",)}
    return Pool(name=name, listen=listen, surge=Share(number=surge), **kind, **options)  # type: ignore[arg-type]


@dataclass
class Process:
    """One worker as the operating system sees it, and how it takes orders."""

    pool: Pool
    generation: int
    slot: int
    obeys: bool
    dumps: bool
    immortal: bool
    ready: bool = False
    halted: bool = False
    draining: bool = False
    dead: bool = False
    pulses: list[Pulse] = field(default_factory=list)
    busy_time: float = 0.0


class FakeSystem:
    """Plays everything outside of the supervisor.

    Attributes:
        behave: whether forks succeed, good applications boot, and orders are obeyed.

    """

    def __init__(self, seed: int, *, nested: bool = True) -> None:
        self.random = Random(seed)
        self.supervisor = Supervisor(self.random.random)
        self.behave = True
        self.now = 1000.0
        self.processes: dict[int, Process] = {}
        self.ended: actions.End | None = None
        self.rollouts: dict[int, str | None] = {}
        self.wanted: Config | None = None
        self.adopted: Config | None = None
        self.open: frozenset[Key] = frozenset()
        self.watched = False
        self.scaled = False
        self.told_to_stop = False
        self.immortals = 0
        self._finals: dict[tuple[str, int], list[Exit]] = {}  # ends after which nobody may follow
        self._proven: dict[
            tuple[str, int], int
        ] = {}  # how often a generation's workers got ready, or were done
        self.awaited: frozenset[Key] = frozenset()
        self._births: set[int] = set()
        self._ordered: dict[int, tuple[actions.Spawn, Process]] = {}  # who is to be forked, and by whom
        self._pids = count(42)
        self._agenda: list[tuple[float, int, Event]] = []
        self._order = count()
        self._nested = nested
        self._ticks = 0

    # Time.

    def tell(self, event: Event) -> None:
        """Hand in an event now, and perform all that follows from it; after the end nobody is left to hear it."""
        if isinstance(event, events.Boot | events.Reload):
            self.wanted = event.config
            self.open |= all_keyed(event.config).keys()
        self.scaled = self.scaled or isinstance(event, events.Scale | events.Shift)
        self.told_to_stop = self.told_to_stop or isinstance(event, events.Stop)
        queue = [event]
        while queue and self.ended is None:
            queue += self._perform_all(self._handle(queue.pop(0)))

    def _perform_all(self, asked: list[Action]) -> list[Event]:
        """Perform what was asked for, and return what the supervisor has yet to be told of it."""
        later: list[Event] = []
        for action in asked:
            answer = self._perform(action)
            if answer is None:
                continue
            if self._nested:
                self.tell(answer)
            else:
                later.append(answer)
        return later

    def next_happening(self) -> float | None:
        """Return when something happens next, if anything ever will."""
        due = [self.supervisor.next_deadline(), self._agenda[0][0] if self._agenda else None]
        coming = [at for at in due if at is not None]
        return min(coming) if coming and self.ended is None else None

    def step(self) -> bool:
        """Let time pass until something happens; return False if nothing ever will."""
        coming = self.next_happening()
        if coming is None:
            return False
        self._pass_time(coming)
        if self._agenda and self._agenda[0][0] <= self.now:
            self._ticks = 0
            self._happen(heapq.heappop(self._agenda)[2])
        else:
            self._tick()
        return True

    def run(self, seconds: float) -> None:
        """Let this much time pass, or less if nothing is pending any more."""
        end = self.now + seconds
        while (coming := self.next_happening()) is not None and coming <= end:
            self.step()

    def _pass_time(self, to: float) -> None:
        self._ticks = 0 if to > self.now else self._ticks
        for process in self.processes.values():
            process.busy_time += max(0.0, to - self.now) if process.pulses else 0.0
        self.now = max(self.now, to)
        self._check_clocks()

    def _tick(self) -> None:
        self._ticks += 1
        assert self._ticks < SPINNING, "the loop spins"
        self.tell(events.Tick())

    def upgrade(self) -> bool:
        """Let another program's supervisor go on, with what can be written down; return whether that is possible now."""
        while (due := self.supervisor.next_deadline()) is not None and due <= self.now:
            self._tick()  # as the loop does before it upgrades; whatever is due, Resume would act on
        if not self.supervisor.can_be_resumed:
            return False
        past, _ = decode(encode(self.supervisor.past())[0], live=False)
        for birth in [birth for birth, process in self.processes.items() if process.slot == TEMPLATE]:
            del self.processes[birth]  # templates end with the program that has made them
        lives = self._all_lives()
        self.supervisor = Supervisor(self.random.random)
        asked = self._handle(events.Resume(past))
        assert self._all_lives() == lives  # now: the look that it asks for may well change the size of a pool
        for answer in self._perform_all(asked):
            self.tell(answer)
        return True

    def _all_lives(self) -> dict[int, Life]:
        return {
            life.birth: msgspec.structs.replace(life)
            for life in self.supervisor._lives()
            if life.slot != TEMPLATE
        }

    # What happens by itself.

    def plan(self, event: Event, after: float) -> None:
        """Let something happen later."""
        heapq.heappush(self._agenda, (self.now + after, next(self._order), event))

    def die(self, birth: int, how: Exit, after: float = 0.0) -> None:
        """Let a process die; the end of its channel is heard first, or never."""
        if self.random.random() < 0.5:
            self.plan(events.ChannelLost(birth), after)
            after += self.random.choice((0.0, 0.01))
        self.plan(events.Exited(birth, how), after)

    def work(self, birth: int, seconds: float, *, stale: bool = False) -> None:
        """Let a worker begin a request; with ``stale`` it believes that somebody looks at the scoreboard."""
        process = self.processes[birth]
        if process.slot == TEMPLATE:
            return
        limit = process.pool.request_timeout
        if not limit:
            return
        pulse = Pulse(birth, Clock.REQUEST, self.now, self.now + limit, "GET /")
        process.pulses.append(pulse)
        self.plan(events.Looked((pulse,)), seconds)  # never told: see _happen
        if not self.watched and not stale:
            self.tell(events.Busy())

    def living(self) -> list[int]:
        """Return who is ready and was not told to go."""
        return [birth for birth, process in self.processes.items() if process.ready and not process.draining]

    @property
    def is_calm(self) -> bool:
        """Whether nobody is spent, or on the way, and nothing will happen before the next worker is too old."""
        if self.ended is not None:
            return True
        keepers = self.supervisor.keepers.values()
        # A worker may be too old just before another one is ready.
        if any(keeper._spawn_at or keeper._template_at for keeper in keepers):
            return False
        if any(life.deadline for life in self.supervisor._lives()):
            return False
        if any(life.spent for keeper in keepers for life in keeper.lives.values()):
            return False
        ends = [recycling.next_expiry(keeper.lives.values()) for keeper in keepers]
        return self.next_happening() == min((end for end in ends if end is not None), default=None)

    def _happen(self, event: Event) -> None:
        if isinstance(event, events.Looked):
            self._finish_request(event.pulses[0])
            return
        assert not isinstance(
            event, (events.Boot, events.Resume, events.Reload, events.Scale, events.Shift, events.Rest)
        )
        assert not isinstance(event, (events.Stop, events.Busy, events.Tick))
        if isinstance(event, events.Spawned | events.SpawnFailed):
            self._bear(event)
            return
        process = self.processes.get(event.birth)
        if process is None or (process.halted and not isinstance(event, events.Exited)):
            return
        process.ready = process.ready or isinstance(event, events.Ready)
        process.draining = process.draining or isinstance(event, events.LeftQueue)
        self._count(event, process)
        if isinstance(event, events.Exited):
            self._orphan(self.processes.pop(event.birth))
        self.tell(event)

    def _count(self, event: events.WorkerEvent, process: Process) -> None:
        """Remember what a worker has shown of its generation, by the rules of ``restart``."""
        life = self.supervisor.life(event.birth)
        if life is None or life.asked or process.slot == TEMPLATE:
            return
        place, restart = (process.pool.name, process.generation), process.pool.restart
        if isinstance(event, events.Exited):
            ended_well = event.exit.code == 0 and life.strike is None and life.failure is None
            if restart == "never" or (restart != "always" and ended_well):
                self._finals.setdefault(place, []).append(event.exit)
            if ended_well and (restart != "always" or life.ready_at is not None):
                self._proven[place] = self._proven.get(place, 0) + 1
        elif isinstance(event, events.Ready) and restart != "once":
            self._proven[place] = self._proven.get(place, 0) + 1

    def _finish_request(self, pulse: Pulse) -> None:
        process = self.processes.get(pulse.birth)
        if process is not None and not process.halted:
            process.pulses.remove(pulse)

    # What the supervisor asks for.

    def _handle(self, event: Event) -> list[Action]:
        before = self._ready_lives()
        asked = self.supervisor.handle(event, self.now)
        self._check_floor(before)
        self._check_probes(asked)
        self._check_recycling()
        self._check_sizes(event, asked)
        return asked

    def _perform(self, action: Action) -> Event | None:
        match action:
            case actions.Spawn():
                return self._fork(action)
            case actions.Drain(birth) | actions.Terminate(birth):
                assert not isinstance(action, actions.Drain) or action.grace > 0
                self._drain(self._target(birth), birth)
            case actions.Leave(birth):
                self._leave(self._target(birth), birth)
            case actions.DumpStacks(birth):
                if self._target(birth).dumps:
                    self.plan(events.StacksRead(birth), 0.01)
            case actions.Kill(birth):
                self.die(birth, Exit(signal="SIGKILL"), 20.0 if self._target(birth).immortal else 0.01)
            case actions.Bury(birth):
                assert birth not in self.processes, "buried alive"
            case actions.Disown():
                return self._disown(action)
            case actions.Look():
                pulses = [pulse for process in self.processes.values() for pulse in process.pulses]
                return events.Looked(tuple(pulses), self._sightings())
            case _:
                self._note(action)
        return None

    def _note(self, action: Action) -> None:
        match action:
            case actions.Watch(on):
                self.watched = on
                living = self.living()
                if not on and living and not self.behave:
                    self.work(self.random.choice(living), 60.0, stale=True)
            case actions.EndRollout(generation, reason):
                assert generation not in self.rollouts, "a rollout ended twice"
                self.rollouts[generation] = reason
            case actions.Adopt(config):
                self.adopted = config
            case actions.KeepListeners(addresses):
                self.open &= addresses
            case actions.AwaitClients(addresses):
                assert addresses <= self.open, "a listener was closed too early"
                self.awaited = addresses
            case actions.End():
                assert self.ended is None, "the server ended twice"
                assert all(process.immortal for process in self.processes.values()), "somebody is left"
                self._check_end(action)
                self.ended = action

    def _sightings(self) -> tuple[Sighting, ...]:
        return tuple(
            Sighting(birth, 0, process.busy_time, 0, bool(process.pulses), bool(process.pulses))
            for birth, process in self.processes.items()
            if process.pool.is_measured
        )

    def _target(self, birth: int) -> Process:
        assert birth in self.processes, f"{birth} is not alive: it was never born, or was reported dead"
        return self.processes[birth]

    def _fork(self, spawn: actions.Spawn) -> Event:
        self._check_order(spawn)
        self._check_finals(spawn)
        self._check_places(spawn)
        assert spawn.birth not in self._births, "a birth is named twice"
        self._births.add(spawn.birth)
        life = self.supervisor.life(spawn.birth)
        assert life is not None
        # One that is not wanted any more before it is born leaves at its birth, and needs no listener.
        assert life.asked or keyed(spawn.pool).keys() <= self.open, "a listener was closed too early"
        if spawn.pool.preload and spawn.slot != TEMPLATE:
            return self._have_forked(spawn)
        if not self.behave and self.random.random() < 0.15:
            return events.SpawnFailed(spawn.birth, "fork: Resource temporarily unavailable")
        return self._give_birth(spawn)

    def _have_forked(self, spawn: actions.Spawn) -> Event:
        """Have a template fork a worker, soon or never."""
        place = (TEMPLATE, spawn.pool.name, spawn.generation)
        found = [one for one in self.processes.values() if (one.slot, one.pool.name, one.generation) == place]
        able = [process for process in found if process.ready and not process.draining]
        assert able, "nobody could fork this worker"
        self._ordered[spawn.birth] = spawn, able[0]
        if self.behave or self.random.random() < 0.8:
            fails = not self.behave and self.random.random() < 0.15
            answer = events.SpawnFailed(spawn.birth, "fork") if fails else events.Spawned(spawn.birth, 0)
            self.plan(answer, self.random.choice(SOON))
        return events.Ordered(spawn.birth)

    def _bear(self, event: events.Spawned | events.SpawnFailed) -> None:
        """Have somebody born of a template that can go on, if anybody still waits for it."""
        if event.birth not in self._ordered or self._ordered[event.birth][1].halted:
            return
        spawn, template = self._ordered.pop(event.birth)
        if template.dead or isinstance(event, events.SpawnFailed):
            self.tell(events.SpawnFailed(event.birth, "its template could not fork it"))
        else:
            self.tell(self._give_birth(spawn))

    def _disown(self, disown: actions.Disown) -> Event:
        """Have somebody not be born any more, unless that has just happened and was not heard of yet."""
        spawn, template = self._ordered.pop(disown.birth)
        if template.dead or template.halted or self.random.random() < 0.7:
            return events.SpawnFailed(disown.birth, disown.reason)
        return self._give_birth(spawn)

    def _orphan(self, template: Process) -> None:
        """Have everybody fail whom a dead process was to fork."""
        template.dead, template.halted = True, False
        for birth, (_, parent) in self._ordered.items():
            if parent is template:
                self.plan(events.SpawnFailed(birth, "its template is gone"), 0.0)

    def _give_birth(self, spawn: actions.Spawn) -> Event:
        obeys = self.behave or self.random.random() < 0.7
        dumps = self.random.random() < 0.7
        immortal = not self.behave and self.random.random() < 0.03
        self.immortals += immortal
        self.processes[spawn.birth] = Process(
            spawn.pool, spawn.generation, spawn.slot, obeys, dumps, immortal
        )
        self._boot(spawn)
        return events.Spawned(spawn.birth, next(self._pids))

    def _boot(self, spawn: actions.Spawn) -> None:
        # With preload it is the template that loads the application.
        broken = spawn.pool.application == BROKEN and (spawn.slot == TEMPLATE or not spawn.pool.preload)
        after = self.random.choice(SOON)
        how = "ready"
        if broken or (not self.behave and self.random.random() < 0.4):
            how = self.random.choice(("fail", "crash", "hang", "leave"))
        match how:
            case "ready":
                self.plan(events.Ready(spawn.birth), after)
                ends = spawn.pool.restart == "once" or (spawn.pool.task and self.random.random() < 0.2)
                if ends and spawn.slot != TEMPLATE:
                    self._end(spawn, after + self.random.choice(RUN))
            case "fail":
                self.plan(events.BootFailed(spawn.birth, "ImportError: shop", "Traceback"), after)
                if self.random.random() < 0.8:
                    self.die(spawn.birth, Exit(code=3), after)
            case "crash":
                self.die(spawn.birth, Exit(signal="SIGSEGV"), after)
            case "leave":
                self.die(spawn.birth, Exit(code=0), after)

    def _end(self, spawn: actions.Spawn, after: float) -> None:
        """Let a process do its work and end: well, unless it misbehaves; a task says so first, a command does not."""
        well = self.behave or self.random.random() < 0.6
        if not well and self.random.random() < 0.5:
            self.plan(events.Failed(spawn.birth, "KeyError: 'x'", "Traceback"), after)
        if self.random.random() < 0.7:
            self.plan(events.LeftQueue(spawn.birth), after)
        how = Exit(code=0) if well else self.random.choice((Exit(code=1, status=1), KILLED))
        self.die(spawn.birth, how, after)

    def _drain(self, process: Process, birth: int) -> None:
        process.draining = True
        if process.obeys or self.behave:
            after = self.random.choice(SOON)
            if self.random.random() < 0.9:
                self.plan(events.LeftQueue(birth), 0.0)
            self.die(birth, Exit(code=0), after)

    def _leave(self, process: Process, birth: int) -> None:
        process.draining = True
        if process.obeys:
            self.die(birth, Exit(code=0), 0.01)

    # What must hold at all times.

    def _ready_lives(self) -> set[int]:
        return {life.birth for life in self.supervisor._lives() if life.state is State.READY}

    def _check_order(self, spawn: actions.Spawn) -> None:
        """Nobody starts before those that it comes after; work that is done once is done by nobody else meanwhile."""
        supervisor = self.supervisor
        candidate = supervisor._candidate
        if candidate is not None and spawn.generation == supervisor.generation:
            tried = [name for name, keeper in supervisor.keepers.items() if keeper.trial]
            for name in predecessors(candidate.pools)[spawn.pool.name].intersection(tried):
                if supervisor.keepers[name].stopped:
                    continue
                before = candidate.pools[name]
                needed = before.workers if before.restart == "once" else 1
                shown = self._proven.get((name, spawn.generation), 0)
                assert shown >= needed, f"{spawn.pool.name} starts before {name}"
        if spawn.pool.restart == "once":
            others = [other for other in self._workers(spawn.pool.name) if other.pool.restart == "once"]
            assert all(other.generation == spawn.generation for other in others), "it is done twice at a time"

    def _check_places(self, spawn: actions.Spawn) -> None:
        """Where a worker has to end before the next one starts, nobody is in its place any more."""
        if not spawn.pool.stops_first or spawn.slot == TEMPLATE:
            return
        others = self._workers(spawn.pool.name)
        assert spawn.slot not in {other.slot for other in others}, "two are in one place"
        life = self.supervisor.life(spawn.birth)
        if life is not None and life.asked:
            return  # it had its place when it was ordered, and leaves at its birth
        keeper = self.supervisor.keepers[spawn.pool.name]
        places = (keeper.trial.places or 0) if keeper.trial else 0
        assert len(others) < max(keeper.wanted, places), "there are too many at a time"

    def _workers(self, name: str) -> list[Process]:
        """Return a pool's workers; whoever was given up because it survives SIGKILL cannot be waited for."""
        return [
            process
            for birth, process in self.processes.items()
            if process.pool.name == name
            and process.slot != TEMPLATE
            and not (process.immortal and self.supervisor.life(birth) is None)
        ]

    def _is_recycled(self, birth: int) -> bool:
        """Tell whether a worker has been replaced already, and leaves."""
        life = self.supervisor.life(birth)
        return life is not None and (life.why or "").startswith("recycled")

    def _has_left_its_place(self, life: Life) -> bool:
        """Tell whether a worker leaves, and its place is free: it was recycled, or had to make room for a trial."""
        return self._is_recycled(life.birth) or (life.asked and (life.why or "").startswith("replaced"))

    def _check_finals(self, spawn: actions.Spawn) -> None:
        """Nobody follows on an end that was final."""
        keeper = self.supervisor.keepers.get(spawn.pool.name)
        if keeper is None or self.scaled or spawn.slot == TEMPLATE:
            return
        finals = self._finals.get((spawn.pool.name, spawn.generation), [])
        living = sum(process.generation == spawn.generation for process in self._workers(spawn.pool.name))
        living -= sum(
            life.generation == spawn.generation and self._has_left_its_place(life)
            for life in keeper.lives.values()
        )
        most = max(keeper.wanted, spawn.pool.workers) + keeper._substitutes()  # beside one who is to go
        holds = spawn.pool.restart != "always"
        assert not holds or len(finals) + living < most, "somebody follows on a final end"

    def _check_end(self, end: actions.End) -> None:
        """The server ends because it was told to, could not boot, or an essential pool has ended for good."""
        if self.told_to_stop or end.reason is not None:
            return
        assert self.adopted is not None
        generation = self.supervisor.keepers
        missed = [
            self._finals[name, generation[name].generation][-1]
            for name, pool in self.adopted.pools.items()
            if pool.essential and (name, generation[name].generation) in self._finals
        ]
        assert end.code in {how.status for how in missed}, "the server ends without a reason"

    def _check_floor(self, before: set[int]) -> None:
        """Nobody who serves is retired while the pool would have fewer ready workers than it wants."""
        for keeper in self.supervisor.keepers.values():
            serving = [life for life in keeper.lives.values() if life.generation <= keeper.generation]
            retired = [
                life
                for life in serving
                if life.birth in before and life.state in (State.DRAINING, State.LEAVING) and life.asked
            ]
            if retired and not keeper.resting and keeper.closing is None and not self._may_fall(keeper):
                ready = sum(life.state is State.READY for life in serving)
                wanted = keeper.wanted - len(keeper.ends)
                assert ready >= wanted, f"{len(retired)} retired, {ready} of {wanted} ready"

    @staticmethod
    def _may_fall(keeper: Keeper) -> bool:
        """Tell whether a pool may have fewer ready workers for a while: some end before others start."""
        stops_first = keeper.settings is not None and keeper.settings.stops_first
        return keeper.stopped or stops_first or bool(keeper.trial and keeper.trial.taken)

    def _check_probes(self, asked: list[Action]) -> None:
        """While a pool's workers fail, one at a time is tried."""
        spawns = [action for action in asked if isinstance(action, actions.Spawn)]
        for spawn in [spawn for spawn in spawns if spawn.slot != TEMPLATE]:
            keeper = self.supervisor.keepers.get(spawn.pool.name)
            if keeper is not None and keeper._pause and spawn.generation == keeper.generation:
                lives = [life for life in keeper.lives.values() if life.generation == keeper.generation]
                tried = [life for life in lives if life.ready_at is None and not life.asked]
                assert len(tried) == 1, "two are tried at once"

    def _check_recycling(self) -> None:
        """Of a pool's workers one at a time is recycled, and nobody is called so who is not spent."""
        for keeper in self.supervisor.keepers.values():
            lives = [life for life in keeper.lives.values() if self._is_recycled(life.birth)]
            current = [life for life in lives if life.generation == keeper.generation]
            assert len(current) <= 1, "two are recycled at once"
            assert all(life.spent for life in lives)

    def _check_sizes(self, event: Event, asked: list[Action]) -> None:
        """No pool scales beyond its bounds, and by its load only idle workers are retired."""
        for keeper in self.supervisor.keepers.values():
            if self.supervisor.phase is Phase.STOPPING:
                continue  # stopped at its start it goes on with those whom it has
            if keeper.closing is None and keeper.settings is not None and keeper.settings.scale is not None:
                least, most = keeper.settings.size_range
                assert keeper.stopped or least <= keeper.wanted <= most
        if isinstance(event, events.Looked):
            for drain in (action for action in asked if isinstance(action, actions.Drain)):
                life = self.supervisor.life(drain.birth)
                assert life is not None
                is_idle = not self.processes[drain.birth].pulses
                assert life.why != "scaled down" or is_idle, "a busy one is retired"

    def _check_clocks(self) -> None:
        """No request of a serving worker has been overdue for more than a moment."""
        for birth, process in self.processes.items():
            life = self.supervisor.life(birth)
            if life is not None and life.state is State.READY and process.pulses:
                assert min(pulse.deadline for pulse in process.pulses) > self.now - 1.0, "nobody looks"

    def check_settled(self) -> None:
        """Nothing is pending, so nothing may be undone."""
        supervisor = self.supervisor
        if supervisor.phase is Phase.STOPPING:
            assert self.ended is not None
            return
        assert supervisor.phase is Phase.RUNNING
        assert self.adopted is not None
        assert not supervisor.departing
        assert supervisor.state != "reloading"
        assert list(supervisor.keepers) == list(self.adopted.pools)
        assert max(self.rollouts) == supervisor.generation, "somebody waits for the end of a rollout"
        if self.rollouts[supervisor.generation] is None:
            assert self.adopted == self.wanted, "a reload was forgotten"
        for keeper in supervisor.keepers.values():
            states = [(life.state, life.generation) for life in keeper.lives.values()]
            finals = self._finals.get((keeper.name, keeper.generation), [])
            assert len(keeper.ends) == len(finals) or self.scaled or self.immortals, "an end is forgotten"
            wanted = 0 if keeper.resting else max(0, keeper.wanted - len(keeper.ends))
            assert not (keeper.stopped and wanted), "a stopped pool has workers"
            assert keeper.settings is not None
            assert not (keeper.settings.essential and keeper.is_done), (
                "the server goes on without what is essential"
            )
            scale = keeper.settings.scale
            assert keeper.resting or scale is None or wanted <= scale.at_rest, "too many idle workers stay"
            assert states == [(State.READY, keeper.generation)] * wanted
            assert len({life.slot for life in keeper.lives.values()} - keeper.ends.keys()) == wanted
            assert not any(life.lost or life.halted for life in keeper.lives.values())
            assert keeper.degraded is None
            templates = [(life.state, life.generation) for life in keeper.templates.lives.values()]
            sleeps = keeper.resting or keeper.stopped or keeper.is_done
            preloads = keeper.settings.preload and not sleeps
            assert templates == [(State.READY, keeper.generation)] * preloads
        assert self.open == all_keyed(self.adopted).keys()
        keepers = supervisor.keepers.values()
        sleeping = [found for found in keepers if not (found.wanted or found.resting or found.stopped)]
        assert self.awaited == frozenset(key for keeper in sleeping for key in keeper.addresses())
