"""One worker's life, from the wish to fork it to its death: the states, and a total table of what happens in each.

    FORKING --spawned--> STARTING --ready--> READY --retire--> DRAINING --exited--> GONE
                            |                  |                  |
                            |  a clock strikes, or it is told to leave at once
                            v                  v                  v
                         DUMPING (its stacks are being written) --clock--> KILLED --exited--> GONE
                         LEAVING (it was told to exit at once)  --clock--> KILLED

Every state but READY and GONE has a deadline, so no life can hang; a READY worker has one only while it is halted
or cannot be talked to. FORKING takes no time unless a template forks the worker: then that has one too.
A template's life is the same: ready means that it has loaded the application.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import msgspec

from prefork.config.schema import TEMPLATE, Pool
from prefork.supervisor.actions import (
    Action,
    Bury,
    Disown,
    Drain,
    DumpStacks,
    Kill,
    Leave,
    Strike,
    Tell,
    Terminate,
)
from prefork.supervisor.events import Clock, Exit, Pulse
from prefork.units import format_size

# A worker that was told to exit at once has this long before it is killed.
QUICK = 1.0
# The stacks are complete when nothing more has come for QUIET seconds; a worker that blocks the signal sends none.
STACKS = 1.0
QUIET = 0.1
# A process closes its descriptors before it becomes a zombie, so a lost channel mostly announces a death.
LAST_BREATH = 0.25
# Only a process in an uninterruptible system call survives SIGKILL; nobody can do more about it.
UNKILLABLE = 10.0
# Workers end by themselves this much after their deadline, in case nobody is left who would end them.
OVERTIME = 1.0

# What a program does to itself, as opposed to signals that somebody sends.
CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP"})


class State(Enum):
    """Where a worker is in its life."""

    FORKING = auto()
    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    LEAVING = auto()
    DUMPING = auto()
    KILLED = auto()
    GONE = auto()


class Input(Enum):
    """What can happen to a worker, or be asked of it."""

    ORDERED = auto()
    SPAWNED = auto()
    SPAWN_FAILED = auto()
    READY = auto()
    BOOT_FAILED = auto()
    FAILED = auto()
    LEFT_QUEUE = auto()
    CHANNEL_LOST = auto()
    INVALID = auto()
    STACKS = auto()
    HALTED = auto()
    CONTINUED = auto()
    EXITED = auto()
    SPENT = auto()
    RETIRE = auto()
    QUIT = auto()
    OVERDUE = auto()
    DEADLINE = auto()


class Retirement(msgspec.Struct, frozen=True):
    """How a worker is to go: why, whether anybody comes after it in its queue, and within which time."""

    why: str
    empty_queue: bool
    grace: float


class Life(msgspec.Struct):
    """What the supervisor knows of one worker.

    ``done`` if it has ended by itself, with 0, and nothing has failed; ``doom`` is how it is to go, if it was retired before
    its birth was known.
    """

    birth: int
    pool: Pool
    slot: int
    generation: int
    state: State = State.FORKING
    pid: int = 0
    deadline: float | None = None
    ready_at: float | None = None
    drain_by: float | None = None
    dump_by: float = 0.0
    left_queue: bool = False
    halted: bool = False
    lost: bool = False
    asked: bool = False
    why: str | None = None
    doom: Retirement | None = None
    strike: Strike | None = None
    struck: set[float] = msgspec.field(default_factory=set)
    invalid: str | None = None
    failure: str | None = None
    traceback: str = ""
    exit: Exit | None = None
    done: bool = False
    # For recycling (see recycling.py): a share of the jitter, how often in a row it was found too large, what it
    # had when it got ready, what it has had enough of.
    jitter: float = 0.0
    too_large: int = 0
    fresh_memory: int = 0
    spent: str | None = None
    # For scaling (see scaling.py): what the latest look showed, when it was, and the share of busy time before it.
    busy_time: float = 0.0
    accounted_at: float = 0.0
    busy_share: float = 0.0
    served: int = 0
    has_served: bool = False
    memory: int = 0
    has_in_flight: bool = False

    @property
    def name(self) -> str:
        """The worker's identity for people, without its pid."""
        return self.pool.place(self.slot)

    @property
    def counts(self) -> bool:
        """Whether this worker holds a place in its pool.

        One that fails to boot does so until it is gone, so that nobody else is tried before the pool backs off. So does
        one that ends unasked, where its end decides about a successor; and a task, whose work is not done twice at a time.
        """
        if self.state in (State.FORKING, State.STARTING, State.READY):
            return True
        is_awaited = self.ready_at is None or self.pool.restart != "always" or self.pool.kind == "task"
        return self.state is not State.GONE and not self.asked and is_awaited

    @property
    def reason(self) -> str:
        """Why it has ended, if nobody has asked it to."""
        return self.failure or "it cannot be killed"

    @property
    def is_final(self) -> bool:
        """Whether this worker's end is one after which nobody takes its place in this generation."""
        # A template does no work that could be done; a process that could not even be forked has not run.
        if self.slot == TEMPLATE or self.asked or not self.pid:
            return False
        return self.pool.restart == "never" or (self.pool.restart != "always" and self.done)

    def handle(self, event: Input, detail: Any, now: float) -> list[Action]:
        """Move on by one step of the table; ``detail`` is what the input's transition takes."""
        return TABLE[self.state, event](self, detail, now)

    def move(self, state: State, deadline: float | None) -> None:
        """Enter a state that has to end by a deadline."""
        self.state = state
        self.deadline = deadline


