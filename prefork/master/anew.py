"""Workers that run as another user execute Python anew, instead of going on as a copy of the master.

A copy has all that the master has in its memory: the settings of the other pools, their passwords in ``env``, and the keys
of their certificates. Another program has what it is given: here its pool's own settings and certificates, in memory that
is closed once it is read, and the descriptors that the pool's workers share with the master.

The program is read from the disk again. Where that is not possible, or would not be the same program, the worker is forked
as a copy all the same: a server that goes on is worth more, and the log says what it costs.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

import prefork
from prefork.log import STDERR, logger
from prefork.system import process
from prefork.worker.main import has_name
from prefork.worker.post import Post

# Read by prefork/executed.py, in a process whose sys.path is that of the master until its pool's takes its place.
PROGRAM = "import sys; sys.path[:] = {path!r}; from prefork.executed import main; main({memory})"
COST = "its memory holds the settings and keys of the other pools"


def _identity() -> tuple[int, int, int] | None:
    """Return what changes when another version of prefork is installed in the place of this one."""
    try:
        found = os.stat(prefork.__file__)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


_OWN = _identity()


def is_wanted(post: Post) -> bool:
    """Tell whether a worker is to execute its program anew: it runs Python as another user, and code that has a name."""
    return post.account is not None and post.pool.kind != "command" and has_name(post.pool)


def run(post: Post, files: Mapping[str, bytes], otherwise: Callable[[Post], NoReturn]) -> NoReturn:
    """Be a worker, or a template, in a process that the master has just forked. Never returns.

    Args:
        post: the worker's.
        files: the contents of its certificates and keys, by their paths.
        otherwise: what it is if it cannot be executed.

    """
    reason = _execute(post, files) if _identity() == _OWN else "prefork was replaced on the disk"
    logger.warning(
        "pool %s: a worker cannot execute its program anew: %s; %s; prefork upgrade may help",
        post.pool.name,
        reason,
        COST,
    )
    otherwise(post)


def _loaded() -> list[str]:
    """Return which modules of the standard library the master has: the worker's user may not be able to read any."""
    return [name for name in sys.modules if name.partition(".")[0] in sys.stdlib_module_names - {"__main__"}]


def _execute(post: Post, files: Mapping[str, bytes]) -> str:
    """Become the new program; return why that is not possible."""
    board = post.board
    if board.descriptor is None:
        return "this system has no memfd_create(2)"
    listeners = [listener.fileno() for listener in post.listeners]
    given = {
        **{name: getattr(post, name) for name in post.__struct_fields__},
        "board": (board.rows, board.lanes, board.descriptor),
        "listeners": listeners,
        "channel": post.channel.fileno(),
        "contexts": [post.pool.tls_at(listen) for listen in post.pool.listen],
    }
    try:
        memory = os.memfd_create("prefork-worker")
        with open(memory, "wb", closefd=False) as file:
            pickle.dump((given, dict(files), _loaded()), file)
        logs = [number for number in post.outlets.descriptors() if number > STDERR]
        shared = [memory, board.descriptor, post.channel.fileno(), post.stacks, *listeners, *logs]
        program = PROGRAM.format(path=sys.path, memory=memory)
        process.replace((*process.interpreter(), "-c", program), dict(os.environ), shared)
    except OSError as error:
        return error.strerror or str(error)
