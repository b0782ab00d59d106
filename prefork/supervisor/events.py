"""What happened: everything that the supervisor is ever told. A worker is named by its birth, never by its pid."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from prefork.config.schema import Config


class Clock(Enum):
    """The four clocks that can strike a worker; the values are their keys in the configuration."""

    BOOT = "boot_timeout"
    STALL = "stall_timeout"
    REQUEST = "request_timeout"
    GRACEFUL = "graceful_timeout"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its exit code, or the name of the signal, and whether the kernel's OOM killer struck."""

    code: int | None = None
    signal: str | None = None
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Pulse:
    """An armed deadline as the scoreboard shows it: which clock, by when, and for what (``GET /report``)."""

    birth: int
    clock: Clock
    since: float
    deadline: float
    what: str = ""


# What people ask for.


@dataclass(frozen=True, slots=True)
class Boot:
    """The server starts with this configuration; its listeners are bound."""

    config: Config


@dataclass(frozen=True, slots=True)
class Reload:
    """A new configuration is to replace the present one; the listeners it adds are bound."""

    config: Config


@dataclass(frozen=True, slots=True)
class Scale:
    """A pool is to have this many workers."""

    pool: str
    workers: int


@dataclass(frozen=True, slots=True)
class Shift:
    """The first pool of the file is to have so many workers more, or fewer."""

    by: int


@dataclass(frozen=True, slots=True)
class Rest:
    """All workers are to drain, the master stays; a reload brings them back."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The server is to end: gracefully, or now. A second one means now."""

    now: bool = False


# What processes do.


@dataclass(frozen=True, slots=True)
class Spawned:
    """The worker exists."""

    birth: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The operating system would not make the worker."""

    birth: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has loaded its handler and accepts."""

    birth: int


@dataclass(frozen=True, slots=True)
class BootFailed:
    """The worker cannot load its handler, and is about to exit."""

    birth: int
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class LeftQueue:
    """The worker accepts no more; nobody may have asked it to."""

    birth: int


@dataclass(frozen=True, slots=True)
class ChannelLost:
    """The worker lives but cannot be talked to any more."""

    birth: int


@dataclass(frozen=True, slots=True)
class StacksRead:
    """A piece of the worker's stacks has arrived."""

    birth: int


@dataclass(frozen=True, slots=True)
class Halted:
    """The worker was stopped by a job-control signal."""

    birth: int


@dataclass(frozen=True, slots=True)
class Continued:
    """The worker goes on after having been halted."""

    birth: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker is dead and reaped."""

    birth: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Busy:
    """A worker has armed a deadline while nobody was looking at the scoreboard."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the scoreboard showed: every deadline that is armed."""

    pulses: tuple[Pulse, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


WorkerEvent = (
    Spawned
    | SpawnFailed
    | Ready
    | BootFailed
    | LeftQueue
    | ChannelLost
    | StacksRead
    | Halted
    | Continued
    | Exited
)
Event = Boot | Reload | Scale | Shift | Rest | Stop | Busy | Looked | Tick | WorkerEvent
