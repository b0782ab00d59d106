"""How a worker, or a template, leaves in the middle of whatever it does; and whom it leaves behind."""

from __future__ import annotations

import os
from collections.abc import Container
from typing import NoReturn

from prefork.handlers.command import MARK
from prefork.log import Identity
from prefork.system import stdio, tree
from prefork.system.tree import Spared

# A quick stop gives a worker a second (QUICK in supervisor/worker.py).
FLUSH_TIME = 0.25
# Who goes on when this process is ended: when each of them began, by its pid.
_detached: dict[int, int] = {}


def leave(code: int) -> NoReturn:
    """End this process at once, from any of its threads, with all that it has started: nothing of the application's is called.

    What multiprocessing would do at an end, to end its processes, is not done then either.
    """
    stdio.flush_within(FLUSH_TIME)
    tree.kill_below(os.getpid(), _detached)
    os._exit(code)


def detach(pid: int) -> int:
    """Let a process live on when this one is ended; return when it began. Raises ProcessLookupError if there is none."""
    began = tree.began(pid)
    if began is None:
        raise ProcessLookupError(f"there is no process {pid}")
    _detached[pid] = began
    return began


def end_orphans(root: int, identity: Identity, stacks: int, known: Container[int], spared: Spared) -> None:
    """Kill what a worker has started and left behind, once it is dead: the process ``root`` has it by now.

    ``stacks`` is the inode of the pipe for its stacks, which its copies can write to, and no other process; ``known``
    are children of ``root`` that need not be looked at, ``spared`` those that the worker has detached.
    """
    tree.kill_orphans(root, known, f"{MARK}={identity}", stacks, spared)
