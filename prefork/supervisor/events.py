"""What happened: everything that the supervisor is ever told. A worker is named by its birth, never by its pid."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from prefork.config.listeners import Key
from prefork.config.schema import Config


class Clock(Enum):
    """The four clocks that can strike a worker; the values are their keys in the configuration."""

    BOOT = "boot_timeout"
    STALL = "stall_timeout"
    REQUEST = "request_timeout"
    GRACEFUL = "graceful_timeout"


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: its exit code, or the name of the signal, and whether the kernel's OOM killer struck.

    ``status`` is what a shell makes of it: the code, or 128 and the signal's number.
    """

    code: int | None = None
    signal: str | None = None
    oom: bool = False
    status: int = 0


class Pulse(msgspec.Struct, frozen=True):
    """An armed deadline as the scoreboard shows it: which clock, by when, and for what (``GET /report``)."""

    birth: int
    clock: Clock
    since: float
    deadline: float
    what: str = ""


class Sighting(msgspec.Struct, frozen=True):
    """What a worker is like.

    Attributes:
        memory: its resident size in bytes; 0: unknown.
        busy_time: for how many seconds of its life it could take no further request.
        served: how many requests it has served.
        has_in_flight: whether it is at work.
        is_full: whether it can take no further connection, or request, right now.

    """

    birth: int
    memory: int = 0
    busy_time: float = 0.0
    served: int = 0
    has_in_flight: bool = False
    is_full: bool = False


# What people ask for.


class Boot(msgspec.Struct, frozen=True):
    """The server starts with this configuration; its listeners are bound."""

    config: Config


class Resume(msgspec.Struct, frozen=True):
    """The server goes on in a new program; ``past`` is what the supervisor of the old one has told of itself."""

    past: dict[str, Any]


class Reload(msgspec.Struct, frozen=True):
    """A new configuration is to replace the present one; the listeners it adds are bound.

    Attributes:
        only: the pools that are rolled out, if not all; in ``config`` the others are as they were.
        forced: pools that are replaced even if they keep their workers while nothing has changed.

    """

    config: Config
    only: frozenset[str] | None = None
    forced: frozenset[str] = frozenset()

    def joined(self, only: frozenset[str] | None, forced: frozenset[str]) -> Reload:
        """Return this with what an earlier one was to roll out, which it takes the place of."""
        both = None if self.only is None or only is None else self.only | only
        return Reload(self.config, both, self.forced | forced)


class Scale(msgspec.Struct, frozen=True):
    """A pool is to have this many workers; with 0 it is stopped until it is scaled again."""

    pool: str
    workers: int


class Shift(msgspec.Struct, frozen=True):
    """The first pool of the file is to have so many workers more, or fewer."""

    by: int


class Rest(msgspec.Struct, frozen=True):
    """All workers are to drain, the master stays; a reload brings them back."""


class Stop(msgspec.Struct, frozen=True):
    """The server is to end: gracefully, or now. A second one means now."""

    now: bool = False


# What processes do.


class Ordered(msgspec.Struct, frozen=True):
    """The worker's template is to fork it."""

    birth: int


class Spawned(msgspec.Struct, frozen=True):
    """The worker exists."""

    birth: int
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True):
    """The operating system would not make the worker, or its template could not."""

    birth: int
    reason: str
    traceback: str = ""


class Ready(msgspec.Struct, frozen=True):
    """The worker has loaded its handler and accepts; ``memory`` is what it has by then, 0 if that is of no interest."""

    birth: int
    memory: int = 0


class BootFailed(msgspec.Struct, frozen=True):
    """The worker cannot load its handler, and is about to exit."""

    birth: int
    reason: str
    traceback: str = ""


class Failed(msgspec.Struct, frozen=True):
    """The worker's work has failed, and it is about to exit."""

    birth: int
    reason: str
    traceback: str = ""


class LeftQueue(msgspec.Struct, frozen=True):
    """The worker accepts no more; nobody may have asked it to."""

    birth: int


class ChannelLost(msgspec.Struct, frozen=True):
    """The worker lives but cannot be talked to any more."""

    birth: int


class Invalid(msgspec.Struct, frozen=True):
    """What the worker wrote or sent cannot be true: its process is broken, or taken over."""

    birth: int
    reason: str


class StacksRead(msgspec.Struct, frozen=True):
    """A piece of the worker's stacks has arrived."""

    birth: int


class Halted(msgspec.Struct, frozen=True):
    """The worker was stopped by a job-control signal."""

    birth: int


class Continued(msgspec.Struct, frozen=True):
    """The worker goes on after having been halted."""

    birth: int


class Spent(msgspec.Struct, frozen=True):
    """The worker has had enough of something (``max_requests 1,003``) and is to be recycled."""

    birth: int
    enough: str


class Exited(msgspec.Struct, frozen=True):
    """The worker is dead and reaped."""

    birth: int
    exit: Exit


class Knocked(msgspec.Struct, frozen=True):
    """A client waits at a listener of a pool that has no workers."""

    address: Key


class Busy(msgspec.Struct, frozen=True):
    """A worker has armed a deadline while nobody was looking at the scoreboard."""


class Looked(msgspec.Struct, frozen=True):
    """What was seen: every deadline that is armed, workers whose pool wants more to be known of them, and invalid rows."""

    pulses: tuple[Pulse, ...]
    sightings: tuple[Sighting, ...] = ()
    queues: dict[str, int] = {}  # how many clients wait to be accepted, by pool, of those that scale
    invalid: tuple[Invalid, ...] = ()


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time has passed."""


WorkerEvent = (
    Ordered
    | Spawned
    | SpawnFailed
    | Ready
    | BootFailed
    | Failed
    | LeftQueue
    | ChannelLost
    | Invalid
    | StacksRead
    | Halted
    | Continued
    | Spent
    | Exited
)
Event = Boot | Resume | Reload | Scale | Shift | Rest | Stop | Knocked | Busy | Looked | Tick | WorkerEvent
