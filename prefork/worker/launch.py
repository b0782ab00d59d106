"""From a worker to the program that it runs: the list of what its process does between fork and exec."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import NoReturn

from prefork.errors import BootError, CommandError
from prefork.handlers.command import FIRST_LISTENER, environment
from prefork.log import Identity, logger
from prefork.system import cgroup, process, signals, tree
from prefork.system.process import Child
from prefork.worker.main import prepare
from prefork.worker.post import Post
from prefork.worker.settle import settle_in

READ_SIZE = 4096


def cgroup_of(above: str | None, identity: Identity) -> str | None:
    """Return the cgroup of a worker's program, below that of all programs; None if there is none."""
    return above and f"{above}/{identity.name.replace('/', '.')}-{identity.pid}"


def launch(post: Post, output: int, notify: str | None, identity: Identity) -> Child:
    """Start the program of a worker and return its process, once it is executed.

    Args:
        post: the worker's.
        output: where the program is to print.
        notify: the address for sd_notify(3), if it is to say itself that it is ready.
        identity: the worker's.

    Raises BootError if it cannot be executed.

    """
    parent = os.getpid()
    report, reported = os.pipe()

    def run() -> NoReturn:
        _enter(cgroup_of(post.cgroup, identity))
        reported_at = reported
        try:
            reported_at = _arrange(post, output, reported)
            _execute(post, parent, notify, str(identity))
        except BootError as error:
            os.write(reported_at, error.sentence.encode("utf-8", "replace")[:READ_SIZE])
        os._exit(BootError.exit_code)

    try:
        child = process.fork(run)
    except OSError as error:
        raise BootError(f"cannot fork: {error.strerror}") from error
    finally:
        os.close(reported)
    with open(report, "rb") as pipe:
        failure = pipe.read(READ_SIZE).decode(
            "utf-8", "replace"
        )  # ends with the exec: the pipe is closed on it
    if failure:
        process.wait_for(child.pid)
        raise BootError(failure)
    return child


def _enter(path: str | None) -> None:
    """Move this process into the program's cgroup, before it drops the right to do so, and before anything is forked."""
    try:
        if path is not None:
            cgroup.enter(path)
    except OSError as error:
        logger.warning("its program has no cgroup of its own, %s: %s", path, error.strerror)


def _arrange(post: Post, output: int, report: int) -> int:
    """Put each descriptor where the program expects it, and return where ``report`` is then.

    All others are closed by the exec. First all are moved out of the way: any of them may have a number that another
    one is to get.
    """
    try:
        null = process.open_null(os.O_RDONLY)
    except CommandError as error:
        raise BootError(error.message, error.hint) from error
    sources = [null, output, output, *(sock.fileno() for sock in post.listeners)]
    free = FIRST_LISTENER + len(post.listeners)
    moved = [_moved(source, free) for source in sources]
    kept = _moved(report, free)
    for number, source in enumerate(moved):
        os.dup2(source, number)
    return kept


def _moved(descriptor: int, lowest: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)


def _execute(post: Post, parent: int, notify: str | None, mark: str) -> NoReturn:
    os.setsid()
    settle_in(post.pool, post.master, post.account, post.path)
    path = prepare(post.pool)
    assert post.pool.command is not None
    own = environment(os.environ, post.pool, post.slot, post.generation, notify, mark)
    tree.die_with(parent)
    signals.reset_for_program()
    try:
        process.execute(path, post.pool.command, own)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BootError(f"cannot run {path!r}: {reason}{_explanation(error, path)}") from error


def _explanation(error: OSError, path: str) -> str:
    """Return what execve(2) means by an error that is not about the file itself."""
    if isinstance(error, FileNotFoundError) and os.path.exists(path):
        return " for the interpreter or dynamic loader that it names"
    if error.errno == errno.ENOEXEC:
        return "; it is no program of this machine, and no script whose first line names its interpreter (#!/bin/sh)"
    return ""