Transition = Callable[[Life, Any, float], list[Action]]


def _ignore(_life: Life, _detail: Any, _now: float) -> list[Action]:
    return []


def _doom(life: Life, detail: Retirement | str, now: float) -> list[Action]:
    """Note that the worker is not wanted any more; it cannot be told before it exists, nor is a template waited for."""
    life.asked = True
    life.deadline = life.deadline and now
    life.doom = detail if isinstance(detail, Retirement) else None
    life.why = detail.why if isinstance(detail, Retirement) else detail
    return []


def _ordered(life: Life, _detail: None, now: float) -> list[Action]:
    life.deadline = now + life.pool.boot_timeout
    return []


def _disown(life: Life, _detail: None, _now: float) -> list[Action]:
    """Wait no longer; whether the worker has been born by now is the answer to that."""
    life.deadline = None
    return [Disown(life.birth, f"its template did not fork it within {life.pool.boot_timeout:g} s")]


def _spawned(life: Life, pid: int, now: float) -> list[Action]:
    life.pid = pid
    if life.doom is not None:
        return _retire(life, life.doom, now)  # a template's worker may serve by now
    if life.why is not None:
        return _leave(life, now)
    life.move(State.STARTING, now + life.pool.boot_timeout)
    return []


def _spawn_failed(life: Life, failure: tuple[str, str], _now: float) -> list[Action]:
    life.failure, life.traceback = failure
    life.move(State.GONE, None)
    return []


def _ready(life: Life, memory: int, now: float) -> list[Action]:
    life.ready_at = now
    life.fresh_memory = memory
    life.move(State.READY, None)
    if life.slot != 0 or not 0 < life.pool.max_memory < memory:
        return []  # one worker speaks for all
    limit, fresh = format_size(life.pool.max_memory), format_size(memory)
    return [
        Tell(
            "warning",
            f"{life.pool.name}: max_memory is {limit}, a fresh worker has {fresh}: replacing workers only once they have "
            "twice that; raise max_memory",
        )
    ]


def _boot_failed(life: Life, failure: tuple[str, str], now: float) -> list[Action]:
    life.failure, life.traceback = failure
    life.move(State.LEAVING, now + QUICK)
    return []


def _note_failure(life: Life, failure: tuple[str, str], _now: float) -> list[Action]:
    life.failure, life.traceback = failure
    return []


def _left_queue(life: Life, _detail: None, now: float) -> list[Action]:
    life.left_queue = True
    _drain(life, "it left by itself", now + life.pool.graceful_timeout)
    return []


def _note_left_queue(life: Life, _detail: None, _now: float) -> list[Action]:
    life.left_queue = True
    return []


