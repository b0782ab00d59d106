"""A worker as the master holds it: its process, its channel, its row of the scoreboard."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import msgspec

from prefork.config.schema import TEMPLATE, Pool
from prefork.log import Identity
from prefork.master.stacks import readable
from prefork.scoreboard import Board, Snapshot
from prefork.supervisor.actions import Spawn
from prefork.system import process, tree
from prefork.system.process import Child
from prefork.worker import channel
from prefork.worker.farewell import Farewell

# More than this of a worker's stacks is not kept: faulthandler writes at most 100 frames for each thread.
MAX_STACKS = 262144
READ_SIZE = 65536
MAX_DETACHED = 1000


class Charge(msgspec.Struct):
    """One worker, or a template, whose slot is TEMPLATE.

    Attributes:
        birth: by which the supervisor knows it.
        stacks_read: what its stacks arrive on.
        files: the names of the log and the access log that it writes to.
        stacks: what has arrived since they were last asked for.
        born: when it was forked, on the monotonic clock.
        detached: the processes that are not to be ended with it: when each began, by its pid.
        farewell: what its hook ``ended`` is called by, if it has one.
        peak_memory: its largest resident size in bytes, or its program's, known once it is dead.

    """

    DESCRIPTORS: ClassVar = ("stacks_read",)

    birth: int
    pool: Pool
    slot: int
    generation: int
    child: Child
    channel: socket.socket
    board: Board
    row: int
    stacks_read: int
    files: tuple[str, str]
    stacks: bytearray = msgspec.field(default_factory=bytearray)
    born: float = msgspec.field(default_factory=time.monotonic)
    peak_memory: int = 0
    detached: dict[int, int] = msgspec.field(default_factory=dict)
    farewell: Farewell | None = None

    @property
    def identity(self) -> Identity:
        """Return by what people know it."""
        return Identity(self.pool.place(self.slot), self.child.pid, self.generation)

    @property
    def age(self) -> float:
        """Return for how many seconds it has existed."""
        return time.monotonic() - self.born

    @property
    def grace(self) -> float:
        """Return for how many seconds it may go on without a master: nothing is in flight in a template."""
        return 0.0 if self.slot == TEMPLATE else self.pool.graceful_timeout

    def snapshot(self) -> Snapshot:
        """Return what it says of itself in the scoreboard."""
        return self.board.read(self.row)

    @property
    def stacks_inode(self) -> int:
        """Return which of all pipes is that for its stacks."""
        return os.fstat(self.stacks_read).st_ino

    def memory(self) -> int:
        """Return its resident memory in bytes, 0 if that cannot be known; of a program, that of all its processes.

        What it shares with its template is not its own, and would not be freed with it.
        """
        if self.pool.kind == "command":
            return tree.memory_below(self.child.pid)
        if self.pool.preload and self.slot != TEMPLATE:
            return process.private_memory(self.child.pid) or process.resident_memory(self.child.pid) or 0
        return process.resident_memory(self.child.pid) or 0

    def detach(self, pid: int, began: int) -> None:
        """Note that a process below it is not to be ended with it; a worker that names too many has the first ones forgotten."""
        note_detached(self.detached, pid, began)

    def kill(self) -> None:
        """Kill it, with all that it has started; it is halted first, so that it starts nothing meanwhile."""
        if self.pool.kind == "command":
            self.peak_memory = tree.peak_below(self.child.pid)
        else:
            self.child.send_signal(signal.SIGSTOP)
        tree.kill_below(self.child.pid, self.detached)
        self.child.send_signal(signal.SIGKILL)

    def read_stacks(self) -> bool:
        """Take in what has arrived of its stacks; return False at the end of file."""
        if self.stacks_read < 0:
            return False
        try:
            data = os.read(self.stacks_read, READ_SIZE)
        except BlockingIOError:
            return True
        self.stacks += data[: MAX_STACKS - len(self.stacks)]
        return bool(data)

    def stacks_text(self) -> str:
        """Return its stacks, all that has arrived, for people."""
        size = -1
        while size < len(self.stacks) < MAX_STACKS:
            size = len(self.stacks)
            self.read_stacks()
        return readable(self.stacks.decode("utf-8", "replace"))

    def close(self) -> None:
        """Give back what the master held of it."""
        self.child.close()
        self.channel.close()
        os.close(self.stacks_read)
        self.stacks_read = -1  # who still gathers its stacks would read of whoever has this number next
        self.board.release(self.row)


def note_detached(detached: dict[int, int], pid: int, began: int) -> None:
    """Note a process that its worker has detached; of too many the first ones are forgotten."""
    detached[pid] = began
    if len(detached) > MAX_DETACHED:
        del detached[next(iter(detached))]


class Means(msgspec.Struct, frozen=True):
    """What master and worker share: a row of the scoreboard, and both ends of the channel and of the stacks' pipe."""

    row: int
    ours: socket.socket
    theirs: socket.socket
    stacks_read: int
    stacks_write: int


@contextmanager
def shared(board: Board) -> Iterator[Means]:
    """Make what master and worker share, until the worker has its part; if it does not get it, give all of it back.

    Raises OSError, and IndexError when the board is full.
    """
    with ExitStack() as masters, ExitStack() as workers:
        row = board.claim()
        masters.callback(board.release, row)
        ours, theirs = channel.pair()
        masters.callback(ours.close)
        workers.callback(theirs.close)
        stacks_read, stacks_write = os.pipe()
        masters.callback(os.close, stacks_read)
        workers.callback(os.close, stacks_write)
        os.set_blocking(stacks_read, False)
        yield Means(row, ours, theirs, stacks_read, stacks_write)
        masters.pop_all()


def charge_of(spawn: Spawn, child: Child, board: Board, means: Means, files: tuple[str, str]) -> Charge:
    """Return a worker as the master holds it from its birth on; ``files`` are those that it logs to."""
    place = spawn.birth, spawn.pool, spawn.slot, spawn.generation
    return Charge(*place, child, means.ours, board, means.row, means.stacks_read, files)
