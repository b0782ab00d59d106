"""A worker as the master holds it: its process, its channel, its row of the scoreboard."""

from __future__ import annotations

import os
import socket
import time
from typing import ClassVar

import msgspec

from prefork.config.schema import Pool
from prefork.log import Identity
from prefork.master.stacks import readable
from prefork.scoreboard import Board, Snapshot
from prefork.system import process, tree
from prefork.system.process import Child

# More than this of a worker's stacks is not kept: faulthandler writes at most 100 frames for each thread.
MAX_STACKS = 262144
READ_SIZE = 65536


class Charge(msgspec.Struct):
    """One worker.

    Attributes:
        birth: by which the supervisor knows it.
        stacks_read: what its stacks arrive on.
        files: the names of the log and the access log that it writes to.
        stacks: what has arrived since they were last asked for.
        born: when it was forked, on the monotonic clock.
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

    @property
    def identity(self) -> Identity:
        """Return by what people know it."""
        return Identity(f"{self.pool.name}/{self.slot}", self.child.pid, self.generation)

    @property
    def age(self) -> float:
        """Return for how many seconds it has existed."""
        return time.monotonic() - self.born

    def snapshot(self) -> Snapshot:
        """Return what it says of itself in the scoreboard."""
        return self.board.read(self.row)

    def memory(self) -> int:
        """Return its resident memory in bytes, 0 if that cannot be known; of a program, that of all its processes."""
        if self.pool.kind == "command":
            return tree.memory_below(self.child.pid)
        return process.resident_memory(self.child.pid) or 0

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