def _lose_channel(life: Life, _detail: None, now: float) -> list[Action]:
    life.lost = True
    life.deadline = now + LAST_BREATH
    return []


def _lose_channel_unready(life: Life, _detail: None, now: float) -> list[Action]:
    """End a worker that could never say Ready, unless it is dying anyway."""
    life.lost = True
    life.move(State.LEAVING, now + LAST_BREATH)
    return []


def _end_invalid(life: Life, reason: str, now: float) -> list[Action]:
    """Kill a worker that cannot be believed; it is not asked for its stacks, which would be as invalid."""
    life.invalid = life.failure = reason
    return _kill(life, None, now)


def _note_stacks(life: Life, _detail: None, now: float) -> list[Action]:
    life.deadline = min(life.dump_by, now + QUIET)
    return []


def _halted(life: Life, _detail: None, now: float) -> list[Action]:
    life.halted = True
    if life.pool.stall_timeout and not life.lost:
        life.deadline = now + life.pool.stall_timeout
    return []


def _continued(life: Life, _detail: None, _now: float) -> list[Action]:
    life.halted = False
    if not life.lost:
        life.deadline = None
    return []


def _spent(life: Life, enough: str, _now: float) -> list[Action]:
    """Note why the worker is to be recycled; it serves until there is somebody in its place."""
    life.spent = life.spent or enough
    return []


def _exited(life: Life, how: Exit, _now: float) -> list[Action]:
    life.exit = how
    life.done = how.code == 0 and not life.asked and life.strike is None and life.failure is None
    # Who says that it leaves and exits with 0 was sent TERM by somebody, or its handler wanted so: that is in order.
    in_order = life.asked or life.left_queue or life.is_final
    expected = in_order and life.strike is None and how.code == 0
    reason = cause(life, how)
    if not life.asked:
        life.failure = life.failure or reason
    life.move(State.GONE, None)
    return [Bury(life.birth, how, reason, expected)]


def _retire(life: Life, retirement: Retirement, now: float) -> list[Action]:
    """Have a worker drain. One that is not ready leaves at once by itself: only it knows whether it serves by now."""
    life.asked = True
    _drain(life, retirement.why, now + retirement.grace)
    if life.lost:
        return [Terminate(life.birth)]
    return [Drain(life.birth, retirement.grace + OVERTIME, retirement.empty_queue)]


def _drain(life: Life, why: str, by: float) -> None:
    life.why = why
    life.drain_by = by
    life.move(State.DRAINING, by)


def _retire_sooner(life: Life, retirement: Retirement, now: float) -> list[Action]:
    assert life.drain_by is not None
    life.drain_by = min(life.drain_by, now + retirement.grace)
    if life.state is State.DRAINING:
        life.deadline = life.drain_by
    return []


def _quit(life: Life, why: str, now: float) -> list[Action]:
    life.asked = True
    life.why = life.why or why
    return _leave(life, now)


def _quit_dumping(life: Life, _why: str, now: float) -> list[Action]:
    life.asked = True
    return _kill(life, None, now)


def _leave(life: Life, now: float) -> list[Action]:
    life.move(State.LEAVING, now + QUICK)
    return [Leave(life.birth)]


def _overdue(life: Life, pulse: Pulse, now: float) -> list[Action]:
    life.struck.add(pulse.since)
    limit = pulse.deadline - pulse.since
    return _dump(life, Strike(life.birth, pulse.clock, now - pulse.since, limit, pulse.what), now)


def _overdue_again(life: Life, pulse: Pulse, now: float) -> list[Action]:
    """Strike once for each request: a drained worker's threads go on after the first."""
    if pulse.since in life.struck:
        return []
    return _overdue(life, pulse, now)


def _dump(life: Life, strike: Strike, now: float) -> list[Action]:
    life.strike = strike
    life.dump_by = now + STACKS
    life.move(State.DUMPING, life.dump_by)
    return [DumpStacks(life.birth)]


