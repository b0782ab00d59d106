"""What is to be done about it: everything that the supervisor ever asks for. The master performs each in one function."""

from __future__ import annotations

from dataclasses import dataclass

from prefork.config.listeners import Key
from prefork.config.schema import Config, Pool
from prefork.supervisor.events import Clock, Exit


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker. Answered by Spawned or SpawnFailed before the next action is performed."""

    birth: int
    pool: Pool
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell a worker to leave the queue (emptied first, if nobody comes after it), finish, and exit."""

    birth: int
    grace: float
    empty_queue: bool


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send SIGTERM to a worker that cannot be talked to; it means drain."""

    birth: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell a worker to exit at once."""

    birth: int


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Have a worker write the stacks of all its threads. Pieces are answered by StacksRead."""

    birth: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to a worker."""

    birth: int


@dataclass(frozen=True, slots=True)
class Strike:
    """Log that a worker's clock has struck, with both sides of the broken limit."""

    birth: int
    clock: Clock
    ran: float
    limit: float
    what: str = ""


@dataclass(frozen=True, slots=True)
class Bury:
    """Write the record of a worker's end. ``expected`` if it had been told to go and went as told."""

    birth: int
    exit: Exit
    cause: str
    expected: bool


@dataclass(frozen=True, slots=True)
class Look:
    """Read the scoreboard. Answered by Looked."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Let workers know whether somebody looks at the scoreboard by itself, or has to be woken."""

    on: bool


@dataclass(frozen=True, slots=True)
class ShutDoors:
    """Let no new client into the queues of these listeners; who waits there already is still served."""

    addresses: frozenset[Key]


@dataclass(frozen=True, slots=True)
class KeepListeners:
    """Close all listeners but these."""

    addresses: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Adopt:
    """From now on this configuration counts."""

    config: Config
    generation: int


@dataclass(frozen=True, slots=True)
class EndRollout:
    """Tell whoever waits how the rollout of a generation went; ``reason`` is None if it went well."""

    generation: int
    reason: str | None = None
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Tell:
    """Log a line about a pool or the server, and show it to whoever waits for a reload or a stop."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The server is over. ``reason`` is given where it could not start."""

    code: int
    reason: str | None = None
    traceback: str = ""


Action = (
    Spawn
    | Drain
    | Terminate
    | Leave
    | DumpStacks
    | Kill
    | Strike
    | Bury
    | Look
    | Watch
    | ShutDoors
    | KeepListeners
    | Adopt
    | EndRollout
    | Tell
    | End
)
