"""What the master gives to a worker: everything that the two share, and what the worker has to be."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from prefork.config.schema import TEMPLATE, Folder, Log, Master, Pool
from prefork.log import Outlets
from prefork.scoreboard import Board
from prefork.system.privileges import Account

if TYPE_CHECKING:
    import ssl


class Post(msgspec.Struct, frozen=True):
    """The place and means of a worker, or of a template, whose slot is TEMPLATE.

    Attributes:
        pool, slot, generation: its place.
        master, log: the configuration of the whole server.
        hooks: the name of the module with the hooks, if there is one.
        path: what comes on its sys.path behind the folders of its pool.
        parent: the master's pid.
        account: whom to run as, or None for whom the master runs as.
        board, row: its row of the scoreboard.
        listeners: the pool's listening sockets.
        inherited: the descriptors of those that somebody else has passed to the server, and that are never shut.
        contexts: the certificates of those that speak TLS, by their descriptors.
        channel: the worker's end of the channel to the master.
        stacks: a descriptor for the stacks of its threads.
        outlets: where the logs go.
        cgroup: the one that holds those of all programs, if the server has one delegated to it.
        max_requests: after how many requests it is to be recycled; 0: never.

    """

    pool: Pool
    slot: int
    generation: int
    master: Master
    log: Log
    hooks: str | None
    path: tuple[Folder, ...]
    parent: int
    account: Account | None
    board: Board
    row: int
    listeners: tuple[socket.socket, ...]
    inherited: frozenset[int]
    contexts: Mapping[int, ssl.SSLContext]
    channel: socket.socket
    stacks: int
    outlets: Outlets
    cgroup: str | None = None
    max_requests: int = 0

    @property
    def files(self) -> tuple[str, str]:
        """Return the names of the log and of the access log."""
        return self.log.file, self.log.access

    def title(self, state: str) -> str:
        """Return what the process list shows."""
        name = self.pool.name
        role = f"template {name}" if self.slot == TEMPLATE else f"worker {name}/{self.slot}"
        return f"prefork: {role} gen={self.generation} [{state}]"