def _boot_clock(life: Life, _detail: None, now: float) -> list[Action]:
    limit = life.pool.boot_timeout
    life.failure = f"not ready after {limit:g} s{_missed(life.pool)}"
    return _dump(life, Strike(life.birth, Clock.BOOT, limit, limit), now)


def _missed(pool: Pool) -> str:
    """Return in words what a worker that is not ready in time was waited for."""
    if pool.ready.notify:
        return ": READY=1 has not come on its NOTIFY_SOCKET"
    return f": nothing accepts connections on port {pool.ready.port}" if pool.ready.port else ""


def _drain_clock(life: Life, _detail: None, now: float) -> list[Action]:
    limit = life.pool.graceful_timeout
    return _dump(life, Strike(life.birth, Clock.GRACEFUL, limit, limit), now)


def _ready_clock(life: Life, _detail: None, now: float) -> list[Action]:
    if life.lost:
        _drain(life, "it closed its channel to the master", now + life.pool.graceful_timeout)
        life.failure = life.why
        return [
            Tell("error", f"{life.name} pid={life.pid} {life.why}; replacing the worker"),
            Terminate(life.birth),
        ]
    limit = life.pool.stall_timeout
    return _dump(life, Strike(life.birth, Clock.STALL, limit, limit, "halted by a signal"), now)


def _dumped(life: Life, _detail: None, now: float) -> list[Action]:
    """End the worker; but if only one of its several threads is stuck, let the others finish first."""
    assert life.strike is not None
    if life.strike.clock is Clock.REQUEST and life.pool.threads > 1:
        return [life.strike, *_drain_struck(life, now)]
    return [life.strike, *_kill(life, None, now)]


def _drain_struck(life: Life, now: float) -> list[Action]:
    if life.drain_by is not None:
        life.move(State.DRAINING, life.drain_by)
        return []
    grace = life.pool.graceful_timeout
    _drain(life, "a request was overdue", now + grace)
    return [Drain(life.birth, grace + OVERTIME, empty_queue=False)]


def _kill(life: Life, _detail: object, now: float) -> list[Action]:
    life.move(State.KILLED, now + UNKILLABLE)
    return [Kill(life.birth)]


def _give_up(life: Life, _detail: None, _now: float) -> list[Action]:
    life.move(State.GONE, None)
    return [Tell("error", f"{life.name} pid={life.pid} does not die of SIGKILL: it hangs in the kernel")]


def cause(life: Life, how: Exit) -> str:
    """Return in words why a worker ended, and who is to blame for it."""
    if how.signal == "SIGKILL" and life.state is State.KILLED:
        return f"killed by prefork: {_own_reason(life)}"
    if how.signal == "SIGKILL" and how.oom:
        return "killed by the kernel's OOM killer"
    if how.signal is not None:
        return f"crashed: {how.signal}" if how.signal in CRASHES else f"killed by somebody else: {how.signal}"
    if life.ready_at is None and not life.asked and not (life.done and life.is_final):
        return f"did not boot: {life.failure or f'exit code {how.code}'}"
    if how.code == 0 and life.strike is not None:
        return f"replaced by prefork: {_own_reason(life)}"
    if life.done and life.is_final:
        return "done, exit code 0"
    if how.code == 0 and life.why and life.why == recycled(life):
        return life.why
    if how.code == 0:
        return f"clean: {life.why}" if life.why else "it left by itself, exit code 0"
    return f"exit code {how.code}: {life.failure}" if life.failure else f"exit code {how.code}"


def recycled(life: Life) -> str:
    """Return in words why a spent worker is retired."""
    return f"recycled: {life.spent}"


def _own_reason(life: Life) -> str:
    if life.invalid is not None:
        return life.invalid
    if life.strike is not None:
        return f"{life.strike.clock.value} of {round(life.strike.limit, 3):g} s"
    if life.lost:
        return "it closed its channel to the master"
    return life.why or "it did not exit after its boot had failed"


