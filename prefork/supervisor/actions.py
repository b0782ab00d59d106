"""What is to be done about it: everything that the supervisor ever asks for. The master performs each in one function."""

from __future__ import annotations

import msgspec

from prefork.config.listeners import Key
from prefork.config.schema import Config, Pool
from prefork.supervisor.events import Clock, Exit


class Spawn(msgspec.Struct, frozen=True):
    """Fork a worker, or with the slot TEMPLATE the template of its pool and generation.

    Answered by Spawned or SpawnFailed before the next action is performed; or by Ordered, if a template forks the
    worker, and by one of the two later.
    """

    birth: int
    pool: Pool
    slot: int
    generation: int
    max_requests: int = 0  # the pool's with this worker's jitter; 0: none


class Disown(msgspec.Struct, frozen=True):
    """Wait no longer for a worker that its template was to fork: if it is not born yet, its spawn has failed, for a reason.

    Should it be born after that, it leaves before it serves anybody.
    """

    birth: int
    reason: str


class Drain(msgspec.Struct, frozen=True):
    """Tell a worker to leave the queue (emptied first, if nobody comes after it), finish, and exit."""

    birth: int
    grace: float
    empty_queue: bool


class LookAgain(msgspec.Struct, frozen=True):
    """Tell a worker to look at its listeners: another one has died, perhaps between its wake-up and its accept."""

    birth: int


class Terminate(msgspec.Struct, frozen=True):
    """Send SIGTERM to a worker that cannot be talked to; it means drain."""

    birth: int


class Leave(msgspec.Struct, frozen=True):
    """Tell a worker to exit at once."""

    birth: int


class DumpStacks(msgspec.Struct, frozen=True):
    """Have a worker write the stacks of all its threads. Pieces are answered by StacksRead."""

    birth: int


class Kill(msgspec.Struct, frozen=True):
    """Send SIGKILL to a worker."""

    birth: int


class Strike(msgspec.Struct, frozen=True):
    """Log that a worker's clock has struck, with both sides of the broken limit."""

    birth: int
    clock: Clock
    ran: float
    limit: float
    what: str = ""


class Bury(msgspec.Struct, frozen=True):
    """Write the record of a worker's end. ``expected`` if it had been told to go and went as told."""

    birth: int
    exit: Exit
    cause: str
    expected: bool


class Look(msgspec.Struct, frozen=True):
    """Read the scoreboard. Answered by Looked."""


class Watch(msgspec.Struct, frozen=True):
    """Let workers know whether somebody looks at the scoreboard by itself, or has to be woken."""

    on: bool


class ShutDoors(msgspec.Struct, frozen=True):
    """Let no new client into the queues of these listeners; who waits there already is still served."""

    addresses: frozenset[Key]


class AwaitClients(msgspec.Struct, frozen=True):
    """Watch these listeners, and no others, for clients. Answered by Knocked when one waits."""

    addresses: frozenset[Key]


class KeepListeners(msgspec.Struct, frozen=True):
    """Close all listeners but these."""

    addresses: frozenset[Key]


class Adopt(msgspec.Struct, frozen=True):
    """From now on this configuration counts."""

    config: Config
    generation: int


class EndRollout(msgspec.Struct, frozen=True):
    """Tell whoever waits how the rollout of a generation went; ``reason`` is None if it went well."""

    generation: int
    reason: str | None = None
    traceback: str = ""
    hint: str | None = None


class Tell(msgspec.Struct, frozen=True):
    """Log a line about a pool or the server, and show it to whoever waits for a reload or a stop."""

    level: str
    text: str


class End(msgspec.Struct, frozen=True):
    """The server is over. ``reason`` is given where it could not start."""

    code: int
    reason: str | None = None
    traceback: str = ""


Action = (
    Spawn
    | Disown
    | Drain
    | LookAgain
    | Terminate
    | Leave
    | DumpStacks
    | Kill
    | Strike
    | Bury
    | Look
    | Watch
    | ShutDoors
    | AwaitClients
    | KeepListeners
    | Adopt
    | EndRollout
    | Tell
    | End
)
