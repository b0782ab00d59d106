"""A process becomes what its pool says: limits, privileges, directory. Before the user's code, whatever the kind.

Limits and priorities come first, while root may still raise them; whoever runs as somebody else does so before the
first line of the user's code. It all happens before the process has a second thread: Linux keeps priority, CPUs and
no_new_privs per thread, and threads inherit them from the one that starts them.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from prefork.config.schema import Folder, Limits, Master, Pool
from prefork.errors import BootError
from prefork.handlers.body import MEMORY
from prefork.log import logger
from prefork.system import limits, privileges, process
from prefork.system.privileges import Account
from prefork.worker import bytecode

# Descriptors that a worker needs beside its connections: listeners, channel, log, files of the application.
OTHER_DESCRIPTORS = 256

Step = tuple[str, object, Callable[[], object]]


def settle_in(pool: Pool, master: Master, account: Account | None, path: tuple[Folder, ...]) -> None:
    """Be what a pool's workers are.

    ``account`` is whom to run as, None for whom the master runs as; ``path`` follows the pool's own folders on sys.path.

    Raises BootError that names the key whose value this system does not accept.
    """
    for key, value, step in _steps(pool, master, account, path):
        try:
            step()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            reason = reason[:1].lower() + reason[1:]
            raise BootError(f"{key} = {value} is not possible here: {reason}") from error
    os.environ.update(pool.env)
    time.tzset()  # the C library has read TZ before
    # Forked from one master all workers would draw the same numbers.
    random.seed()


def _steps(pool: Pool, master: Master, account: Account | None, path: tuple[Folder, ...]) -> Iterator[Step]:
    """Yield what is to be done, in the order that matters: a key, its value, and a function."""
    umask = master.umask if pool.umask is None else pool.umask
    if umask is not None:
        yield "umask", f"{umask:04o}", partial(os.umask, umask)
    yield from _limits(pool)
    if pool.nice is not None:
        yield "nice", pool.nice, partial(limits.set_nice, pool.nice)
    if pool.cpu_affinity:
        yield "cpu_affinity", list(pool.cpu_affinity), partial(limits.pin, pool.cpu_affinity)
    if pool.no_new_privs:
        yield "no_new_privs", "true", privileges.gain_no_more
    if account is not None:
        yield "user, group", account, partial(privileges.drop_to, account)
        if pool.limits.core:
            yield "limits.core", pool.limits.core, privileges.allow_core_dumps
    start = pool.release.start
    folder = find(start)
    if folder != start.real:
        logger.warning("%s has been deleted; starting in %s, which %s is now", start.real, folder, start.name)
    yield "directory", folder, partial(os.chdir, folder)
    yield "directory", folder, partial(_import_from, (*pool.release.imports, *path))
    bytecode.check_in([find(each) for each in pool.release.imports])


def descriptors_of(pool: Pool) -> int:
    """Return how many descriptors a worker needs: a request whose body is in a file has two (handlers/body.py)."""
    has_files = pool.kind == "wsgi" and pool.http.max_body > MEMORY
    return pool.max_connections * (2 if has_files else 1) + OTHER_DESCRIPTORS


def _limits(pool: Pool) -> Iterator[Step]:
    if pool.limits.nofile is None and pool.kind != "command":  # whose connections are its own affair
        limit = partial(process.raise_descriptor_limit, descriptors_of(pool))
        yield "max_connections", pool.max_connections, limit
    for field in msgspec.structs.fields(Limits):
        amount = getattr(pool.limits, field.name)
        if amount is not None:
            written = limits.write_limit(amount)
            yield f"limits.{field.encode_name}", written, partial(limits.set_limit, field.encode_name, amount)


def _import_from(folders: tuple[Folder, ...]) -> None:
    """Let modules be found in these folders, in this order, and nowhere else."""
    sys.path[:] = dict.fromkeys(map(find, folders))


def find(folder: Folder) -> str:
    """Return where a folder of a release is: by the path that it had when its generation began.

    If that has been deleted, as old releases are, what its name means now is better than no worker at all.
    """
    return folder.real if not folder.name or os.path.lexists(folder.real) else os.path.realpath(folder.name)