HANDLED: dict[tuple[State, Input], Transition] = {
    (State.FORKING, Input.ORDERED): _ordered,
    (State.FORKING, Input.SPAWNED): _spawned,
    (State.FORKING, Input.SPAWN_FAILED): _spawn_failed,
    (State.FORKING, Input.RETIRE): _doom,
    (State.FORKING, Input.QUIT): _doom,
    (State.FORKING, Input.DEADLINE): _disown,
    (State.STARTING, Input.READY): _ready,
    (State.STARTING, Input.BOOT_FAILED): _boot_failed,
    (State.STARTING, Input.CHANNEL_LOST): _lose_channel_unready,
    (State.STARTING, Input.RETIRE): _retire,
    (State.STARTING, Input.QUIT): _quit,
    (State.STARTING, Input.DEADLINE): _boot_clock,
    (State.STARTING, Input.INVALID): _end_invalid,
    (State.READY, Input.INVALID): _end_invalid,
    (State.DRAINING, Input.INVALID): _end_invalid,
    (State.LEAVING, Input.INVALID): _end_invalid,
    (State.DUMPING, Input.INVALID): _end_invalid,
    (State.READY, Input.FAILED): _note_failure,
    (State.READY, Input.LEFT_QUEUE): _left_queue,
    (State.READY, Input.CHANNEL_LOST): _lose_channel,
    (State.READY, Input.HALTED): _halted,
    (State.READY, Input.CONTINUED): _continued,
    (State.READY, Input.SPENT): _spent,
    (State.READY, Input.RETIRE): _retire,
    (State.READY, Input.QUIT): _quit,
    (State.READY, Input.OVERDUE): _overdue,
    (State.READY, Input.DEADLINE): _ready_clock,
    (State.DRAINING, Input.FAILED): _note_failure,
    (State.DRAINING, Input.LEFT_QUEUE): _note_left_queue,
    (State.DRAINING, Input.RETIRE): _retire_sooner,
    (State.DRAINING, Input.QUIT): _quit,
    (State.DRAINING, Input.OVERDUE): _overdue_again,
    (State.DRAINING, Input.DEADLINE): _drain_clock,
    (State.LEAVING, Input.DEADLINE): _kill,
    (State.DUMPING, Input.LEFT_QUEUE): _note_left_queue,
    (State.DUMPING, Input.STACKS): _note_stacks,
    (State.DUMPING, Input.QUIT): _quit_dumping,
    (State.DUMPING, Input.DEADLINE): _dumped,
    (State.KILLED, Input.DEADLINE): _give_up,
}
HANDLED |= {(state, Input.EXITED): _exited for state in State if state not in (State.FORKING, State.GONE)}

# What comes too late to matter, or cannot come: named, so that a pair nobody thought of shows in a test.
_NEWS = {
    Input.READY,
    Input.BOOT_FAILED,
    Input.FAILED,
    Input.LEFT_QUEUE,
    Input.CHANNEL_LOST,
    Input.STACKS,
    Input.HALTED,
    Input.CONTINUED,
    Input.SPENT,
}
_BIRTH = {Input.ORDERED, Input.SPAWNED, Input.SPAWN_FAILED}
LATE: dict[State, set[Input]] = {
    State.FORKING: _NEWS | {Input.INVALID, Input.EXITED, Input.OVERDUE},
    State.STARTING: _BIRTH
    | {
        Input.FAILED,
        Input.LEFT_QUEUE,
        Input.STACKS,
        Input.HALTED,
        Input.CONTINUED,
        Input.SPENT,
        Input.OVERDUE,
    },
    State.READY: _BIRTH | {Input.READY, Input.BOOT_FAILED, Input.STACKS},
    State.DRAINING: _BIRTH | _NEWS - {Input.FAILED, Input.LEFT_QUEUE},
    State.LEAVING: _BIRTH | _NEWS | {Input.RETIRE, Input.QUIT, Input.OVERDUE},
    State.DUMPING: _BIRTH | _NEWS - {Input.LEFT_QUEUE, Input.STACKS} | {Input.RETIRE, Input.OVERDUE},
    State.KILLED: _BIRTH | _NEWS | {Input.INVALID, Input.RETIRE, Input.QUIT, Input.OVERDUE},
    State.GONE: set(Input),
}
TABLE = HANDLED | {(state, event): _ignore for state, events in LATE.items() for event in events}
